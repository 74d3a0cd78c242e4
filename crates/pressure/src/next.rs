//! The async face: the next event as a future, for any runtime.
//!
//! Invariants: one that is dropped takes its waker with it, and no event; in a forked child it never comes, and takes no
//! lock, which the parent's watcher may have held.

use crate::{Event, Pressure};
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

/// The next event, from [`Pressure::next`].
#[derive(Debug)]
#[must_use = "a future does nothing unless it is awaited"]
pub struct Next<'a> {
    reader: &'a Pressure,
    /// Its number among those that wait, once it does.
    waits: Option<u64>,
}

impl<'a> Next<'a> {
    pub(crate) fn new(reader: &'a Pressure) -> Next<'a> {
        Next { reader, waits: None }
    }
}

impl Future for Next<'_> {
    type Output = Event;

    fn poll(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Event> {
        let reader = self.reader;
        reader.inbox().map_or(Poll::Pending, |inbox| inbox.poll(&mut self.waits, task))
    }
}

impl Drop for Next<'_> {
    fn drop(&mut self) {
        if let Some((number, inbox)) = self.waits.zip(self.reader.inbox()) {
            inbox.forget(number);
        }
    }
}
