//! Over all segments: pages with their blocks, free spans, the books.

use super::books::{SLICE, Segment, Slice, heaps};
use crate::account::Account;
use crate::model::{Arena, Corruption, Heap, Kind};
use crate::reader::Reader;
use crate::source::{Fault, MemorySource, there};
use ebbtide_observe::Bytes;

/// Blocks of pages up to this size do not begin where their slices do: 3 * MI_MAX_ALIGN_GUARANTEE behind.
const SHIFTED_MOST: u32 = 1024;
const SHIFT: u64 = 3 * 128;
/// How often a page that a running process changes is read again.
const READS_MOST: usize = 4;
const CORRUPTIONS_MOST: usize = 16;
/// Where thread_delayed_free is in struct mi_heap_s.
const HEAP_DELAYED: u64 = 2840;
/// More blocks than wait for their owners.
const DELAYED_MOST: usize = 1 << 20;
/// A page's memory: MI_MEDIUM_PAGE_SIZE, or a large block's.
const LISTED_MOST: u64 = 512 << 10;

/// Walks `segments`, of which there is one at least.
pub(super) fn walk(source: &dyn MemorySource, segments: &[Segment], ranges: bool) -> Result<Heap, Fault> {
    let account = Account::new(source);
    let account = if ranges { account.with_ranges() } else { account };
    let mut walk = Walk {
        reader: Reader::new(source),
        account,
        heap: Heap::new(Kind::Mimalloc),
        memory: Vec::new(),
        delayed: Vec::new(),
    };
    walk.heap.version = Some("2.0".to_owned());
    walk.heap.certainty.still = source.is_still();
    walk.delayed = delayed(&mut walk.reader, segments)?;
    for segment in segments {
        walk.segment(segment)?;
    }
    let Walk { mut account, mut heap, .. } = walk;
    heap.returnable_ranges = account.take_ranges()?;
    heap.huge = account.take_huge();
    (heap.figures, heap.histogram) = account.close()?;
    let name = format!("{} segments", segments.len());
    let address = segments.first().map_or(0, |segment| segment.base);
    heap.arenas.push(Arena { address, name, figures: heap.figures, collector: None });
    heap.claims = segments.iter().map(Segment::range).collect();
    heap.notes.push(
        "malloc_trim returns nothing of it, and mi_collect(true) little: free spans of segments in use stay"
            .to_owned(),
    );
    Ok(heap)
}

struct Walk<'s> {
    reader: Reader<'s>,
    account: Account<'s>,
    heap: Heap,
    /// The memory of the page at hand.
    memory: Vec<u8>,
    /// Blocks of full pages that other threads freed, sorted.
    delayed: Vec<u64>,
}

/// Free blocks of a page, as bits by their index, and how many came from each list.
struct Lists {
    /// Whether each block is free (1), freed by another thread (2), or neither (0).
    state: Vec<u8>,
    free: u32,
    thread_free: u32,
}

impl Walk<'_> {
    fn segment(&mut self, segment: &Segment) -> Result<(), Fault> {
        self.account.mapped(segment.range())?;
        let books = segment.info * SLICE;
        self.account.metadata(books);
        let mut index = segment.info;
        while index < segment.entries {
            let Some(slice) = Slice::read(&mut self.reader, segment.base, index)? else {
                self.unresolved((segment.entries - index) * SLICE);
                return Ok(());
            };
            let left = segment.slices - index;
            let count = u64::from(slice.count);
            if count == 0 || count > left {
                self.odd(segment.base + index * SLICE, left * SLICE, "a span of slices is none");
                return Ok(());
            }
            let start = segment.base + index * SLICE;
            match slice.block {
                0 => self.span(start, count * SLICE)?,
                _ => self.page(segment, &slice, start, count * SLICE, index)?,
            }
            index += count;
        }
        Ok(())
    }

    /// A free span.
    fn span(&mut self, start: u64, size: u64) -> Result<(), Fault> {
        self.account.free(start..start + size)
    }

    /// A page of blocks.
    fn page(
        &mut self,
        segment: &Segment,
        slice: &Slice,
        start: u64,
        size: u64,
        index: u64,
    ) -> Result<(), Fault> {
        let shift = if slice.block <= SHIFTED_MOST && slice.block >= 8 { SHIFT } else { 0 };
        let block = u64::from(slice.block);
        let room = size - shift;
        if segment.is_huge || size > LISTED_MOST || block >= room {
            // One block takes all of it.
            if slice.used > 0 {
                self.account.live_at(start..start + size);
            } else {
                self.span(start, size)?;
            }
            return Ok(());
        }
        if block < 8 || u64::from(slice.capacity) * block > room {
            self.odd(start, size, "a page has more blocks than room");
            return Ok(());
        }
        let mut slice = *slice;
        for _ in 0..READS_MOST {
            let memory = &mut self.memory;
            if there(
                self.reader.copy(start + shift..start + shift + u64::from(slice.capacity) * block, memory),
            )?
            .is_none()
            {
                break;
            }
            if let Some(lists) = lists(&slice, start + shift, &self.memory) {
                self.account.metadata(shift);
                return self.blocks(&slice, start + shift, &lists);
            }
            if self.heap.certainty.still {
                break;
            }
            self.heap.certainty.reread += 1;
            self.reader.refresh();
            match Slice::read(&mut self.reader, segment.base, index)? {
                Some(now) if u64::from(now.count) * SLICE == size && u64::from(now.block) == block => {
                    slice = now
                }
                _ => break,
            }
        }
        self.odd(start, size, "the lists of a page do not add up");
        Ok(())
    }

    /// Tells the blocks of a page; what was never made a block of is unused.
    fn blocks(&mut self, slice: &Slice, first: u64, lists: &Lists) -> Result<(), Fault> {
        let block = u64::from(slice.block);
        for (index, state) in lists.state.iter().enumerate() {
            let at = first + index as u64 * block;
            match state {
                0 if self.delayed.binary_search(&at).is_ok() => self.account.cached(block),
                0 => self.account.live_at(at..at + block),
                // What another thread freed is linked like the rest, and its owner has not seen it yet.
                2 => self.account.cached(block),
                _ => self.account.free_behind(at..at + block, 8)?,
            }
        }
        Ok(())
    }

    /// What does not add up is unresolved, and damage where nothing moves.
    fn odd(&mut self, address: u64, size: u64, what: &str) {
        self.unresolved(size);
        if self.heap.certainty.still && self.heap.corruptions.len() < CORRUPTIONS_MOST {
            self.heap.corruptions.push(Corruption { address, what: what.to_owned() });
        }
    }

    fn unresolved(&mut self, size: u64) {
        self.heap.certainty.unresolved += Bytes(size);
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

/// The lists of a page whose blocks begin at `first` and hold `memory`, if they add up to what its books say.
fn lists(slice: &Slice, first: u64, memory: &[u8]) -> Option<Lists> {
    let (capacity, block) = (usize::from(slice.capacity), slice.block as usize);
    let mut lists = Lists { state: vec![0; capacity], free: 0, thread_free: 0 };
    for (head, state) in [(slice.free, 1), (slice.local_free, 1), (slice.thread_free, 2)] {
        let mut at = head;
        while at != 0 {
            let offset = usize::try_from(at.checked_sub(first)?).ok()?;
            let place = lists.state.get_mut(offset / block)?;
            if offset % block != 0 || *place != 0 {
                return None;
            }
            *place = state;
            *(if state == 1 { &mut lists.free } else { &mut lists.thread_free }) += 1;
            at = u64::from_le_bytes(*memory.get(offset..)?.first_chunk()?);
        }
    }
    let is_sum =
        slice.used.checked_add(lists.free)? == u32::from(slice.capacity) && lists.thread_free <= slice.used;
    is_sum.then_some(lists)
}
