//! A running process that took more memory since its mappings were listed.
//!
//! The list of mappings is as old as the source; by the time lj_alloc's books are read they may name segments that it
//! does not have. What a state names is memory all the same, and which pages of it are there, the pagemap knows.

use super::layout::Segment;
use super::scan::is_candidate;
use crate::now::Now;
use crate::source::{Area, Fault, MemorySource, PageState};
use std::ops::Range;

/// Where a segment lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// In mappings that are known, and may be lj_alloc's.
    Known,
    /// In part where nothing was mapped when the list was made, but may be now.
    New,
    /// Where lj_alloc's memory cannot be.
    Nowhere,
}

/// Where `range` lies.
pub(super) fn place(source: &dyn MemorySource, range: &Range<u64>) -> Place {
    let mut place = Place::Known;
    let mut at = range.start;
    while at < range.end {
        match source.area_at(at) {
            Some(area) if is_candidate(area) => at = area.range.end,
            None if !source.is_still() => {
                place = Place::New;
                let areas = source.areas();
                let next = areas.partition_point(|area| area.range.start <= at);
                at = areas.get(next).map_or(range.end, |area| area.range.start);
            }
            _ => return Place::Nowhere,
        }
    }
    place
}

/// The 24 bytes at `address`, wherever it is: only pages that are present are read.
pub(super) fn peek(source: &dyn MemorySource, address: u64) -> Result<[u8; 24], Fault> {
    let mut bytes = [0; 24];
    let range = address..address.checked_add(24).ok_or(Fault::Unmapped(address))?;
    if range.end > super::layout::ADDRESS_END {
        return Err(Fault::Unmapped(address));
    }
    let page = super::layout::PAGE;
    let pages = address - address % page..range.end.next_multiple_of(page);
    let (mut present, mut swapped) = (0, false);
    source.pages(pages.clone(), &mut |run, state| match state {
        PageState::Present => present += run.end - run.start,
        PageState::Swapped => swapped = true,
    })?;
    if swapped {
        return Err(Fault::Swapped(address));
    }
    if present < pages.end - pages.start {
        return Err(Fault::Unmapped(address));
    }
    let read = source.read_ranges(&[range], &mut bytes)?;
    if read == bytes.len() { Ok(bytes) } else { Err(Fault::Unmapped(address)) }
}

/// `source` with the segments of a state among its mappings.
pub(super) fn with<'s>(source: &'s dyn MemorySource, segments: &[Segment]) -> Now<'s> {
    let mut areas = source.areas().to_vec();
    for segment in segments {
        let mut at = segment.base;
        let mut index = areas.partition_point(|area| area.range.end <= at);
        while at < segment.end() {
            let next = areas.get(index).map_or(u64::MAX, |area| area.range.start);
            if at < next {
                areas.insert(index, Area::anon(at..next.min(segment.end())));
            }
            at = areas[index].range.end;
            index += 1;
        }
    }
    Now { source, areas }
}
