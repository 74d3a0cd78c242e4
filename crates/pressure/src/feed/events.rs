//! `memory.events` of a cgroup with a limit (v2): a descriptor that is only read, as containers may.
//!
//! A change gives POLLPRI (with POLLERR: kernfs says both), reading clears it. The counters grow whenever a charge meets
//! the limit, also where dropping page cache is all that it takes, as it is in any container that writes logs: that alone is
//! [`Level::Low`]. Whether anybody waits is read from PSI, or from how much of the limit is not cache.

use super::gauge::Gauge;
use super::usage::Usage;
use super::{Feed, Lost, read};
use crate::Level;
use crate::judge::Look;
use crate::machine::{Machine, read_again, refusal};
use crate::psi::number;
use rustix::event::PollFlags;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::OFlags;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long the descriptor is left alone after it was heard: at its limit a group changes it all the time.
const HOLD_OFF: Duration = Duration::from_secs(2);

/// A cgroup's events.
pub(crate) struct Events {
    fd: OwnedFd,
    before: Counts,
    rests_until: Option<Instant>,
    scale: Scale,
}

/// What tells how bad it is when the limit was met.
pub(crate) enum Scale {
    Psi(Gauge),
    Usage(Usage),
}

impl Events {
    pub(crate) fn open(machine: &Machine, path: &Path, scale: Scale) -> Result<Events, String> {
        let fd = machine.open(path, OFlags::RDONLY).map_err(refusal)?;
        let before = Counts::parse(&read_again(&fd).map_err(refusal)?);
        Ok(Events { fd, before, rests_until: None, scale })
    }
}

/// How often the limit was met, and how often that was not survived, ever.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counts {
    met: u64,
    failed: u64,
}

impl Counts {
    fn parse(text: &[u8]) -> Counts {
        let sum = |names: &[&[u8]]| {
            let lines = text.split(|b| *b == b'\n').filter_map(|line| {
                let at = line.iter().position(|b| *b == b' ')?;
                let (name, value) = (line.get(..at)?, line.get(at + 1..)?);
                names.contains(&name).then(|| number(value))?
            });
            lines.fold(0, u64::saturating_add)
        };
        Counts { met: sum(&[b"high", b"max"]), failed: sum(&[b"oom", b"oom_kill", b"oom_group_kill"]) }
    }
}

impl Feed for Events {
    fn ears(&self, now: Instant) -> Vec<(BorrowedFd<'_>, PollFlags)> {
        let rests = self.rests_until.is_some_and(|until| now < until);
        if rests { Vec::new() } else { vec![(self.fd.as_fd(), PollFlags::PRI)] }
    }

    fn hear(&mut self, _: &[PollFlags], now: Instant) -> Result<Level, Lost> {
        self.rests_until = now.checked_add(HOLD_OFF);
        let Some(text) = read(&self.fd)? else { return Ok(Level::None) };
        let before = std::mem::replace(&mut self.before, Counts::parse(&text));
        if self.before.failed > before.failed {
            return Ok(Level::Critical);
        }
        if self.before.met <= before.met {
            return Ok(Level::None);
        }
        Ok(self.look()?.at_least.max(Level::Low))
    }

    fn look(&mut self) -> Result<Look, Lost> {
        match &self.scale {
            Scale::Psi(gauge) => gauge.look(),
            Scale::Usage(usage) => Ok(Look { not_below: None, ..usage.read()? }),
        }
    }

    fn rests_until(&self) -> Option<Instant> {
        self.rests_until
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn limits_met_and_not_survived_are_told_apart() {
        let text = b"low 9\nhigh 1\nmax 2\noom 3\noom_kill 4\noom_group_kill 5\nsomething_new 7\n";
        assert_eq!(Counts::parse(text), Counts { met: 3, failed: 12 });
        assert_eq!(Counts::parse(b"max\nmax x\nmax 99999999999999999999\n"), Counts::default());
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            let _ = Counts::parse(&text);
        }
    }
}
