//! Where the memory controller is mounted: v1, v2, or hybrid, which is v1 with an empty v2 beside it.
//!
//! A controller is in one hierarchy only, so where v1 mounts memory, v2 does not have it. In a container the
//! mount may show a part of the hierarchy (mountinfo's root field), while /proc/PID/cgroup may say the whole
//! path; both are taken into account.

use super::{Group, Hierarchy, Pids, v2};
use crate::host::mounts;
use crate::process::membership::Membership;
use crate::{Process, ReadError, Root, scan};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// A generation of control groups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Version {
    /// One hierarchy for each controller.
    V1,
    /// The unified one.
    V2,
}

impl Hierarchy {
    /// The hierarchy of the memory controller; `None` where there is none or it is not mounted.
    pub fn find(root: &Root) -> Result<Option<Hierarchy>, ReadError> {
        Hierarchy::of_controller(root, "memory")
    }

    /// The hierarchy of `controller`. The mount that shows most of it is taken; of equals the last, which
    /// covers the others.
    fn of_controller(root: &Root, controller: &str) -> Result<Option<Hierarchy>, ReadError> {
        let mut best: Option<(Version, PathBuf, String)> = None;
        root.each_line("proc/self/mountinfo", |line| {
            let Some(mount) = mounts::mount(line) else { return true };
            let has = |options: &[u8]| options.split(|&b| b == b',').any(|o| o == controller.as_bytes());
            let version = match mount.kind {
                b"cgroup" if has(mount.options) => Version::V1,
                b"cgroup2" => Version::V2,
                _ => return true,
            };
            let top = PathBuf::from(mounts::unescape(mount.root));
            let better = best.as_ref().is_none_or(|(old_version, old_top, _)| match (old_version, version) {
                (Version::V1, Version::V2) => false,
                (Version::V2, Version::V1) => true,
                _ => top.components().count() <= old_top.components().count(),
            });
            if better {
                best = Some((version, top, mounts::unescape(mount.path)));
            }
            true
        })?;
        let Some((version, top, point)) = best else { return Ok(None) };
        let dir = root.sub(&point)?;
        if version == Version::V2 {
            let controllers = dir.read_line("cgroup.controllers")?;
            if !scan::words(controllers.as_bytes()).any(|word| word == controller.as_bytes()) {
                return Ok(None);
            }
        }
        Ok(Some(Hierarchy { version, dir, top }))
    }

    /// The group of a process with `membership`, from the mount's top; `None` where it is in none, or in one
    /// outside of what is mounted here.
    pub fn path_of(&self, membership: &Membership) -> Option<PathBuf> {
        let path = match self.version {
            Version::V1 => membership.memory.as_ref()?,
            Version::V2 => membership.unified.as_ref()?,
        };
        self.inside(path)
    }

    fn inside(&self, path: &Path) -> Option<PathBuf> {
        let inside = match path.strip_prefix(&self.top) {
            Ok(inside) => inside,
            // The path is already relative to this part: its own cgroup namespace.
            Err(_) => path.strip_prefix("/").ok()?,
        };
        let outside = inside.components().any(|part| part == std::path::Component::ParentDir);
        (!outside).then(|| Path::new("/").join(inside))
    }
}

impl Pids {
    /// The threads of the group that limits `process`'s, in whichever hierarchy the pids controller is; `None`
    /// where there is none.
    pub fn of(root: &Root, process: &Process) -> Result<Option<Pids>, ReadError> {
        Ok(Pids::all_of(root, process)?.into_iter().next().map(|(_, pids)| pids))
    }

    /// The same of that group and of every one above it: a fork is counted in each of them. Groups without the
    /// controller are left out.
    pub fn all_of(root: &Root, process: &Process) -> Result<Vec<(PathBuf, Pids)>, ReadError> {
        let Some(hierarchy) = Hierarchy::of_controller(root, "pids")? else { return Ok(Vec::new()) };
        let membership = process.membership()?;
        let path = match hierarchy.version {
            Version::V1 => membership.pids.as_ref(),
            Version::V2 => membership.unified.as_ref(),
        };
        let Some(path) = path.and_then(|path| hierarchy.inside(path)) else { return Ok(Vec::new()) };
        let mut all = Vec::new();
        for path in path.ancestors() {
            let mut group = Group { dir: hierarchy.open(path)?, unread: Vec::new() };
            all.extend(v2::pids(&mut group).map(|pids| (path.to_owned(), pids)));
        }
        Ok(all)
    }
}
