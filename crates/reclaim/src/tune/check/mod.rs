//! What settings that somebody has written down really do here: lines of sysctl files, variables of a process.
//!
//! Files and environments are foreign bytes: every parser takes any of them, and what is shown of them has to be
//! escaped by who shows it.

pub mod environ;
mod glibc;
mod jemalloc;
mod lines;
mod named;
mod obsolete;
mod present;
mod program;
mod runtimes;
pub mod sysctl;

pub use lines::{files, system};
pub use program::Program;

use super::Remark;
use serde::Serialize;

/// One line or variable, judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Checked {
    /// Where it stands: "/etc/sysctl.conf:12", "/proc/71/environ".
    pub place: String,
    /// As it was written.
    pub text: String,
    /// What it does.
    #[serde(flatten)]
    pub remark: Remark,
}
