//! What is charged to a cgroup: in bounded steps through v2's memory.reclaim (5.19), all at once through v1's
//! memory.force_empty.
//!
//! Source: mm/memcontrol.c, memcontrol-v1.c, vmscan.c (6.18).

mod plan;
mod steps;
mod v1;
mod v2;

use crate::refused::LeverError;
use crate::report::Report;
use crate::slow::Terms;
use ebbtide_observe::cgroup::{CgroupSample, Hierarchy, Version};
use ebbtide_observe::{Bytes, Root};
use std::path::{Path, PathBuf};

/// How far to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// Caches, but a margin.
    Caches,
    /// So much, anonymous memory too where there is swap for it.
    Bytes(Bytes),
    /// Until no more than this is charged, anonymous memory too where there is swap for it.
    Floor(Bytes),
}

/// Gives back what is charged to the group at `path`, or says what would be.
pub fn reclaim(
    root: &Root,
    hierarchy: &Hierarchy,
    path: &Path,
    goal: Goal,
    terms: &mut Terms,
) -> Result<Report, LeverError> {
    let group = Group { root, hierarchy, path };
    match hierarchy.version() {
        Version::V1 => v1::reclaim(&group, goal, terms),
        Version::V2 => v2::reclaim(&group, goal, terms),
    }
}

#[cfg(test)]
mod tests;

/// One group of a hierarchy.
struct Group<'a> {
    root: &'a Root,
    hierarchy: &'a Hierarchy,
    path: &'a Path,
}

impl Group<'_> {
    fn sample(&self) -> Result<CgroupSample, LeverError> {
        Ok(self.hierarchy.sample(self.path)?)
    }

    /// Where one of its files lies.
    fn file(&self, name: &str) -> PathBuf {
        let inside = self.path.strip_prefix("/").unwrap_or(self.path);
        self.hierarchy.mount_point().join(inside).join(name)
    }

    /// What is charged to it now.
    fn current(&self) -> Result<Bytes, LeverError> {
        let why = "nothing is counted for it, as for the root of version 2: use --host, or a group below it";
        self.sample()?
            .current
            .ok_or_else(|| LeverError::Impossible(format!("{}: {why}", self.path.display())))
    }
}
