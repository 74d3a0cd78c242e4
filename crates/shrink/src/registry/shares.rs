//! Shared values: each is shrunk through its locks, slice by slice, by whichever thread polls the registry.
//!
//! Invariants: one thread at a time, others pass by; each value gets a slice before one gets its second; those with
//! the most slack come first.

use crate::history::History;
use crate::registry::Shared;
use crate::registry::member::Turn;
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

impl Shares {
    #[inline]
    pub(crate) fn served(&self, rung: u64) -> bool {
        self.served.load(Ordering::Relaxed) == rung
    }

    pub(crate) fn add(&self, name: &'static str, value: Weak<Value>, rung: u64) {
        let (slack, history) = (Bytes::ZERO, History::default());
        let share = Share { name, value, seen: rung, answers: rung, slack, job: None, history };
        self.new.lock().unwrap_or_else(PoisonError::into_inner).push(share);
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
        let Some((at, value)) = list.pending(rung) else {
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
    /// Forgets those whose value is gone; at a new onset, has those with the most slack come first.
    fn prepare(&mut self, rung: u64, shared: &Shared) {
        self.shares.retain(|share| {
            let alive = share.value.strong_count() > 0;
            if !alive && share.job.is_some() {
                shared.tidy.end(|| shared.give_back());
            }
            alive
        });
        if std::mem::replace(&mut self.sorted, rung) != rung {
            for share in &mut self.shares {
                share.slack = share.value.upgrade().map_or(Bytes::ZERO, |value| value.slack_shared());
            }
            self.shares.sort_unstable_by_key(|share| std::cmp::Reverse(share.slack));
            self.next = 0;
        }
    }

    /// The next, from where the turn is, that has something to do.
    fn pending(&self, rung: u64) -> Option<(usize, Arc<Value>)> {
        let count = self.shares.len();
        (0..count).map(|n| (self.next + n) % count).find_map(|at| {
            let share = &self.shares[at];
            let pending = share.job.is_some() || share.seen != rung;
            pending.then(|| share.value.upgrade()).flatten().map(|value| (at, value))
        })
    }
}
