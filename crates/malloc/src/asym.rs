//! An asymmetric lock: one owner that enters and leaves all the time for next to nothing, and others that may
//! shut it out now and then at the price of a system call.
//!
//! The owner stores `busy`, then loads `shut`; the other stores `shut`, then loads `busy`. Without a barrier
//! between its store and its load each could miss the other (x86 lets a load overtake an earlier store). The
//! owner has only a compiler barrier there; the other calls membarrier(2), which makes every running thread of
//! the process pass a full barrier. A thread that is not running has passed one when it was switched out. So
//! after the call either `busy` is visible to the other, or the owner will see `shut`.
//!
//! Invariants: between a successful [`Asym::enter`] and [`Asym::leave`] of the owner no other is inside, and
//! between a successful close and [`Asym::open`] the owner is not. At most one other at a time (the purge's lock
//! sees to it).

use crate::sync::{self, AtomicU32, Ordering};

/// The two flags.
#[derive(Debug, Default)]
#[repr(C)]
pub(crate) struct Asym {
    busy: AtomicU32,
    shut: AtomicU32,
}

impl Asym {
    pub(crate) const fn new() -> Self {
        Self { busy: AtomicU32::new(0), shut: AtomicU32::new(0) }
    }

    /// The owner enters, unless it is shut out; then it must [`Asym::leave`] all the same, or use
    /// [`Asym::enter_slowly`].
    #[inline(always)]
    pub(crate) fn enter(&self) -> bool {
        self.busy.store(1, Ordering::Relaxed);
        sync::light_barrier();
        self.shut.load(Ordering::Acquire) == 0
    }

    /// The owner leaves.
    #[inline(always)]
    pub(crate) fn leave(&self) {
        self.busy.store(0, Ordering::Release);
    }

    /// The owner enters, after waiting for whoever shut it out.
    #[cold]
    pub(crate) fn enter_slowly(&self) {
        while !self.enter() {
            self.leave();
            sync::wait(&self.shut, 1);
        }
    }

    /// Another asks the owner to stay out. Counts only after [`sync::barrier_everywhere`] and if
    /// [`Asym::is_closed`] then says so.
    pub(crate) fn shut(&self) {
        self.shut.store(1, Ordering::SeqCst);
    }

    /// After [`Asym::shut`] and a barrier: whether the owner is outside. If not, the other must [`Asym::open`]
    /// and may try again another time; the owner may be stopped where it is for as long as it likes.
    pub(crate) fn is_closed(&self) -> bool {
        self.busy.load(Ordering::Acquire) == 0
    }

    /// Lets the owner in again.
    pub(crate) fn open(&self) {
        self.shut.store(0, Ordering::Release);
        sync::wake_all(&self.shut);
    }

    /// In a forked child: as new. The owner must not exist, or be the caller, outside.
    pub(crate) fn reset(&self) {
        self.busy.store(0, Ordering::Relaxed);
        self.shut.store(0, Ordering::Relaxed);
    }
}
