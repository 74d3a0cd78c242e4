//! A running process with the mappings that it has now: the list that a source came with grows old while walkers
//! before this one take their time.

use crate::source::{Area, Fault, MemorySource, PageState, ReadSeek};
use std::ops::Range;

/// A source with other mappings than it had at first.
pub(crate) struct Now<'s> {
    pub(crate) source: &'s dyn MemorySource,
    pub(crate) areas: Vec<Area>,
}

impl<'s> Now<'s> {
    /// `source` as it is now, if that may be another.
    pub(crate) fn of(source: &'s dyn MemorySource) -> Result<Option<Now<'s>>, Fault> {
        Ok(source.areas_now()?.map(|areas| Now { source, areas }))
    }
}

impl MemorySource for Now<'_> {
    fn areas(&self) -> &[Area] {
        &self.areas
    }

    fn read_ranges(&self, ranges: &[Range<u64>], buf: &mut [u8]) -> Result<usize, Fault> {
        self.source.read_ranges(ranges, buf)
    }

    fn pages(&self, range: Range<u64>, each: &mut dyn FnMut(Range<u64>, PageState)) -> Result<(), Fault> {
        self.source.pages(range, each)
    }

    fn file(&self, area: &Area) -> Result<Box<dyn ReadSeek>, Fault> {
        self.source.file(area)
    }

    fn is_still(&self) -> bool {
        self.source.is_still()
    }

    fn areas_now(&self) -> Result<Option<Vec<Area>>, Fault> {
        self.source.areas_now()
    }
}
