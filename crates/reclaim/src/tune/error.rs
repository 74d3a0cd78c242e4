//! Why a setting was not changed.

use ebbtide_observe::ReadError;
use std::path::PathBuf;

/// Why a setting was not changed.
#[derive(Debug, thiserror::Error)]
pub enum TuneError {
    /// No such setting in the table.
    #[error("'{name}' is no setting that ebb knows{}; 'ebb tune --list' shows them", meant(.nearest))]
    Unknown {
        /// What was asked for.
        name: String,
        /// What may have been meant.
        nearest: Option<&'static str>,
    },
    /// Not SETTING=VALUE.
    #[error("'{0}' is not SETTING=VALUE")]
    NotAnAssignment(String),
    /// The same setting, or it and its counterpart, twice.
    #[error("{0} and {1} are given together, and the one written last turns the other off: give one")]
    Twice(&'static str, &'static str),
    /// The value is none of its values.
    #[error("{name} cannot be '{value}': it takes {takes}")]
    Value {
        /// The setting.
        name: &'static str,
        /// What was asked for.
        value: String,
        /// What it takes.
        takes: String,
    },
    /// This kernel does not have it, or it cannot be read.
    #[error("{name} cannot be read: {error}")]
    Read {
        /// The setting.
        name: &'static str,
        /// Why.
        error: ReadError,
    },
    /// The value would do harm here.
    #[error("{name}={value} would do harm here: {why}; --force does it all the same")]
    Harmful {
        /// The setting.
        name: &'static str,
        /// What was asked for.
        value: String,
        /// What it would do.
        why: String,
    },
    /// An earlier change of the same setting has not been undone.
    #[error(
        "{name} was changed by ebb before ({before} -> {set}) and is not back yet; first: ebb tune --undo"
    )]
    Pending {
        /// The setting.
        name: String,
        /// What it was before that.
        before: String,
        /// What ebb made of it.
        set: String,
    },
    /// The kernel did not take the value.
    #[error("{name}={value}: {why}")]
    Refused {
        /// The setting.
        name: &'static str,
        /// The value.
        value: String,
        /// Why, and what would help.
        why: String,
    },
    /// The undo record or a file of settings could not be written.
    #[error("{what} {}: {error}{}", .path.display(), root(error))]
    File {
        /// What was being done: "cannot write".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// The state directory may not be trusted.
    #[error("{}: {why}", .path.display())]
    Untrusted {
        /// The directory or file.
        path: PathBuf,
        /// Why not.
        why: &'static str,
    },
}

/// Whoever changed a setting can undo it.
fn root(error: &std::io::Error) -> &'static str {
    let denied =
        error.kind() == std::io::ErrorKind::PermissionDenied && !rustix::process::geteuid().is_root();
    if denied { "; it takes root: the same with sudo" } else { "" }
}

fn meant(nearest: &Option<&'static str>) -> String {
    nearest.map(|name| format!(" (did you mean {name}?)")).unwrap_or_default()
}

impl TuneError {
    /// `what` failed on `path`.
    pub(crate) fn file(
        what: &'static str,
        path: impl Into<PathBuf>,
        error: impl Into<std::io::Error>,
    ) -> TuneError {
        TuneError::File { what, path: path.into(), error: error.into() }
    }
}
