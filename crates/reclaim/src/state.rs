//! Where ebb keeps what outlives it: the journal, and the undo records of settings.
//!
//! Invariant: the directories are readable by everybody, as every run of ebb, whoever's, says which settings are overdue
//! to be set back; what others shall not read (the journal) is a file of mode 0600 in them.

use ebbtide_observe::Root;
use std::path::PathBuf;

/// Root's, below a root directory.
const OF_ROOT: &str = "var/lib/ebbtide";

/// The directory that $EBB_STATE names, absolute.
pub fn named() -> Option<PathBuf> {
    let state = std::env::var_os("EBB_STATE").filter(|state| !state.is_empty())?;
    Some(std::path::absolute(&state).unwrap_or_else(|_| PathBuf::from(state)))
}

/// The machine's, which root writes: /var/lib/ebbtide of `root`.
pub fn of_root(root: &Root) -> PathBuf {
    root.path(OF_ROOT)
}

/// This user's: $EBB_STATE; for root /var/lib/ebbtide; else $XDG_STATE_HOME/ebbtide or ~/.local/state/ebbtide. `None`
/// for a user without a home.
pub fn of_this_user() -> Option<PathBuf> {
    let variable = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = || variable("XDG_STATE_HOME").or_else(|| Some(variable("HOME")?.join(".local/state")));
    match named() {
        Some(dir) => Some(dir),
        None if rustix::process::geteuid().is_root() => Some(PathBuf::from("/").join(OF_ROOT)),
        None => Some(state()?.join("ebbtide")),
    }
}
