//! What the walk counts on its way: the account of an arena, and what trimming would make of it.
//!
//! Invariants: a chunk is entered when the next one's header is seen, because that says whether it is in use;
//! chunks come in the order of addresses; freed chunks and those in quick lists without a gap between are one
//! when it is asked what trimming would give back, as malloc_consolidate would make them.

use super::cache::Candidate;
use super::layout::{Cache, FLAGS, HEADER, MIN_CHUNK, MMAPPED, PREV_IN_USE};
use super::marks::Marks;
use crate::account::Account;
use crate::model::{Certainty, Corruption};
use crate::source::Fault;
use ebbtide_observe::{Bytes, page_size};
use std::ops::Range;

/// Sizes below this are counted in a table first.
const SMALL: u64 = 2048;
/// Quick lists hold no larger chunk: MAX_FAST_SIZE is 160 bytes.
pub(super) const FAST_MOST: u64 = 0xb0;
/// Bytes at a freed chunk's start that hold its size and the links of up to two lists, and that malloc_trim keeps:
/// sizeof(struct malloc_chunk).
const LINKS: u64 = 48;
/// Damage beyond this is counted, not listed.
pub(super) const CORRUPTIONS_MOST: usize = 16;
/// More structures that look like thread caches than there are threads (kernel.pid_max is 2^22 at most, and
/// a default of 32,768 tells the scale).
const CANDIDATES_MOST: usize = 1 << 16;

/// What the walks of one heap come to, besides its figures.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) certainty: Certainty,
    pub(super) corruptions: Vec<Corruption>,
    /// Chunks that may hold a thread's cache.
    pub(super) caches: Vec<Candidate>,
    /// Whole resident pages of tops that no trim cuts.
    pub(super) uncut: Bytes,
}

impl Findings {
    /// Tells damage at `address`.
    pub(super) fn corrupt(&mut self, address: u64, what: impl Into<String>) {
        if self.corruptions.len() < CORRUPTIONS_MOST {
            self.corruptions.push(Corruption { address, what: what.into() });
        }
    }
}

/// Why the chunks of a window ended.
pub(super) enum Step {
    /// The window did.
    On,
    /// The last chunk reaches the end exactly.
    Last(u64),
    /// A header that is none, or a fence.
    Odd,
}

/// What is counted on the way.
pub(super) struct Books<'s, 'a> {
    pub(super) account: Account<'s>,
    quick: &'a Marks,
    /// Whether the window at hand has blocks of quick lists.
    quick_near: bool,
    /// How many live chunks of each small size; index 0 takes what is counted otherwise.
    small: [u64; (SMALL / 16) as usize],
    /// Freed chunks without a gap, quick lists' among them, as malloc_consolidate would merge them.
    run: Range<u64>,
    /// The first chunk of the stretch.
    pub(super) first: u64,
    /// Sizes of chunks with caches; 0 for none.
    cache_sizes: [u64; 2],
    caches: &'static [Cache],
    pub(super) findings: &'a mut Findings,
}

impl<'s, 'a> Books<'s, 'a> {
    /// Books that go into `account`. `quick` are the chunks in quick lists, `caches` the kinds of thread caches there may be.
    pub(super) fn new(
        account: Account<'s>,
        quick: &'a Marks,
        caches: &'static [Cache],
        findings: &'a mut Findings,
    ) -> Books<'s, 'a> {
        let size = |index| caches.get(index).map_or(0, Cache::chunk);
        Books {
            account,
            quick,
            quick_near: false,
            small: [0; (SMALL / 16) as usize],
            run: 0..0,
            first: 0,
            cache_sizes: [size(0), size(1)],
            caches,
            findings,
        }
    }

    /// The account, with everything told.
    pub(super) fn close(mut self) -> Result<Account<'s>, Fault> {
        self.flush_run()?;
        for (index, &count) in self.small.iter().enumerate().skip(1).filter(|(_, count)| **count > 0) {
            self.account.live_many(16 * index as u64, count);
        }
        Ok(self.account)
    }

    /// The hot loop: counts the chunks of `bytes`, which begin at `at` after one of `before` bytes.
    pub(super) fn chunks(
        &mut self,
        bytes: &[u8],
        at: &mut u64,
        before: &mut u64,
        end: u64,
    ) -> Result<Step, Fault> {
        let base = *at;
        self.quick_near = self.quick.any(base - *before..base + bytes.len() as u64);
        let (mut place, mut last) = (0usize, *before);
        let step = loop {
            let Some(header) = bytes.get(place..).and_then(|rest| rest.first_chunk::<16>()) else {
                break Step::On;
            };
            let field = field_of(header);
            let size = field & !FLAGS;
            let left = end - base - place as u64;
            if (field & (MMAPPED | 8) != 0) | (size < MIN_CHUNK) | (size >= left) {
                let is_last = field & (MMAPPED | 8) == 0 && size == left && size >= MIN_CHUNK;
                if is_last && self.settle(header, base + place as u64, last)? {
                    break Step::Last(size);
                }
                break Step::Odd;
            }
            if (field & PREV_IN_USE != 0) & !self.quick_near & (last < SMALL) {
                self.small[(last / 16) as usize] += 1;
            } else if !self.settle(header, base + place as u64, last)? {
                break Step::Odd;
            }
            if (size.wrapping_sub(self.cache_sizes[0]) <= HEADER)
                | (size.wrapping_sub(self.cache_sizes[1]) <= HEADER)
            {
                self.may_be_cache(bytes, place, base + place as u64, size);
            }
            last = size;
            place += size as usize;
        };
        (*at, *before) = (base + place as u64, last);
        Ok(step)
    }

    /// Enters the chunk of `last` bytes that ends at `at`, where `header` is the next one's. False if the two
    /// disagree.
    pub(super) fn settle(&mut self, header: &[u8; 16], at: u64, last: u64) -> Result<bool, Fault> {
        if field_of(header) & PREV_IN_USE == 0 {
            if last == 0 {
                return Ok(true);
            }
            if foot_of(header) != last {
                return Ok(false);
            }
            self.account.free_behind(at - last..at, LINKS)?;
            self.freed(at - last..at)?;
        } else if last <= FAST_MOST && self.quick_near && last > 0 && self.quick.has(at - last) {
            self.account.cached(last);
            self.freed(at - last..at)?;
        } else if last < SMALL {
            self.small[(last / 16) as usize] += 1;
        } else {
            self.account.live_at(at - last..at);
        }
        Ok(true)
    }

    /// Enters the top, from `at` to `end`, which is free. `cut` is the unit in which trimming would cut it; `None`
    /// where it would not.
    pub(super) fn top(&mut self, at: u64, end: u64, cut: Option<u64>) -> Result<(), Fault> {
        // It is in no list: only its size is read before it is written.
        self.account.free_behind(at..end, HEADER)?;
        self.freed(at..end)?;
        let top = std::mem::replace(&mut self.run, 0..0);
        if let Some(unit) = cut {
            // systrim: what is left of the top is a MINSIZE and a byte at least.
            let spare = (top.end - top.start).saturating_sub(MIN_CHUNK + 1);
            return self.account.trimmable(top.end - (spare - spare % unit)..top.end);
        }
        let page = page_size().0;
        let whole = (at + HEADER).next_multiple_of(page)..end - end % page;
        self.findings.uncut += self.account.present(whole.start.min(whole.end)..whole.end)?;
        Ok(())
    }

    /// `range` would be free once quick lists are merged.
    fn freed(&mut self, range: Range<u64>) -> Result<(), Fault> {
        if self.run.end == range.start && !self.run.is_empty() {
            self.run.end = range.end;
            return Ok(());
        }
        self.flush_run()?;
        self.run = range;
        Ok(())
    }

    /// mtrim: whole pages of a freed chunk, but for its first 48 bytes.
    fn flush_run(&mut self) -> Result<(), Fault> {
        let run = std::mem::replace(&mut self.run, 0..0);
        self.account.trimmable(run.end.min(run.start + LINKS)..run.end)
    }

    /// Remembers the chunk at `at` if its content, as far as it is at hand, may be a thread's cache in use.
    fn may_be_cache(&mut self, bytes: &[u8], place: usize, at: u64, size: u64) {
        let content = bytes.get(place + HEADER as usize..).unwrap_or_default();
        let cache = self.caches.iter().find(|cache| cache.fits(size));
        let is_first = at == self.first;
        let possible = cache.is_some_and(|cache| match content.get(..cache.size()) {
            Some(content) => cache.is_possible(content, is_first),
            None => true,
        });
        if possible && self.findings.caches.len() < CANDIDATES_MOST {
            self.findings.caches.push(Candidate { chunk: at, is_first });
        }
    }
}

/// A chunk's size with its flags.
pub(super) fn field_of(header: &[u8; 16]) -> u64 {
    let [.., a, b, c, d, e, f, g, h] = *header;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}

/// The size of the chunk before, if that is free.
pub(super) fn foot_of(header: &[u8; 16]) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *header;
    u64::from_le_bytes([a, b, c, d, e, f, g, h])
}
