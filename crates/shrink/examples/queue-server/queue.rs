//! One queue: messages in order, those that were delivered and not yet acknowledged, and what overflows.
//!
//! Invariant: each message is charged to the budget as long as it is in a queue.

use crate::budget::Budget;
use crate::segment::{Segments, Spot};
use ebbtide_shrink::{Bytes, Cascade, Shrink};
use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;

/// What a message takes beside its bytes: its place in the queue, and the allocator's header.
const PLACE: usize = 64;

/// Where messages may lie, for all queues.
#[derive(Debug)]
pub(crate) struct Store {
    pub(crate) budget: Budget,
    pub(crate) overflow: Option<PathBuf>,
}

/// An end of a queue.
#[derive(Clone, Copy, Debug)]
pub(crate) enum End {
    Left,
    Right,
}

/// There is no room for a message.
#[derive(Debug)]
pub(crate) struct Full;

pub(crate) enum Message {
    Here(Box<[u8]>),
    There(Spot),
}

/// Made of one block of just its size, or none: there is nothing to give back, and nothing to look at.
impl Shrink for Message {
    fn slack(&self) -> Bytes {
        Bytes::ZERO
    }
    fn shrink(&mut self, _: &mut Cascade<'_>) {}
    fn is_flat() -> bool {
        true
    }
}

#[derive(Shrink)]
pub(crate) struct Queue {
    pub(crate) ready: VecDeque<Message>,
    pub(crate) unacked: HashMap<u64, Message>,
    segments: Segments,
    #[shrink(skip)]
    store: Arc<Store>,
}

impl Queue {
    pub(crate) fn new(store: Arc<Store>) -> Queue {
        Queue { ready: VecDeque::new(), unacked: HashMap::new(), segments: Segments::default(), store }
    }

    pub(crate) fn push(&mut self, end: End, body: &[u8]) -> Result<(), Full> {
        self.ready.try_reserve(1).map_err(|_| Full)?;
        let message = self.keep(body)?;
        match end {
            End::Left => self.ready.push_front(message),
            End::Right => self.ready.push_back(message),
        }
        Ok(())
    }

    /// Keeps a message in memory, or in a file where that is used up.
    fn keep(&mut self, body: &[u8]) -> Result<Message, Full> {
        let store = &self.store;
        if store.budget.take(body.len() + PLACE) {
            let mut own = Vec::new();
            if own.try_reserve_exact(body.len()).is_err() {
                store.budget.give(body.len() + PLACE);
                return Err(Full);
            }
            own.extend_from_slice(body);
            return Ok(Message::Here(own.into_boxed_slice()));
        }
        let Some(dir) = store.overflow.as_deref().filter(|_| store.budget.take_place(PLACE)) else {
            return Err(Full);
        };
        self.segments.write(dir, body).map(Message::There).map_err(|_| {
            store.budget.give(PLACE);
            Full
        })
    }

    /// Takes the message at this end, after `see` has seen it; whether there was one.
    pub(crate) fn pop(&mut self, end: End, see: impl FnOnce(&[u8])) -> bool {
        let message = match end {
            End::Left => self.ready.pop_front(),
            End::Right => self.ready.pop_back(),
        };
        if let Some(message) = &message {
            see(self.body(message));
        }
        message.map(|message| self.release(message)).is_some()
    }

    /// Delivers the message at the right end, to be acknowledged by this tag; whether there was one.
    pub(crate) fn reserve(&mut self, tag: u64, see: impl FnOnce(&[u8])) -> bool {
        if self.ready.is_empty() || self.unacked.try_reserve(1).is_err() {
            return false;
        }
        let Some(message) = self.ready.pop_back() else { return false };
        see(self.body(&message));
        self.unacked.insert(tag, message);
        true
    }

    /// Whether there was such a delivery; its message is gone now.
    pub(crate) fn acknowledge(&mut self, tag: u64) -> bool {
        self.unacked.remove(&tag).map(|message| self.release(message)).is_some()
    }

    /// Whether there was such a delivery; its message is back at the right end.
    pub(crate) fn requeue(&mut self, tag: u64) -> bool {
        self.unacked.remove(&tag).map(|message| self.ready.push_back(message)).is_some()
    }

    fn body<'a>(&'a self, message: &'a Message) -> &'a [u8] {
        match message {
            Message::Here(body) => body,
            Message::There(spot) => self.segments.read(*spot),
        }
    }

    fn release(&mut self, message: Message) {
        self.store.budget.give(message.charge());
        if let Message::There(spot) = message {
            self.segments.free(spot);
        }
    }

    /// Files that hold what overflowed.
    pub(crate) fn files(&self) -> usize {
        self.segments.count()
    }

    /// What a program without a library would do.
    pub(crate) fn shrink_to_fit(&mut self) {
        self.ready.shrink_to_fit();
        self.unacked.shrink_to_fit();
    }
}

impl Message {
    fn charge(&self) -> usize {
        match self {
            Message::Here(body) => body.len() + PLACE,
            Message::There(_) => PLACE,
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        let charged: usize = self.ready.iter().chain(self.unacked.values()).map(Message::charge).sum();
        self.store.budget.give(charged);
    }
}
