//! Where the files are read from: the live machine, or a directory that looks like one.
//!
//! Every reader takes a [`Root`] and a path as the kernel names it ("proc/meminfo"), so a test lays out a
//! fake machine in a temporary directory and the same code reads it. Invariants: reading is bounded
//! ([`Root::read`] stops at [`MAX_FILE`]; longer files are for [`Root::each_line`], which holds one block),
//! and buffers are the caller's, so that reading thousands of processes allocates nothing per file.

use crate::error::ReadError;
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags, openat};
use std::path::{Path, PathBuf};

/// The most that [`Root::read`] takes from one file.
pub const MAX_FILE: usize = 4 << 20;

/// The longest line [`Root::each_line`] hands on; the rest of a longer one is dropped.
pub const MAX_LINE: usize = 64 << 10;

/// A machine's root directory, real or fake.
#[derive(Debug)]
pub struct Root {
    dir: PathBuf,
    fd: OwnedFd,
    live: bool,
}

impl Root {
    /// The machine this runs on.
    pub fn live() -> Result<Root, ReadError> {
        Root::open(PathBuf::from("/"), true)
    }

    /// A directory that holds proc/, sys/ and so on.
    pub fn at(dir: impl Into<PathBuf>) -> Result<Root, ReadError> {
        Root::open(dir.into(), false)
    }

    /// The directory `fd` is open on, named `dir` in messages: one that has no path, such as a mount that is
    /// attached nowhere.
    pub fn from_fd(dir: impl Into<PathBuf>, fd: OwnedFd) -> Root {
        Root { dir: dir.into(), fd, live: false }
    }

    fn open(dir: PathBuf, live: bool) -> Result<Root, ReadError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&dir, flags, Mode::empty()).map_err(|e| ReadError::new(&dir, e))?;
        Ok(Root { dir, fd, live })
    }

    /// Directory `path` below this root as a root of its own. It stays that very directory: a process's
    /// directory held this way answers ESRCH or ENOENT once the process has ended, even when its pid is used
    /// again.
    pub fn sub(&self, path: impl AsRef<Path>) -> Result<Root, ReadError> {
        let dir = self.path(&path);
        let path = path.as_ref().strip_prefix("/").unwrap_or(path.as_ref());
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(&self.fd, path, flags, Mode::empty()).map_err(|e| ReadError::new(&dir, e))?;
        Ok(Root { dir, fd, live: self.live })
    }

    /// The root's directory, for system calls relative to it.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// True for the machine this runs on: only there do system calls about processes and file systems tell
    /// of the same machine as the files do.
    pub fn is_live(&self) -> bool {
        self.live
    }

    /// `path` as an absolute one, for messages and for system calls that take a path.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.dir.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Opens `path` (relative to this root) for reading.
    pub fn open_file(&self, path: &str) -> Result<OwnedFd, ReadError> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        openat(&self.fd, relative(path), flags, Mode::empty()).map_err(|e| ReadError::new(self.path(path), e))
    }

    /// Reads all of `path` into `buf`, which is cleared first, and returns it.
    pub fn read<'b>(&self, path: &str, buf: &'b mut Vec<u8>) -> Result<&'b [u8], ReadError> {
        let fd = self.open_file(path)?;
        read_to_end(&fd, buf).map_err(|e| ReadError::new(self.path(path), e))?;
        Ok(buf)
    }

    /// Reads `path` as one line of text, without its newline; invalid UTF-8 is replaced.
    pub fn read_line(&self, path: &str) -> Result<String, ReadError> {
        let mut buf = Vec::new();
        let text = self.read(path, &mut buf)?;
        let line = text.split(|&b| b == b'\n').next().unwrap_or_default();
        Ok(String::from_utf8_lossy(line.trim_ascii()).into_owned())
    }

    /// Reads `path` as one decimal number.
    pub fn read_number(&self, path: &str) -> Result<u64, ReadError> {
        let mut buf = Vec::new();
        let text = self.read(path, &mut buf)?.trim_ascii_start();
        crate::scan::number(text)
            .ok_or_else(|| ReadError::Malformed { path: self.path(path), what: "no number in it" })
    }

    /// Calls `each` with every line of `path`, without its newline, until it returns false. Holds one block
    /// of the file at a time, so a 50 MB smaps costs no more memory than a small one.
    pub fn each_line(&self, path: &str, mut each: impl FnMut(&[u8]) -> bool) -> Result<(), ReadError> {
        let fd = self.open_file(path)?;
        let mut buf = vec![0; MAX_LINE];
        let mut filled = 0;
        let mut dropping = false;
        loop {
            let n = match rustix::io::read(&fd, &mut buf[filled..]) {
                Ok(0) => break,
                Ok(n) => n,
                Err(rustix::io::Errno::INTR) => continue,
                Err(e) => return Err(ReadError::new(self.path(path), e)),
            };
            filled += n;
            let mut start = 0;
            while let Some(len) = buf[start..filled].iter().position(|&b| b == b'\n') {
                if !std::mem::take(&mut dropping) && !each(&buf[start..start + len]) {
                    return Ok(());
                }
                start += len + 1;
            }
            buf.copy_within(start..filled, 0);
            filled -= start;
            if filled == buf.len() {
                if !std::mem::replace(&mut dropping, true) && !each(&buf) {
                    return Ok(());
                }
                filled = 0;
            }
        }
        if filled > 0 && !dropping {
            each(&buf[..filled]);
        }
        Ok(())
    }

    /// The names in directory `path`, unsorted, without "." and "..".
    pub fn list(&self, path: &str) -> Result<Vec<String>, ReadError> {
        let mut names = Vec::new();
        self.each_entry(path, |name| names.push(String::from_utf8_lossy(name).into_owned()))?;
        Ok(names)
    }

    /// Calls `each` with every name in directory `path`, without "." and "..".
    pub fn each_entry(&self, path: &str, mut each: impl FnMut(&[u8])) -> Result<(), ReadError> {
        self.each_typed_entry(path, |name, _| each(name))
    }

    /// Calls `each` with the name of every directory in directory `path`, without "." and "..". Symbolic links
    /// are none. Only for file systems that tell types in listings, as /proc, /sys and cgroups do.
    pub fn each_directory(&self, path: &str, mut each: impl FnMut(&[u8])) -> Result<(), ReadError> {
        self.each_typed_entry(path, |name, kind| {
            if kind == FileType::Directory {
                each(name);
            }
        })
    }

    fn each_typed_entry(&self, path: &str, mut each: impl FnMut(&[u8], FileType)) -> Result<(), ReadError> {
        let fail = |e| ReadError::new(self.path(path), e);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = openat(&self.fd, relative(path), flags, Mode::empty()).map_err(fail)?;
        let mut block = Vec::with_capacity(32 << 10);
        let mut entries = rustix::fs::RawDir::new(&fd, block.spare_capacity_mut());
        while let Some(entry) = entries.next() {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name().to_bytes();
            if name != b"." && name != b".." {
                each(name, entry.file_type());
            }
        }
        Ok(())
    }

    /// What the symbolic link `path` points to, as the kernel writes it.
    pub fn link(&self, path: &str) -> Result<String, ReadError> {
        rustix::fs::readlinkat(&self.fd, relative(path), Vec::new())
            .map(|target| target.to_string_lossy().into_owned())
            .map_err(|e| ReadError::new(self.path(path), e))
    }
}

fn relative(path: &str) -> &str {
    let path = path.trim_start_matches('/');
    if path.is_empty() { "." } else { path }
}

/// Reads from `fd` until its end or [`MAX_FILE`], into `buf`, which is cleared first.
pub fn read_to_end(fd: impl AsFd, buf: &mut Vec<u8>) -> Result<(), rustix::io::Errno> {
    buf.clear();
    while buf.len() < MAX_FILE {
        if buf.capacity() - buf.len() < 4096 {
            buf.reserve(8192.max(buf.capacity()));
        }
        match rustix::io::read(&fd, rustix::buffer::spare_capacity(buf)) {
            Ok(0) => break,
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root_with(name: &str, text: &[u8]) -> (tempfile::TempDir, Root) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), text).unwrap();
        let root = Root::at(dir.path()).unwrap();
        (dir, root)
    }

    #[test]
    fn lines_of_any_length_are_bounded() {
        let mut text = vec![b'x'; MAX_LINE * 3];
        text.extend_from_slice(b"\nshort\nlast");
        let (_dir, root) = root_with("file", &text);
        let mut seen = Vec::new();
        root.each_line("file", |line| {
            seen.push((line.len(), line.last().copied()));
            true
        })
        .unwrap();
        assert_eq!(seen, [(MAX_LINE, Some(b'x')), (5, Some(b't')), (4, Some(b't'))]);
    }

    #[test]
    fn a_reader_may_stop_early() {
        let (_dir, root) = root_with("file", b"1\n2\n3\n");
        let mut n = 0;
        root.each_line("file", |_| {
            n += 1;
            n < 2
        })
        .unwrap();
        assert_eq!(n, 2);
    }

    #[test]
    fn errors_say_which_file_and_why() {
        let (_dir, root) = root_with("file", b"no number");
        assert!(matches!(root.read_number("file"), Err(ReadError::Malformed { .. })));
        assert!(matches!(root.read_line("absent"), Err(ReadError::Missing { .. })));
        assert!(matches!(Root::at("/no/such/root"), Err(ReadError::Missing { .. })));
    }
}
