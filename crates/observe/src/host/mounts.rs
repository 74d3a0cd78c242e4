//! /proc/self/mountinfo and the fill of file systems that live in RAM (fs/proc_namespace.c, mm/shmem.c).
//!
//! A tmpfs is identified by its device number: bind mounts and other mount namespaces show the same one again,
//! and it must count once. What a tmpfs holds includes pages that went to swap.

use crate::{Bytes, ReadError, Root, scan};
use std::collections::BTreeSet;

/// A mounted file system that keeps its files in RAM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RamFs {
    /// Where it is mounted, in the mount namespace it was found in.
    pub path: String,
    /// Whether that is the reader's own mount namespace; else the process it was found through.
    pub via_pid: Option<u32>,
    /// Device number, "0:25" as in mountinfo.
    pub device: String,
    /// "tmpfs", "ramfs", "devtmpfs".
    pub kind: String,
    /// Bytes of file content; ramfs does not count its own, so it says zero.
    pub used: Bytes,
    /// Its size limit; zero where it has none.
    pub size: Bytes,
}

/// One line of mountinfo.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mount<'a> {
    /// Device number, "major:minor".
    pub device: &'a [u8],
    /// The part of the file system that is mounted.
    pub root: &'a [u8],
    /// Where, with blanks and backslashes as octal escapes.
    pub path: &'a [u8],
    /// The file system's type.
    pub kind: &'a [u8],
    /// Options of the superblock.
    pub options: &'a [u8],
}

/// Parses one line of mountinfo (proc(5)).
pub fn mount(line: &[u8]) -> Option<Mount<'_>> {
    let mut words = scan::words(line);
    let device = words.nth(2)?;
    let (root, path) = (words.next()?, words.next()?);
    let mut rest = words.skip_while(|word| *word != b"-").skip(1);
    let kind = rest.next()?;
    let options = rest.nth(1).unwrap_or_default();
    Some(Mount { device, root, path, kind, options })
}

/// Undoes the kernel's octal escapes (\040 for a blank) in a path.
pub fn unescape(path: &[u8]) -> String {
    let mut out = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, tail)) = rest.split_first() {
        match (byte, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                out.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = &tail[3..];
            }
            _ => {
                out.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Finds every file system in RAM that `mountinfo` (a path under the root) names and `seen` does not yet.
pub fn ram_file_systems(
    root: &Root,
    mountinfo: &str,
    via_pid: Option<u32>,
    seen: &mut BTreeSet<String>,
) -> Result<Vec<RamFs>, ReadError> {
    let mut found = Vec::new();
    root.each_line(mountinfo, |line| {
        let Some(mount) = mount(line) else { return true };
        if !matches!(mount.kind, b"tmpfs" | b"ramfs" | b"devtmpfs") {
            return true;
        }
        let device = String::from_utf8_lossy(mount.device).into_owned();
        if seen.contains(&device) {
            return true;
        }
        let path = unescape(mount.path);
        // A mount hidden under another one answers for that other one: its device tells.
        if let Some((used, size)) = root.ram_fs_fill(&path, via_pid, &device) {
            seen.insert(device.clone());
            let kind = String::from_utf8_lossy(mount.kind).into_owned();
            found.push(RamFs { path, via_pid, device, kind, used, size });
        }
        true
    })?;
    Ok(found)
}

impl Root {
    /// How full the file system mounted at `path` is, if its device is `device`: (used, size). Under a fake
    /// root the file "fill/<device>" says it ("used size").
    fn ram_fs_fill(&self, path: &str, via_pid: Option<u32>, device: &str) -> Option<(Bytes, Bytes)> {
        if !self.is_live() {
            let line = self.read_line(&format!("fill/{device}")).ok()?;
            let mut words = scan::words(line.as_bytes());
            return Some((Bytes(scan::number(words.next()?)?), Bytes(scan::number(words.next()?)?)));
        }
        let path = match via_pid {
            None => self.path(path),
            Some(pid) => self.path(format!("proc/{pid}/root")).join(path.trim_start_matches('/')),
        };
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
        let fd = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).ok()?;
        let stat = rustix::fs::fstat(&fd).ok()?;
        let (major, minor) = (rustix::fs::major(stat.st_dev), rustix::fs::minor(stat.st_dev));
        if format!("{major}:{minor}") != device {
            return None;
        }
        let fill = rustix::fs::fstatvfs(&fd).ok()?;
        let bytes = |blocks: u64| Bytes(blocks.saturating_mul(fill.f_frsize));
        Some((bytes(fill.f_blocks.saturating_sub(fill.f_bfree)), bytes(fill.f_blocks)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn mountinfo_lines() {
        let m = mount(b"36 35 0:25 / /mnt\\040a rw,noatime master:1 - tmpfs none rw,size=4k").unwrap();
        assert_eq!((m.device, m.kind, m.options), (&b"0:25"[..], &b"tmpfs"[..], &b"rw,size=4k"[..]));
        assert_eq!(unescape(m.path), "/mnt a");
        assert_eq!(unescape(b"a\\0"), "a\\0");
        assert_eq!(mount(b"36 35 0:25 / /mnt rw"), None);
    }

    #[test]
    fn this_machine_has_file_systems_in_ram() {
        let root = Root::live().unwrap();
        let mut seen = BTreeSet::new();
        let found = ram_file_systems(&root, "proc/self/mountinfo", None, &mut seen).unwrap();
        assert!(!found.is_empty());
        let again = ram_file_systems(&root, "proc/self/mountinfo", None, &mut seen).unwrap();
        assert_eq!(again, [], "a device counts once");
    }

    proptest! {
        #[test]
        fn never_panics(line: Vec<u8>) {
            let _ = mount(&line).map(|m| unescape(m.path));
        }
    }
}
