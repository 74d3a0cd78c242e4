//! Pages of blocks of one size, and their three lists of free blocks, which are the same in all releases: `free` to
//! take from, `local_free` of the owner's own, `thread_free` of what others freed.
//!
//! Invariant: a page's blocks are told only if its lists stay inside it, meet no block twice, and add up to its count
//! of blocks in use.

use crate::account::Account;
use crate::model::{Arena, Corruption, Heap, Kind};
use crate::reader::Reader;
use crate::source::{Fault, MemorySource, there};
use ebbtide_observe::Bytes;
use std::ops::Range;

/// How often a page that a running process changes is read again.
const READS_MOST: usize = 4;
const CORRUPTIONS_MOST: usize = 16;

/// A page's books.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Page {
    /// All that it takes: its own books, blocks, and what is left over.
    pub(super) range: Range<u64>,
    /// Where the first block is.
    pub(super) first: u64,
    /// Bytes of a block.
    pub(super) block: u64,
    /// Blocks that were ever made of it.
    pub(super) capacity: u16,
    /// Blocks in use, those that other threads freed among them.
    pub(super) used: u32,
    /// The first of its free blocks.
    pub(super) free: u64,
    /// The first of those freed since.
    pub(super) local_free: u64,
    /// The first of those that other threads freed.
    pub(super) thread_free: u64,
}

impl Page {
    /// Its blocks.
    pub(super) fn blocks(&self) -> Range<u64> {
        self.first..self.first.saturating_add(u64::from(self.capacity).saturating_mul(self.block))
    }

    /// Whether `other` may be the same page at another time.
    fn is_like(&self, other: &Page) -> bool {
        (&self.range, self.first, self.block) == (&other.range, other.first, other.block)
    }
}

/// What became of the blocks of a page, by their index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Used,
    Free,
    /// By another thread; the owner has not seen it yet.
    FreedElsewhere,
}

/// A walk over pages.
pub(super) struct Walk<'s> {
    pub(super) reader: Reader<'s>,
    pub(super) account: Account<'s>,
    pub(super) heap: Heap,
    /// Blocks that wait for their owners in lists of no page, in order.
    pub(super) delayed: Vec<u64>,
    /// The memory of the page at hand.
    memory: Vec<u8>,
}

impl<'s> Walk<'s> {
    /// Collects the returnable pages if `ranges` says so.
    pub(super) fn new(source: &'s dyn MemorySource, version: &str, ranges: bool) -> Walk<'s> {
        let account = Account::new(source);
        let mut heap = Heap::new(Kind::Mimalloc);
        heap.version = Some(version.to_owned());
        heap.certainty.still = source.is_still();
        Walk {
            reader: Reader::new(source),
            account: if ranges { account.with_ranges() } else { account },
            heap,
            delayed: Vec::new(),
            memory: Vec::new(),
        }
    }

    /// The blocks of `page`; what was never made a block of is unused. `again` reads its books once more.
    pub(super) fn page(
        &mut self,
        mut page: Page,
        mut again: impl FnMut(&mut Reader<'_>) -> Result<Option<Page>, Fault>,
    ) -> Result<(), Fault> {
        let whole = page.range.clone();
        for _ in 0..READS_MOST {
            if page.block < 8 || page.blocks().end > whole.end {
                return self.odd(whole, "a page has more blocks than room");
            }
            if there(self.reader.copy(page.blocks(), &mut self.memory))?.is_none() {
                break;
            }
            if let Some(states) = states(&page, &self.memory) {
                self.account.metadata(page.first - whole.start);
                return self.blocks(&page, &states);
            }
            if self.heap.certainty.still {
                break;
            }
            self.heap.certainty.reread += 1;
            self.reader.refresh();
            match again(&mut self.reader)? {
                Some(now) if now.is_like(&page) => page = now,
                _ => break,
            }
        }
        self.odd(whole, "the lists of a page do not add up")
    }

    fn blocks(&mut self, page: &Page, states: &[State]) -> Result<(), Fault> {
        for (at, state) in (page.first..).step_by(page.block as usize).zip(states) {
            match state {
                State::Used if self.delayed.binary_search(&at).is_err() => {
                    self.account.live_at(at..at + page.block);
                }
                State::Used | State::FreedElsewhere => self.account.cached(page.block),
                State::Free => self.account.free_behind(at..at + page.block, 8)?,
            }
        }
        Ok(())
    }

    /// What does not add up is unresolved, and damage where nothing moves.
    pub(super) fn odd(&mut self, range: Range<u64>, what: &str) -> Result<(), Fault> {
        self.unresolved(range.end - range.start);
        if self.heap.certainty.still && self.heap.corruptions.len() < CORRUPTIONS_MOST {
            self.heap.corruptions.push(Corruption { address: range.start, what: what.to_owned() });
        }
        Ok(())
    }

    pub(super) fn unresolved(&mut self, size: u64) {
        self.heap.certainty.unresolved += Bytes(size);
    }

    /// The heap, of one arena with `name`, that takes `claims`, in order.
    pub(super) fn close(self, name: String, claims: Vec<Range<u64>>) -> Result<Heap, Fault> {
        let Walk { mut account, mut heap, .. } = self;
        heap.returnable_ranges = account.take_ranges()?;
        heap.huge = account.take_huge();
        (heap.figures, heap.histogram) = account.close()?;
        let address = claims.first().map_or(0, |claim| claim.start);
        heap.arenas.push(Arena { address, name, figures: heap.figures, collector: None });
        heap.claims = claims;
        Ok(heap)
    }
}

/// What the blocks of `page`, which hold `memory`, are, if its lists add up to what its books say.
fn states(page: &Page, memory: &[u8]) -> Option<Vec<State>> {
    let mut states = vec![State::Used; usize::from(page.capacity)];
    let (mut free, mut freed_elsewhere) = (0, 0);
    let lists =
        [(page.free, State::Free), (page.local_free, State::Free), (page.thread_free, State::FreedElsewhere)];
    for (head, state) in lists {
        let mut at = head;
        while at != 0 {
            let offset = at.checked_sub(page.first)?;
            let place = states.get_mut(usize::try_from(offset / page.block).ok()?)?;
            if offset % page.block != 0 || *place != State::Used {
                return None;
            }
            *place = state;
            *(if state == State::Free { &mut free } else { &mut freed_elsewhere }) += 1;
            at = u64::from_le_bytes(*memory.get(usize::try_from(offset).ok()?..)?.first_chunk()?);
        }
    }
    let is_sum = page.used.checked_add(free)? == u32::from(page.capacity) && freed_elsewhere <= page.used;
    is_sum.then_some(states)
}
