//! Control groups and their memory, in one shape for v1 and v2.
//!
//! A [`Hierarchy`] is where the memory controller is mounted; it answers for one group at a time
//! ([`Hierarchy::sample`]) and lists them ([`Hierarchy::tree`]). Invariants: names are foreign bytes and only
//! ever used relative to an open directory; a group that is removed meanwhile is [`ReadError::Missing`]; a
//! file this kernel or this group lacks leaves its figure `None`.
//!
//! Sources: Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst, mm/memcontrol.c (6.18).

mod find;
mod stat;
mod tree;
mod v1;
mod v2;

pub use find::Version;
pub use stat::MemoryStat;
pub use tree::{MAX_GROUPS, Node, Tree};

use crate::host::Pressure;
use crate::process::Pid;
use crate::{Bytes, ReadError, Root, Unread, scan};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// The most processes [`Hierarchy::procs`] lists of one group.
pub const MAX_PROCS: usize = 1 << 16;

/// Where the memory controller is.
#[derive(Debug)]
pub struct Hierarchy {
    version: Version,
    dir: Root,
    /// The group that is mounted at `dir`: "/" but for a container's bind mount.
    top: PathBuf,
}

/// What a group ran into since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Events {
    /// v2: reclaimed although below `low`.
    pub low: u64,
    /// v2: throttled above `high`.
    pub high: u64,
    /// v2: the charge met `max`. v1: memory.failcnt, which counts the same.
    pub max: u64,
    /// v2: reclaim failed and the OOM killer was about to be called.
    pub oom: u64,
    /// Processes the OOM killer killed here (v2 4.13, v1 4.20).
    pub oom_kill: u64,
    /// v2: whole groups killed (5.17).
    pub oom_group_kill: u64,
}

/// How many threads a group has and may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Pids {
    /// pids.current: threads in it and below.
    pub current: u64,
    /// pids.max; `None` is unlimited. Beyond it fork and clone fail with EAGAIN.
    pub max: Option<u64>,
}

/// One group's memory. All figures are of the group and everything below it.
#[derive(Debug, Clone, PartialEq)]
pub struct CgroupSample {
    /// The group, from the mount's top: "/" is that.
    pub path: PathBuf,
    /// Which version's files these are.
    pub version: Version,
    /// What is charged. v2: memory.current, with kernel memory and socket buffers; absent at the root. v1:
    /// memory.usage_in_bytes, with kernel memory but without `kmem_tcp`.
    pub current: Option<Bytes>,
    /// The most `current` has been (v2 5.19).
    pub peak: Option<Bytes>,
    /// memory.max, memory.limit_in_bytes; `None` is unlimited.
    pub limit: Option<Bytes>,
    /// v2 memory.high: above it every allocation is throttled into reclaim; `None` is unlimited.
    pub high: Option<Bytes>,
    /// v2 memory.low: best-effort protection. v1: none (soft limits mean something else).
    pub low: Option<Bytes>,
    /// v2 memory.min: hard protection.
    pub min: Option<Bytes>,
    /// v1 memory.soft_limit_in_bytes: what reclaim pushes it back to when the host is short.
    pub soft_limit: Option<Bytes>,
    /// Swapped out. v2: memory.swap.current; v1: `total_swap` of memory.stat.
    pub swap: Option<Bytes>,
    /// v2 memory.swap.max; `None` is unlimited.
    pub swap_limit: Option<Bytes>,
    /// v1 memory.memsw.limit_in_bytes: memory and swap together; `None` is unlimited.
    pub memory_and_swap_limit: Option<Bytes>,
    /// memory.stat; v1's `total_` lines.
    pub stat: MemoryStat,
    /// v1: anonymous and file memory charged to this very group, without those below it (memory.stat's lines
    /// without `total_`). v2 does not say.
    pub own: Option<Bytes>,
    /// v1 memory.kmem.usage_in_bytes: the kernel's part of `current`. v2 has it in `stat`.
    pub kmem: Option<Bytes>,
    /// v1 memory.kmem.tcp.usage_in_bytes: TCP buffers, which `current` leaves out. v2 has them in `stat`.
    pub kmem_tcp: Option<Bytes>,
    /// memory.events, or what v1 has of them.
    pub events: Events,
    /// v2 memory.pressure; `None` without PSI.
    pub pressure: Option<Pressure>,
    /// v2 cgroup.stat nr_descendants: groups below it that are there.
    pub descendants: Option<u64>,
    /// v2 cgroup.stat nr_dying_descendants: groups below it that were removed and still hold memory or other
    /// resources. v1 knows them for the whole hierarchy only ([`Hierarchy::dying`]).
    pub dying: Option<u64>,
    /// v2: threads; in v1 another hierarchy has them.
    pub pids: Option<Pids>,
    /// What was refused.
    pub unread: Vec<Unread>,
}

impl CgroupSample {
    /// A group of which nothing is known yet.
    pub fn new(path: PathBuf, version: Version) -> CgroupSample {
        CgroupSample {
            path,
            version,
            current: None,
            peak: None,
            limit: None,
            high: None,
            low: None,
            min: None,
            soft_limit: None,
            swap: None,
            swap_limit: None,
            memory_and_swap_limit: None,
            stat: MemoryStat::default(),
            own: None,
            kmem: None,
            kmem_tcp: None,
            events: Events::default(),
            pressure: None,
            descendants: None,
            dying: None,
            pids: None,
            unread: Vec::new(),
        }
    }

    /// What Kubernetes and cAdvisor call the working set: what is charged but the inactive file pages. It
    /// still counts active file pages and reclaimable slab, so it is no measure of what is needed.
    pub fn working_set(&self) -> Option<Bytes> {
        Some(self.current? - self.stat.inactive_file.unwrap_or_default())
    }

    /// Kernel memory in `current`: v2's `kernel` (5.18), before that the sum of what it names; v1's kmem.
    pub fn kernel(&self) -> Option<Bytes> {
        self.kmem.or(self.stat.kernel).or_else(|| self.stat.kernel_parts())
    }

    /// TCP and other socket buffers, wherever this version counts them.
    pub fn sockets(&self) -> Option<Bytes> {
        self.kmem_tcp.or(self.stat.sock)
    }
}

impl Hierarchy {
    /// Which version the memory controller is in.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Where it is mounted, for messages.
    pub fn mount_point(&self) -> PathBuf {
        self.dir.path("")
    }

    /// Group `path`, from the mount's top ("/" and "" are that).
    pub fn sample(&self, path: impl AsRef<Path>) -> Result<CgroupSample, ReadError> {
        let group = Group { dir: self.open(path.as_ref())?, unread: Vec::new() };
        let path = Path::new("/").join(path.as_ref().strip_prefix("/").unwrap_or(path.as_ref()));
        match self.version {
            Version::V1 => v1::sample(group, path),
            Version::V2 => v2::sample(group, path),
        }
    }

    /// The processes in group `path` itself, at most [`MAX_PROCS`]. A threaded v2 group has none of its own.
    pub fn procs(&self, path: impl AsRef<Path>) -> Result<Vec<Pid>, ReadError> {
        let mut pids = Vec::new();
        self.open(path.as_ref())?.each_line("cgroup.procs", |line| {
            pids.extend(scan::number(line).and_then(|pid| Pid::try_from(pid).ok()));
            pids.len() < MAX_PROCS
        })?;
        Ok(pids)
    }

    fn open(&self, path: &Path) -> Result<Root, ReadError> {
        let inside = path.strip_prefix("/").unwrap_or(path);
        if inside.components().any(|part| part == std::path::Component::ParentDir) {
            let what = "outside of the part of the hierarchy that is mounted here";
            return Err(ReadError::Malformed { path: self.dir.path(inside), what });
        }
        self.dir.sub(inside)
    }
}

/// One group's directory while it is read.
struct Group {
    dir: Root,
    unread: Vec<Unread>,
}

impl Group {
    /// All of `file`; `None` where it is missing, or refused, which is noted.
    fn text(&mut self, file: &str) -> Option<Vec<u8>> {
        let mut text = Vec::new();
        match self.dir.read(file, &mut text) {
            Ok(_) => Some(text),
            Err(error @ ReadError::Denied { .. }) => {
                self.unread.push(Unread::of(self.dir.path(file).display().to_string(), &error));
                None
            }
            Err(_) => None,
        }
    }

    fn number(&mut self, file: &str) -> Option<u64> {
        scan::number(self.text(file)?.trim_ascii())
    }

    fn bytes(&mut self, file: &str) -> Option<Bytes> {
        self.number(file).map(Bytes)
    }

    /// As [`Group::bytes`]; "max", and what v1 writes for it, is `None`.
    fn limit(&mut self, file: &str) -> Option<Bytes> {
        self.bytes(file).filter(|&bytes| bytes < UNLIMITED)
    }

    /// The "key value" lines of `file`.
    fn keyed(&mut self, file: &str, mut each: impl FnMut(&[u8], u64)) {
        for line in scan::lines(&self.text(file).unwrap_or_default()) {
            let mut words = scan::words(line);
            if let (Some(key), Some(value)) = (words.next(), words.next().and_then(scan::number)) {
                each(key, value);
            }
        }
    }
}

/// v1 writes "unlimited" as the largest multiple of the page size in 63 bits; up to 64 KiB pages.
const UNLIMITED: Bytes = Bytes(i64::MAX as u64 - (64 << 10));

#[cfg(test)]
mod tests;
