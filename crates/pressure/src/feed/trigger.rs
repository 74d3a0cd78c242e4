//! PSI triggers: on the own cgroup, on the host, and on the file that the service manager chose.
//!
//! Invariants: a trigger's descriptor is never read; one that says POLLERR is gone; `total=` is read before arming.

use super::gauge::{Gauge, Loud, look};
use super::proof::Proof;
use super::{Feed, Lost};
use crate::Level;
use crate::judge::Look;
use crate::machine::{Machine, refusal};
use crate::psi::{LOUD, Trigger, Who};
use rustix::event::{PollFlags, epoll};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::path::Path;
use std::time::{Duration, Instant};

/// The finest window, for which a process needs CAP_SYS_RESOURCE: the kernel looks ten times in it.
const FINE: u32 = 1;
/// What every process may have since 6.4: a multiple of 2 s.
const COARSE: u32 = 2;

/// One or two triggers on one file.
pub(crate) struct Triggers {
    armed: Vec<Armed>,
    gauge: Option<Gauge>,
}

struct Armed {
    fd: OwnedFd,
    level: Level,
    proof: Option<Proof>,
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
        let mut armed = Vec::new();
        for (level, who, stall) in
            [(Level::Medium, Who::Some, medium), (Level::Critical, Who::Full, critical)]
        {
            let trigger = |seconds: u32| {
                let trigger =
                    Trigger { who, stall: stall * seconds, window: Duration::from_secs(seconds.into()) };
                let proof = proof(&gauge, trigger);
                arm(machine, path, trigger.text().as_bytes()).map(|fd| Armed { fd, level, proof })
            };
            let fine = trigger(FINE).or_else(|errno| match errno {
                Errno::INVAL | Errno::PERM | Errno::ACCESS => trigger(COARSE),
                other => Err(other),
            });
            armed.push(fine.map_err(refusal)?);
        }
        Ok(Triggers { armed, gauge: Some(gauge) })
    }

    /// Somebody else's on `path`, of which only `text` is known; without one the file is only opened.
    pub(crate) fn given(machine: &Machine, path: &Path, text: Option<&[u8]>) -> Result<Triggers, String> {
        can_wait(machine, path)?;
        let gauge = Gauge::new(machine, path, Loud { medium: LOUD, critical: LOUD }).ok();
        let trigger = text.and_then(Trigger::parse);
        let proof = trigger.and_then(|trigger| proof(gauge.as_ref()?, trigger));
        let fd = match text {
            Some(text) => arm(machine, path, text),
            None => machine.open(path, OFlags::RDONLY),
        };
        let level = match trigger {
            Some(Trigger { who: Who::Full, .. }) => Level::Critical,
            _ => Level::Medium,
        };
        Ok(Triggers { armed: vec![Armed { fd: fd.map_err(refusal)?, level, proof }], gauge })
    }
}

/// An error for a plain file: nothing would ever come of it, and what is in it would be written over.
fn can_wait(machine: &Machine, path: &Path) -> Result<(), String> {
    let fd = machine.open(path, OFlags::RDONLY).map_err(refusal)?;
    let set = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(refusal)?;
    let added = epoll::add(&set, &fd, epoll::EventData::new_u64(0), epoll::EventFlags::PRI);
    added.map_err(|errno| match errno {
        Errno::PERM => "it is a plain file, in which nothing happens that could be waited for".into(),
        other => refusal(other),
    })
}

/// Reads what there was before.
fn proof(gauge: &Gauge, trigger: Trigger) -> Option<Proof> {
    Some(Proof::new(trigger, &gauge.read().ok()??, Instant::now()))
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
                return Err(Lost::new("the trigger is gone (POLLERR)"));
            }
            if !flags.contains(PollFlags::PRI) {
                continue;
            }
            let psi = self.gauge.as_ref().and_then(|gauge| gauge.read().ok()?);
            let is_true = match (&mut armed.proof, psi) {
                (Some(proof), Some(psi)) => proof.holds(&psi, now),
                _ => true,
            };
            if is_true {
                worst = worst.max(armed.level);
            }
        }
        Ok(worst)
    }

    fn look(&mut self) -> Result<Look, Lost> {
        look(self.gauge.as_ref())
    }
}
