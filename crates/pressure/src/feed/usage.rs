//! The last resort, where the kernel says nothing of pressure: how much is used of what there is.
//!
//! Page cache that nobody used lately is not counted as used, as in `MemAvailable` and in the working set of Kubernetes.
//! Medium from 90% on and critical from 95% are the points at which earlyoom begins to terminate and to kill; it is over
//! below 85%, so that a service that gives back some hundredths does not swing.

use super::averages::BEAT;
use super::{Feed, Lost, read};
use crate::Level;
use crate::cgroup::{Group, Version, meminfo};
use crate::judge::Look;
use crate::machine::{Machine, refusal};
use crate::psi::number;
use rustix::fd::OwnedFd;
use rustix::fs::OFlags;
use std::path::Path;
use std::time::Duration;

const MEDIUM: u64 = 90;
const CRITICAL: u64 = 95;
const OVER: u64 = 85;

/// How much is used.
pub(crate) enum Usage {
    Host { meminfo: OwnedFd },
    Group { used: OwnedFd, stat: OwnedFd, inactive: &'static [u8], limit: Limit },
}

/// A group's limit, which may be changed while the group runs.
pub(crate) struct Limit {
    machine: Machine,
    group: Group,
}

impl Usage {
    pub(crate) fn host(machine: &Machine, path: &Path) -> Result<Usage, String> {
        let meminfo = machine.open(path, OFlags::RDONLY).map_err(refusal)?;
        Usage::Host { meminfo }.checked()
    }

    pub(crate) fn group(machine: &Machine, group: Group) -> Result<Usage, String> {
        let (used, inactive): (_, &[u8]) = match group.version {
            Version::V1 => ("memory.usage_in_bytes", b"total_inactive_file "),
            Version::V2 => ("memory.current", b"inactive_file "),
        };
        let open = |name| machine.open(&group.file(name), OFlags::RDONLY).map_err(refusal);
        let (used, stat) = (open(used)?, open("memory.stat")?);
        Usage::Group { used, stat, inactive, limit: Limit { machine: machine.clone(), group } }.checked()
    }

    fn checked(self) -> Result<Usage, String> {
        let percent = self.percent().map_err(|lost| lost.0)?;
        percent.map(|_| self).ok_or_else(|| "its figures make no sense".into())
    }

    /// Used hundredths of what there is; `None` if the files make no sense, or there is no limit any more.
    fn percent(&self) -> Result<Option<u64>, Lost> {
        let text = |fd| Ok(read(fd)?.unwrap_or_default());
        Ok(match self {
            Usage::Host { meminfo: file } => {
                let text = text(file)?;
                let (total, free) = (meminfo(&text, b"MemTotal:"), meminfo(&text, b"MemAvailable:"));
                share(total, free, total)
            }
            Usage::Group { used, stat, inactive, limit } => {
                let (used, stat) = (text(used)?, text(stat)?);
                let lines = stat.split(|b| *b == b'\n');
                let cache = lines.into_iter().find_map(|line| number(line.strip_prefix(*inactive)?));
                share(number(used.trim_ascii()), cache, limit.group.limit(&limit.machine))
            }
        })
    }

    pub(crate) fn read(&self) -> Result<Look, Lost> {
        Ok(self.percent()?.map_or_else(Look::default, judge))
    }
}

/// Hundredths of `whole` that `part` without `free` is.
fn share(part: Option<u64>, free: Option<u64>, whole: Option<u64>) -> Option<u64> {
    let used = u128::from(part?.saturating_sub(free?));
    u64::try_from((used * 100).checked_div(whole?.into())?).ok()
}

fn judge(percent: u64) -> Look {
    let at_least = match percent {
        CRITICAL.. => Level::Critical,
        MEDIUM.. => Level::Medium,
        _ => Level::None,
    };
    // From critical it falls when it is no longer that; to none only well below.
    let not_below = if percent >= OVER { at_least.max(Level::Medium) } else { Level::None };
    Look { at_least, not_below: Some(not_below) }
}

impl Feed for Usage {
    fn look(&mut self) -> Result<Look, Lost> {
        self.read()
    }

    fn beat(&self) -> Option<Duration> {
        Some(BEAT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_between_onset_and_release() {
        let look = |at_least, not_below| Look { at_least, not_below: Some(not_below) };
        assert_eq!(judge(84), look(Level::None, Level::None));
        assert_eq!(judge(89), look(Level::None, Level::Medium));
        assert_eq!(judge(90), look(Level::Medium, Level::Medium));
        assert_eq!(judge(250), look(Level::Critical, Level::Critical));
        assert_eq!(share(Some(1), Some(0), Some(0)), None);
        assert_eq!(share(Some(5), Some(9), Some(1)), Some(0));
        assert_eq!(share(Some(u64::MAX), Some(0), Some(u64::MAX)), Some(100));
    }
}
