//! What the watcher polls: one kind of source behind each [`Feed`].

pub(crate) mod averages;
pub(crate) mod events;
pub(crate) mod gauge;
pub(crate) mod notes;
pub(crate) mod proof;
pub(crate) mod trigger;
pub(crate) mod usage;
pub(crate) mod vmpressure;

use crate::Level;
use crate::judge::Look;
use crate::machine::{read_again, refusal};
use rustix::event::PollFlags;
use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::io::Errno;
use std::time::{Duration, Instant};

/// A source that is being watched.
pub(crate) trait Feed: Send {
    /// What to poll, and for which events; nothing of what must rest at `now`.
    fn ears(&self, _now: Instant) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        Vec::new()
    }

    /// Poll said something of at least one ear; `heard` is what of each, in their order. How bad is it? [`Level::None`] if
    /// that meant nothing.
    fn hear(&mut self, _heard: &[PollFlags], _now: Instant) -> Result<Level, Lost> {
        Ok(Level::None)
    }

    /// What can be read of how bad it is. Asked now and then while there is pressure, and at each beat.
    fn look(&mut self) -> Result<Look, Lost>;

    /// How often a source that cannot be heard must be looked at.
    fn beat(&self) -> Option<Duration> {
        None
    }

    /// Until when ears are left out because they would be heard all the time.
    fn rests_until(&self) -> Option<Instant> {
        None
    }
}

/// A source is gone, and why.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Lost(pub(crate) String);

/// Reads `fd` from its beginning. `None` if that fails this time, as for want of memory: a source is not given up for that.
fn read(fd: &OwnedFd) -> Result<Option<Vec<u8>>, Lost> {
    match read_again(fd) {
        Err(errno @ (Errno::NODEV | Errno::NOENT | Errno::BADF)) => Err(Lost(refusal(errno))),
        other => Ok(other.ok()),
    }
}
