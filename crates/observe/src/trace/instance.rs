//! A private tracing instance: own buffers, own clock, own enabled events, and always removed.
//!
//! It is called `ebb-<pid>-<start time>`, so that what a killed ebb left behind can be told from what a
//! living one is using. Invariants: nothing outside the own instance is written, nothing that is not called
//! like that is removed, and neither is an instance that anybody uses: the pid and start time are looked up
//! first, and the kernel refuses (EBUSY) to remove one whose files are open. That second guard covers an ebb
//! in another pid namespace, whose process cannot be seen from here.

use super::TraceError;
use super::tracefs::Tracefs;
use crate::process::Process;
use crate::{ReadError, Root};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::sync::Arc;

const PREFIX: &str = "ebb-";

/// All CPUs' buffers together at most; each has the memory for as long as the instance lives.
const BUFFERS_KIB: usize = 32 << 10;

/// One CPU's buffer at most. 4 MiB hold 100,000 records of a stat (40 bytes on 6.18): 0.15 s of a process
/// that does nothing else.
const BUFFER_KIB: usize = 4 << 10;

/// An own tracing instance; dropping it removes it.
#[derive(Debug)]
pub(super) struct Instance {
    tracefs: Arc<Tracefs>,
    /// Its directory, relative to the tracefs.
    dir: String,
    /// Which of this process's instances it is.
    number: u32,
}

impl Instance {
    /// Removes what killed ebbs left, then makes this process's instance, switched off.
    ///
    /// Errors: [`TraceError::Denied`] without the right to, [`TraceError::Read`] otherwise.
    pub(super) fn create(root: &Root, tracefs: Arc<Tracefs>) -> Result<Instance, TraceError> {
        remove_stale(root, &tracefs);
        let pid = std::process::id();
        let started = start_time(root, pid).unwrap_or_default();
        // A number after the two, so that one process can have several.
        for number in 0..16 {
            let dir = format!("instances/{PREFIX}{pid}-{started}{}", Number(number));
            match tracefs.make_dir(&dir) {
                Ok(()) => return Ok(Instance { tracefs, dir, number }),
                Err(ReadError::Io { errno: Errno::EXIST, .. }) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Err(TraceError::Busy)
    }

    /// Which of this process's instances it is, from 0.
    pub(super) fn number(&self) -> u32 {
        self.number
    }

    /// Sets it up: switched off, one clock for all CPUs, small buffers, this process left out.
    pub(super) fn configure(&self) -> Result<(), ReadError> {
        self.write("tracing_on", "0")?;
        // The default clock is not comparable between CPUs, nor with what user space can read.
        self.write("trace_clock", "mono")?;
        let cpus = self.cpus()?.len().max(1);
        let per_cpu = (BUFFERS_KIB / cpus).clamp(64, BUFFER_KIB);
        self.write("buffer_size_kb", &per_cpu.to_string())?;
        // These two are newer (5.0 and 5.8) and optional: without the one a reader wakes at any data anyway,
        // without the other the own records are dropped when they are read.
        for (file, value) in [("buffer_percent", "0".to_owned()), ("set_event_notrace_pid", own_tid())] {
            match self.write(file, &value) {
                Ok(()) | Err(ReadError::Missing { .. } | ReadError::Denied { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        // Kernels that copy the path into the record (6.19) cut it at this length, of 165 at most.
        match self.write("syscall_user_buf_size", "165") {
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Enables event `group/name`.
    pub(super) fn enable(&self, event: &str) -> Result<(), ReadError> {
        self.write(&format!("events/{event}/enable"), "1")
    }

    /// Starts or stops recording.
    pub(super) fn switch(&self, on: bool) -> Result<(), ReadError> {
        self.write("tracing_on", if on { "1" } else { "0" })
    }

    /// Every CPU's records, to be read without blocking.
    pub(super) fn pipes(&self) -> Result<Vec<OwnedFd>, ReadError> {
        let files = self.tracefs.files();
        self.cpus()?
            .iter()
            .map(|cpu| files.open_file(&format!("{}/per_cpu/{cpu}/trace_pipe_raw", self.dir)))
            .collect()
    }

    /// Records that did not fit into the buffers since the start.
    pub(super) fn lost(&self) -> Result<u64, ReadError> {
        let mut buf = Vec::new();
        let mut lost: u64 = 0;
        for cpu in self.cpus()? {
            let text = self.tracefs.files().read(&format!("{}/per_cpu/{cpu}/stats", self.dir), &mut buf)?;
            lost = lost.saturating_add(lost_of(text));
        }
        Ok(lost)
    }

    fn cpus(&self) -> Result<Vec<String>, ReadError> {
        self.tracefs.files().list(&format!("{}/per_cpu", self.dir))
    }

    fn write(&self, file: &str, text: &str) -> Result<(), ReadError> {
        self.tracefs.write(&format!("{}/{file}", self.dir), text)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // Whoever looks into the instance at this moment (a monitor that lists it) makes this fail; the next
        // start then removes it.
        let _ = self.tracefs.remove_dir(&self.dir);
    }
}

struct Number(u32);

impl std::fmt::Display for Number {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0 == 0 { Ok(()) } else { write!(f, "-{}", self.0) }
    }
}

/// The kernel compares thread ids here; the thread that traces is the one that reads files meanwhile.
fn own_tid() -> String {
    rustix::thread::gettid().as_raw_nonzero().to_string()
}

/// The three kinds of loss in a per_cpu/cpuN/stats: overwritten before they were read, written while an
/// interrupt filled the buffer, and dropped because it was full.
fn lost_of(stats: &[u8]) -> u64 {
    let counts = crate::scan::lines(stats).filter_map(|line| crate::scan::key_value(line, b':'));
    counts
        .filter(|(key, _)| matches!(*key, b"overrun" | b"commit overrun" | b"dropped events"))
        .filter_map(|(_, value)| crate::scan::number(value))
        .fold(0, u64::saturating_add)
}

/// Removes instances of ebbs that live no more.
fn remove_stale(root: &Root, tracefs: &Tracefs) {
    for name in tracefs.files().list("instances").unwrap_or_default() {
        let Some((pid, started)) = owner(&name) else { continue };
        if !lives(root, (pid, started)) {
            let _ = tracefs.remove_dir(&format!("instances/{name}"));
        }
    }
}

/// Whose instance `name` is, by pid and start time; `None` if it is none of ebb's.
fn owner(name: &str) -> Option<(u32, u64)> {
    let mut parts = name.strip_prefix(PREFIX)?.split('-');
    let (pid, started) = (decimal(parts.next()?)?, decimal(parts.next()?)?);
    let number = parts.next().map(decimal);
    let ours = parts.next().is_none() && number.is_none_or(|n| n.is_some());
    (ours && pid != 0).then_some((u32::try_from(pid).ok()?, started))
}

/// When process `pid` started, in milliseconds since boot; with the pid it names a process for good. `None` if
/// it is gone.
pub(super) fn start_time(root: &Root, pid: u32) -> Option<u64> {
    let started = Process::open(root, pid).and_then(|process| process.stat()).ok()?.start_time;
    u64::try_from(started.as_millis()).ok()
}

/// Whether the process that started as `owner` (pid and start time) lives.
pub(super) fn lives(root: &Root, (pid, started): (u32, u64)) -> bool {
    start_time(root, pid) == Some(started)
}

fn decimal(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_names_are_recognised() {
        assert_eq!(owner("ebb-812-99"), Some((812, 99)));
        assert_eq!(owner("ebb-812-99-3"), Some((812, 99)));
        for name in [
            "ebb-812",
            "ebb-812-",
            "ebb-812-99-",
            "ebb-812-99-x",
            "ebb-812-99-1-1",
            "ebb-+1-2",
            "ebb-0-2",
            "webb-812-99",
            "ebbtide-1-2",
            "ebb-99999999999-1",
            "perf",
            "ebb--1-2",
            "",
        ] {
            assert_eq!(owner(name), None, "{name}");
        }
    }

    #[test]
    fn losses_are_summed() {
        let stats = b"entries: 104924\noverrun: 2295101\ncommit overrun: 1\nbytes: 4196960\n\
            oldest event ts:  1118.966866\nnow ts:  1119.038825\ndropped events: 7\nread events: 0\n";
        assert_eq!(lost_of(stats), 2_295_109);
        assert_eq!(lost_of(b"overrun: x\n\n"), 0);
    }

    /// Lays out a tracefs of plain directories: removal is then by rmdir alone, as in the real one.
    fn fake(instances: &[&str], alive: Option<(u32, u64)>) -> (tempfile::TempDir, Vec<String>) {
        let dir = tempfile::tempdir().unwrap();
        for name in instances {
            std::fs::create_dir_all(dir.path().join("t/instances").join(name)).unwrap();
        }
        std::fs::create_dir_all(dir.path().join("proc/self")).unwrap();
        std::fs::write(dir.path().join("proc/self/mountinfo"), "1 1 0:1 / /t rw - tracefs none rw\n")
            .unwrap();
        if let Some((pid, started)) = alive {
            let stat = format!("{pid} (ebb) S 1 7 7 0 -1 0 1 0 0 0 0 0 0 0 20 0 1 0 {} 1 1", started / 10);
            std::fs::create_dir_all(dir.path().join(format!("proc/{pid}"))).unwrap();
            std::fs::write(dir.path().join(format!("proc/{pid}/stat")), stat).unwrap();
        }
        let root = Root::at(dir.path()).unwrap();
        let tracefs = Tracefs::find(&root).unwrap();
        remove_stale(&root, &tracefs);
        let mut left = tracefs.files().list("instances").unwrap();
        left.sort();
        (dir, left)
    }

    #[test]
    fn stale_instances_go_and_all_others_stay() {
        let (_dir, left) =
            fake(&["ebb-7-1000", "ebb-7-990", "ebb-8-1000-1", "other", "ebb-x"], Some((7, 1000)));
        assert_eq!(left, ["ebb-7-1000", "ebb-x", "other"]);
    }
}
