//! Sets of chunks: one bit for each of the range's two million, with a lower bound for searches.
//!
//! All members lie in the words `low..high`; both only narrow what a search reads. Writers hold the page heap's
//! lock.

use crate::map::CHUNKS;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};

const WORDS: usize = CHUNKS / 64;

/// A set of chunks.
#[derive(Debug)]
pub(crate) struct ChunkSet {
    words: [AtomicU64; WORDS],
    low: AtomicUsize,
    high: AtomicUsize,
}

impl ChunkSet {
    pub(crate) const fn new() -> Self {
        Self {
            words: [const { AtomicU64::new(0) }; WORDS],
            low: AtomicUsize::new(0),
            high: AtomicUsize::new(0),
        }
    }

    /// Where its words are, for readers from outside.
    pub(crate) fn address(&self) -> usize {
        self.words.as_ptr().addr()
    }

    fn word(&self, i: usize) -> u64 {
        self.words.get(i).map_or(0, |w| w.load(Relaxed))
    }

    pub(crate) fn insert(&self, n: usize) {
        if let Some(w) = self.words.get(n / 64) {
            w.store(w.load(Relaxed) | 1 << (n % 64), Relaxed);
            self.low.store(self.low.load(Relaxed).min(n / 64), Relaxed);
            self.high.store(self.high.load(Relaxed).max(n / 64 + 1), Relaxed);
        }
    }

    pub(crate) fn remove(&self, n: usize) {
        if let Some(w) = self.words.get(n / 64) {
            w.store(w.load(Relaxed) & !(1 << (n % 64)), Relaxed);
        }
    }

    pub(crate) fn contains(&self, n: usize) -> bool {
        self.word(n / 64) >> (n % 64) & 1 != 0
    }

    /// The first member.
    pub(crate) fn first(&self) -> Option<usize> {
        let (mut i, high) = (self.low.load(Relaxed), self.high.load(Relaxed));
        while i < high && self.word(i) == 0 {
            i += 1;
        }
        self.low.store(i.min(WORDS), Relaxed);
        (i < high).then(|| i * 64 + self.word(i).trailing_zeros() as usize)
    }

    /// The first member at or after `from`.
    pub(crate) fn next(&self, from: usize) -> Option<usize> {
        let from = from.max(self.low.load(Relaxed) * 64);
        let high = self.high.load(Relaxed);
        let mut i = from / 64;
        let mut bits = self.word(i) & (u64::MAX << (from % 64));
        while bits == 0 {
            i += 1;
            if i >= high {
                return None;
            }
            bits = self.word(i);
        }
        Some(i * 64 + bits.trailing_zeros() as usize)
    }

    /// The last member before `end`.
    pub(crate) fn last_before(&self, end: usize) -> Option<usize> {
        let end = end.min(self.high.load(Relaxed) * 64);
        let (mut i, low) = (end / 64, self.low.load(Relaxed));
        let mut bits = self.word(i) & !(u64::MAX << (end % 64));
        while bits == 0 {
            if i <= low {
                return None;
            }
            i -= 1;
            bits = self.word(i);
        }
        Some(i * 64 + 63 - bits.leading_zeros() as usize)
    }

    /// The first `count` neighbours, from a multiple of `align` on, none of which is a member.
    pub(crate) fn gap(&self, count: usize, align: usize) -> Option<usize> {
        let mut at = 0;
        loop {
            if at + count > CHUNKS {
                return None;
            }
            match self.next(at) {
                Some(used) if used < at + count => at = self.after(used).next_multiple_of(align),
                _ => return Some(at),
            }
        }
    }

    /// The first number at or after `from` that is no member.
    fn after(&self, from: usize) -> usize {
        let mut at = from;
        while at < CHUNKS {
            let ones = (self.word(at / 64) >> (at % 64)).trailing_ones() as usize;
            if ones < 64 - at % 64 {
                return at + ones;
            }
            at = (at / 64 + 1) * 64;
        }
        at
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn agrees_with_a_tree(
            ops in proptest::collection::vec((0_usize..400, proptest::bool::weighted(0.7)), 0..300),
            from in 0_usize..450, count in 1_usize..80, shift in 0_u32..4,
        ) {
            static SET: ChunkSet = ChunkSet::new();
            for n in 0..450 { SET.remove(n); }
            let mut model = BTreeSet::new();
            for (n, add) in ops {
                if add { SET.insert(n); model.insert(n); } else { SET.remove(n); model.remove(&n); }
                prop_assert_eq!(SET.first(), model.first().copied());
            }
            prop_assert_eq!(SET.contains(from), model.contains(&from));
            prop_assert_eq!(SET.next(from), model.range(from..).next().copied());
            prop_assert_eq!(SET.last_before(from), model.range(..from).next_back().copied());
            let align = 1 << shift;
            let gap = (0..).step_by(align).find(|&at| model.range(at..at + count).next().is_none());
            prop_assert_eq!(SET.gap(count, align), gap);
        }
    }
}
