//! /proc/PID/fd: what a process holds open, by the links alone.
//!
//! A link costs one readlink and says what kind of thing is behind it, so only what looks like memory needs
//! a stat. Names lie: a file may well be called "/memfd:x (deleted)", so a candidate is confirmed by fstat
//! (see [`crate::shared`]).

use super::Process;
use crate::{ReadError, scan};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{Mode, OFlags, RawDir, openat, readlinkat_raw};
use rustix::io::Errno;

/// What a descriptor is open to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target<'a> {
    /// A file or device that has a path.
    File(&'a [u8]),
    /// A file that was unlinked; its path.
    Deleted(&'a [u8]),
    /// memfd_create; its name.
    Memfd(&'a [u8]),
    /// A System V segment; its key.
    SysV(u32),
    /// A dma-buf; its name.
    DmaBuf(&'a [u8]),
    /// A socket; its inode.
    Socket(u64),
    /// A pipe; its inode.
    Pipe(u64),
    /// eventfd, epoll, io_uring, bpf-map ...; its name.
    AnonInode(&'a [u8]),
    /// A namespace, or what this version does not know.
    Other(&'a [u8]),
}

impl<'a> Target<'a> {
    /// What `link` points to.
    pub fn of(link: &'a [u8]) -> Target<'a> {
        let inside = |prefix: &[u8]| link.strip_prefix(prefix)?.strip_suffix(b"]");
        let deleted = link.strip_suffix(b" (deleted)");
        if let Some(inode) = inside(b"socket:[") {
            return scan::number(inode).map_or(Target::Other(link), Target::Socket);
        }
        if let Some(inode) = inside(b"pipe:[") {
            return scan::number(inode).map_or(Target::Other(link), Target::Pipe);
        }
        if let Some(name) = link.strip_prefix(b"anon_inode:") {
            let bare = name.strip_prefix(b"[").and_then(|name| name.strip_suffix(b"]"));
            return Target::AnonInode(bare.unwrap_or(name));
        }
        if let Some(name) = link.strip_prefix(b"/memfd:") {
            return Target::Memfd(name.strip_suffix(b" (deleted)").unwrap_or(name));
        }
        if let Some(name) = link.strip_prefix(b"/dmabuf:") {
            return Target::DmaBuf(name);
        }
        if let Some(key) = deleted.and_then(sysv_key) {
            return Target::SysV(key);
        }
        match deleted {
            Some(path) if path.starts_with(b"/") => Target::Deleted(path),
            _ if link.starts_with(b"/") => Target::File(link),
            _ => Target::Other(link),
        }
    }

    /// Whether it may be memory that lives on while nobody maps it: only then is a stat worth its cost.
    pub fn may_be_shmem(&self) -> bool {
        match self {
            Target::Memfd(_) | Target::SysV(_) | Target::Deleted(_) => true,
            Target::File(path) => path.starts_with(b"/dev/shm/"),
            _ => false,
        }
    }
}

/// The key in "/SYSV0000162e".
pub(crate) fn sysv_key(path: &[u8]) -> Option<u32> {
    let digits = path.strip_prefix(b"/SYSV").filter(|digits| digits.len() == 8)?;
    scan::hex(digits).and_then(|key| u32::try_from(key).ok())
}

/// Walks the descriptors of many processes, with buffers that are made once.
#[derive(Debug)]
pub(crate) struct FdWalk {
    block: Vec<u8>,
    link: Box<[u8; PATH_MAX]>,
}

/// The longest link the kernel writes.
const PATH_MAX: usize = 4096;

impl FdWalk {
    pub(crate) fn new() -> FdWalk {
        FdWalk { block: Vec::with_capacity(16 << 10), link: Box::new([0; PATH_MAX]) }
    }

    /// Calls `each` with every descriptor in directory `fds`, its number and what it is open to, until it
    /// returns false.
    pub(crate) fn each(
        &mut self,
        fds: BorrowedFd<'_>,
        mut each: impl FnMut(u32, Target) -> bool,
    ) -> Result<(), Errno> {
        let mut entries = RawDir::new(fds, self.block.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let number = scan::number(entry.file_name().to_bytes());
            let Some(fd) = number.and_then(|n| u32::try_from(n).ok()) else { continue };
            match readlinkat_raw(fds, entry.file_name(), &mut self.link[..]) {
                Ok(len) if !each(fd, Target::of(&self.link[..len])) => break,
                Ok(_) | Err(Errno::NOENT | Errno::SRCH) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }
}

impl Process {
    /// Calls `each` with every open descriptor and what it is open to, until it returns false. A descriptor
    /// that is closed meanwhile is left out.
    pub fn each_fd(&self, each: impl FnMut(u32, Target) -> bool) -> Result<(), ReadError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat(self.dir.fd(), "fd", flags, Mode::empty())
            .and_then(|fds| FdWalk::new().each(fds.as_fd(), each))
            .map_err(|errno| self.seen(ReadError::new(self.dir.path("fd"), errno)))
    }

    /// How many descriptors it has open.
    pub fn fd_count(&self) -> Result<u64, ReadError> {
        let mut count = 0;
        self.dir.each_entry("fd", |_| count += 1).map_err(|error| self.seen(error))?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Root;
    use ebbtide_testkit::FakeRoot;
    use proptest::prelude::*;

    #[test]
    fn links() {
        assert_eq!(Target::of(b"/var/log/x"), Target::File(b"/var/log/x"));
        assert_eq!(Target::of(b"/tmp/x (deleted)"), Target::Deleted(b"/tmp/x"));
        assert_eq!(Target::of(b"/memfd:a\nb (deleted)"), Target::Memfd(b"a\nb"));
        assert_eq!(Target::of(b"/SYSV0000162e (deleted)"), Target::SysV(0x162e));
        assert_eq!(Target::of(b"/SYSVx (deleted)"), Target::Deleted(b"/SYSVx"));
        assert_eq!(Target::of(b"socket:[31337]"), Target::Socket(31_337));
        assert_eq!(Target::of(b"pipe:[7]"), Target::Pipe(7));
        assert_eq!(Target::of(b"anon_inode:[eventpoll]"), Target::AnonInode(b"eventpoll"));
        assert_eq!(Target::of(b"anon_inode:bpf-map"), Target::AnonInode(b"bpf-map"));
        assert_eq!(Target::of(b"/dmabuf:heap"), Target::DmaBuf(b"heap"));
        assert_eq!(Target::of(b"mnt:[4026531841]"), Target::Other(b"mnt:[4026531841]"));
        assert_eq!(Target::of(b"socket:[x]"), Target::Other(b"socket:[x]"));
    }

    #[test]
    fn descriptors_of_a_process() {
        let fake = FakeRoot::new()
            .process(7, [("status", "")])
            .link("proc/7/fd/0", "/dev/null")
            .link("proc/7/fd/11", "/memfd:x (deleted)")
            .file("proc/7/fd/12", "no link")
            .link("proc/7/fd/x", "/dev/null");
        let process = Process::open(&Root::at(fake.path()).unwrap(), 7).unwrap();
        let mut seen = Vec::new();
        let error = process.each_fd(|fd, target| {
            seen.push((fd, target.may_be_shmem()));
            true
        });
        seen.sort();
        assert!(matches!(error, Err(ReadError::Io { .. })), "a file is no link");
        fake.remove("proc/7/fd/12");
        seen.clear();
        process
            .each_fd(|fd, target| {
                seen.push((fd, target.may_be_shmem()));
                true
            })
            .unwrap();
        seen.sort();
        assert_eq!(seen, [(0, false), (11, true)]);
        assert_eq!(process.fd_count().unwrap(), 3);
    }

    #[test]
    fn own_descriptors() {
        let process = Process::open(&Root::live().unwrap(), std::process::id()).unwrap();
        let _file = std::fs::File::open("/dev/null").unwrap();
        let mut null = false;
        process
            .each_fd(|_, target| {
                null |= target == Target::File(b"/dev/null");
                true
            })
            .unwrap();
        assert!(null && process.fd_count().unwrap() >= 3);
    }

    proptest! {
        #[test]
        fn never_panics(link: Vec<u8>) {
            let _ = Target::of(&link).may_be_shmem();
        }
    }
}
