//! The files of this machine, or of a directory that looks like one.
//!
//! Paths are absolute, as the machine itself names them. Invariant: reading is bounded and never blocks, whatever a path
//! turns out to be.

use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::path::{Path, PathBuf};

/// The most that is read from one file: a mountinfo of some 100,000 mounts.
const MOST: usize = 16 << 20;

/// A machine's root directory.
#[derive(Debug, Clone)]
pub(crate) struct Machine {
    root: PathBuf,
}

impl Machine {
    pub(crate) fn new(root: &Path) -> Machine {
        Machine { root: root.to_owned() }
    }

    /// Where `path` really is.
    pub(crate) fn real(&self, path: &Path) -> PathBuf {
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Opens `path` with `flags`, without blocking, and not for child processes.
    pub(crate) fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        rustix::fs::open(self.real(path), flags, Mode::empty())
    }

    pub(crate) fn exists(&self, path: &Path) -> bool {
        self.real(path).exists()
    }

    pub(crate) fn read(&self, path: &Path) -> Result<Vec<u8>, Errno> {
        read_again(self.open(path, OFlags::RDONLY)?)
    }

    /// The number that file `path` begins with.
    pub(crate) fn read_number(&self, path: &Path) -> Option<u64> {
        crate::psi::number(self.read(path).ok()?.trim_ascii())
    }
}

/// Reads `fd` from its beginning.
pub(crate) fn read_again(fd: impl AsFd) -> Result<Vec<u8>, Errno> {
    let mut text = Vec::with_capacity(4096);
    let mut block = [0; 4096];
    while text.len() < MOST {
        match rustix::io::pread(&fd, &mut block, text.len() as u64) {
            Ok(0) => break,
            Ok(n) => text.extend_from_slice(block.get(..n).unwrap_or_default()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(text)
}

/// Why a file of the kernel's could not be used, in words.
pub(crate) fn refusal(errno: Errno) -> String {
    let what = match errno {
        Errno::NOENT | Errno::NOTDIR => "it is not there",
        Errno::ACCESS | Errno::PERM => "this process may not use it",
        Errno::ROFS => "it is mounted read-only",
        Errno::OPNOTSUPP => "the kernel keeps no pressure stall information (psi=1, cgroup.pressure)",
        Errno::BUSY => "somebody's trigger is on it already",
        Errno::INVAL => "the kernel does not take the trigger",
        Errno::NODEV => "the group was removed",
        _ => "it cannot be used",
    };
    format!("{what}: {}", std::io::Error::from(errno))
}
