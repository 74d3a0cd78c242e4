//! mimalloc 2.0 (2.0.9).
//!
//! Segments begin at multiples of 32 MiB with their books (include/mimalloc-types.h, struct mi_segment_s), which hold a
//! cookie: the segment's address mixed with one number of the whole process (_mi_ptr_cookie). Two segments must agree on
//! that number, or one of them with the heap that its pages name.
//!
//! What mi_collect(true) returns is not foretold: it leaves the free spans of segments in use as they are (0 of 20 MiB,
//! measured on 2.0.9), and gives back segments that are empty.

mod books;
mod walk;

use crate::model::Heap;
use crate::reader::Reader;
use crate::source::{Fault, MemorySource};

/// The heap, with its returnable pages if `ranges` says so.
pub(super) fn look(source: &dyn MemorySource, ranges: bool) -> Result<Option<Heap>, Fault> {
    let segments = books::find(&mut Reader::new(source))?;
    if segments.is_empty() { Ok(None) } else { walk::walk(source, &segments, ranges).map(Some) }
}
