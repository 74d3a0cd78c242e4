//! Control groups for incidents: v1 and v2 memory and pids controllers behind one face.
//!
//! Invariant: a group is journalled before it is made, and its figures are read by the names that both
//! versions share ("cache" and "file" are one).

use crate::journal::{Journal, Undo};
use crate::procfs::{self, Fields};
use anyhow::{Context, Result};
use ebbtide_observe::Bytes;
use std::fs;
use std::path::{Path, PathBuf};

/// Which interface a hierarchy has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// One hierarchy per controller.
    V1,
    /// The unified hierarchy.
    V2,
}

/// A mounted hierarchy that has one controller.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    /// Its mount point.
    pub root: PathBuf,
    /// Its interface.
    pub version: Version,
    controller: &'static str,
}

/// A group of a hierarchy.
#[derive(Debug, Clone)]
pub struct Group {
    path: PathBuf,
    version: Version,
}

/// The hierarchy with the memory controller.
pub fn memory() -> Option<Hierarchy> {
    hierarchy("memory")
}

/// The hierarchy with the pids controller.
pub fn pids() -> Option<Hierarchy> {
    hierarchy("pids")
}

fn hierarchy(controller: &'static str) -> Option<Hierarchy> {
    let mounts = fs::read_to_string("/proc/mounts").ok()?;
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (root, kind, options) = (PathBuf::from(words.next()?), words.next()?, words.next()?);
        let version = match kind {
            "cgroup" if options.split(',').any(|o| o == controller) => Version::V1,
            "cgroup2" if has_word(&root.join("cgroup.controllers"), controller) => Version::V2,
            _ => return None,
        };
        Some(Hierarchy { root, version, controller })
    })
}

/// Directories at and below `path`.
fn directories(path: &Path) -> u64 {
    let below = fs::read_dir(path).into_iter().flatten().flatten();
    1 + below.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())).map(|e| directories(&e.path())).sum::<u64>()
}

fn has_word(path: &Path, word: &str) -> bool {
    fs::read_to_string(path).is_ok_and(|text| text.split_whitespace().any(|w| w == word))
}

impl Hierarchy {
    /// The group that the calling process is in; on v2 the top one, since a process may not return to a group
    /// that has delegated controllers meanwhile.
    pub fn home(&self) -> Result<Group> {
        if self.version == Version::V2 {
            return Ok(Group { path: self.root.clone(), version: self.version });
        }
        let text = fs::read_to_string("/proc/self/cgroup")?;
        let path = text.lines().find_map(|line| {
            let (controllers, path) = line.split_once(':')?.1.split_once(':')?;
            controllers
                .split(',')
                .any(|c| c == self.controller)
                .then(|| self.root.join(path.trim_start_matches('/')))
        });
        Ok(Group {
            path: path.context("no line of this hierarchy in /proc/self/cgroup")?,
            version: self.version,
        })
    }

    /// Cgroups that were removed and are still there: on v2 the kernel counts them, on v1 they are what
    /// /proc/cgroups counts beyond the directories.
    pub fn dying(&self) -> Result<u64> {
        if self.version == Version::V2 {
            return Fields::read(self.root.join("cgroup.stat"))?.number("nr_dying_descendants");
        }
        let text = fs::read_to_string("/proc/cgroups")?;
        let line = text.lines().find(|line| line.split_whitespace().next() == Some(self.controller));
        let all = line.and_then(|line| line.split_whitespace().nth(2)).context("no line in /proc/cgroups")?;
        Ok(all.parse::<u64>()?.saturating_sub(directories(&self.root)))
    }

    /// Makes group `name` at the top, so that no limit but its own holds for it.
    pub fn create(&self, journal: &mut Journal, name: &str) -> Result<Group> {
        let name = format!("ebbtide-lab-{}-{name}", std::process::id());
        if self.version == Version::V2 {
            delegate(&self.root, self.controller)?;
        }
        make(self.root.join(name), self.version, Some(journal))
    }
}

fn delegate(parent: &Path, controller: &str) -> Result<()> {
    let control = parent.join("cgroup.subtree_control");
    if has_word(&control, controller) {
        return Ok(());
    }
    fs::write(&control, format!("+{controller}")).with_context(|| format!("writing {}", control.display()))
}

fn make(path: PathBuf, version: Version, journal: Option<&mut Journal>) -> Result<Group> {
    if let Some(journal) = journal {
        journal.will(&Undo::Cgroup(path.clone()))?;
    }
    fs::create_dir(&path).with_context(|| format!("mkdir {}", path.display()))?;
    Ok(Group { path, version })
}

impl Group {
    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes a memory group inside this one; it goes with its parent.
    pub fn child(&self, name: &str) -> Result<Group> {
        if self.version == Version::V2 {
            delegate(&self.path, "memory")?;
        }
        make(self.path.join(name), self.version, None)
    }

    /// Removes it now; its charges may outlive it.
    pub fn remove(self) -> Result<()> {
        fs::remove_dir(&self.path).with_context(|| format!("rmdir {}", self.path.display()))
    }

    /// Moves the calling process into it.
    pub fn enter(&self) -> Result<()> {
        self.write("cgroup.procs", "0")
    }

    /// Moves process `pid` into it.
    pub fn adopt(&self, pid: i32) -> Result<()> {
        self.write("cgroup.procs", &pid.to_string())
    }

    /// Limits its memory.
    pub fn limit(&self, most: Bytes) -> Result<()> {
        let file = if self.version == Version::V1 { "memory.limit_in_bytes" } else { "memory.max" };
        self.write(file, &most.0.to_string())
    }

    /// Throttles it from here on (memory.high, v2 only).
    pub fn throttle(&self, from: Bytes) -> Result<()> {
        self.write("memory.high", &from.0.to_string())
    }

    /// Limits its tasks.
    pub fn limit_pids(&self, most: u64) -> Result<()> {
        self.write("pids.max", &most.to_string())
    }

    /// Its tasks (pids.current).
    pub fn tasks(&self) -> Result<u64> {
        procfs::number(self.path.join("pids.current"))
    }

    /// What is charged to it and to what is below it.
    pub fn usage(&self) -> Result<Bytes> {
        let file = if self.version == Version::V1 { "memory.usage_in_bytes" } else { "memory.current" };
        procfs::number(self.path.join(file)).map(Bytes)
    }

    /// Kernel memory charged to it.
    pub fn kernel(&self) -> Result<Bytes> {
        match self.version {
            Version::V1 => procfs::number(self.path.join("memory.kmem.usage_in_bytes")).map(Bytes),
            Version::V2 => self.stat()?.bytes("kernel").or_else(|_| self.stat()?.bytes("slab")),
        }
    }

    /// One line of memory.stat, hierarchical, by its v2 name.
    pub fn stat_of(&self, key: &str) -> Result<Bytes> {
        let stat = self.stat()?;
        match (self.version, key) {
            (Version::V2, _) => stat.bytes(key),
            (Version::V1, "file") => stat.bytes("total_cache"),
            (Version::V1, "anon") => stat.bytes("total_rss"),
            (Version::V1, _) => stat.bytes(&format!("total_{key}")),
        }
    }

    fn stat(&self) -> Result<Fields> {
        Fields::read(self.path.join("memory.stat"))
    }

    fn write(&self, file: &str, value: &str) -> Result<()> {
        let path = self.path.join(file);
        fs::write(&path, value).with_context(|| format!("writing {value} to {}", path.display()))
    }
}
