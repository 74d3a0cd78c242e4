//! When to ask the allocator to return pages: once after a cascade, when nobody is at work any more or 100 ms later,
//! on the keeper's thread, or, where there is none, on that of the owner who ends last.
//!
//! Invariants: after each cascade that ends, it is asked at least once; never by two threads at a time; owners never
//! wait for it while there is a keeper.

use crate::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long the keeper waits for owners that are still at work.
const PATIENCE: Duration = Duration::from_millis(100);

#[derive(Default)]
pub(crate) struct Tidy {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Cascades that have begun and not ended.
    working: usize,
    /// One has ended since the allocator was last asked.
    due: bool,
    /// Somebody is asking it now.
    asking: bool,
    kept: bool,
    closed: bool,
}

impl Tidy {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A cascade begins.
    pub(crate) fn begin(&self) {
        self.lock().working += 1;
    }

    /// A cascade has ended, or was given up.
    pub(crate) fn end(&self, ask: impl Fn()) {
        let mut state = self.lock();
        state.working -= 1;
        state.due = true;
        if state.kept {
            self.changed.notify_all();
            return;
        }
        // Whoever is asking now sees `due` when it comes back.
        if state.working > 0 || state.asking {
            return;
        }
        state.asking = true;
        while std::mem::take(&mut state.due) {
            drop(state);
            ask();
            state = self.lock();
        }
        state.asking = false;
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
    pub(crate) fn keep(&self, ask: impl Fn()) {
        let mut state = self.lock();
        loop {
            while !state.due && !state.closed {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.closed {
                return;
            }
            if state.working > 0 {
                let wait = self.changed.wait_timeout_while(state, PATIENCE, |s| s.working > 0 && !s.closed);
                state = wait.unwrap_or_else(PoisonError::into_inner).0;
            }
            state.due = false;
            drop(state);
            ask();
            state = self.lock();
        }
    }

    /// The registry is gone: the keeper goes, too.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}
