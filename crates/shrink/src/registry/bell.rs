//! The bell that the pressure thread rings, and those who sleep until it does.
//!
//! Ringing counts up; an owner has been served when the count it last served is the count there is. So an owner that
//! comes late sees one onset, however often it rang meanwhile, and asking costs one relaxed load of a word that nobody
//! writes without pressure.
//!
//! Invariants: who registers as a sleeper and then still sees the old count is woken after the next ring; nobody's
//! waker runs under a lock of the bell.

use crate::sync::{Arc, AtomicBool, AtomicU64, Mutex, MutexGuard, Ordering, PoisonError, Weak};
use std::task::Waker;

/// Sleepers that are woken together.
const BATCH: usize = 64;

#[derive(Default)]
pub(crate) struct Bell {
    rung: AtomicU64,
    asleep: Mutex<Vec<Weak<Asleep>>>,
}

/// One task that waits for the bell: its own end.
#[derive(Default)]
pub(crate) struct Sleeper {
    asleep: Arc<Asleep>,
    /// What `asleep` has while it is listed. So who waits again, as in each turn of a `select!`, takes no lock and
    /// writes nothing.
    known: Option<Waker>,
}

/// The bell's end.
#[derive(Default)]
struct Asleep {
    /// Whether the bell's list has it.
    listed: AtomicBool,
    waker: Mutex<Option<Waker>>,
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
            batch.iter().filter_map(Weak::upgrade).for_each(|asleep| asleep.wake());
        }
    }

    /// Has this sleeper woken at the next ring. The caller looks at [`rung`](Bell::rung) again afterwards: a ring
    /// before this call came through the same locks, so it is seen then. One that comes while nothing is to be done here
    /// wakes the waker that is known.
    pub(crate) fn sleep(&self, sleeper: &mut Sleeper, waker: &Waker) {
        let Sleeper { asleep, known } = sleeper;
        let same = known.as_ref().is_some_and(|known| known.will_wake(waker));
        if same && asleep.listed.load(Ordering::Relaxed) {
            return;
        }
        if !same {
            *known = Some(waker.clone());
        }
        let listed = {
            let mut waker = lock(&asleep.waker);
            waker.clone_from(known);
            // Under the lock: who is listed has a waker.
            asleep.listed.swap(true, Ordering::Relaxed)
        };
        if !listed {
            let mut list = lock(&self.asleep);
            if list.len() == list.capacity() {
                // Those whose owners are gone are cleared out where the list would grow, which is rarely.
                list.retain(|asleep| asleep.strong_count() > 0);
                let left = list.len();
                list.reserve(left);
            }
            list.push(Arc::downgrade(asleep));
        }
    }
}

impl Asleep {
    fn wake(&self) {
        let waker = {
            let mut waker = lock(&self.waker);
            self.listed.store(false, Ordering::Relaxed);
            waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}
