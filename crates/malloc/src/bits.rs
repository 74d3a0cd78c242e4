//! Sets of the 512 pages of a chunk, as bitmaps.
//!
//! The words are atomic so that statistics may be read from outside without a lock; writers hold the page
//! heap's lock, so plain relaxed loads and stores suffice.

use core::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// Pages in a chunk.
pub(crate) const CHUNK_PAGES: usize = 512;
const WORDS: usize = CHUNK_PAGES / 64;

/// A set of pages.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Bits([AtomicU64; WORDS]);

/// `count` bits from bit `first` on, in one word; the whole word from 64 on.
#[inline]
pub(crate) fn mask(first: usize, count: usize) -> u64 {
    if count >= 64 { u64::MAX } else { ((1_u64 << count) - 1) << first }
}

impl Bits {
    #[inline]
    pub(crate) fn word(&self, i: usize) -> u64 {
        self.0.get(i).map_or(0, |w| w.load(Relaxed))
    }

    #[inline]
    pub(crate) fn set_word(&self, i: usize, value: u64) {
        if let Some(w) = self.0.get(i) {
            w.store(value, Relaxed);
        }
    }

    /// Calls `f` with each word that `first..first + count` touches, and its bits of that range.
    #[inline]
    fn each_word(&self, first: usize, count: usize, mut f: impl FnMut(&AtomicU64, u64)) {
        let (mut at, end) = (first, first + count);
        while at < end {
            let bit = at % 64;
            let n = (64 - bit).min(end - at);
            if let Some(w) = self.0.get(at / 64) {
                f(w, mask(bit, n));
            }
            at += n;
        }
    }

    /// Adds a range.
    pub(crate) fn set(&self, first: usize, count: usize) {
        self.each_word(first, count, |w, m| w.store(w.load(Relaxed) | m, Relaxed));
    }

    /// Removes a range; how many of it were in the set.
    pub(crate) fn clear(&self, first: usize, count: usize) -> u32 {
        let mut had = 0;
        self.each_word(first, count, |w, m| {
            let old = w.load(Relaxed);
            had += (old & m).count_ones();
            w.store(old & !m, Relaxed);
        });
        had
    }

    /// How many of a range are in the set.
    pub(crate) fn count(&self, first: usize, count: usize) -> u32 {
        let mut n = 0;
        self.each_word(first, count, |w, m| n += (w.load(Relaxed) & m).count_ones());
        n
    }

    /// How long the run of members from `first` on is.
    pub(crate) fn run_from(&self, first: usize) -> usize {
        let mut at = first;
        while at < CHUNK_PAGES {
            let ones = (self.word(at / 64) >> (at % 64)).trailing_ones() as usize;
            at += ones.min(64 - at % 64);
            if !at.is_multiple_of(64) || ones == 0 {
                break;
            }
        }
        at.min(CHUNK_PAGES) - first
    }

    /// The first member at or after `from`.
    pub(crate) fn next(&self, from: usize) -> Option<usize> {
        let mut at = from;
        while at < CHUNK_PAGES {
            let rest = self.word(at / 64) >> (at % 64);
            if rest != 0 {
                return Some(at + rest.trailing_zeros() as usize);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// The first run of `count` members that begins at a multiple of `align`, and else the longest run seen.
    pub(crate) fn find(&self, count: usize, align: usize) -> Result<usize, usize> {
        let (mut at, mut longest) = (0, 0);
        while let Some(first) = self.next(at) {
            let run = self.run_from(first);
            let aligned = first.next_multiple_of(align);
            if aligned + count <= first + run {
                return Ok(aligned);
            }
            longest = longest.max(run);
            at = first + run + 1;
        }
        Err(longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filled(pages: &[bool]) -> Bits {
        let bits = Bits::default();
        pages.iter().enumerate().filter(|p| *p.1).for_each(|p| bits.set(p.0, 1));
        bits
    }

    proptest! {
        #[test]
        fn agrees_with_a_plain_array(
            pages in proptest::collection::vec(proptest::bool::weighted(0.8), CHUNK_PAGES),
            count in 1_usize..100, shift in 0_u32..6, first in 0_usize..CHUNK_PAGES,
        ) {
            let bits = filled(&pages);
            let align = 1 << shift;
            let expected = (0..=CHUNK_PAGES - count)
                .find(|&at| at % align == 0 && pages[at..at + count].iter().all(|p| *p));
            prop_assert_eq!(bits.find(count, align).ok(), expected);
            prop_assert_eq!(bits.run_from(first), pages[first..].iter().take_while(|p| **p).count());
            prop_assert_eq!(bits.next(first), (first..CHUNK_PAGES).find(|&i| pages[i]));
            let n = count.min(CHUNK_PAGES - first);
            let there = pages[first..first + n].iter().filter(|p| **p).count() as u32;
            prop_assert_eq!(bits.count(first, n), there);
            prop_assert_eq!(bits.clear(first, n), there);
            prop_assert_eq!(bits.count(first, n), 0);
            bits.set(first, n);
            prop_assert_eq!(bits.count(first, n), n as u32);
        }
    }

    #[test]
    fn whole_and_empty() {
        let bits = Bits::default();
        assert_eq!(bits.find(1, 1), Err(0));
        bits.set(0, CHUNK_PAGES);
        assert_eq!(bits.find(CHUNK_PAGES, 512), Ok(0));
        assert_eq!(bits.run_from(0), CHUNK_PAGES);
        assert_eq!(bits.run_from(511), 1);
    }
}
