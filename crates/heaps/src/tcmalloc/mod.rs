//! gperftools' tcmalloc, of builds with 8 KiB pages and 48-bit addresses (Debian's, and upstream's by default).
//!
//! Found by structure, so a stripped library and a program that it is linked into will do; see `books`. Every span
//! of the page map is seen. `live` is exactly the `generic.current_allocated_bytes` of a process that stands still,
//! `cached` its `tcmalloc.current_total_thread_cache_bytes`; `free` is the rest: transfer caches, central lists and
//! the page heap, with the spans that it already returned, which have nothing in memory. `returnable_by_trim` is
//! what `MallocExtension_ReleaseFreeMemory` gives back: spans of the page heap. The links of central lists lie in
//! the free objects, so a page that begins one is not returnable.

mod books;
mod chains;
mod lists;
mod walk;

use crate::model::Heap;
use crate::reader::Reader;
use crate::source::{Fault, MemorySource};

/// Each tcmalloc in the process; empty where there is none, or where it was never used.
pub fn find(source: &dyn MemorySource) -> Result<Vec<Heap>, Fault> {
    look(source, false)
}

/// As [`find`], and collects [`Heap::returnable_ranges`].
pub fn find_with_ranges(source: &dyn MemorySource) -> Result<Vec<Heap>, Fault> {
    look(source, true)
}

fn look(source: &dyn MemorySource, ranges: bool) -> Result<Vec<Heap>, Fault> {
    let mut heaps = Vec::new();
    for segment in books::segments(source.areas()) {
        if let Some(books) = books::find(&mut Reader::new(source), segment)? {
            heaps.extend(walk::walk(source, &books, ranges)?);
        }
    }
    Ok(heaps)
}
