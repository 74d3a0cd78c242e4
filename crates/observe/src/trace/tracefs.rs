//! The kernel's tracing file system: where it is, and small reads and writes in it.
//!
//! Invariant: finding it changes nothing on the machine. Where it is mounted, that mount is used; where it is
//! not, a mount is made that is attached nowhere (fsopen and fsmount, kernel 5.2): only this process sees it,
//! and it goes with the descriptor. A private mount namespace would do the same at the price of a thread
//! that lives in another namespace than the rest of the process.

use super::TraceError;
use crate::{ReadError, Root, scan};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use std::path::PathBuf;

/// The tracing file system, mounted somewhere or nowhere.
#[derive(Debug)]
pub(super) struct Tracefs {
    dir: Root,
}

impl Tracefs {
    /// The mounted tracefs of the machine `root` shows, or a private one.
    ///
    /// Errors: [`TraceError::NoTracefs`] if this kernel has none or it may not be mounted,
    /// [`TraceError::Denied`] if it may not be entered.
    pub(super) fn find(root: &Root) -> Result<Tracefs, TraceError> {
        let tracefs = match mount_point(root) {
            Some(path) => Root::at(root.path(&path)).map(|dir| Tracefs { dir })?,
            None if root.is_live() => Tracefs { dir: private_mount()? },
            None => return Err(TraceError::NoTracefs { why: "it is not mounted".to_owned() }),
        };
        // The directory is mode 0700: an O_PATH descriptor of it proves nothing.
        match tracefs.dir.list("instances") {
            Ok(_) => Ok(tracefs),
            Err(ReadError::Missing { .. }) => {
                Err(TraceError::NoTracefs { why: "the kernel's tracefs has no instances".to_owned() })
            }
            Err(e) => Err(e.into()),
        }
    }

    /// The files, for reading.
    pub(super) fn files(&self) -> &Root {
        &self.dir
    }

    /// Writes `text` to `path` in one write. tracefs checks each write as a whole, so it is never split.
    pub(super) fn write(&self, path: &str, text: &str) -> Result<(), ReadError> {
        // Never O_TRUNC: on set_event and its like the kernel takes opening with it for "clear everything".
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let fail = |e| ReadError::new(self.dir.path(path), e);
        let fd = rustix::fs::openat(self.dir.fd(), path, flags, Mode::empty()).map_err(fail)?;
        loop {
            match rustix::io::write(&fd, text.as_bytes()) {
                Ok(_) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(e) => return Err(fail(e)),
            }
        }
    }

    /// `mkdir(path)`.
    pub(super) fn make_dir(&self, path: &str) -> Result<(), ReadError> {
        rustix::fs::mkdirat(self.dir.fd(), path, Mode::RWXU)
            .map_err(|e| ReadError::new(self.dir.path(path), e))
    }

    /// `rmdir(path)`; for an instance EBUSY says that somebody has a file of it open.
    pub(super) fn remove_dir(&self, path: &str) -> Result<(), Errno> {
        rustix::fs::unlinkat(self.dir.fd(), path, rustix::fs::AtFlags::REMOVEDIR)
    }
}

/// Where /proc/self/mountinfo says that a tracefs is mounted.
fn mount_point(root: &Root) -> Option<String> {
    let mut buf = Vec::new();
    let text = root.read("proc/self/mountinfo", &mut buf).ok()?;
    scan::lines(text).find_map(tracefs_mount)
}

/// The mount point of a mountinfo line, if its file system is tracefs and its root is the whole of it.
fn tracefs_mount(line: &[u8]) -> Option<String> {
    let mut words = scan::words(line);
    let (inside, point) = (words.nth(3)?, words.next()?);
    let kind = words.skip_while(|&w| w != b"-").nth(1)?;
    (kind == b"tracefs" && inside == b"/").then(|| unescape(point))
}

/// mountinfo writes blanks and backslashes in paths as three octal digits.
fn unescape(path: &[u8]) -> String {
    let mut plain = Vec::with_capacity(path.len());
    let mut rest = path;
    while let Some((&byte, tail)) = rest.split_first() {
        match tail {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..] if byte == b'\\' => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                plain.push(byte);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

fn private_mount() -> Result<Root, TraceError> {
    let mount = || -> Result<OwnedFd, Errno> {
        let context = fsopen("tracefs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
    };
    match mount() {
        Ok(fd) => Ok(Root::from_fd(PathBuf::from("tracefs"), fd)),
        Err(Errno::NODEV) => {
            Err(TraceError::NoTracefs { why: "this kernel was built without tracefs".to_owned() })
        }
        Err(Errno::NOSYS) => {
            Err(TraceError::NoTracefs { why: "it is not mounted, and this kernel has no fsopen".to_owned() })
        }
        Err(Errno::PERM | Errno::ACCESS) => Err(TraceError::Denied { path: PathBuf::from("tracefs") }),
        Err(e) => Err(TraceError::NoTracefs { why: format!("it is not mounted, and fsopen says: {e}") }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_found_and_unescaped() {
        let line = b"31 22 0:12 / /mnt/a\\040b rw,nosuid shared:14 - tracefs tracefs rw";
        assert_eq!(tracefs_mount(line).as_deref(), Some("/mnt/a b"));
        let line = b"31 22 0:12 / /sys/kernel/tracing rw - tracefs none rw";
        assert_eq!(tracefs_mount(line).as_deref(), Some("/sys/kernel/tracing"));
        assert_eq!(tracefs_mount(b"31 22 0:12 /events /mnt rw - tracefs none rw"), None);
        assert_eq!(tracefs_mount(b"31 22 0:12 / /sys rw - sysfs sysfs rw"), None);
        assert_eq!(tracefs_mount(b"31"), None);
    }

    #[test]
    fn where_it_is_not_mounted_it_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let root = Root::at(dir.path()).unwrap();
        assert!(matches!(Tracefs::find(&root), Err(TraceError::NoTracefs { .. })));
    }
}
