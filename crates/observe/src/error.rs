//! Why something could not be read. A vanished process and a denied file are data, not failures: readers
//! hand them up, samples list them as [`Unread`], and the report names them.

use serde::Serialize;
use std::path::PathBuf;

/// Why a file gave no sample.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// The process ended (ESRCH, or its directory is gone) while it was being read.
    #[error("{path}: the process ended while it was read")]
    Vanished {
        /// The file that was being read.
        path: PathBuf,
    },
    /// The file is not there: this kernel or this configuration does not have it.
    #[error("{path}: not there on this kernel")]
    Missing {
        /// The file that was looked for.
        path: PathBuf,
    },
    /// EACCES or EPERM.
    #[error("{path}: permission denied")]
    Denied {
        /// The file that was refused.
        path: PathBuf,
    },
    /// Any other error of a system call.
    #[error("{path}: {errno}")]
    Io {
        /// The file that was being read.
        path: PathBuf,
        /// What the system call said.
        errno: rustix::io::Errno,
    },
    /// The file has no such content as it should have.
    #[error("{path}: {what}")]
    Malformed {
        /// The file that was read.
        path: PathBuf,
        /// What is wrong with it.
        what: &'static str,
    },
}

impl ReadError {
    /// Sorts `errno` of an operation on `path` into the cases callers tell apart.
    pub fn new(path: impl Into<PathBuf>, errno: rustix::io::Errno) -> ReadError {
        use rustix::io::Errno;
        let path = path.into();
        match errno {
            Errno::NOENT | Errno::NOTDIR => ReadError::Missing { path },
            Errno::SRCH => ReadError::Vanished { path },
            Errno::ACCESS | Errno::PERM => ReadError::Denied { path },
            errno => ReadError::Io { path, errno },
        }
    }
}

/// Something the sample lacks, as the report's `unread` list states it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Unread {
    /// What could not be read: a file, or a figure.
    pub what: String,
    /// Why, and what would help.
    pub why: String,
}

impl Unread {
    /// `what` could not be read because of `error`.
    pub fn of(what: impl Into<String>, error: &ReadError) -> Unread {
        let why = match error {
            ReadError::Vanished { .. } => "the process ended while it was read".to_owned(),
            ReadError::Missing { .. } => "this kernel or configuration does not have it".to_owned(),
            ReadError::Denied { .. } => unless_root("permission denied"),
            ReadError::Io { errno, .. } => errno.to_string(),
            ReadError::Malformed { what, .. } => (*what).to_owned(),
        };
        Unread { what: what.into(), why }
    }
}

/// `why` something was refused, and what would help: root, but where root is what was refused.
pub fn unless_root(why: &str) -> String {
    if rustix::process::geteuid().is_root() {
        format!("{why}, even to root (a sandbox or security module)")
    } else {
        format!("{why}; run as root to read it")
    }
}
