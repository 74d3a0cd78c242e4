//! Ebbtide's own malloc: under `ebb run`, preloaded, or as a Rust program's allocator.
//!
//! It says where its books are, in a versioned block that begins with a magic; no symbol is needed. All is in
//! tables beside the memory, so every slot is seen, and nothing links through free memory: every whole free page
//! can be given back. `cached` is what lies in threads' magazines, and freed large blocks that wait to be unmapped.
//! `returnable_by_trim` is what its `malloc_trim` gives back: free pages, those that become free when the
//! magazines are emptied, and the waiting large blocks.
//!
//! Lua states that the preload library gave heaps are told in notes: how much they hold, how many pages share frames,
//! what the collector found while the program waited.
//!
//! The block's counters and the tables are two books of the same: where a process stands still and they disagree,
//! a note says so.

mod block;
mod chunk;
mod lua;
mod walk;

use crate::model::{Heap, Kind};
use crate::reader::Reader;
use crate::source::{Fault, MemorySource};
use block::Found;

/// Each Ebbtide malloc in the process; empty where there is none, or where it was never used.
pub fn find(source: &dyn MemorySource) -> Result<Vec<Heap>, Fault> {
    let mut reader = Reader::new(source);
    let mut heaps = Vec::new();
    for at in block::find(&mut reader)? {
        match block::read(&mut reader, at) {
            Ok(Found::Block(block)) => heaps.extend(walk::walk(source, at, &block)?),
            Ok(Found::Other(version)) => {
                let mut heap = Heap::new(Kind::Ebbtide);
                heap.certainty.still = source.is_still();
                heap.notes.push(format!(
                    "its statistics block has version {version}, this reads {}: nothing was counted",
                    block::VERSION
                ));
                heaps.push(heap);
            }
            Ok(Found::Nothing) | Err(Fault::Unmapped(_) | Fault::Swapped(_)) => {}
            Err(fault) => return Err(fault),
        }
    }
    Ok(heaps)
}
