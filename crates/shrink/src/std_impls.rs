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

/// How many elements of one collection [`Shrink::slack`] looks at; the rest is taken to be like them.
pub const SAMPLE: usize = 32;

thread_local! {
    static DEPTH: Cell<usize> = const { Cell::new(0) };
}

/// Measures what is one pointer further down, unless that is too deep: a list of boxes is as deep as it is long.
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
    DEPTH.set(up.0 + 1);
    slack()
}

/// The slack of `len` values, from a few of them.
pub(crate) fn sampled<T>(len: usize, few: impl Iterator<Item = T>, slack: impl Fn(T) -> Bytes) -> Bytes {
    let sum = deeper(|| few.take(SAMPLE).map(slack).sum());
    if len <= SAMPLE { sum } else { Bytes((sum.0 as f64 * (len as f64 / SAMPLE as f64)) as usize) }
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
