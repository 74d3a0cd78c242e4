//! Over all segments: pages with their blocks, free spans, the books.

use super::books::{SLICE, Segment, Slice, heaps};
use crate::mimalloc::pages::{Page, Walk};
use crate::model::Heap;
use crate::reader::Reader;
use crate::source::{Fault, MemorySource, there};

/// Blocks of pages up to this size do not begin where their slices do: 3 * MI_MAX_ALIGN_GUARANTEE behind.
const SHIFTED_MOST: u32 = 1024;
const SHIFT: u64 = 3 * 128;
/// Where thread_delayed_free is in struct mi_heap_s.
const HEAP_DELAYED: u64 = 2840;
/// More blocks than wait for their owners.
const DELAYED_MOST: usize = 1 << 20;
/// A page's memory: MI_MEDIUM_PAGE_SIZE, or a large block's.
const LISTED_MOST: u64 = 512 << 10;

/// Walks `segments`, of which there is one at least.
pub(super) fn walk(source: &dyn MemorySource, segments: &[Segment], ranges: bool) -> Result<Heap, Fault> {
    let mut walk = Walk::new(source, "2.0", ranges);
    walk.delayed = delayed(&mut walk.reader, segments)?;
    for each in segments {
        segment(&mut walk, each)?;
    }
    walk.heap.notes.push(
        "malloc_trim returns nothing of it, and mi_collect(true) little: free spans of segments in use stay"
            .to_owned(),
    );
    let claims = segments.iter().map(Segment::range).collect();
    walk.close(format!("{} segments", segments.len()), claims)
}

fn segment(walk: &mut Walk<'_>, segment: &Segment) -> Result<(), Fault> {
    walk.account.mapped(segment.range())?;
    walk.account.metadata(segment.info * SLICE);
    let mut index = segment.info;
    while index < segment.entries {
        let Some(slice) = Slice::read(&mut walk.reader, segment.base, index)? else {
            walk.unresolved((segment.entries - index) * SLICE);
            return Ok(());
        };
        let start = segment.base + index * SLICE;
        let count = u64::from(slice.count);
        if count == 0 || count > segment.slices - index {
            return walk.odd(start..segment.range().end, "a span of slices is none");
        }
        match slice.block {
            0 => walk.account.free(start..start + count * SLICE)?,
            _ => page(walk, segment, &slice, index)?,
        }
        index += count;
    }
    Ok(())
}

/// The page of blocks that entry `index` of `segment` is.
fn page(walk: &mut Walk<'_>, segment: &Segment, slice: &Slice, index: u64) -> Result<(), Fault> {
    let found = page_of(segment, slice, index);
    let room = found.range.end - found.first;
    if segment.is_huge || found.range.end - found.range.start > LISTED_MOST || found.block >= room {
        // One block takes all of it.
        if slice.used == 0 {
            return walk.account.free(found.range);
        }
        walk.account.live_at(found.range);
        return Ok(());
    }
    walk.page(found, |reader| {
        let now = Slice::read(reader, segment.base, index)?;
        Ok(now.map(|slice| page_of(segment, &slice, index)))
    })
}

fn page_of(segment: &Segment, slice: &Slice, index: u64) -> Page {
    let start = segment.base + index * SLICE;
    let shift = if (8..=SHIFTED_MOST).contains(&slice.block) { SHIFT } else { 0 };
    Page {
        range: start..start + u64::from(slice.count) * SLICE,
        first: start + shift,
        block: u64::from(slice.block),
        capacity: slice.capacity,
        used: slice.used,
        free: slice.free,
        local_free: slice.local_free,
        thread_free: slice.thread_free,
    }
}

/// The blocks that wait for the owners of their heaps (mi_heap_s.thread_delayed_free), sorted. The lists of a running
/// process may lead astray; what is no block's beginning is nobody's there.
fn delayed(reader: &mut Reader<'_>, segments: &[Segment]) -> Result<Vec<u64>, Fault> {
    let mut blocks = Vec::new();
    for heap in heaps(reader, segments)? {
        let mut next = there(reader.u64(heap.wrapping_add(HEAP_DELAYED)))?;
        while let Some(at) = next.filter(|at| *at != 0 && blocks.len() < DELAYED_MOST) {
            blocks.push(at);
            next = there(reader.u64(at))?;
        }
    }
    blocks.sort_unstable();
    Ok(blocks)
}
