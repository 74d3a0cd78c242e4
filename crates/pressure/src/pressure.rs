//! The reader's side: a handle with a blocking, a non-blocking, a poll-able and an async face.
//!
//! Invariants: the thread ends with the last handle, which waits for it; in a forked child, where there is no thread,
//! nothing blocks, nothing is taken from the parent's descriptors, and dropping does not wait.

use crate::hub::{Hub, Inbox};
use crate::watch::{self, Watcher};
use crate::{Event, Level, Next, Options, PassedOver, Source};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Yields memory pressure levels and their end, from the best source there is.
///
/// A thread watches the source; this is a reader of what it finds. [`try_clone`](Pressure::try_clone) makes another,
/// independent one. A reader that comes late finds at most three events, merged so that none is lost: see
/// [`Event::merged`]. Dropping the last reader ends the thread.
///
/// After a `fork` the child has no watcher: [`wait`](Pressure::wait) and [`try_next`](Pressure::try_next) say `None` at
/// once, [`level`](Pressure::level) stays what it was, and the descriptor is the parent's. Open a new one there.
///
/// ```
/// use ebbtide_pressure::{Options, Pressure};
/// use std::time::Duration;
///
/// let pressure = Pressure::open(Options::new())?;
/// println!("watching {}", pressure.source());
/// for better in pressure.passed_over() {
///     println!("not {better}");
/// }
/// if let Some(event) = pressure.wait(Some(Duration::from_millis(10))) {
///     println!("{event}");
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
#[derive(Debug)]
pub struct Pressure {
    inbox: Arc<Inbox>,
    // After the inbox, so that the thread finds no reader rather than a half-dropped one.
    watcher: Arc<Watcher>,
}

/// Readers may be shared and sent.
const _: fn() = || {
    fn shared<T: Send + Sync>() {}
    shared::<Pressure>();
};

impl Pressure {
    /// Finds the best source and begins to watch it.
    ///
    /// That there is none is no error: [`source`](Pressure::source) and [`passed_over`](Pressure::passed_over) say so,
    /// and nothing will come. So a service starts on any machine.
    ///
    /// # Errors
    /// If there is no thread or no file descriptor to be had.
    pub fn open(options: Options) -> io::Result<Pressure> {
        let watcher = watch::start(options)?;
        Ok(Pressure { inbox: watcher.hub().reader()?, watcher: Arc::new(watcher) })
    }

    /// Another reader of the same source. Pressure that there is now is its first event.
    ///
    /// # Errors
    /// If there is no file descriptor to be had, or this is a forked child.
    pub fn try_clone(&self) -> io::Result<Pressure> {
        if self.watcher.is_another_process() {
            return Err(io::Error::other(
                "the pressure watcher is in the process that this one was forked from",
            ));
        }
        Ok(Pressure { inbox: self.hub().reader()?, watcher: Arc::clone(&self.watcher) })
    }

    fn hub(&self) -> &Hub {
        self.watcher.hub()
    }

    /// Where events come in; nothing, in a forked child.
    pub(crate) fn inbox(&self) -> Option<&Inbox> {
        (!self.watcher.is_another_process()).then_some(&*self.inbox)
    }

    /// What holds now: one atomic load, from any thread. It may be ahead of the events, which the
    /// [cooldown](Options::cooldown) paces.
    pub fn level(&self) -> Level {
        self.hub().level()
    }

    /// What is watched. It changes if a source goes away.
    pub fn source(&self) -> Source {
        match self.watcher.is_another_process() {
            true => Source::bare(crate::Kind::Nothing),
            false => self.hub().choice().source,
        }
    }

    /// The sources that would have been better, best first, and why they are not used.
    pub fn passed_over(&self) -> Vec<PassedOver> {
        match self.watcher.is_another_process() {
            true => Vec::new(),
            false => self.hub().choice().passed_over,
        }
    }

    /// The next event if there is one.
    pub fn try_next(&self) -> Option<Event> {
        self.inbox()?.pop()
    }

    /// The next event, for a task of any async runtime: it is woken by the watcher's thread, and no IO driver is needed.
    /// Cancel safe: an event that was not returned is not lost. Whoever drops it is not woken any more. In a forked child
    /// it never comes.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")]
    /// # async fn main() -> std::io::Result<()> {
    /// use ebbtide_pressure::{Options, Pressure};
    /// use std::time::Duration;
    ///
    /// let pressure = Pressure::open(Options::new())?;
    /// if let Ok(event) = tokio::time::timeout(Duration::from_millis(10), pressure.next()).await {
    ///     println!("{event}");
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn next(&self) -> Next<'_> {
        Next::new(self)
    }

    /// Waits for the next event, at most for `timeout`, or without end: for ever, where nothing is watched.
    pub fn wait(&self, timeout: Option<Duration>) -> Option<Event> {
        self.inbox()?.wait(timeout)
    }
}

/// Readable while there is an event to be had from [`Pressure::try_next`]: for poll, epoll and event loops, level- or
/// edge-triggered. Never read it yourself: `try_next` does, and until it says `None` there is more.
impl AsFd for Pressure {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inbox.ready().as_fd()
    }
}

impl AsRawFd for Pressure {
    fn as_raw_fd(&self) -> RawFd {
        self.inbox.ready().as_raw_fd()
    }
}
