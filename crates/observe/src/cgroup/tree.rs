//! The groups there are, and those that are gone but still count.

use super::{Hierarchy, Version};
use crate::{Bytes, ReadError, Root, scan};
use std::collections::VecDeque;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// The most groups a [`Tree`] holds; the rest are counted.
pub const MAX_GROUPS: usize = 1 << 14;

/// One group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// From the mount's top, "/" being that.
    pub path: PathBuf,
    /// What is charged to it and those below it; absent at v2's root and without the memory controller.
    pub current: Option<Bytes>,
}

/// The groups of a hierarchy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tree {
    /// Those found, parents before children.
    pub nodes: Vec<Node>,
    /// Beyond [`MAX_GROUPS`]: at least so many.
    pub left_out: usize,
    /// That could not be listed: refused, or removed meanwhile.
    pub unreadable: usize,
}

impl Hierarchy {
    /// All groups with what is charged to each.
    pub fn tree(&self) -> Result<Tree, ReadError> {
        self.open(Path::new("/"))?;
        let mut tree = Tree::default();
        // Paths, not open directories: there may be more groups than descriptors.
        let mut queue = VecDeque::from([PathBuf::from("/")]);
        while let Some(path) = queue.pop_front() {
            let Ok(dir) = self.open(&path) else {
                tree.unreadable += 1;
                continue;
            };
            let listed = dir.each_directory("", |name| {
                if tree.nodes.len() + queue.len() + 1 < MAX_GROUPS {
                    queue.push_back(path.join(OsStr::from_bytes(name)));
                } else {
                    tree.left_out += 1;
                }
            });
            tree.unreadable += usize::from(listed.is_err());
            tree.nodes.push(Node { current: self.current(&dir), path });
        }
        Ok(tree)
    }

    /// Groups that were removed and still hold memory or other resources. v2: cgroup.stat of the mounted top.
    /// v1: what /proc/cgroups counts of this hierarchy beyond the directories in `tree`, which is right only
    /// where the whole hierarchy is mounted here.
    pub fn dying(&self, root: &Root, tree: &Tree) -> Option<u64> {
        if self.version == Version::V2 {
            return self.sample("/").ok()?.dying;
        }
        if self.top != Path::new("/") || tree.left_out + tree.unreadable > 0 {
            return None;
        }
        let mut text = Vec::new();
        let line = scan::lines(root.read("proc/cgroups", &mut text).ok()?)
            .find(|line| scan::words(line).next() == Some(b"memory"))?;
        let all = scan::number(scan::words(line).nth(2)?)?;
        Some(all.saturating_sub(tree.nodes.len() as u64))
    }

    fn current(&self, dir: &Root) -> Option<Bytes> {
        dir.read_number(match self.version {
            Version::V1 => "memory.usage_in_bytes",
            Version::V2 => "memory.current",
        })
        .ok()
        .map(Bytes)
    }
}
