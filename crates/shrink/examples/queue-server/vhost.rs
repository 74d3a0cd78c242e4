//! A virtual host: queues by name, and who waits for a message in them.
//!
//! Invariants: all of it is behind one lock, held for one command; a waiter that was woken and leaves without a message
//! has the next one woken, so no message lies there while somebody waits.

use crate::queue::{Full, Queue, Store};
use ebbtide_shrink::{Bytes, Cascade, Shrink, ShrinkShared};
use std::borrow::Borrow;
use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use tokio::sync::Notify;

/// What an empty queue is charged for, beside its name.
const QUEUE: usize = 512;

/// A queue's name: any bytes.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct Name(Arc<[u8]>);

impl Name {
    pub(crate) fn new(bytes: &[u8]) -> Name {
        Name(Arc::from(bytes))
    }
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

/// As reports show it.
impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

/// A client that waits for a message.
#[derive(Debug, Default)]
pub(crate) struct Waiter(pub(crate) Notify);

impl ShrinkShared for Waiter {
    fn slack_shared(&self) -> Bytes {
        Bytes::ZERO
    }
    fn shrink_shared(&self, _: &mut Cascade<'_>) {}
    fn is_flat_shared() -> bool {
        true
    }
}

#[derive(Shrink, Default)]
pub(crate) struct Vhost {
    pub(crate) queues: HashMap<Name, Queue>,
    /// In the order they came; no entry is empty.
    waiting: HashMap<Name, VecDeque<Arc<Waiter>>>,
}

impl Vhost {
    /// The queue of this name, made if there is none; it stays, empty or not, until it is deleted.
    pub(crate) fn declare(&mut self, name: &[u8], store: &Arc<Store>) -> Result<&mut Queue, Full> {
        if !self.queues.contains_key(name) {
            let charge = QUEUE + name.len();
            self.queues.try_reserve(1).map_err(|_| Full)?;
            if !store.budget.take(charge) {
                return Err(Full);
            }
            self.queues.insert(Name::new(name), Queue::new(Arc::clone(store)));
        }
        self.queues.get_mut(name).ok_or(Full)
    }

    /// Takes a queue away, to be dropped without the lock.
    pub(crate) fn delete(&mut self, name: &[u8], store: &Store) -> Option<Queue> {
        let queue = self.queues.remove(name)?;
        store.budget.give(QUEUE + name.len());
        Some(queue)
    }

    /// Messages have come: wakes as many as wait for them.
    pub(crate) fn wake(&mut self, name: &[u8], count: usize) {
        let Some(waiting) = self.waiting.get_mut(name) else { return };
        for waiter in waiting.drain(..count.min(waiting.len())) {
            waiter.0.notify_one();
        }
        if waiting.is_empty() {
            self.waiting.remove(name);
        }
    }

    /// How many wait, once for each queue they wait for.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.values().map(VecDeque::len).sum()
    }

    /// Has a client wait; at the head of the line if it was woken and another one was faster.
    pub(crate) fn wait(&mut self, name: &Name, waiter: &Arc<Waiter>, again: bool) {
        let waiting = self.waiting.entry(name.clone()).or_default();
        if waiting.iter().any(|other| Arc::ptr_eq(other, waiter)) {
            return;
        }
        let waiter = Arc::clone(waiter);
        if again { waiting.push_front(waiter) } else { waiting.push_back(waiter) }
    }

    /// A client waits no more.
    pub(crate) fn leave(&mut self, name: &[u8], waiter: &Arc<Waiter>) {
        if let Some(waiting) = self.waiting.get_mut(name) {
            waiting.retain(|other| !Arc::ptr_eq(other, waiter));
            if waiting.is_empty() {
                self.waiting.remove(name);
            }
        }
        if self.queues.get(name).is_some_and(|queue| !queue.ready.is_empty()) {
            self.wake(name, 1);
        }
    }
}
