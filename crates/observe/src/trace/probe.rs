//! The path itself in a record of its own, where the kernel can be asked for one.
//!
//! Kernels before 6.19 leave the path out of their records, but those with CONFIG_KPROBE_EVENTS can trace the
//! return of getname_flags, through which every path comes into the kernel (fs/namei.c), and of the functions
//! around it that compilers merge it with: their result points to the kernel's copy (`struct filename`, whose
//! first member is the text), which is there for certain. Nothing then depends on reading the caller's memory in
//! time. (An event probe on the system call's own event would be
//! nearer, but 6.0 to 6.16 at least take the first byte of a `const char *` field for the pointer.)
//!
//! Such an event belongs to the whole host, though only the own instance records it, so the same holds as for
//! instances: its group is `ebb_<pid>_<start time>_<number>`, it is removed on drop, and what a killed ebb left
//! is removed by the next start. Invariant: nothing else is removed; the kernel refuses (EBUSY) to remove a probe
//! that is in use, which guards ebbs of other pid namespaces.

use super::format::Format;
use super::instance::{lives, start_time};
use super::tracefs::Tracefs;
use crate::Root;
use std::sync::Arc;

const PREFIX: &str = "ebb_";
const FILE: &str = "kprobe_events";

/// Where paths come in. The first is in every kernel since 3.6; getname became an inline function in 6.14,
/// getname_uflags is of 5.18 and later. One that calls another gives two records of the same path.
const FUNCTIONS: [&str; 3] = ["getname_flags", "getname", "getname_uflags"];

/// Own probes of paths; dropping them removes them.
#[derive(Debug)]
pub(super) struct PathProbe {
    tracefs: Arc<Tracefs>,
    /// "ebb_812_99_0/getname_flags".
    events: Vec<String>,
}

impl PathProbe {
    /// Removes what killed ebbs left, and makes own probes, whose records have a field "path": their names and
    /// descriptions. `None` where this kernel makes none.
    pub(super) fn make(
        root: &Root,
        tracefs: Arc<Tracefs>,
        number: u32,
    ) -> Option<(PathProbe, Vec<(String, Format)>)> {
        remove_stale(root, &tracefs);
        let pid = std::process::id();
        let started = start_time(root, pid).unwrap_or_default();
        let mut probe = PathProbe { tracefs, events: Vec::new() };
        let mut made = Vec::new();
        let mut buf = Vec::new();
        for function in FUNCTIONS {
            let event = format!("{PREFIX}{pid}_{started}_{number}/{function}");
            let line = format!("r:{event} {function} path=+0(+0($retval)):string\n");
            if probe.tracefs.write(FILE, &line).is_ok() {
                probe.events.push(event.clone());
                let text = probe.tracefs.files().read(&format!("events/{event}/format"), &mut buf).ok()?;
                made.push((event, Format::parse(text)?));
            } else if function == FUNCTIONS[0] {
                return None;
            }
        }
        Some((probe, made))
    }
}

impl Drop for PathProbe {
    fn drop(&mut self) {
        for event in &self.events {
            // In use only if the instance could not be removed; the next start then removes both.
            let _ = self.tracefs.write(FILE, &format!("-:{event}\n"));
        }
    }
}

/// Removes probes of ebbs that live no more.
fn remove_stale(root: &Root, tracefs: &Tracefs) {
    let mut stale = Vec::new();
    // Without the file there are no such events.
    let _ = tracefs.files().each_line(FILE, |line| {
        stale.extend(event_of(line).filter(|event| owner(event).is_some_and(|who| !lives(root, who))));
        true
    });
    for event in stale {
        let _ = tracefs.write(FILE, &format!("-:{event}\n"));
    }
}

/// The event of a return probe's line: "r10:GROUP/NAME getname_flags ...".
fn event_of(line: &[u8]) -> Option<String> {
    let (kind, rest) = std::str::from_utf8(line).ok()?.split_once(':')?;
    decimal(kind.strip_prefix('r')?)?;
    rest.split(' ').next().map(str::to_owned)
}

/// Whose event it is, by pid and start time; `None` if it is none of ebb's.
fn owner(event: &str) -> Option<(u32, u64)> {
    let (group, name) = event.strip_prefix(PREFIX)?.split_once('/')?;
    let mut numbers = group.split('_').map(decimal).filter(|_| FUNCTIONS.contains(&name));
    match [numbers.next()??, numbers.next()??, numbers.next()??] {
        [pid, started, _] if pid != 0 && numbers.next().is_none() => {
            Some((u32::try_from(pid).ok()?, started))
        }
        _ => None,
    }
}

/// A number of decimal digits alone; none at all are 0.
fn decimal(text: &str) -> Option<u64> {
    match text {
        "" => Some(0),
        text => text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_own_events_are_recognised() {
        assert_eq!(owner("ebb_812_990_0/getname"), Some((812, 990)));
        for event in [
            "ebb_812_990_0/other",
            "ebb_812_990/getname",
            "ebb_0_1_0/getname",
            "ebb_1_2_3_4/getname",
            "ebb_x_1_0/getname",
            "kprobes/getname",
            "ebb__1_0/getname",
        ] {
            assert_eq!(owner(event), None, "{event}");
        }
        let line = b"r10:ebb_812_990_0/getname getname path=+0(+0($retval)):string";
        assert_eq!(event_of(line).as_deref(), Some("ebb_812_990_0/getname"));
        assert_eq!(event_of(b"p:ebb_812_990_0/getname do_sys_open"), None);
        assert_eq!(event_of(b"\xff"), None);
    }

    #[test]
    fn a_kernel_without_kprobes_makes_none() {
        let fake = ebbtide_testkit::FakeRoot::new()
            .file("proc/self/mountinfo", "1 1 0:1 / /t rw - tracefs none rw\n")
            .dir("t/instances");
        let root = Root::at(fake.path()).unwrap();
        let tracefs = Arc::new(Tracefs::find(&root).unwrap());
        assert!(PathProbe::make(&root, tracefs, 0).is_none());
    }
}
