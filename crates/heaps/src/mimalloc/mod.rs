//! mimalloc as Debian ships it: 2.0 of Debian 12 and 3.0 of Debian 13; Debian 11 has none. Release builds: free lists
//! are plain, blocks have no padding.
//!
//! Found by structure: see [`v2`] and [`v3`], whose books have nothing in common but the pages of blocks ([`pages`]).
//!
//! `live` are the blocks that the program holds; `cached` those that other threads freed and the owner has not taken
//! back yet; `free` those in the lists of pages, and memory of no page. The lists run through the free blocks, so a page
//! of memory that begins one cannot be dropped under them: `returnable` are the resident pages of free memory else.
//!
//! Not read: other releases (2.1 to 2.4 and 3.1 have other books), secure builds (encoded lists), which are not
//! recognised.

mod pages;
mod v2;
mod v3;

use crate::model::Heap;
use crate::source::{Fault, MemorySource};

/// mimalloc's heaps in the process, one for each release; none where it is not, or was never used.
pub fn find(source: &dyn MemorySource) -> Result<Vec<Heap>, Fault> {
    look(source, false)
}

/// As [`find`], with [`Heap::returnable_ranges`].
pub fn find_with_ranges(source: &dyn MemorySource) -> Result<Vec<Heap>, Fault> {
    look(source, true)
}

fn look(source: &dyn MemorySource, ranges: bool) -> Result<Vec<Heap>, Fault> {
    let mut heaps = Vec::from_iter(v2::look(source, ranges)?);
    heaps.extend(v3::look(source, ranges)?);
    Ok(heaps)
}
