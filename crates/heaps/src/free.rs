//! Free pages that an allocator's books name, without a walk over its heap.

use ebbtide_observe::page_size;
use std::ops::Range;

/// What a part of an allocator's books was found to hold.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Free {
    /// The whole pages of its free chunks, resident or not.
    pub pages: Vec<Range<u64>>,
    /// Whether it was read to the end.
    pub is_all: bool,
}

impl Free {
    /// The whole pages of the free chunk `chunk`, but for those with the first `links` bytes, which the allocator reads.
    pub(crate) fn add(&mut self, chunk: Range<u64>, links: u64) {
        let page = page_size().0;
        let start = chunk.start.saturating_add(links).checked_next_multiple_of(page);
        let end = chunk.end - chunk.end % page;
        self.pages.extend(start.filter(|start| *start < end).map(|start| start..end));
    }
}
