//! The keeper: wakes sleepers after a ring, and asks the allocator to return pages after cascades, once for many that end
//! together: when nobody has begun or ended one for a moment. Without a keeper the owner who ends last asks, but not again
//! at once.
//!
//! Invariants: with a keeper it is asked after each cascade that ends; never by two threads at a time; owners never wait
//! for it while there is a keeper.

use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError, pause};
use std::time::{Duration, Instant};

/// How long nobody must have begun or ended a cascade: an arena is locked while its pages are returned.
const QUIET: Duration = Duration::from_millis(20);
/// How long the keeper waits for that at most.
const PATIENCE: Duration = Duration::from_millis(200);
/// How long owners leave each other alone. What ends meanwhile is due to the next that ends.
pub(crate) const APART: Duration = Duration::from_millis(100);

pub(crate) struct Tidy {
    state: Mutex<State>,
    changed: Condvar,
    apart: Duration,
}

#[derive(Default)]
struct State {
    /// Cascades that have begun and not ended.
    working: usize,
    /// How often one began or ended.
    changes: u64,
    /// It rang, and sleepers have not been woken.
    rung: bool,
    /// One has ended since the allocator was last asked.
    due: bool,
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

    pub(crate) fn new(apart: Duration) -> Tidy {
        Tidy { state: Mutex::default(), changed: Condvar::new(), apart }
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
        state.due = true;
        if state.kept {
            self.changed.notify_all();
            return;
        }
        let lately = |asked: Instant| asked.elapsed() < self.apart;
        // Whoever is asking now sees `due` when it comes back.
        if state.working > 0 || state.asking || state.asked.is_some_and(lately) {
            return;
        }
        state.asking = true;
        while std::mem::take(&mut state.due) {
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
        loop {
            while !state.due && !state.rung && !state.closed {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.closed {
                return;
            }
            if std::mem::take(&mut state.rung) {
                drop(state);
                wake();
                state = self.lock();
                continue;
            }
            state = self.quiet(state);
            state.due = false;
            drop(state);
            ask();
            state = self.lock();
        }
    }

    /// Waits until nobody is at work, for a moment.
    fn quiet<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let begin = Instant::now();
        loop {
            let changes = state.changes;
            state = pause(&self.changed, &self.state, state, QUIET);
            let quiet = state.changes == changes && state.working == 0;
            if quiet || state.closed || begin.elapsed() >= PATIENCE {
                return state;
            }
        }
    }

    /// The registry is gone: the keeper goes, too.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}
