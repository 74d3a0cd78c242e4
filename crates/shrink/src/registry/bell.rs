//! The bell that the pressure thread rings, and those who sleep until it does.
//!
//! Ringing counts up; an owner has been served when the count it last served is the count there is. So an owner that
//! comes late sees one onset, however often it rang meanwhile, and asking costs one relaxed load of a word that nobody
//! writes without pressure.
//!
//! Invariants: who registers as a sleeper and then still sees the old count is woken after the next ring; nobody's
//! waker runs under a lock of the bell.

use crate::sync::{Arc, AtomicU64, Mutex, MutexGuard, Ordering, PoisonError, Weak};
use std::task::Waker;

/// Sleepers that are woken together.
const BATCH: usize = 64;

#[derive(Default)]
pub(crate) struct Bell {
    rung: AtomicU64,
    asleep: Mutex<Vec<Weak<Sleeper>>>,
}

/// One task that waits for the bell.
#[derive(Default)]
pub(crate) struct Sleeper {
    state: Mutex<Asleep>,
}

#[derive(Default)]
struct Asleep {
    waker: Option<Waker>,
    /// Whether the bell's list has it: then waiting again, as in each turn of a `select!`, takes its own lock only.
    listed: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics under these locks but a failing allocation of a list entry, which leaves the list whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Bell {
    /// How often it rang. Relaxed: no data comes with it, and who sees it late is served late.
    #[inline]
    pub(crate) fn rung(&self) -> u64 {
        self.rung.load(Ordering::Relaxed)
    }

    /// Rings; those who sleep are woken by [`wake`](Bell::wake).
    pub(crate) fn ring(&self) {
        self.rung.fetch_add(1, Ordering::Relaxed);
    }

    /// Wakes who slept when it rang, in batches, with this between two of them: ten thousand tasks that are woken at
    /// once stand in the way of those that have work.
    pub(crate) fn wake(&self, between: impl Fn()) {
        let woken = std::mem::take(&mut *lock(&self.asleep));
        for (at, batch) in woken.chunks(BATCH).enumerate() {
            if at > 0 {
                between();
            }
            batch.iter().filter_map(Weak::upgrade).for_each(|sleeper| sleeper.wake());
        }
    }

    /// Has this sleeper woken at the next ring. The caller looks at [`rung`](Bell::rung) again afterwards: a ring
    /// before this call came through the same locks, so it is seen then.
    pub(crate) fn sleep(&self, sleeper: &Arc<Sleeper>, waker: &Waker) {
        let mut state = lock(&sleeper.state);
        if !state.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            state.waker = Some(waker.clone());
        }
        if !state.listed {
            state.listed = true;
            let mut asleep = lock(&self.asleep);
            if asleep.len() == asleep.capacity() {
                // Those whose owners are gone are cleared out where the list would grow, which is rarely.
                asleep.retain(|sleeper| sleeper.strong_count() > 0);
            }
            asleep.push(Arc::downgrade(sleeper));
        }
    }
}

impl Sleeper {
    fn wake(&self) {
        let mut state = lock(&self.state);
        state.listed = false;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
