//! Which boot this is, and how long it has been up: what tells an undo that is due from one that a reboot has done.

use ebbtide_observe::Root;
use rustix::time::{ClockId, clock_gettime};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The kernel's id of this boot (/proc/sys/kernel/random/boot_id), which containers share with their host.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(transparent)]
pub struct Boot(pub(crate) String);

impl Boot {
    /// Reads it; empty where it cannot be read, and then every record counts as of this boot.
    pub fn read(root: &Root) -> Boot {
        Boot(root.read_line("proc/sys/kernel/random/boot_id").unwrap_or_default())
    }

    /// Whether `self` and `other` are known to be different boots.
    pub(crate) fn is_over_in(&self, other: &Boot) -> bool {
        !self.0.is_empty() && !other.0.is_empty() && self != other
    }
}

/// Time since boot, suspension included: whoever sets the clock changes no deadline.
pub fn boottime() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}

/// Seconds since 1970, for people.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}
