//! Segments and the slices that their books tell of (2.0.9, LP64).
//!
//! Invariant: what is called a segment has books whose every part is in its bounds, and a cookie that another
//! witness bears out.

use crate::reader::Reader;
use crate::source::{Fault, there};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// MI_SEGMENT_SIZE, and the unit of what is in one: MI_SEGMENT_SLICE_SIZE.
pub(super) const SEGMENT: u64 = 32 << 20;
pub(super) const SLICE: u64 = 64 << 10;
/// In struct mi_segment_s.
const COOKIE: usize = 216;
const SEGMENT_SLICES: usize = 224;
const INFO_SLICES: usize = 232;
const KIND: usize = 240;
const ENTRIES: usize = 248;
const SLICES: u64 = 264;
/// sizeof(mi_slice_t), which is mi_page_t.
const PAGE: u64 = 80;
/// MI_SLICES_PER_SEGMENT.
const ENTRIES_MOST: u64 = SEGMENT / SLICE;
/// Where mi_heap_s.cookie is: behind tld, 129 pages_free_direct, 75 queues of 24 bytes, and three words.
const HEAP_COOKIE: u64 = 2864;
/// A huge segment's size: more than any memory.
const SLICES_MOST: u64 = 1 << 31;
/// More threads than that have no heaps.
const HEAPS_MOST: usize = 1 << 16;
/// More segments than that are not looked for: 2 TiB.
const SEGMENTS_MOST: usize = 1 << 16;

/// A segment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) base: u64,
    /// Its length in slices.
    pub(super) slices: u64,
    /// How many of them the books take.
    pub(super) info: u64,
    /// How many have entries in the books.
    pub(super) entries: u64,
    /// Whether it is one block (MI_SEGMENT_HUGE).
    pub(super) is_huge: bool,
    /// The number of the process that its cookie was made with.
    number: u64,
}

impl Segment {
    pub(super) fn range(&self) -> Range<u64> {
        self.base..self.base + self.slices * SLICE
    }

    /// The books at `base`, if they are such.
    fn read(reader: &mut Reader<'_>, base: u64) -> Result<Option<Segment>, Fault> {
        let Some(books) = there(reader.array::<{ SLICES as usize }>(base))? else { return Ok(None) };
        let word = |at: usize| {
            books.get(at..at + 8).map_or(0, |word| u64::from_le_bytes(word.try_into().unwrap_or_default()))
        };
        let kind = word(KIND) & u64::from(u32::MAX);
        let segment = Segment {
            base,
            slices: word(SEGMENT_SLICES),
            info: word(INFO_SLICES),
            entries: word(ENTRIES),
            is_huge: kind == 1,
            number: base ^ word(COOKIE),
        };
        let is_sound = kind <= 1
            && (1..=16).contains(&segment.info)
            && segment.info < segment.slices
            && segment.slices < SLICES_MOST
            && segment.entries == segment.slices.min(ENTRIES_MOST)
            && (segment.is_huge || segment.slices == ENTRIES_MOST)
            && word(COOKIE) != 0;
        // The first entry is that of the books themselves.
        let is_first = |slice: Slice| u64::from(slice.count) == segment.info && slice.offset == 0;
        let first = if is_sound { Slice::read(reader, base, 0)? } else { None };
        Ok(first.filter(|slice| is_first(*slice)).map(|_| segment))
    }
}

/// An entry of the books: a page of blocks, or a span of slices that are free.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slice {
    /// How many slices.
    pub(super) count: u32,
    offset: u32,
    /// Blocks that were ever made of it.
    pub(super) capacity: u16,
    /// The first of its free blocks.
    pub(super) free: u64,
    /// Blocks in use, those that other threads freed among them.
    pub(super) used: u32,
    /// The size of each; 0: the span is free.
    pub(super) block: u32,
    /// The first of those freed since.
    pub(super) local_free: u64,
    /// The first of those that other threads freed.
    pub(super) thread_free: u64,
    heap: u64,
}

impl Slice {
    /// Entry `index` of the segment at `base`.
    pub(super) fn read(reader: &mut Reader<'_>, base: u64, index: u64) -> Result<Option<Slice>, Fault> {
        let Some(entry) = there(reader.array::<{ PAGE as usize }>(base + SLICES + PAGE * index))? else {
            return Ok(None);
        };
        let long = |at: usize| {
            entry.get(at..at + 8).map_or(0, |word| u64::from_le_bytes(word.try_into().unwrap_or_default()))
        };
        let half = |at: usize| long(at) as u32;
        Ok(Some(Slice {
            count: half(0),
            offset: half(4),
            capacity: half(10) as u16,
            free: long(16),
            used: half(24),
            block: half(28),
            local_free: long(32),
            // Two bits say how to free from other threads.
            thread_free: long(40) & !3,
            heap: long(48),
        }))
    }
}

/// The segments of a process, in order.
pub(super) fn find(reader: &mut Reader<'_>) -> Result<Vec<Segment>, Fault> {
    let mut found: Vec<Segment> = Vec::new();
    let source = reader.source();
    for area in source.areas().iter().filter(|area| area.is_private_anon() && area.is_unnamed()) {
        let mut base = area.range.start.next_multiple_of(SEGMENT);
        while base < area.range.end && found.len() < SEGMENTS_MOST {
            match Segment::read(reader, base)? {
                Some(segment) => {
                    base = segment.range().end.next_multiple_of(SEGMENT);
                    found.push(segment);
                }
                None => base += SEGMENT,
            }
        }
    }
    let mut numbers: BTreeMap<u64, usize> = BTreeMap::new();
    found.iter().for_each(|segment| *numbers.entry(segment.number).or_default() += 1);
    let Some((&number, &count)) = numbers.iter().max_by_key(|(_, count)| **count) else { return Ok(found) };
    found.retain(|segment| segment.number == number);
    if count < 2 && !is_borne_out(reader, &found, number)? {
        found.clear();
    }
    Ok(found)
}

/// The heaps that pages of `segments` belong to: one for each thread, as a rule.
pub(super) fn heaps(reader: &mut Reader<'_>, segments: &[Segment]) -> Result<BTreeSet<u64>, Fault> {
    let mut heaps = BTreeSet::new();
    for segment in segments {
        let mut index = segment.info;
        while index < segment.entries && heaps.len() < HEAPS_MOST {
            let Some(slice) = Slice::read(reader, segment.base, index)? else { break };
            if slice.block > 1 && slice.heap != 0 && slice.heap.is_multiple_of(8) {
                heaps.insert(slice.heap);
            }
            index += u64::from(slice.count).max(1);
        }
    }
    Ok(heaps)
}

/// Whether a heap that a page of `segments` names has the number for its cookie, as the main thread's has.
fn is_borne_out(reader: &mut Reader<'_>, segments: &[Segment], number: u64) -> Result<bool, Fault> {
    for heap in heaps(reader, segments)? {
        if there(reader.u64(heap.wrapping_add(HEAP_COOKIE)))? == Some(number) {
            return Ok(true);
        }
    }
    Ok(false)
}
