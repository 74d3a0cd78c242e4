//! Thread caches: what was freed and waits to be handed out again to the same thread.
//!
//! A cache lies in its thread's local storage, which is not known from outside, but its arena keeps a ring of all that
//! use it (`tcache_ql`, where statistics are compiled in, as they are unless disabled). Read in tcache_structs.h and
//! cache_bin.h of 5.2.1, 5.3.0 and 5.3.1. Invariant: a cache is one only if it points to its own bins and to its arena,
//! in whose books it was found; what it holds counts only where the walk finds a block in use at that very address.

use super::base::Bases;
use super::layout::{Classes, Layout};
use crate::reader::Reader;
use crate::source::{Area, Fault, MemorySource, there};
use std::collections::BTreeSet;
use std::ops::Range;

/// How much of an arena's first block is searched for its ring.
const ARENA_MOST: u64 = 256 << 10;
/// The most caches.
const CACHES_MOST: usize = 1 << 16;
/// The most blocks that caches are taken to hold: 16 MiB of marks.
pub(super) const MARKS_MOST: usize = 1 << 20;
/// The most blocks in one bin: its bounds are told by 16 bits of an address.
const BIN_MOST: u64 = 8191;
/// Before and behind the stacks of a cache's bins (cache_bin.h, 5.3).
const PRECEDING: u64 = 0x7a7a_7a7a_7a7a_7a7a;
/// Of 5.3.0 and of 5.3.1.
const TRAILING: [u64; 2] = [0xa7a7_a7a7_a7a7_a7a7, PRECEDING + 1];
/// More than the slow part of a cache has: 48 bytes, and 3 or 4 for each of up to 39 small classes.
const SLOW_MOST: u64 = 512;
/// Bytes of a bin, in every release.
const BIN: u64 = 24;

/// What is known of an address in a block that is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Mark {
    /// A block of this size class begins here, and is in a thread cache.
    Cached(u8),
    /// The block is jemalloc's own: the stacks of a thread cache.
    Own,
}

/// What caches hold.
#[derive(Debug, Default)]
pub(super) struct Caches {
    /// In the order of addresses.
    pub(super) marks: Vec<(u64, Mark)>,
    pub(super) count: usize,
    /// More marks than are kept, or rings and bins that were cut short.
    pub(super) is_cut: bool,
}

/// Offsets in a cache; all from where its arena's ring leads to.
#[derive(Debug, Clone, Copy)]
struct Offsets {
    /// Its link in the ring: the next one.
    link: u64,
    /// The pointer to its bins.
    bins: u64,
    arena: u64,
    shape: Shape,
}

#[derive(Debug, Clone, Copy)]
enum Shape {
    /// 5.2: bins of small and of large blocks in the cache itself; each counts what it holds.
    Old { small: u64, large: u64 },
    /// 5.3: stacks that end where the next begins, and pointers to them and to the bins one after the other, where
    /// settings end.
    New,
}

impl Offsets {
    fn of(layout: Layout, classes: &Classes) -> Offsets {
        let bins = classes.bins();
        match layout {
            Layout::New => Offsets { link: 0, bins: 32, arena: 40, shape: Shape::New },
            Layout::Old => {
                let link = 16 + BIN * bins;
                // Behind two links and a flag.
                let descriptor = link + 40;
                let arena = descriptor + 32;
                let large = (arena + 12 + bins).next_multiple_of(8);
                let shape = Shape::Old { small: 16, large };
                Offsets { link, bins: descriptor + 16, arena, shape }
            }
        }
    }
}

/// What the caches of all arenas hold.
pub(super) fn find(
    source: &dyn MemorySource,
    layout: Layout,
    classes: &Classes,
    bases: &Bases,
) -> Result<Caches, Fault> {
    let offsets = Offsets::of(layout, classes);
    let mut arenas = Reader::new(source);
    let (caches, stacks) = (Reader::new(source), Reader::new(source));
    let mut look = Look { classes, bases, caches, stacks, found: Caches::default(), seen: BTreeSet::new() };
    for (_, block) in bases.arenas() {
        let start = Bases::address(block);
        let run = start..block.unused.min(block.start + ARENA_MOST);
        for at in run.clone().step_by(8) {
            let word = match arenas.u64(at) {
                Ok(word) => word,
                Err(Fault::Unmapped(_) | Fault::Swapped(_)) => continue,
                Err(fault) => return Err(fault),
            };
            let leads = word != 0 && word.is_multiple_of(8) && !block.range().contains(&word);
            if leads && !look.seen.contains(&word) && is_writable(source, word) {
                look.ring(&offsets, word, &run)?;
            }
        }
    }
    let mut found = look.found;
    found.marks.sort_unstable();
    found.marks.dedup();
    Ok(found)
}

fn is_writable(source: &dyn MemorySource, address: u64) -> bool {
    source.area_at(address).is_some_and(|area: &Area| area.perms.read && area.perms.write)
}

/// A word, or `None` where there is none.
fn word(reader: &mut Reader<'_>, address: u64) -> Result<Option<u64>, Fault> {
    there(reader.u64(address))
}

struct Look<'s, 'c> {
    classes: &'c Classes,
    bases: &'c Bases,
    /// Two, because stacks and caches are far apart and take turns.
    caches: Reader<'s>,
    stacks: Reader<'s>,
    found: Caches,
    seen: BTreeSet<u64>,
}

impl Look<'_, '_> {
    /// Follows the ring from `first`, if that is a cache of an arena in `books`.
    fn ring(&mut self, offsets: &Offsets, first: u64, books: &Range<u64>) -> Result<(), Fault> {
        let mut cache = first;
        while self.is_cache(offsets, cache, books)? && self.seen.insert(cache) {
            if self.seen.len() > CACHES_MOST {
                self.found.is_cut = true;
                return Ok(());
            }
            self.found.count += 1;
            match offsets.shape {
                Shape::Old { small, large } => self.old_bins(cache, small, large)?,
                Shape::New => self.new_bins(cache)?,
            }
            let Some(next) = word(&mut self.caches, cache.wrapping_add(offsets.link))? else { return Ok(()) };
            cache = next;
        }
        Ok(())
    }

    fn old_bins(&mut self, cache: u64, small: u64, large: u64) -> Result<(), Fault> {
        let bins = self.classes.bins();
        for class in 0..self.classes.count() {
            let at = if class < bins { small + BIN * class } else { large + BIN * (class - bins) };
            let at = cache.wrapping_add(at);
            let (Some(counts), Some(end)) =
                (word(&mut self.caches, at)?, word(&mut self.caches, at.wrapping_add(16))?)
            else {
                break;
            };
            // The bins of classes that are not cached were never written.
            if end == 0 {
                break;
            }
            if class == 0 {
                self.own(end.wrapping_sub(8));
            }
            let count = counts >> 32;
            let Some(start) = end.checked_sub(8 * count).filter(|_| count <= BIN_MOST) else {
                self.found.is_cut = true;
                break;
            };
            self.stack(start..end, class)?;
        }
        Ok(())
    }

    /// Where the stacks and the bins of the cache whose slow part is at `slow` are.
    fn stacks_and_bins(&mut self, slow: u64) -> Result<Option<(u64, u64)>, Fault> {
        let bins = word(&mut self.caches, slow.wrapping_add(32))?.unwrap_or(0).wrapping_sub(8);
        let mut stacks = 0;
        for at in (48..SLOW_MOST).step_by(8) {
            let Some(word_at) = word(&mut self.caches, slow.wrapping_add(at))? else { break };
            if word_at == bins {
                let agree = word(&mut self.stacks, stacks)? == Some(PRECEDING)
                    && word(&mut self.caches, bins)? == Some(slow);
                return Ok(agree.then_some((stacks, bins)));
            }
            stacks = word_at;
        }
        Ok(None)
    }

    fn new_bins(&mut self, slow: u64) -> Result<(), Fault> {
        let Some((stacks, cache)) = self.stacks_and_bins(slow)? else { return Ok(()) };
        self.own(stacks);
        let mut low = stacks.wrapping_add(8);
        for class in 0..self.classes.count() {
            if word(&mut self.stacks, low)?.is_none_or(|word| TRAILING.contains(&word)) {
                break;
            }
            let at = cache.wrapping_add(8 + BIN * class);
            let (Some(head), Some(marks)) =
                (word(&mut self.caches, at)?, word(&mut self.caches, at.wrapping_add(16))?)
            else {
                break;
            };
            let (full, empty) = (marks >> 16 & 0xffff, marks >> 32 & 0xffff);
            // Since 5.3.1 a class may have no stack.
            if full == empty && head & 0xffff == empty {
                continue;
            }
            let end = head.wrapping_add(empty.wrapping_sub(head) & 0xffff);
            let stashed = low.wrapping_add(full.wrapping_sub(low) & 0xffff);
            let in_order = low <= stashed && stashed <= head && head <= end && end - low <= 8 * BIN_MOST;
            if !in_order || !head.is_multiple_of(8) || !stashed.is_multiple_of(8) {
                self.found.is_cut = true;
                break;
            }
            self.stack(low..stashed, class)?;
            self.stack(head..end, class)?;
            low = end;
        }
        Ok(())
    }

    /// The pointers in `stack` are to cached blocks.
    fn stack(&mut self, stack: Range<u64>, class: u64) -> Result<(), Fault> {
        for at in stack.step_by(8) {
            match (word(&mut self.stacks, at)?, u8::try_from(class)) {
                (Some(block), Ok(class)) if self.found.marks.len() < MARKS_MOST => {
                    self.found.marks.push((block, Mark::Cached(class)));
                }
                _ => self.found.is_cut = true,
            }
        }
        Ok(())
    }

    fn own(&mut self, address: u64) {
        if self.found.marks.len() < MARKS_MOST && self.bases.at(address).is_none() {
            self.found.marks.push((address, Mark::Own));
        }
    }

    /// Whether `cache` is one of an arena in `books`.
    fn is_cache(&mut self, offsets: &Offsets, cache: u64, books: &Range<u64>) -> Result<bool, Fault> {
        if !cache.is_multiple_of(8) || !is_writable(self.caches.source(), cache) {
            return Ok(false);
        }
        let bins = word(&mut self.caches, cache.wrapping_add(offsets.bins))?;
        let arena = word(&mut self.caches, cache.wrapping_add(offsets.arena))?;
        let (Some(bins), Some(arena)) = (bins, arena) else { return Ok(false) };
        if !books.contains(&arena) {
            return Ok(false);
        }
        Ok(match offsets.shape {
            Shape::Old { small, large } => {
                let large_at = word(&mut self.caches, cache.wrapping_add(offsets.bins + 8))?;
                bins == cache.wrapping_add(small) && large_at == Some(cache.wrapping_add(large))
            }
            Shape::New => self.stacks_and_bins(cache)?.is_some(),
        })
    }
}
