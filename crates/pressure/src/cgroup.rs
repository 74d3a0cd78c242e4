//! Which cgroup this process is in, and which of those above it has a limit: v1, v2, and both at once.
//!
//! The path in /proc/self/cgroup begins at the root of the process's cgroup namespace, and so does the root that
//! mountinfo says of a mount; a mount may show only a part. Invariant: a group is taken only if the mount really shows
//! it: a wrong group would be worse than none. Names are bytes.

use crate::machine::Machine;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// A group's directory and those above it that this process can see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) version: Version,
    pub(crate) dir: PathBuf,
    top: PathBuf,
}

impl Group {
    /// The group that this process is in; why not, if it cannot be found.
    pub(crate) fn own(machine: &Machine, version: Version) -> Result<Group, String> {
        let read = |path: &str| {
            machine.read(Path::new(path)).map_err(|errno| format!("{path}: {}", std::io::Error::from(errno)))
        };
        let path = membership(&read("/proc/self/cgroup")?, version).ok_or(match version {
            Version::V1 => "there is no cgroup v1 with the memory controller",
            Version::V2 => "there is no cgroup v2",
        })?;
        let mounts = read("/proc/self/mountinfo")?;
        let groups = mounts.split(|b| *b == b'\n').filter_map(|line| {
            let mount = mount(line, version)?;
            let dir = mount.point.iter().chain(inside(&path, &mount.root)?).collect();
            Some(Group { version, dir, top: mount.point })
        });
        let mut shown = groups.filter(|group| machine.real(&group.dir).is_dir());
        // The last mount covers the others.
        shown.next_back().ok_or_else(|| format!("the group {} is not mounted here", path.display()))
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Whether it is the root of all groups, whose figures are the host's. Only that one has no `cgroup.type`, since 4.14.
    pub(crate) fn is_root(&self, machine: &Machine) -> bool {
        !machine.exists(&self.file("cgroup.type"))
    }

    /// The nearest group from this one upward with a limit that can be reached: reclaim at a limit tells the group that
    /// has it, and none below (`mem_cgroup_charge`, `vmpressure`). A limit of all memory or more is none.
    pub(crate) fn limited(&self, machine: &Machine) -> Option<Group> {
        let most = mem_total(machine).unwrap_or(1 << 62);
        let dirs = self.dir.ancestors().take_while(|dir| dir.starts_with(&self.top));
        let mut groups = dirs.map(|dir| Group { dir: dir.to_owned(), ..self.clone() });
        groups.find(|group| group.limit(machine).is_some_and(|limit| limit < most))
    }

    /// Its own limit in bytes, if it has one. `max` is no number, and so none.
    pub(crate) fn limit(&self, machine: &Machine) -> Option<u64> {
        let names: &[&str] = match self.version {
            Version::V1 => &["memory.limit_in_bytes"],
            Version::V2 => &["memory.high", "memory.max"],
        };
        names.iter().filter_map(|name| machine.read_number(&self.file(name))).min()
    }
}

/// `MemTotal` in bytes.
fn mem_total(machine: &Machine) -> Option<u64> {
    meminfo(&machine.read(Path::new("/proc/meminfo")).ok()?, b"MemTotal:")
}

/// A line of /proc/meminfo, in bytes.
pub(crate) fn meminfo(text: &[u8], name: &[u8]) -> Option<u64> {
    let value = text.split(|b| *b == b'\n').find_map(|line| line.strip_prefix(name))?;
    crate::psi::number(value.trim_ascii().strip_suffix(b" kB")?)?.checked_mul(1024)
}

/// The path in /proc/self/cgroup: `0::/path` or `4:memory:/path`.
fn membership(text: &[u8], version: Version) -> Option<PathBuf> {
    text.split(|b| *b == b'\n').find_map(|line| {
        let mut parts = line.splitn(3, |b| *b == b':');
        let (id, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let ours = match version {
            Version::V1 => controllers.split(|b| *b == b',').any(|name| name == b"memory"),
            Version::V2 => id == b"0" && controllers.is_empty(),
        };
        (ours && path.starts_with(b"/")).then(|| PathBuf::from(OsString::from_vec(path.to_vec())))
    })
}

struct Mount {
    root: PathBuf,
    point: PathBuf,
}

/// A line of mountinfo, if it is a mount of that version; see proc_pid_mountinfo(5).
fn mount(line: &[u8], version: Version) -> Option<Mount> {
    let mut words = line.split(|b| *b == b' ').skip(3);
    let (root, point) = (words.next()?, words.next()?);
    let mut words = words.skip_while(|word| *word != b"-").skip(1);
    let (kind, options) = (words.next()?, words.nth(1)?);
    let ours = match version {
        Version::V1 => kind == b"cgroup" && options.split(|b| *b == b',').any(|option| option == b"memory"),
        Version::V2 => kind == b"cgroup2",
    };
    ours.then(|| Mount { root: unescape(root), point: unescape(point) })
}

/// `\040` and its like undone.
fn unescape(text: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let octal = |digits: &[u8]| {
            digits.iter().try_fold(0_u8, |n, d| {
                let digit = d.checked_sub(b'0').filter(|digit| *digit < 8)?;
                n.checked_mul(8)?.checked_add(digit)
            })
        };
        match (first, tail.split_at_checked(3)) {
            (b'\\', Some((digits, after))) if octal(digits).is_some() => {
                bytes.extend(octal(digits));
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// `path` from `root` on, if it lies in it and does not lead out of what can be seen (`/../x`).
fn inside<'a>(path: &'a Path, root: &Path) -> Option<&'a Path> {
    let inside = path.strip_prefix(root).ok()?;
    inside.components().all(|part| matches!(part, Component::Normal(_))).then_some(inside)
}

#[cfg(test)]
mod tests;
