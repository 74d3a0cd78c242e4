//! `Shrink` for the standard library's types, and what the modules for other crates share with them.

mod hash;
mod lists;
mod locks;
mod plain;
mod text;
mod wrappers;

#[allow(unused_imports, reason = "shared with the features' modules, none of which may be there")]
pub(crate) use {
    hash::keyed, hash::table, hash::table_bytes, locks::lock, plain::flat, plain::flat_shared,
    wrappers::here, wrappers::through, wrappers::through_shared,
};

use crate::{Bytes, DEEPEST, Shrink, ShrinkShared};
use std::cell::Cell;

/// How many elements of one collection [`Shrink::slack`] looks at; the rest is taken to be like them. Samples of
/// samples end after some thousand elements.
pub const SAMPLE: usize = 32;

/// How many elements one measurement looks at: locks are held meanwhile, and what collections in
/// collections hold multiplies.
const MOST: usize = 4096;

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
    /// What is left of [`MOST`].
    static LEFT: Cell<usize> = const { Cell::new(0) };
}

/// Measures what is one pointer further down, unless that is too deep: a list of boxes is as deep as it is long. The
/// outermost is a new measurement.
pub(crate) fn deeper(slack: impl FnOnce() -> Bytes) -> Bytes {
    /// Counts up again, also if measuring panics.
    struct Up(usize);
    impl Drop for Up {
        fn drop(&mut self) {
            DEPTH.set(self.0);
        }
    }
    let up = Up(DEPTH.get());
    if up.0 >= DEEPEST {
        return Bytes::ZERO;
    }
    if up.0 == 0 {
        LEFT.set(MOST);
    }
    DEPTH.set(up.0 + 1);
    slack()
}

/// Whether one more element may be looked at.
fn another() -> bool {
    let left = LEFT.get();
    LEFT.set(left.saturating_sub(1));
    left > 0
}

/// The slack of `len` values, from a few of them; nothing, where none may be looked at any more.
pub(crate) fn sampled<T>(len: usize, few: impl Iterator<Item = T>, slack: impl Fn(T) -> Bytes) -> Bytes {
    let mut looked = 0;
    let few = few.take(SAMPLE).take_while(|_| another());
    let sum = deeper(|| few.inspect(|_| looked += 1).map(slack).sum());
    if len <= looked { sum } else { Bytes((sum.0 as f64 * (len as f64 / looked.max(1) as f64)) as usize) }
}

/// The same for elements that are [`Shrink`]; those of a flat type are not looked at.
pub(crate) fn slack_of<'a, T: Shrink + 'a>(len: usize, few: impl Iterator<Item = &'a T>) -> Bytes {
    if T::is_flat() { Bytes::ZERO } else { sampled(len, few, T::slack) }
}

/// The same for elements that others hold, too.
pub(crate) fn slack_of_shared<'a, T: ShrinkShared + 'a>(
    len: usize,
    few: impl Iterator<Item = &'a T>,
) -> Bytes {
    if T::is_flat_shared() { Bytes::ZERO } else { sampled(len, few, T::slack_shared) }
}

/// A few, evenly from all: only of what leaps, as a slice's iterator does; through a tree or table each step is taken.
pub(crate) fn spread<T>(all: impl ExactSizeIterator<Item = T>) -> impl Iterator<Item = T> {
    let step = (all.len() / SAMPLE).max(1);
    all.step_by(step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Cascade;

    thread_local! {
        static LOOKED: Cell<usize> = const { Cell::new(0) };
    }

    /// A byte that counts who measures it.
    #[derive(Clone)]
    struct Leaf;

    impl Shrink for Leaf {
        fn slack(&self) -> Bytes {
            LOOKED.set(LOOKED.get() + 1);
            Bytes(1)
        }
        fn shrink(&mut self, _: &mut Cascade<'_>) {}
    }

    #[test]
    fn samples_of_samples_end() {
        let lists = vec![vec![vec![Leaf; 64]; 64]; 64];
        // Each measurement has its own end.
        for _ in 0..2 {
            LOOKED.set(0);
            let slack = lists.slack().0 as f64;
            assert!(LOOKED.get() > 0 && LOOKED.get() <= MOST, "{LOOKED:?}");
            // What is not looked at is taken to be like the rest.
            let all = 64.0 * 64.0 * 64.0;
            assert!((0.9 * all..=1.1 * all).contains(&slack), "{slack} of {all}");
        }
    }
}
