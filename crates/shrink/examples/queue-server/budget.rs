//! How much memory messages and requests take, against the limit.
//!
//! Invariant: what was taken is given when it goes; nothing is taken beyond the limit.

use std::sync::atomic::{AtomicUsize, Ordering};

#[derive(Debug)]
pub(crate) struct Budget {
    used: AtomicUsize,
    limit: usize,
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Budget {
        Budget { used: AtomicUsize::new(0), limit }
    }

    /// Takes so many bytes, unless that would exceed the limit.
    pub(crate) fn take(&self, bytes: usize) -> bool {
        self.within(bytes, self.limit)
    }

    /// The same with a quarter more: where a message overflows, its place in the queue stays in memory.
    pub(crate) fn take_place(&self, bytes: usize) -> bool {
        self.within(bytes, self.limit / 4 * 5)
    }

    fn within(&self, bytes: usize, limit: usize) -> bool {
        // A count alone: no data comes with it.
        let add = |used: usize| used.checked_add(bytes).filter(|sum| *sum <= limit);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    pub(crate) fn give(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}
