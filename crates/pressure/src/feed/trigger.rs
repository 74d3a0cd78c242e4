//! PSI triggers: on the own cgroup, on the host, and on the file that the service manager chose.
//!
//! Invariants: a trigger's descriptor is never read; one that says POLLERR is gone; `total=` is read before arming.

use super::gauge::{Gauge, Loud};
use super::proof::Proof;
use super::{Feed, Lost};
use crate::Level;
use crate::judge::Look;
use crate::machine::{Machine, refusal};
use crate::psi::{LOUD, Trigger, Who};
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::path::Path;
use std::time::{Duration, Instant};

/// Seconds of the window that is tried first, in which the kernel looks ten times; it takes CAP_SYS_RESOURCE.
const FINE: u32 = 1;
/// What every process may have that may write the file, since 6.4 and on Debian's 6.1: a multiple of 2 s. Before, the
/// host's file was root's alone, and on a group's any window was to be had (seen on 5.10).
const COARSE: u32 = 2;

/// One or two triggers on one file.
pub(crate) struct Triggers {
    armed: Vec<Armed>,
    gauge: Gauge,
}

struct Armed {
    fd: OwnedFd,
    level: Level,
    proof: Proof,
}

impl Triggers {
    /// Two of our own on `path`: so much stall of a second for either level.
    pub(crate) fn own(
        machine: &Machine,
        path: &Path,
        medium: Duration,
        critical: Duration,
        gauge: Gauge,
    ) -> Result<Triggers, String> {
        let (before, now) = (gauge.psi()?, Instant::now());
        let mut armed = Vec::new();
        for (level, who, stall) in
            [(Level::Medium, Who::Some, medium), (Level::Critical, Who::Full, critical)]
        {
            let trigger = |seconds: u32| Trigger {
                who,
                stall: stall * seconds,
                window: Duration::from_secs(seconds.into()),
            };
            let try_arm =
                |trigger: Trigger| arm(machine, path, trigger.text().as_bytes()).map(|fd| (fd, trigger));
            let (fd, trigger) = try_arm(trigger(FINE))
                .or_else(|errno| match errno {
                    Errno::INVAL | Errno::PERM => try_arm(trigger(COARSE)),
                    other => Err(other),
                })
                .map_err(refusal)?;
            armed.push(Armed { fd, level, proof: Proof::new(trigger, &before, now) });
        }
        Ok(Triggers { armed, gauge })
    }

    /// Somebody else's on `path`: `text`, which must be one. The file must be PSI's: what is in another would be written
    /// over, and nothing come of it.
    pub(crate) fn given(machine: &Machine, path: &Path, text: Option<&[u8]>) -> Result<Triggers, String> {
        let gauge = Gauge::new(machine, path, Loud { medium: LOUD, critical: LOUD })?;
        let text = text.ok_or("without MEMORY_PRESSURE_WRITE a PSI file tells nothing")?;
        let trigger = Trigger::parse(text).ok_or("MEMORY_PRESSURE_WRITE is no trigger")?;
        let proof = Proof::new(trigger, &gauge.psi()?, Instant::now());
        // The NUL is needed, and a second one does no harm.
        let fd = arm(machine, path, &[text, b"\0"].concat()).map_err(refusal)?;
        let level = if trigger.who == Who::Full { Level::Critical } else { Level::Medium };
        Ok(Triggers { armed: vec![Armed { fd, level, proof }], gauge })
    }
}

/// Writes `text` to a descriptor of its own: the kernel takes one trigger for each, and a second is EBUSY.
fn arm(machine: &Machine, path: &Path, text: &[u8]) -> Result<OwnedFd, Errno> {
    let fd = machine.open(path, OFlags::RDWR)?;
    match rustix::io::write(&fd, text)? {
        written if written == text.len() => Ok(fd),
        _ => Err(Errno::INVAL),
    }
}

impl Feed for Triggers {
    fn ears(&self, _: Instant) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        self.armed.iter().map(|armed| (armed.fd.as_fd(), PollFlags::PRI)).collect()
    }

    fn hear(&mut self, heard: &[PollFlags], now: Instant) -> Result<Level, Lost> {
        let mut worst = Level::None;
        for (armed, flags) in self.armed.iter_mut().zip(heard) {
            if flags.intersects(PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL) {
                return Err(Lost("the trigger is gone (POLLERR)".into()));
            }
            if !flags.contains(PollFlags::PRI) {
                continue;
            }
            // What cannot be held against anything is believed.
            if self.gauge.read()?.is_none_or(|psi| armed.proof.holds(&psi, now)) {
                worst = worst.max(armed.level);
            }
        }
        Ok(worst)
    }

    fn look(&mut self) -> Result<Look, Lost> {
        self.gauge.look()
    }
}
