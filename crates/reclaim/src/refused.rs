//! Why the kernel would not: which right is missing, and where it is not a right that is missing.

use ebbtide_observe::ReadError;
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities};
use std::fmt;
use std::path::{Path, PathBuf};

/// Why a lever was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum LeverError {
    /// What the plan needs could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The kernel refused.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// It cannot be done here, or as it was asked for.
    #[error("{0}")]
    Impossible(String),
}

/// A right that a lever needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Right {
    /// To write /proc/sys: no capability stands for user 0 there (test_perm in fs/proc/proc_sysctl.c).
    User0,
    /// To use files of others: sysfs, debugfs, a cgroup that is not delegated.
    DacOverride,
    /// To read files of others.
    DacRead,
    /// To advise on another process's memory.
    SysNice,
    /// To look into a process of another user, or one that hides.
    SysPtrace,
}

impl Right {
    fn name(self) -> &'static str {
        match self {
            Right::User0 => "user 0 of the host",
            Right::DacOverride => "CAP_DAC_OVERRIDE",
            Right::DacRead => "CAP_DAC_READ_SEARCH",
            Right::SysNice => "CAP_SYS_NICE",
            Right::SysPtrace => "CAP_SYS_PTRACE",
        }
    }

    /// Whether this process has it.
    pub(crate) fn is_held(self) -> bool {
        let has = |set| capabilities(None).is_ok_and(|own| own.effective.contains(set));
        match self {
            Right::User0 => rustix::process::geteuid().is_root(),
            Right::DacOverride => has(CapabilitySet::DAC_OVERRIDE),
            Right::DacRead => has(CapabilitySet::DAC_READ_SEARCH) || has(CapabilitySet::DAC_OVERRIDE),
            Right::SysNice => has(CapabilitySet::SYS_NICE),
            Right::SysPtrace => has(CapabilitySet::SYS_PTRACE),
        }
    }
}

/// What the kernel refused, and what would change that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// The file, or what stands for one.
    pub path: PathBuf,
    /// What the kernel said.
    pub errno: Errno,
    /// The right that is missing; `None` where none is.
    pub missing: Option<&'static str>,
}

impl Refusal {
    /// `errno` of using `path`, which takes one of these `rights` each; the first that is not held is missing.
    pub(crate) fn new(path: impl AsRef<Path>, errno: Errno, rights: &[Right]) -> Refusal {
        let denied = matches!(errno, Errno::ACCESS | Errno::PERM);
        let missing =
            rights.iter().find(|right| !right.is_held()).filter(|_| denied).map(|right| right.name());
        Refusal { path: path.as_ref().to_owned(), errno, missing }
    }

    /// The same of an error of the standard library.
    pub(crate) fn io(path: impl AsRef<Path>, error: &std::io::Error, rights: &[Right]) -> Refusal {
        Refusal::new(path, Errno::from_io_error(error).unwrap_or(Errno::IO), rights)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match (self.errno, self.missing) {
            (Errno::ACCESS | Errno::PERM, Some(right)) => {
                write!(f, "{path}: permission denied; it takes {right}, which root has")
            }
            (Errno::ACCESS | Errno::PERM, None) => {
                write!(
                    f,
                    "{path}: permission denied, though no right is missing: a sandbox, a security module or the \
                    kernel's lockdown forbids it"
                )
            }
            (Errno::ROFS, _) => {
                write!(
                    f,
                    "{path} is mounted read-only, as in most containers: it can be done on the host itself"
                )
            }
            (Errno::NOENT, _) => write!(f, "{path}: this kernel or its configuration does not have it"),
            (errno, _) => write!(f, "{path}: {errno}"),
        }
    }
}

impl std::error::Error for Refusal {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_missing_right_is_named() {
        let refusal = Refusal { path: "/x".into(), errno: Errno::PERM, missing: Some("CAP_SYS_NICE") };
        assert!(refusal.to_string().contains("CAP_SYS_NICE"), "{refusal}");
        let known = Refusal::new("/x", Errno::PERM, &[Right::User0, Right::DacOverride]);
        if Right::User0.is_held() && Right::DacOverride.is_held() {
            assert_eq!(known.missing, None);
            assert!(known.to_string().contains("sandbox"), "{known}");
        } else {
            assert!(known.missing.is_some());
        }
        assert_eq!(Refusal::new("/x", Errno::ROFS, &[Right::User0]).missing, None);
    }
}
