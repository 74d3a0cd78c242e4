//! A bounded pool of objects.
//!
//! Invariants: there are never more objects than the bound, and one counts until its `Drop` has ended; only what the
//! pool made comes back to it (the guard alone returns, and has no other way in); making, checking, resetting and
//! dropping objects happen outside the lock; a get and a return of a warm object allocate nothing.

mod get;
mod state;

pub use get::Get;
pub use state::Stats;

use crate::walk::Left;
use crate::{Bytes, Cascade, Refused, Shrink, ShrinkShared, Site, Way};
use state::{Idle, Place, State};
use std::fmt;
use std::ops::{Deref, DerefMut};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A bounded pool of objects that are dear to make: buffers, connections, parsers. A clone is the same pool.
///
/// ```
/// use ebbtide_shrink::{Bytes, Pool};
///
/// let buffers = Pool::builder(|| Vec::<u8>::with_capacity(64 << 10))
///     .most(100)
///     .reset(|buffer| { buffer.clear(); buffer.shrink_to(64 << 10) })
///     .size(|buffer| Bytes(buffer.capacity()))
///     .build();
///
/// let mut buffer = buffers.get();
/// buffer.extend_from_slice(b"hello");
/// drop(buffer); // It comes back, empty.
/// assert_eq!(buffers.get().len(), 0);
/// assert_eq!(buffers.stats().made, 1);
/// ```
///
/// It gives back: objects idle for longer than [`idle`](Builder::idle), as others are returned or by
/// [`sweep`](Pool::sweep); and in a cascade, as [`Shrink`] and [`ShrinkShared`], those idle that exceed what is used by
/// the policy's factor, the longest idle first, in slices. Objects that stay are left as they are, because that is what they are
/// pooled for; one that has grown too large is cut by `reset`.
pub struct Pool<T> {
    inner: Arc<Inner<T>>,
}

impl<T> Clone for Pool<T> {
    fn clone(&self) -> Pool<T> {
        Pool { inner: Arc::clone(&self.inner) }
    }
}

impl<T> fmt::Debug for Pool<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

pub(crate) struct Inner<T> {
    state: Mutex<State<T>>,
    make: Box<dyn Fn() -> T + Send + Sync>,
    reset: Box<dyn Fn(&mut T) + Send + Sync>,
    check: Box<dyn Fn(&mut T) -> bool + Send + Sync>,
    size: Box<dyn Fn(&T) -> Bytes + Send + Sync>,
    keep: usize,
    idle: Duration,
}

/// How a pool is to be: made by [`Pool::builder`].
#[must_use = "a pool is made by `build`"]
pub struct Builder<T> {
    inner: Inner<T>,
}

impl<T> fmt::Debug for Builder<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Inner { keep, idle, .. } = &self.inner;
        f.debug_struct("Builder").field("keep", keep).field("idle", idle).finish_non_exhaustive()
    }
}

impl<T> Builder<T> {
    /// The most objects there are at once: used, idle, and until their `Drop` has ended; at least 1. Default 64.
    pub fn most(mut self, most: usize) -> Builder<T> {
        self.inner.state = Mutex::new(State::new(most.max(1)));
        self
    }

    /// Objects that are kept whatever happens. Default none.
    pub fn keep(mut self, keep: usize) -> Builder<T> {
        self.inner.keep = keep;
        self
    }

    /// How long an object may be idle. Default 60 s.
    pub fn idle(mut self, idle: Duration) -> Builder<T> {
        self.inner.idle = idle;
        self
    }

    /// Makes an object like new when it comes back. If it panics, the object is dropped and the panic ends here.
    pub fn reset(mut self, reset: impl Fn(&mut T) + Send + Sync + 'static) -> Builder<T> {
        self.inner.reset = Box::new(reset);
        self
    }

    /// Whether an idle object is still good, asked before it is handed out. If not it is dropped, and a new one made.
    pub fn check(mut self, check: impl Fn(&mut T) -> bool + Send + Sync + 'static) -> Builder<T> {
        self.inner.check = Box::new(check);
        self
    }

    /// What an idle object takes, asked when it comes back, so that the policy knows what dropping it is worth. Default
    /// a page, 4 KiB.
    pub fn size(mut self, size: impl Fn(&T) -> Bytes + Send + Sync + 'static) -> Builder<T> {
        self.inner.size = Box::new(size);
        self
    }

    /// The pool; it makes objects when they are asked for.
    pub fn build(self) -> Pool<T> {
        Pool { inner: Arc::new(self.inner) }
    }
}

impl<T> Pool<T> {
    /// A pool of at most 64 objects that are made so, to be changed before it is built.
    pub fn builder(make: impl Fn() -> T + Send + Sync + 'static) -> Builder<T> {
        let inner = Inner {
            state: Mutex::new(State::new(64)),
            make: Box::new(make),
            reset: Box::new(|_| {}),
            check: Box::new(|_| true),
            size: Box::new(|_| Bytes::from_kib(4)),
            keep: 0,
            idle: Duration::from_secs(60),
        };
        Builder { inner }
    }

    /// Drops what has been idle for too long, and says how many that were: for a timer, where nothing is returned for
    /// long.
    pub fn sweep(&self) -> usize {
        let (now, mut dropped) = (Instant::now(), 0);
        loop {
            // One at a time, so that it is dropped without the lock.
            let old = self.inner.lock().expired(now, self.inner.idle, self.inner.keep);
            let Some(_old) = old.map(|idle| self.inner.leaving(idle.value)) else { return dropped };
            dropped += 1;
        }
    }

    /// How it stands, and what it did.
    pub fn stats(&self) -> Stats {
        self.inner.lock().stats()
    }
}

impl<T> Inner<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // No user's code runs under it, so nothing can have panicked half-way.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An object that the state counts as leaving.
    fn leaving(&self, object: T) -> Leaving<'_, T> {
        Leaving { _object: object, _place: Vacated { inner: self } }
    }

    /// The object for a place that was claimed: the idle one if it is still good, or a new one.
    fn fill(inner: &Arc<Inner<T>>, place: Place<T>) -> Guard<T> {
        let mut guard = Guard { value: None, inner: Arc::clone(inner) };
        if let Place::Used(mut value) = place {
            // If this panics, dropping the guard without an object frees the place.
            if (inner.check)(&mut value) {
                guard.value = Some(value);
                return guard;
            }
            inner.lock().unhealthy();
        }
        guard.value = Some((inner.make)());
        inner.lock().stats.made += 1;
        guard
    }

    /// A place is free again. The object comes back if its user did not panic and it could be reset.
    fn put_back(&self, mut value: Option<T>) {
        let mut ready = None;
        if let Some(object) = &mut value
            && !std::thread::panicking()
        {
            // What a panic leaves is dropped, so nobody sees it half reset.
            let reset = || {
                (self.reset)(object);
                (self.size)(object)
            };
            ready = catch_unwind(AssertUnwindSafe(reset)).ok();
        }
        let now = Instant::now();
        let mut back = ready.and_then(|bytes| Some(Idle { value: value.take()?, since: now, bytes }));
        let (next, expired) = {
            let mut state = self.lock();
            state.stats.broken += u64::from(value.is_some());
            if back.is_some() && state.idle.try_reserve(1).is_err() {
                // A list that cannot grow refuses the object.
                value = back.take().map(|idle| idle.value);
            }
            let next = if value.is_some() {
                state.leave_out();
                None
            } else {
                state.release(back)
            };
            (next, state.expired(now, self.idle, self.keep))
        };
        let _refused = value.map(|object| self.leaving(object));
        let _expired = expired.map(|idle| self.leaving(idle.value));
        if let Some(waker) = next {
            waker.wake();
        }
    }
}

/// An object on its way out, without the lock. Fields are dropped in their order, also if the first one panics.
struct Leaving<'a, T> {
    _object: T,
    _place: Vacated<'a, T>,
}

/// The place of an object that left: free for another when this is dropped.
struct Vacated<'a, T> {
    inner: &'a Inner<T>,
}

impl<T> Drop for Vacated<'_, T> {
    fn drop(&mut self) {
        let next = self.inner.lock().vacate();
        if let Some(waker) = next {
            waker.wake();
        }
    }
}

/// An object that is out of its [`Pool`], and comes back when this is dropped; if the thread panics, the object is not
/// trusted and dropped instead.
pub struct Guard<T> {
    /// `None` only while it is made, and after it has gone back.
    value: Option<T>,
    inner: Arc<Inner<T>>,
}

impl<T> Guard<T> {
    /// Takes the object out for good; the pool may make another one in its place.
    #[must_use = "to give the object back, drop the guard"]
    pub fn detach(mut self) -> T {
        handed_out(self.value.take())
    }
}

/// What a guard has whenever somebody else sees it.
fn handed_out<V>(value: Option<V>) -> V {
    match value {
        Some(value) => value,
        None => unreachable!("a guard that was handed out has an object"),
    }
}

impl<T> Deref for Guard<T> {
    type Target = T;
    fn deref(&self) -> &T {
        handed_out(self.value.as_ref())
    }
}

impl<T> DerefMut for Guard<T> {
    fn deref_mut(&mut self) -> &mut T {
        handed_out(self.value.as_mut())
    }
}

impl<T: fmt::Debug> fmt::Debug for Guard<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T> Drop for Guard<T> {
    fn drop(&mut self) {
        self.inner.put_back(self.value.take());
    }
}

/// The idle objects, as one buffer of which a slice takes a part.
struct Spare<'a, T> {
    inner: &'a Inner<T>,
    left: Left,
    used: usize,
    out: usize,
    idle: usize,
    idle_bytes: Bytes,
}

impl<'a, T> Spare<'a, T> {
    fn of(inner: &'a Inner<T>, left: Left) -> Spare<'a, T> {
        let state = inner.lock();
        let (out, idle) = (state.out, state.idle.len());
        let used = out.max(inner.keep).min(out + idle);
        Spare { inner, left, used, out, idle, idle_bytes: state.idle_bytes }
    }
}

impl<T> Site for Spare<'_, T> {
    fn used(&self) -> usize {
        self.used
    }
    fn room(&self) -> usize {
        self.out + self.idle
    }
    fn bytes(&self, room: usize) -> Bytes {
        let idle = room.saturating_sub(self.out);
        Bytes(self.idle_bytes.0 / self.idle.max(1)) * idle
    }
    fn way(&self) -> Way {
        Way::InPlace
    }
    /// At least one, and no more than is left of the slice.
    fn fit(&mut self, room: usize) -> Result<(), Refused> {
        let mut given = Bytes::ZERO;
        for _ in 0..self.idle {
            let dropped = self.inner.lock().drop_oldest(room.max(self.inner.keep));
            let Some(dropped) = dropped else { break };
            self.idle -= 1;
            self.idle_bytes = self.idle_bytes - dropped.bytes;
            given += dropped.bytes;
            drop(self.inner.leaving(dropped.value));
            if given >= self.left.bytes || self.left.until.is_some_and(|until| Instant::now() >= until) {
                break;
            }
        }
        Ok(())
    }
    fn kind(&self) -> &'static str {
        "Pool"
    }
}

impl<T> ShrinkShared for Pool<T> {
    fn slack_shared(&self) -> Bytes {
        Spare::of(&self.inner, Left { bytes: Bytes::ZERO, until: None }).unused()
    }
    fn shrink_shared(&self, cascade: &mut Cascade<'_>) {
        cascade.in_parts(|left| Spare::of(&self.inner, left));
    }
}

impl<T> Shrink for Pool<T> {
    fn slack(&self) -> Bytes {
        self.slack_shared()
    }
    fn shrink(&mut self, cascade: &mut Cascade<'_>) {
        self.shrink_shared(cascade);
    }
}
