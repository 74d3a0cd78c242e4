//! Who has an object, which are idle, who waits: what is under the pool's lock. No user's code runs here.
//!
//! Invariants: `out + leaving + idle <= most`; so many waiters are granted as have a place to take (`granted <= free`),
//! and there are others only if all places are granted, so that nobody who comes later is served earlier.

use crate::Bytes;
use std::collections::VecDeque;
use std::task::Waker;
use std::time::{Duration, Instant};

pub(crate) struct State<T> {
    /// Longest idle first.
    pub(crate) idle: VecDeque<Idle<T>>,
    /// What the idle ones take, by the pool's measure.
    pub(crate) idle_bytes: Bytes,
    /// Places taken: objects that are used, made or looked at.
    pub(crate) out: usize,
    /// Places of objects that are being dropped: taken until they are gone.
    leaving: usize,
    /// In the order they came; numbers rise.
    waiters: VecDeque<Waiter>,
    granted: usize,
    next: u64,
    pub(crate) stats: Stats,
    most: usize,
}

pub(crate) struct Idle<T> {
    pub(crate) value: T,
    pub(crate) since: Instant,
    pub(crate) bytes: Bytes,
}

struct Waiter {
    number: u64,
    waker: Waker,
    granted: bool,
}

/// What a pool did since it was made, and how it stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Objects in use now.
    pub out: usize,
    /// Objects idle now.
    pub idle: usize,
    /// What the idle ones take.
    pub idle_bytes: Bytes,
    /// Callers that wait now.
    pub waiting: usize,
    /// The most objects that were in use at once.
    pub most_out: usize,
    /// Objects made.
    pub made: u64,
    /// Objects handed out again.
    pub reused: u64,
    /// Calls that had to wait.
    pub waited: u64,
    /// Objects dropped because they were idle: for too long, or at pressure.
    pub dropped: u64,
    /// Objects dropped because the check refused them.
    pub unhealthy: u64,
    /// Objects dropped because their user or their reset panicked.
    pub broken: u64,
}

/// A place in the pool, with the object if there was an idle one.
pub(crate) enum Place<T> {
    Used(T),
    Empty,
}

impl<T> State<T> {
    pub(crate) fn new(most: usize) -> State<T> {
        State {
            idle: VecDeque::new(),
            idle_bytes: Bytes::ZERO,
            out: 0,
            leaving: 0,
            waiters: VecDeque::new(),
            granted: 0,
            next: 0,
            stats: Stats::default(),
            most,
        }
    }

    /// Places to be taken, with idle objects in some of them.
    fn free(&self) -> usize {
        self.most - self.out - self.leaving
    }

    /// A place, if there is one that no waiter has been granted.
    pub(crate) fn claim(&mut self) -> Option<Place<T>> {
        (self.free() > self.granted).then(|| self.take())
    }

    fn take(&mut self) -> Place<T> {
        self.out += 1;
        self.stats.most_out = self.stats.most_out.max(self.out);
        match self.idle.pop_back() {
            Some(idle) => {
                self.idle_bytes = self.idle_bytes - idle.bytes;
                self.stats.reused += 1;
                Place::Used(idle.value)
            }
            None => Place::Empty,
        }
    }

    /// A place for this waiter, who is in line from now on if there is none.
    pub(crate) fn wait(&mut self, number: &mut Option<u64>, waker: &Waker) -> Option<Place<T>> {
        let Some(known) = *number else {
            if let Some(place) = self.claim() {
                return Some(place);
            }
            self.next += 1;
            self.stats.waited += 1;
            *number = Some(self.next);
            self.waiters.push_back(Waiter { number: self.next, waker: waker.clone(), granted: false });
            return None;
        };
        let at = self.waiters.binary_search_by_key(&known, |waiter| waiter.number).ok()?;
        let waiter = &mut self.waiters[at];
        if !waiter.granted {
            waiter.waker.clone_from(waker);
            return None;
        }
        self.waiters.remove(at);
        self.granted -= 1;
        *number = None;
        Some(self.take())
    }

    /// The one that was taken was no longer good.
    pub(crate) fn unhealthy(&mut self) {
        self.stats.reused -= 1;
        self.stats.unhealthy += 1;
    }

    /// This waiter has given up. Whom to wake.
    pub(crate) fn leave(&mut self, number: u64) -> Option<Waker> {
        let at = self.waiters.binary_search_by_key(&number, |waiter| waiter.number).ok()?;
        let waiter = self.waiters.remove(at)?;
        self.granted -= usize::from(waiter.granted);
        self.grant()
    }

    /// A place is free again, with the object if it is still good. Whom to wake.
    pub(crate) fn release(&mut self, idle: Option<Idle<T>>) -> Option<Waker> {
        self.out -= 1;
        if let Some(idle) = idle {
            self.idle_bytes += idle.bytes;
            self.idle.push_back(idle);
        }
        self.grant()
    }

    /// The object of a place that was taken does not come back: it is to be dropped.
    pub(crate) fn leave_out(&mut self) {
        self.out -= 1;
        self.leaving += 1;
    }

    /// An object that was leaving is gone. Whom to wake.
    pub(crate) fn vacate(&mut self) -> Option<Waker> {
        self.leaving -= 1;
        self.grant()
    }

    /// Grants a free place to the first in line that has none.
    fn grant(&mut self) -> Option<Waker> {
        if self.free() <= self.granted {
            return None;
        }
        // The granted ones stand in front of the others, but for those who left.
        let waiter = self.waiters.iter_mut().find(|waiter| !waiter.granted)?;
        waiter.granted = true;
        self.granted += 1;
        Some(waiter.waker.clone())
    }

    /// The longest idle one, to be dropped as by `drop_oldest`, if it has been idle for so long.
    pub(crate) fn expired(&mut self, now: Instant, idle: Duration, keep: usize) -> Option<Idle<T>> {
        let old = self.idle.front().is_some_and(|i| now.saturating_duration_since(i.since) >= idle);
        if old { self.drop_oldest(keep) } else { None }
    }

    /// The longest idle one, to be dropped, if there are more than `keep` objects, and nobody was granted its place.
    pub(crate) fn drop_oldest(&mut self, keep: usize) -> Option<Idle<T>> {
        if self.out + self.idle.len() <= keep || self.free() <= self.granted {
            return None;
        }
        let idle = self.idle.pop_front()?;
        self.idle_bytes = self.idle_bytes - idle.bytes;
        self.leaving += 1;
        self.stats.dropped += 1;
        Some(idle)
    }

    pub(crate) fn stats(&self) -> Stats {
        let (out, idle, waiting) = (self.out, self.idle.len(), self.waiters.len());
        Stats { out, idle, idle_bytes: self.idle_bytes, waiting, ..self.stats }
    }
}
