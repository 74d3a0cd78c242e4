//! How short memory is.

use std::fmt;

/// How short memory is, in the words of cgroup v1's `memory.pressure_level`. Ordered: a higher level is worse.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum Level {
    /// Nothing is short.
    #[default]
    None,
    /// The kernel reclaims without trouble: a good time to keep less. Only a cgroup at its limit tells it.
    Low,
    /// Tasks wait for memory now and then: caches should go.
    Medium,
    /// Everything waits for memory at times, or the next allocation may not succeed: whatever can go should go.
    Critical,
}

impl Level {
    /// All but [`Level::None`], the worst first.
    pub(crate) const WORST_FIRST: [Level; 3] = [Level::Critical, Level::Medium, Level::Low];

    /// What `number`, made by `as u8`, stands for.
    pub(crate) fn of(number: u8) -> Level {
        match number {
            0 => Level::None,
            1 => Level::Low,
            2 => Level::Medium,
            _ => Level::Critical,
        }
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Level::None => "none",
            Level::Low => "low",
            Level::Medium => "medium",
            Level::Critical => "critical",
        })
    }
}
