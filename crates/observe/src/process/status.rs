//! /proc/PID/status: who a process is, and its memory by the kernel's own counters.
//!
//! Facts: written by proc_pid_status (fs/proc/array.c). The Vm lines are absent for a kernel thread and a
//! zombie, which have no address space. Rss counters are kept per CPU and summed only roughly (since 6.2 off
//! by up to 32 pages per CPU), so VmRSS and smaps' Rss differ; smaps is exact. `Groups:` may make the file
//! some 400 KB long, with the Vm lines after it.

use super::{Name, Pid, Process};
use crate::{Bytes, ReadError, scan};
use serde::Serialize;

/// What a task is doing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// `R`
    Running,
    /// `S`: waits, and a signal wakes it.
    Sleeping,
    /// `D`: waits uninterruptibly.
    DiskSleep,
    /// `T`: by a signal.
    Stopped,
    /// `t`: by a debugger.
    Tracing,
    /// `Z`: ended, its parent has not asked for its exit code.
    Zombie,
    /// `X`: about to be gone.
    Dead,
    /// `I`: a kernel thread that waits.
    Idle,
    /// `P`: a parked kernel thread.
    Parked,
    /// A letter this version does not know.
    #[default]
    Other,
}

impl State {
    /// The state of its letter.
    pub fn of(letter: u8) -> State {
        match letter {
            b'R' => State::Running,
            b'S' => State::Sleeping,
            b'D' => State::DiskSleep,
            b'T' => State::Stopped,
            b't' => State::Tracing,
            b'Z' => State::Zombie,
            b'X' | b'x' => State::Dead,
            b'I' => State::Idle,
            b'P' => State::Parked,
            _ => State::Other,
        }
    }

    /// Whether it has ended: its memory is gone, only its entry remains.
    pub fn ended(self) -> bool {
        matches!(self, State::Zombie | State::Dead)
    }
}

/// A user's or group's ids: those a process started with and those it acts under.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Ids {
    /// Who started it.
    pub real: u32,
    /// Whose rights it has.
    pub effective: u32,
    /// What it may return to.
    pub saved: u32,
    /// Whose rights it has to files.
    pub filesystem: u32,
}

/// The `Vm...` lines.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Vm {
    /// VmPeak: the most `size` has been.
    pub peak: Bytes,
    /// VmSize: address space mapped.
    pub size: Bytes,
    /// VmLck: in locked mappings (their size, resident or not).
    pub locked: Bytes,
    /// VmPin: pinned for good by drivers (RDMA, VFIO); counted since 5.2 by few of them.
    pub pinned: Bytes,
    /// VmHWM: the most `rss` has been since it was last reset.
    pub high_water: Bytes,
    /// VmRSS: RssAnon + RssFile + RssShmem, roughly (see the module).
    pub rss: Bytes,
    /// RssAnon.
    pub rss_anon: Bytes,
    /// RssFile.
    pub rss_file: Bytes,
    /// RssShmem.
    pub rss_shmem: Bytes,
    /// VmData: private writable mappings, without stacks.
    pub data: Bytes,
    /// VmStk: stacks that grow down; the main thread's only.
    pub stack: Bytes,
    /// VmExe: the program's own text.
    pub exe: Bytes,
    /// VmLib: other executable file mappings.
    pub lib: Bytes,
    /// VmPTE: page tables of all levels.
    pub page_tables: Bytes,
    /// VmSwap: anonymous memory swapped out; shmem is not in it.
    pub swap: Bytes,
    /// HugetlbPages: which no Rss holds.
    pub hugetlb: Bytes,
}

/// A status file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Status {
    /// The main thread's name.
    pub name: Name,
    /// What the main thread does. A zombie main thread with live others has memory still.
    pub state: State,
    /// The process.
    pub tgid: Pid,
    /// Its parent; 0 for init, kthreadd, and where the parent is outside the pid namespace.
    pub ppid: Pid,
    /// Who debugs it; 0 for nobody.
    pub tracer: Pid,
    /// Users.
    pub uid: Ids,
    /// Groups.
    pub gid: Ids,
    /// NStgid: its pid in its own pid namespace, the last of the line (4.1).
    pub namespace_pid: Option<Pid>,
    /// Kthread (6.10): whether it is a kernel thread. See [`Status::is_kernel_thread`].
    pub kthread: Option<bool>,
    /// Its memory; `None` for a kernel thread and a zombie.
    pub vm: Option<Vm>,
    /// A core dump is being written.
    pub core_dumping: bool,
    /// THP_enabled (5.0): false where prctl switched huge pages off for it.
    pub thp_enabled: Option<bool>,
    /// Threads.
    pub threads: u32,
    /// Seccomp mode: 0 off, 1 strict, 2 filter.
    pub seccomp: Option<u8>,
    /// SigCgt: the signals that have handlers, signal n as bit n - 1.
    pub caught: u64,
    /// CapEff: the capabilities that count, a bit each (linux/capability.h), in its own user namespace.
    pub capabilities: u64,
}

impl Status {
    /// The status in `text`; `None` without a name and a state.
    pub fn parse(text: &[u8]) -> Option<Status> {
        let mut status = Status::default();
        let (mut named, mut stated) = (false, false);
        for line in scan::lines(text) {
            let Some((key, value)) = scan::key_value(line, b':') else { continue };
            match key {
                b"Name" => {
                    status.name = Name::unescape(exact_name(line));
                    named = true;
                }
                b"State" => {
                    status.state = State::of(value.first().copied().unwrap_or_default());
                    stated = true;
                }
                _ => status.set(key, value),
            }
        }
        (named && stated).then_some(status)
    }

    /// Whether it is the kernel's own. Before `Kthread:` (6.10): kthreadd (2) and its children, which have
    /// no memory, where a process of a container may well have pid 2 but always has some.
    pub fn is_kernel_thread(&self) -> bool {
        let child_of_kthreadd = self.tgid == 2 && self.ppid == 0 || self.ppid == 2;
        self.kthread.unwrap_or(self.vm.is_none() && !self.state.ended() && child_of_kthreadd)
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        match key {
            b"Tgid" => self.tgid = number(value),
            b"PPid" => self.ppid = number(value),
            b"TracerPid" => self.tracer = number(value),
            b"Uid" => self.uid = ids(value),
            b"Gid" => self.gid = ids(value),
            b"NStgid" => self.namespace_pid = scan::words(value).last().map(number),
            b"Kthread" => self.kthread = Some(number(value) != 0),
            b"CoreDumping" => self.core_dumping = number(value) != 0,
            b"THP_enabled" => self.thp_enabled = Some(number(value) != 0),
            b"Threads" => self.threads = number(value),
            b"SigCgt" => self.caught = scan::hex(value).unwrap_or_default(),
            b"CapEff" => self.capabilities = scan::hex(value).unwrap_or_default(),
            b"Seccomp" => self.seccomp = scan::number(value).and_then(|n| u8::try_from(n).ok()),
            _ if key.starts_with(b"Vm") || key.starts_with(b"Rss") || key == b"HugetlbPages" => {
                self.vm.get_or_insert_default().set(key, value);
            }
            _ => {}
        }
    }
}

impl Vm {
    fn set(&mut self, key: &[u8], value: &[u8]) {
        let field = match key {
            b"VmPeak" => &mut self.peak,
            b"VmSize" => &mut self.size,
            b"VmLck" => &mut self.locked,
            b"VmPin" => &mut self.pinned,
            b"VmHWM" => &mut self.high_water,
            b"VmRSS" => &mut self.rss,
            b"RssAnon" => &mut self.rss_anon,
            b"RssFile" => &mut self.rss_file,
            b"RssShmem" => &mut self.rss_shmem,
            b"VmData" => &mut self.data,
            b"VmStk" => &mut self.stack,
            b"VmExe" => &mut self.exe,
            b"VmLib" => &mut self.lib,
            b"VmPTE" => &mut self.page_tables,
            b"VmSwap" => &mut self.swap,
            b"HugetlbPages" => &mut self.hugetlb,
            _ => return,
        };
        *field = scan::kib(value).unwrap_or_default();
    }
}

/// The name in its "Name:\tNAME" line, with the blanks it begins or ends with.
fn exact_name(line: &[u8]) -> &[u8] {
    line.strip_prefix(b"Name:\t").or_else(|| line.strip_prefix(b"Name:")).unwrap_or_default()
}

fn number(value: &[u8]) -> u32 {
    scan::number(value).and_then(|n| u32::try_from(n).ok()).unwrap_or_default()
}

fn ids(value: &[u8]) -> Ids {
    let mut words = scan::words(value).map(number);
    let mut next = || words.next().unwrap_or_default();
    Ids { real: next(), effective: next(), saved: next(), filesystem: next() }
}

impl Process {
    /// `status`.
    pub fn status(&self) -> Result<Status, ReadError> {
        self.parsed("status", Status::parse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_process() {
        let status = Status::parse(include_bytes!("testdata/status")).unwrap();
        assert_eq!(status.name.as_bytes(), b"a) R 1\n\x1b[31m\\");
        assert_eq!(
            (status.state, status.tgid, status.ppid, status.threads),
            (State::Sleeping, 5448, 5446, 7)
        );
        assert_eq!(status.uid, Ids { real: 1000, effective: 0, saved: 1, filesystem: 2 });
        assert_eq!((status.namespace_pid, status.kthread, status.seccomp), (Some(12), Some(false), Some(2)));
        let vm = status.vm.unwrap();
        assert_eq!((vm.peak, vm.rss, vm.rss_file), (Bytes(3_133_440), Bytes(1_810_432), Bytes(1_695_744)));
        assert_eq!((vm.page_tables, vm.hugetlb, vm.swap), (Bytes(40 << 10), Bytes(2 << 20), Bytes::ZERO));
        assert!(!status.is_kernel_thread());
    }

    #[test]
    fn kernel_threads_and_zombies_have_no_memory() {
        let kthreadd = Status::parse(b"Name:\tkthreadd\nState:\tS (sleeping)\nTgid:\t2\nPPid:\t0\n").unwrap();
        assert!(kthreadd.is_kernel_thread() && kthreadd.vm.is_none());
        let zombie = Status::parse(b"Name:\tx\nState:\tZ (zombie)\nTgid:\t9\nPPid:\t2\n").unwrap();
        assert!(!zombie.is_kernel_thread() && zombie.state.ended());
        let said = Status::parse(b"Name:\tx\nState:\tI (idle)\nTgid:\t9\nPPid:\t2\nKthread:\t0\n").unwrap();
        assert!(!said.is_kernel_thread());
    }

    #[test]
    fn names_keep_their_blanks_and_a_file_without_a_name_is_none() {
        assert_eq!(Status::parse(b"Name:\t  x \nState:\tR\n").unwrap().name.as_bytes(), b"  x ");
        assert_eq!(Status::parse(b"State:\tR\n"), None);
        assert_eq!(Status::parse(b""), None);
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            let _ = Status::parse(&text);
        }

        #[test]
        fn never_panics_on_any_value(value in "[ \\t0-9a-z()-]{0,30}") {
            let text: String =
                include_str!("testdata/status").lines().filter_map(|l| l.split_once(':'))
                    .map(|(key, _)| format!("{key}:{value}\n")).collect();
            let _ = Status::parse(text.as_bytes());
        }
    }
}
