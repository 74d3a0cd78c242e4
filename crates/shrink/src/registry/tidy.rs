//! The keeper: wakes sleepers after a ring, and asks the allocator to return pages after cascades, once for many that end
//! together: when nobody has begun or ended one for a moment. Without a keeper the owner who ends last asks, but not again
//! at once.
//!
//! Invariants: with a keeper it is asked after each cascade that ends; never by two threads at a time; owners never wait
//! for it while there is a keeper; no owner that stops in the middle of its cascade keeps it from being asked for the
//! others.

use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError, pause};
use std::time::{Duration, Instant};

/// How long nobody must have begun or ended a cascade: an arena is locked while its pages are returned.
const QUIET: Duration = Duration::from_millis(20);
/// How long that is waited for at most.
pub(crate) const PATIENCE: Duration = Duration::from_millis(200);
/// How long owners leave each other alone. What ends meanwhile is due to the next that ends.
pub(crate) const APART: Duration = Duration::from_millis(100);

pub(crate) struct Tidy {
    state: Mutex<State>,
    changed: Condvar,
    apart: Duration,
    patience: Duration,
}

#[derive(Default)]
struct State {
    /// Cascades that have begun and not ended.
    working: usize,
    /// How often one began or ended.
    changes: u64,
    /// It rang, and sleepers have not been woken.
    rung: bool,
    /// When one ended first since the allocator was last asked.
    due: Option<Instant>,
    /// Somebody is asking it now.
    asking: bool,
    /// When an owner last asked.
    asked: Option<Instant>,
    kept: bool,
    closed: bool,
}

impl Tidy {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn new(apart: Duration, patience: Duration) -> Tidy {
        Tidy { state: Mutex::default(), changed: Condvar::new(), apart, patience }
    }

    /// It rang. Whether there is a keeper to wake those who sleep.
    pub(crate) fn rang(&self) -> bool {
        let mut state = self.lock();
        state.rung = state.kept;
        self.changed.notify_all();
        state.kept
    }

    /// A cascade begins.
    pub(crate) fn begin(&self) {
        let mut state = self.lock();
        state.working += 1;
        state.changes += 1;
    }

    /// A cascade has ended, or was given up.
    pub(crate) fn end(&self, ask: impl Fn()) {
        let mut state = self.lock();
        state.working -= 1;
        state.changes += 1;
        let overdue = state.due.is_some_and(|since| self.overdue(since));
        state.due.get_or_insert_with(Instant::now);
        if state.kept {
            self.changed.notify_all();
            return;
        }
        let lately = |asked: Instant| asked.elapsed() < self.apart;
        // Whoever is asking now sees `due` when it comes back.
        let wait = state.working > 0 && !overdue;
        if wait || state.asking || state.asked.is_some_and(lately) {
            return;
        }
        state.asking = true;
        while state.due.take().is_some() {
            drop(state);
            ask();
            state = self.lock();
        }
        (state.asking, state.asked) = (false, Some(Instant::now()));
    }

    /// Takes the keeper's place; whether it was free.
    pub(crate) fn employ(&self) -> bool {
        !std::mem::replace(&mut self.lock().kept, true)
    }

    /// The keeper's place is free again: its thread could not be had.
    pub(crate) fn dismiss(&self) {
        self.lock().kept = false;
    }

    /// The keeper's work, until the registry is gone.
    pub(crate) fn keep(&self, wake: impl Fn(), ask: impl Fn()) {
        let mut state = self.lock();
        // Rings do not begin it anew: one that never ends would keep the allocator from being asked.
        let mut waits = None;
        loop {
            while state.due.is_none() && !state.rung && !state.closed {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.closed {
                return;
            }
            if std::mem::take(&mut state.rung) {
                drop(state);
                wake();
                state = self.lock();
            }
            if state.due.is_none() {
                continue;
            }
            let since = *waits.get_or_insert_with(Instant::now);
            state = self.quiet(state, since);
            // Who sleeps does not wait until others are quiet, and the allocator.
            if state.rung && !self.overdue(since) {
                continue;
            }
            (state.due, waits) = (None, None);
            drop(state);
            ask();
            state = self.lock();
        }
    }

    /// Waits until nobody is at work, for a moment; or until there is something else to do.
    fn quiet<'a>(&'a self, mut state: MutexGuard<'a, State>, since: Instant) -> MutexGuard<'a, State> {
        loop {
            if state.rung || state.closed || self.overdue(since) {
                return state;
            }
            let changes = state.changes;
            state = pause(&self.changed, &self.state, state, QUIET);
            if state.changes == changes && state.working == 0 {
                return state;
            }
        }
    }

    fn overdue(&self, since: Instant) -> bool {
        since.elapsed() >= self.patience
    }

    /// The registry is gone: the keeper goes, too.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}
