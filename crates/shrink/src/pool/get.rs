//! Waiting for an object: one future for tasks of any runtime, and for threads, which park.
//!
//! Invariant: a wait that is given up, granted or not, leaves its place to the next in line.

use crate::park;
use crate::pool::{Guard, Inner, Pool};
use std::fmt;
use std::future::Future;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::thread;
use std::time::{Duration, Instant};

/// A wait for an object of a [`Pool`]: see [`Pool::get_async`].
#[must_use = "a future does nothing unless it is awaited"]
pub struct Get<'a, T> {
    inner: &'a Arc<Inner<T>>,
    number: Option<u64>,
}

impl<T> Future for Get<'_, T> {
    type Output = Guard<T>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Guard<T>> {
        let this = &mut *self;
        let place = this.inner.lock().wait(&mut this.number, context.waker());
        place.map_or(Poll::Pending, |place| Poll::Ready(Inner::fill(this.inner, place)))
    }
}

impl<T> fmt::Debug for Get<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Get").field("in_line", &self.number.is_some()).finish_non_exhaustive()
    }
}

impl<T> Drop for Get<'_, T> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let next = self.inner.lock().leave(number);
            if let Some(waker) = next {
                waker.wake();
            }
        }
    }
}

impl<T> Pool<T> {
    /// An object, if there is one or may be one more.
    pub fn try_get(&self) -> Option<Guard<T>> {
        let place = self.inner.lock().claim()?;
        Some(Inner::fill(&self.inner, place))
    }

    /// An object; the thread waits until there is one. Who came first is served first.
    ///
    /// A thread that holds all of a pool's objects itself waits for ever: use [`get_timeout`](Pool::get_timeout) where
    /// that cannot be ruled out.
    pub fn get(&self) -> Guard<T> {
        loop {
            if let Some(guard) = self.get_timeout(Duration::MAX) {
                return guard;
            }
        }
    }

    /// An object, or `None` after so long.
    pub fn get_timeout(&self, timeout: Duration) -> Option<Guard<T>> {
        if let Some(guard) = self.try_get() {
            return Some(guard);
        }
        let deadline = Instant::now().checked_add(timeout);
        let waker = park::waker();
        let mut context = Context::from_waker(&waker);
        let mut get = pin!(self.get_async());
        loop {
            if let Poll::Ready(guard) = get.as_mut().poll(&mut context) {
                return Some(guard);
            }
            match deadline {
                None => thread::park(),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    thread::park_timeout(left);
                }
            }
        }
    }

    /// An object; the task waits until there is one. Any runtime will do. A wait that is dropped (`select!`, a timeout)
    /// loses nothing: its place goes to the next in line.
    pub fn get_async(&self) -> Get<'_, T> {
        Get { inner: &self.inner, number: None }
    }
}
