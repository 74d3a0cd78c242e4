//! Where the registry gets locks and counters from. `tests/model.rs` compiles its parts against another module of this
//! name, on shuttle's model of threads.

use std::time::Duration;

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};

/// Waits for a change, so long at most, without the lock that the guard is of.
pub(crate) fn pause<'a, T>(
    changed: &Condvar,
    _: &'a Mutex<T>,
    guard: MutexGuard<'a, T>,
    most: Duration,
) -> MutexGuard<'a, T> {
    changed.wait_timeout(guard, most).unwrap_or_else(PoisonError::into_inner).0
}
