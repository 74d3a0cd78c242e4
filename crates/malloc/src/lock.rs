//! A mutex on a futex word: the only lock of the allocator.
//!
//! Invariants: the word is 0 (free), 1 (held) or 2 (held, and somebody may sleep). The kernel is entered only
//! when a thread must sleep or may have to be woken. Critical sections are short, so a thread spins a little
//! first. No poisoning: the allocator has no panics to survive.

use crate::sync::{AtomicU32, Ordering};
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};

/// Turns of the spin loop before sleeping; a critical section is some 100 ns, a turn about 10.
const SPINS: u32 = 60;

/// The lock word.
#[derive(Debug, Default)]
pub(crate) struct Lock(AtomicU32);

impl Lock {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    #[inline]
    pub(crate) fn lock(&self) {
        if self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            self.lock_slowly();
        }
    }

    #[inline]
    pub(crate) fn try_lock(&self) -> bool {
        self.0.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_ok()
    }

    #[cold]
    fn lock_slowly(&self) {
        for _ in 0..SPINS {
            if self.0.load(Ordering::Relaxed) == 0 && self.try_lock() {
                return;
            }
            crate::sync::spin();
        }
        while self.0.swap(2, Ordering::Acquire) != 0 {
            crate::sync::wait(&self.0, 2);
        }
    }

    /// Releases the lock. Only its holder may call this.
    #[inline]
    pub(crate) fn unlock(&self) {
        if self.0.swap(0, Ordering::Release) == 2 {
            crate::sync::wake_one(&self.0);
        }
    }

    /// In a forked child: free, whoever held it; the holder does not exist here.
    pub(crate) fn reset(&self) {
        self.0.store(0, Ordering::Relaxed);
    }
}

/// A value under a [`Lock`].
#[derive(Debug)]
pub(crate) struct Mutex<T> {
    lock: Lock,
    value: UnsafeCell<T>,
}

// SAFETY: the value is reached through a guard only, and the lock lets one guard exist at a time.
unsafe impl<T: Send> Sync for Mutex<T> {}

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self { lock: Lock::new(), value: UnsafeCell::new(value) }
    }

    #[inline]
    pub(crate) fn lock(&self) -> Guard<'_, T> {
        self.lock.lock();
        Guard(self)
    }

    /// As [`Mutex::lock`]; `None` if somebody has it.
    pub(crate) fn try_lock(&self) -> Option<Guard<'_, T>> {
        self.lock.try_lock().then(|| Guard(self))
    }

    /// The value, for whoever has locked [`Mutex::raw`].
    ///
    /// # Safety
    /// The lock must be held by the caller, and be released only after the last use.
    #[allow(clippy::mut_from_ref, reason = "the lock is what makes it exclusive")]
    pub(crate) unsafe fn assume_locked(&self) -> &mut T {
        // SAFETY: the caller's.
        unsafe { &mut *self.value.get() }
    }

    /// The lock alone, for fork, which holds it across the call.
    pub(crate) fn raw(&self) -> &Lock {
        &self.lock
    }
}

/// Access to a locked value; unlocks when dropped.
#[derive(Debug)]
pub(crate) struct Guard<'a, T>(&'a Mutex<T>);

impl<T> Deref for Guard<'_, T> {
    type Target = T;
    #[inline]
    fn deref(&self) -> &T {
        // SAFETY: the guard exists, so this thread holds the lock.
        unsafe { &*self.0.value.get() }
    }
}

impl<T> DerefMut for Guard<'_, T> {
    #[inline]
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the guard exists and is borrowed mutably, so this is the only reference.
        unsafe { &mut *self.0.value.get() }
    }
}

impl<T> Drop for Guard<'_, T> {
    #[inline]
    fn drop(&mut self) {
        self.0.lock.unlock();
    }
}
