//! Who is who: the process behind a thread id, its name and its parent, also after it ended.
//!
//! What lived before the trace began is read from /proc once, when it first appears; what is born later is
//! known from the trace itself, so a process that lives for a millisecond has a name and a parent, too.
//! Invariant: the tables are caches of bounded size; when one is full it is emptied and fills again from
//! /proc, which costs the names of processes that have ended.

use super::event::Comm;
use crate::Root;
use crate::process::{self, Status};
use std::collections::HashMap;
use std::sync::Arc;

/// The most threads and processes held at a time.
const MAX_TASKS: usize = 1 << 16;

/// A process, living or ended.
#[derive(Debug, Clone)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) name: Comm,
    pub(super) parent: u32,
    /// The parent's name at the time of the fork, as the parent may be gone when it is asked for.
    pub(super) parent_name: Comm,
    /// Its root directory, as last read or inherited.
    pub(super) root: Option<Arc<[u8]>>,
    /// Its working directory, as last read or inherited.
    pub(super) cwd: Option<Arc<[u8]>>,
}

/// The tasks seen.
#[derive(Debug)]
pub(super) struct Tasks {
    root: Root,
    threads: HashMap<u32, u32>,
    processes: HashMap<u32, Process>,
}

fn comm(status: &Status) -> Comm {
    Comm::new(status.name.as_bytes())
}

impl Tasks {
    pub(super) fn new(root: Root) -> Tasks {
        Tasks { root, threads: HashMap::new(), processes: HashMap::new() }
    }

    /// The machine's files.
    pub(super) fn files(&self) -> &Root {
        &self.root
    }

    /// The id of the process that thread `tid` belongs to; its own where nothing is known of it.
    pub(super) fn process_of(&mut self, tid: u32) -> u32 {
        match self.threads.get(&tid) {
            Some(&pid) => pid,
            None => self.read(tid),
        }
    }

    /// The process `pid`, if it was seen.
    pub(super) fn get(&self, pid: u32) -> Option<&Process> {
        self.processes.get(&pid)
    }

    /// The process `pid`, for noting its directories.
    pub(super) fn get_mut(&mut self, pid: u32) -> Option<&mut Process> {
        self.processes.get_mut(&pid)
    }

    /// `tid` made `child`. Returns the process that was called `child` before, if its end was missed.
    pub(super) fn forked(&mut self, tid: u32, child: u32, thread: bool, name: Comm) -> Option<Process> {
        self.make_room();
        let parent = self.process_of(tid);
        self.threads.insert(child, if thread { parent } else { child });
        if thread {
            return None;
        }
        let of_parent = self.processes.get(&parent);
        let process = Process {
            pid: child,
            name,
            parent,
            parent_name: of_parent.map_or(name, |p| p.name),
            root: of_parent.and_then(|p| p.root.clone()),
            cwd: of_parent.and_then(|p| p.cwd.clone()),
        };
        self.processes.insert(child, process)
    }

    /// `tid` runs the program `path` now.
    pub(super) fn executed(&mut self, tid: u32, path: &[u8]) {
        let pid = self.process_of(tid);
        let name = path.rsplit(|&b| b == b'/').next().unwrap_or(path);
        if let Some(process) = self.processes.get_mut(&pid) {
            process.name = Comm::new(name);
        }
    }

    /// `tid`, called `name`, ended. Returns its process if that ended with it.
    pub(super) fn died(&mut self, tid: u32, name: Comm, group_dead: Option<bool>) -> Option<Process> {
        let pid = self.threads.remove(&tid).unwrap_or(tid);
        if !group_dead.unwrap_or(tid == pid) {
            return None;
        }
        let mut process = self.processes.remove(&pid)?;
        if tid == pid || process.name.is_unknown() {
            process.name = name;
        }
        Some(process)
    }

    /// Reads the process of thread `tid` from /proc and returns its id.
    fn read(&mut self, tid: u32) -> u32 {
        self.make_room();
        let status = self.status(tid);
        let pid = status.map_or(tid, |s| s.tgid);
        self.threads.insert(tid, pid);
        if !self.processes.contains_key(&pid) {
            let leader = if pid == tid { status } else { self.status(pid) };
            let (name, parent) = leader.map_or_else(Default::default, |s| (comm(&s), s.ppid));
            let parent_name = match self.processes.get(&parent) {
                Some(process) => process.name,
                None => self.status(parent).map_or_else(Comm::default, |s| comm(&s)),
            };
            let process = Process { pid, name, parent, parent_name, root: None, cwd: None };
            self.processes.insert(pid, process);
        }
        pid
    }

    fn status(&self, tid: u32) -> Option<Status> {
        process::Process::open(&self.root, tid).and_then(|p| p.status()).ok()
    }

    fn make_room(&mut self) {
        if self.threads.len() >= MAX_TASKS {
            self.threads.clear();
        }
        if self.processes.len() >= MAX_TASKS {
            self.processes.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(tasks: &[(u32, &str)]) -> (tempfile::TempDir, Tasks) {
        let dir = tempfile::tempdir().unwrap();
        for (tid, status) in tasks {
            let task = dir.path().join(format!("proc/{tid}"));
            std::fs::create_dir_all(&task).unwrap();
            std::fs::write(task.join("status"), status).unwrap();
        }
        let root = Root::at(dir.path()).unwrap();
        (dir, Tasks::new(root))
    }

    #[test]
    fn a_thread_is_its_process() {
        let (_dir, mut tasks) = machine(&[
            (1, "Name:\tinit\nState:\tS (sleeping)\nTgid:\t1\nPid:\t1\nPPid:\t0\n"),
            (7, "Name:\tserver\nState:\tS (sleeping)\nTgid:\t7\nPid:\t7\nPPid:\t1\n"),
            (9, "Name:\tworker\nState:\tS (sleeping)\nTgid:\t7\nPid:\t9\nPPid:\t1\n"),
        ]);
        assert_eq!(tasks.process_of(9), 7);
        let process = tasks.get(7).unwrap();
        assert_eq!((process.name, process.parent_name), (Comm::new(b"server"), Comm::new(b"init")));
        assert!(tasks.died(9, Comm::new(b"worker"), None).is_none());
        assert_eq!(tasks.died(7, Comm::new(b"server"), None).unwrap().pid, 7);
    }

    #[test]
    fn a_process_that_proc_never_showed_has_a_name_and_a_parent() {
        let (_dir, mut tasks) = machine(&[(7, "Name:\tsh\nState:\tS (sleeping)\nTgid:\t7\nPPid:\t1\n")]);
        assert!(tasks.forked(7, 50, false, Comm::new(b"sh")).is_none());
        tasks.executed(50, b"/usr/bin/curl");
        assert!(tasks.forked(50, 51, true, Comm::new(b"curl")).is_none());
        assert_eq!(tasks.process_of(51), 50);
        let curl = tasks.died(50, Comm::new(b"curl"), Some(true)).unwrap();
        assert_eq!((curl.name, curl.parent_name, curl.parent), (Comm::new(b"curl"), Comm::new(b"sh"), 7));
    }

    #[test]
    fn one_that_was_never_seen_is_known_by_its_end() {
        let (_dir, mut tasks) = machine(&[]);
        assert_eq!(tasks.process_of(60), 60);
        assert!(tasks.get(60).unwrap().name.is_unknown());
        assert_eq!(tasks.died(60, Comm::new(b"late"), None).unwrap().name, Comm::new(b"late"));
        assert_eq!(tasks.forked(61, 62, false, Comm::new(b"x")).map(|p| p.pid), None);
        assert_eq!(tasks.forked(61, 62, false, Comm::new(b"y")).map(|p| p.name), Some(Comm::new(b"x")));
    }
}
