//! mimalloc 2.0 as Debian 12 ships it (2.0.9; release builds: free lists are plain, blocks have no padding).
//!
//! Found by structure: segments begin at multiples of 32 MiB with their books (include/mimalloc-types.h, struct
//! mi_segment_s), which hold a cookie: the segment's address mixed with one number of the whole process
//! (_mi_ptr_cookie). Two segments must agree on that number, or one of them with the heap that its pages name.
//!
//! `live` are the blocks that the program holds; `cached` those that other threads freed and the owner has not taken
//! back yet; `free` those in the lists of pages, and spans of no page. The lists run through the free blocks, so a page
//! of memory that begins one cannot be dropped under them: `returnable` are the resident pages of free spans. What
//! mi_collect(true) returns is not foretold: it leaves the free spans of segments in use as they are (0 of 20 MiB,
//! measured on 2.0.9), and gives back segments that are empty.
//!
//! Not read: other releases (2.1 has other books), secure builds (encoded lists), which are not recognised.

mod books;
mod walk;

use crate::model::Heap;
use crate::reader::Reader;
use crate::source::{Fault, MemorySource};

/// mimalloc's heap in the process; none where it is not, or was never used.
pub fn find(source: &dyn MemorySource) -> Result<Vec<Heap>, Fault> {
    look(source, false)
}

/// As [`find`], with [`Heap::returnable_ranges`].
pub fn find_with_ranges(source: &dyn MemorySource) -> Result<Vec<Heap>, Fault> {
    look(source, true)
}

fn look(source: &dyn MemorySource, ranges: bool) -> Result<Vec<Heap>, Fault> {
    let segments = books::find(&mut Reader::new(source))?;
    if segments.is_empty() {
        return Ok(Vec::new());
    }
    walk::walk(source, &segments, ranges).map(|heap| vec![heap])
}
