//! `memory.pressure_level` of a cgroup with a limit (v1): three eventfds, one for each level.
//!
//! The kernel counts how much of what reclaim scans it can free (`mm/vmpressure.c`: medium where 60% cannot be, critical
//! at 95%) and signals the level and all below it. It signals them, too, when the group is removed. There is nothing to
//! read of relief: silence must do.

use super::{Feed, Lost, read};
use crate::Level;
use crate::cgroup::Group;
use crate::judge::Look;
use crate::machine::{Machine, refusal};
use rustix::event::{EventfdFlags, PollFlags, eventfd};
use rustix::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::time::{Duration, Instant};

/// How long a level is left alone after it was heard: under reclaim it is signalled thousands of times a second. A worse
/// one is still heard.
const HOLD_OFF: Duration = Duration::from_secs(1);

/// A cgroup's levels.
pub(crate) struct Levels {
    ears: [(Level, OwnedFd); 3],
    /// Whether the group is still there.
    usage: OwnedFd,
    /// The level up to which is rested, and until when.
    rest: Option<(Level, Instant)>,
}

impl Levels {
    pub(crate) fn open(machine: &Machine, group: &Group) -> Result<Levels, String> {
        let ear = |level| listen(machine, group, level).map(|fd| (level, fd));
        let ears = || Ok([ear(Level::Low)?, ear(Level::Medium)?, ear(Level::Critical)?]);
        let usage = machine.open(&group.file("memory.usage_in_bytes"), OFlags::RDONLY);
        let (ears, usage) = ears().and_then(|ears| Ok((ears, usage?))).map_err(refusal)?;
        Ok(Levels { ears, usage, rest: None })
    }
}

/// `cgroup.event_control` takes the eventfd, the file's descriptor and the level.
fn listen(machine: &Machine, group: &Group, level: Level) -> Result<OwnedFd, Errno> {
    let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
    let file = machine.open(&group.file("memory.pressure_level"), OFlags::RDONLY)?;
    let control = machine.open(&group.file("cgroup.event_control"), OFlags::WRONLY)?;
    let text = format!("{} {} {level}", fd.as_raw_fd(), file.as_raw_fd());
    rustix::io::write(control, text.as_bytes())?;
    Ok(fd)
}

impl Feed for Levels {
    fn ears(&self, now: Instant) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let rested = self.rest.filter(|(_, until)| now < *until).map_or(Level::None, |(level, _)| level);
        self.ears
            .iter()
            .filter(|(level, _)| *level > rested)
            .map(|(_, fd)| (fd.as_fd(), PollFlags::IN))
            .collect()
    }

    fn hear(&mut self, _: &[PollFlags], now: Instant) -> Result<Level, Lost> {
        let mut worst = Level::None;
        for (level, fd) in &self.ears {
            if rustix::io::read(fd, &mut [0; 8]).is_ok() {
                worst = worst.max(*level);
            }
        }
        read(&self.usage)?;
        self.rest = now.checked_add(HOLD_OFF).map(|until| (worst, until));
        Ok(worst)
    }

    fn look(&mut self) -> Result<Look, Lost> {
        Ok(Look::default())
    }

    fn rests_until(&self) -> Option<Instant> {
        self.rest.map(|(_, until)| until)
    }
}
