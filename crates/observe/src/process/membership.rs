//! /proc/PID/cgroup: which control groups a process is in.
//!
//! Facts (proc_cgroup_show, kernel/cgroup/cgroup.c): one "ID:CONTROLLERS:PATH" line per hierarchy, `0::PATH`
//! for the v2 one. A path may hold colons but no newline (the kernel refuses such names); it is relative to
//! the reader's cgroup namespace ("/../x" outside of it) and ends in " (deleted)" where the group is gone.

use super::Process;
use crate::{ReadError, scan};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// A process's place in the hierarchies that account for memory and limit threads.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Membership {
    /// In the v1 hierarchy that has the memory controller.
    pub memory: Option<PathBuf>,
    /// In the v1 hierarchy that has the pids controller.
    pub pids: Option<PathBuf>,
    /// In the v2 hierarchy.
    pub unified: Option<PathBuf>,
}

impl Membership {
    /// The places in `text`.
    pub fn parse(text: &[u8]) -> Membership {
        let mut found = Membership::default();
        for line in scan::lines(text) {
            let mut parts = line.splitn(3, |&b| b == b':');
            let (Some(id), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next()) else {
                continue;
            };
            let path = || Some(PathBuf::from(OsStr::from_bytes(path)));
            if id == b"0" && controllers.is_empty() {
                found.unified = path();
            }
            for controller in controllers.split(|&b| b == b',') {
                match controller {
                    b"memory" => found.memory = path(),
                    b"pids" => found.pids = path(),
                    _ => {}
                }
            }
        }
        found
    }
}

impl Process {
    /// `cgroup`.
    pub fn membership(&self) -> Result<Membership, ReadError> {
        Ok(Membership::parse(&self.text("cgroup")?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hybrid() {
        let found =
            Membership::parse(b"9:name=systemd:/\n4:cpu,memory:/a:b\\x2d c \n3:pids:/p\n0::/user.slice/x\n");
        assert_eq!(found.memory, Some(PathBuf::from("/a:b\\x2d c ")));
        assert_eq!(found.pids, Some(PathBuf::from("/p")));
        assert_eq!(found.unified, Some(PathBuf::from("/user.slice/x")));
    }

    #[test]
    fn v2_alone_and_none() {
        let found = Membership::parse(b"0::/\n");
        assert_eq!((found.memory, found.unified), (None, Some(PathBuf::from("/"))));
        assert_eq!(Membership::parse(b""), Membership::default());
        assert_eq!(Membership::parse(b"3:memoryx:/a\n1:name=memory:/\n"), Membership::default());
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            Membership::parse(&text);
        }
    }
}
