//! What /proc/PID tells about one process, one file per module; all processes at once are in [`all`].
//!
//! Invariants: a [`Process`] holds its directory, so a pid that is used again is never mistaken for it: after
//! its end every read says [`ReadError::Vanished`]. Parsers take bytes and never panic on any; files that
//! grow with the process (maps, smaps, fd) are streamed, so memory stays bounded whatever the target's size.

pub mod all;
pub mod args;
pub mod counters;
pub mod cow;
pub mod detail;
pub mod fdinfo;
pub mod fds;
pub mod kind;
pub mod limits;
pub mod maps;
pub mod membership;
mod name;
pub mod sampling;
pub mod smaps;
pub mod stat;
pub mod statm;
pub mod status;
pub mod threads;
pub mod vm_flags;

pub use all::{Memory, ProcSample, Processes};
pub use counters::Counters;
pub use detail::Detail;
pub use fdinfo::FdInfo;
pub use fds::Target;
pub use kind::Kind;
pub use limits::Limits;
pub use maps::{Device, Mapping, Perms};
pub use name::Name;
pub use smaps::Area;
pub use stat::Stat;
pub use status::{State, Status};
pub use threads::{Syscall, Thread};
pub use vm_flags::VmFlags;

use crate::{ReadError, Root};

/// A process id, in the pid namespace of the /proc that was read.
pub type Pid = u32;

/// One process, by its directory.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    dir: Root,
}

impl Process {
    /// Process `pid`. Where there is none (or hidepid= hides it): [`ReadError::Vanished`].
    pub fn open(root: &Root, pid: Pid) -> Result<Process, ReadError> {
        let dir = root.sub(format!("proc/{pid}")).map_err(|error| match error {
            ReadError::Missing { path } => ReadError::Vanished { path },
            error => error,
        })?;
        Ok(Process { pid, dir })
    }

    /// Its id.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Its directory as a root: "status" is its status file.
    pub fn dir(&self) -> &Root {
        &self.dir
    }

    /// All of `file`, which must be one whose size does not grow with the process.
    fn text(&self, file: &str) -> Result<Vec<u8>, ReadError> {
        let mut buf = Vec::new();
        self.dir.read(file, &mut buf).map_err(|error| self.seen(error))?;
        Ok(buf)
    }

    /// Calls `each` with every line of `file` until it returns false.
    fn each_line(&self, file: &str, each: impl FnMut(&[u8]) -> bool) -> Result<(), ReadError> {
        self.dir.each_line(file, each).map_err(|error| self.seen(error))
    }

    /// What `parse` makes of all of `file`.
    fn parsed<T>(&self, file: &str, parse: impl FnOnce(&[u8]) -> Option<T>) -> Result<T, ReadError> {
        parse(&self.text(file)?)
            .ok_or_else(|| ReadError::Malformed { path: self.dir.path(file), what: "not in its known form" })
    }

    /// `error` with "not there" told apart: the file, or the whole process. A process always has `status`;
    /// opening it relative to the directory of one that ended is ENOENT, reading it ESRCH.
    fn seen(&self, error: ReadError) -> ReadError {
        match error {
            ReadError::Missing { path } if self.ended() => ReadError::Vanished { path },
            error => error,
        }
    }

    fn ended(&self) -> bool {
        use rustix::fs::{Access, AtFlags, accessat};
        let there = accessat(self.dir.fd(), "status", Access::EXISTS, AtFlags::empty());
        matches!(there, Err(rustix::io::Errno::NOENT | rustix::io::Errno::SRCH))
    }
}
