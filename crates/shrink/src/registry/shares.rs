//! Shared values: each is shrunk through its locks, slice by slice, by whichever thread polls the registry.
//!
//! Invariants: one thread at a time, others pass by; each value gets a slice before one gets its second; those with
//! the most slack come first.

use crate::history::History;
use crate::registry::Shared;
use crate::registry::member::Turn;
use crate::std_impls::deeper;
use crate::{Bytes, Job, ShrinkShared};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError, Weak};
use std::time::Instant;

type Value = dyn ShrinkShared + Send + Sync;

#[derive(Default)]
pub(crate) struct Shares {
    /// The count that all of them have served.
    served: AtomicU64,
    list: Mutex<List>,
    /// Registered since the last slice: so that registering does not wait for a slice.
    new: Mutex<Vec<Share>>,
}

#[derive(Default)]
struct List {
    shares: Vec<Share>,
    /// Whose turn it is.
    next: usize,
    /// Not before then.
    pause: Option<Instant>,
    /// The count that the order by slack was made for.
    sorted: u64,
}

struct Share {
    name: &'static str,
    value: Weak<Value>,
    seen: u64,
    answers: u64,
    slack: Bytes,
    job: Option<Job>,
    history: History,
}

impl Share {
    fn is_alive(&self) -> bool {
        self.value.strong_count() > 0
    }

    /// Its value is gone: so is the cascade over it.
    fn give_up(&mut self, shared: &Shared) {
        if self.job.take().is_some() {
            shared.tidy.end(|| shared.give_back());
        }
    }
}

impl Shares {
    #[inline]
    pub(crate) fn served(&self, rung: u64) -> bool {
        self.served.load(Ordering::Relaxed) == rung
    }

    pub(crate) fn add(&self, name: &'static str, value: Weak<Value>, rung: u64) {
        let (slack, history) = (Bytes::ZERO, History::default());
        let share = Share { name, value, seen: rung, answers: rung, slack, job: None, history };
        let mut new = self.new.lock().unwrap_or_else(PoisonError::into_inner);
        if new.len() == new.capacity() {
            // Without pressure nobody else clears out those whose value is gone. As much room again as is left makes
            // that rare.
            new.retain(Share::is_alive);
            let alive = new.len();
            new.reserve(alive);
        }
        new.push(share);
    }

    /// Puts those that are new on the list; not, where there is no memory for it now.
    fn join(&self, list: &mut List) -> bool {
        let mut new = self.new.lock().unwrap_or_else(PoisonError::into_inner);
        let room = list.shares.try_reserve(new.len()).is_ok();
        if room {
            list.shares.append(&mut new);
        }
        room
    }

    pub(crate) fn slice(&self, shared: &Shared) -> Turn {
        // Only ever tried: so a value may be dropped, or poll again, while it is held.
        let mut list = match self.list.try_lock() {
            Ok(list) => list,
            Err(TryLockError::Poisoned(list)) => list.into_inner(),
            Err(TryLockError::WouldBlock) => return Turn::Quiet,
        };
        if list.pause.is_some_and(|until| Instant::now() < until) {
            return Turn::More;
        }
        let joined = self.join(&mut list);
        let rung = shared.bell.rung();
        list.prepare(rung, shared);
        let Some((at, value)) = list.pending(rung, shared) else {
            if !joined {
                return Turn::More;
            }
            self.served.store(rung, Ordering::Relaxed);
            return Turn::Quiet;
        };
        list.next = at + 1;
        let share = &mut list.shares[at];
        // It stays in its place while it works, so that a panic in a value's own code costs a turn and no more.
        let job = share.job.get_or_insert_with(|| {
            share.answers = rung;
            shared.tidy.begin();
            Job::with_history(share.name, shared.policy, std::mem::take(&mut share.history))
        });
        if job.slice_shared(&*value) {
            let next = job.next();
            list.pause = Some(next);
            return Turn::More;
        }
        share.seen = share.answers;
        let (name, Some(job)) = (share.name, share.job.take()) else { return Turn::Quiet };
        let (report, history) = job.into_parts();
        share.history = history;
        drop(list);
        shared.finished(name, &report);
        Turn::Done(report)
    }
}

impl List {
    /// At a new onset: forgets those whose value is gone, and has those with the most slack come first.
    fn prepare(&mut self, rung: u64, shared: &Shared) {
        if std::mem::replace(&mut self.sorted, rung) == rung {
            return;
        }
        self.shares.retain_mut(|share| {
            let alive = share.is_alive();
            if !alive {
                share.give_up(shared);
            }
            alive
        });
        for share in &mut self.shares {
            let value = share.value.upgrade();
            share.slack = value.map_or(Bytes::ZERO, |value| deeper(|| value.slack_shared()));
        }
        self.shares.sort_unstable_by_key(|share| std::cmp::Reverse(share.slack));
        self.next = 0;
    }

    /// The next, from where the turn is, that has something to do.
    fn pending(&mut self, rung: u64, shared: &Shared) -> Option<(usize, Arc<Value>)> {
        let count = self.shares.len();
        (0..count).map(|n| (self.next + n) % count).find_map(|at| {
            let share = &mut self.shares[at];
            if share.job.is_none() && share.seen == rung {
                return None;
            }
            let value = share.value.upgrade();
            if value.is_none() {
                share.give_up(shared);
            }
            value.map(|value| (at, value))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Policy, Registry};
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    /// A registry whose slices are one step each, and how often it has asked the allocator.
    fn stepwise() -> (Registry, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let asks = Arc::clone(&asked);
        let policy = Policy::new().slice(Duration::ZERO);
        (Registry::with_allocator(policy, move || _ = asks.fetch_add(1, Ordering::Relaxed)), asked)
    }

    fn lists() -> Arc<Mutex<Vec<Vec<u8>>>> {
        Arc::new(Mutex::new((0..10).map(|_| Vec::with_capacity(5000)).collect()))
    }

    #[test]
    fn who_comes_and_goes_without_pressure_leaves_nothing() {
        let (registry, _) = stepwise();
        let stays: Vec<_> = (0..10).map(|_| lists()).collect();
        stays.iter().for_each(|value| registry.share("stays", value));
        for _ in 0..100_000 {
            registry.share("goes", &Arc::new(Mutex::new(Vec::<u8>::new())));
        }
        let new = registry.shared.shares.new.lock().unwrap();
        assert!(new.len() < 100 && new.capacity() < 100, "{} of {}", new.len(), new.capacity());
        assert_eq!(new.iter().filter(|share| share.name == "stays").count(), 10);
    }

    /// Looking through all of them for each slice would make a cascade over many take the square of their number.
    #[test]
    fn who_goes_in_a_cascade_is_passed_over_and_cleared_out_at_the_next_ring() {
        let (registry, asked) = stepwise();
        let (stays, goes) = (lists(), lists());
        registry.share("stays", &stays);
        registry.share("goes", &goes);
        registry.flag();
        assert!(registry.poll().is_more() && registry.poll().is_more(), "each has begun");
        drop(goes);
        while !matches!(registry.poll(), Turn::Quiet) {}
        let listed = || registry.shared.shares.list.lock().unwrap().shares.len();
        assert_eq!((registry.totals().cascades, listed()), (1, 2));
        // The cascade that nobody ended does not keep the allocator from being asked.
        assert!(asked.load(Ordering::Relaxed) > 0);
        registry.flag();
        registry.poll();
        assert_eq!(listed(), 1);
    }
}
