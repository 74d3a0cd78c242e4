//! Where levels come from, and why not from somewhere better.
//!
//! Invariant: what is shown of a path holds no control character, because names of cgroups are others' input.

use std::fmt;
use std::path::Path;
use std::sync::Arc;

/// The kinds of source, the best first: the order in which they are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// None, because `MEMORY_PRESSURE_WATCH=/dev/null` says so.
    Off,
    /// A PSI file that the service manager chose; its trigger is in `MEMORY_PRESSURE_WRITE`.
    SystemdFile,
    /// A FIFO on which the service manager tells of pressure.
    SystemdFifo,
    /// A stream socket on which the service manager tells of pressure.
    SystemdSocket,
    /// Triggers on the own cgroup's `memory.pressure` (v2).
    CgroupTrigger,
    /// Counters of reclaim and failure at a cgroup's limit: `memory.events` (v2).
    CgroupEvents,
    /// A cgroup's `memory.pressure_level` (v1).
    CgroupLevel,
    /// Triggers on the host's `/proc/pressure/memory`.
    HostTrigger,
    /// The own cgroup's `memory.pressure` (v2), read now and then.
    CgroupAverages,
    /// The host's `/proc/pressure/memory`, read now and then.
    HostAverages,
    /// How near a cgroup's use is to its limit, read now and then.
    CgroupUsage,
    /// `MemAvailable` of `/proc/meminfo`, read now and then.
    HostAvailable,
    /// None: nothing could be watched.
    Nothing,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Off => "off, as MEMORY_PRESSURE_WATCH=/dev/null says",
            Kind::SystemdFile => "the service manager's PSI file",
            Kind::SystemdFifo => "the service manager's FIFO",
            Kind::SystemdSocket => "the service manager's socket",
            Kind::CgroupTrigger => "triggers on the own cgroup's PSI",
            Kind::CgroupEvents => "a cgroup's memory.events",
            Kind::CgroupLevel => "a cgroup's memory.pressure_level",
            Kind::HostTrigger => "triggers on the host's PSI",
            Kind::CgroupAverages => "the own cgroup's PSI, read every 2 s",
            Kind::HostAverages => "the host's PSI, read every 2 s",
            Kind::CgroupUsage => "a cgroup's use against its limit, read every 2 s",
            Kind::HostAvailable => "the host's available memory, read every 2 s",
            Kind::Nothing => "nothing",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Where levels come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Source {
    kind: Kind,
    path: Option<Arc<Path>>,
}

impl Source {
    pub(crate) fn new(kind: Kind, path: &Path) -> Source {
        Source { kind, path: Some(path.into()) }
    }

    pub(crate) fn bare(kind: Kind) -> Source {
        Source { kind, path: None }
    }

    /// What it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The file that is watched, where there is one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }
}

impl fmt::Display for Source {
    /// `triggers on the host's PSI (/proc/pressure/memory)`, on one line whatever the path holds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        match &self.path {
            Some(path) => write!(f, " ({})", Printable(&path.to_string_lossy())),
            None => Ok(()),
        }
    }
}

/// A source that would have been better than the one in use, and why it is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PassedOver {
    source: Source,
    why: String,
}

impl PassedOver {
    pub(crate) fn new(source: Source, why: impl Into<String>) -> PassedOver {
        PassedOver { source, why: why.into() }
    }

    /// What was passed over.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Why, in words for people.
    pub fn why(&self) -> impl fmt::Display + '_ {
        Printable(&self.why)
    }
}

impl fmt::Display for PassedOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.source, self.why())
    }
}

/// Text of which control characters are shown escaped.
struct Printable<'a>(&'a str);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.chars().try_for_each(|c| match c.is_control() {
            true => write!(f, "{}", c.escape_default()),
            false => write!(f, "{c}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_stays_on_its_line() {
        let source = Source::new(Kind::CgroupTrigger, Path::new("/a\x1b[2J\nb\u{9b}"));
        assert_eq!(source.to_string(), "triggers on the own cgroup's PSI (/a\\u{1b}[2J\\nb\\u{9b})");
        let passed = PassedOver::new(source, "no\r");
        assert!(passed.to_string().ends_with(": no\\r"), "{passed}");
    }
}
