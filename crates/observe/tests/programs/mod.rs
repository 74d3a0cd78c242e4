//! The child programs of the tests: each gets into its state, says it is ready, and waits to be ended.
#![allow(clippy::unwrap_used)]

use ebbtide_observe::process::Processes;
use ebbtide_observe::{Process, Root};
use ebbtide_testkit::child::{Program, play as play_one};
use ebbtide_testkit::{Child, Parent};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

/// A process name that tries to end its own field, begin a line and colour the terminal.
pub(crate) const HOSTILE_NAME: &str = "a) R 1\n\x1b[31m";

/// A user who may read no process of root's.
pub(crate) const NOBODY: u32 = 65_534;

const PROGRAMS: &[(&str, Program)] = &[
    ("idle", idle),
    ("hostile name", hostile_name),
    ("exec cat", exec_cat),
    ("churn", churn),
    ("mappings", mappings),
    ("read all mappings of", read_all_mappings_of),
    ("count processes", count_processes),
    ("count hidden", count_hidden),
    ("count hidden as nobody", count_hidden_as_nobody),
    ("three threads", three_threads),
];

/// Plays the program this process was started for.
pub(crate) fn play() {
    play_one(PROGRAMS);
}

fn idle(parent: &mut Parent) {
    parent.ready("");
    parent.listen();
}

fn hostile_name(parent: &mut Parent) {
    std::fs::write("/proc/self/comm", HOSTILE_NAME).unwrap();
    parent.ready("");
    parent.listen();
}

fn exec_cat(parent: &mut Parent) {
    parent.ready("");
    if parent.listen().is_some() {
        panic!("cat: {}", Command::new("cat").exec());
    }
}

/// Starts short processes, one after the other, until the parent is gone.
fn churn(parent: &mut Parent) {
    parent.ready("");
    parent.listen();
    for _ in 0..2000 {
        let mut child = Command::new("true").stdin(Stdio::null()).spawn().unwrap();
        child.wait().unwrap();
    }
    parent.listen();
}

/// Makes single pages of alternating permissions, which the kernel cannot merge, until it refuses.
fn mappings(parent: &mut Parent) {
    let mut count = 0u64;
    while let Ok(page) = memmap2::MmapMut::map_anon(4096) {
        count += 1;
        match count % 2 {
            0 => std::mem::forget(page.make_read_only()),
            _ => std::mem::forget(page),
        }
        // Some mappings are left for what it still has to do.
        if count == 65_530 - 300 {
            break;
        }
    }
    parent.ready(count);
    parent.listen();
}

fn process_of(parent: &Parent) -> Process {
    Process::open(&Root::live().unwrap(), parent.number(0) as u32).unwrap()
}

/// Says how many mappings another process has by maps and by smaps, and its own peak.
fn read_all_mappings_of(parent: &mut Parent) {
    let process = process_of(parent);
    let count = process.mapping_count().unwrap();
    let kinds = process.kinds(process.hints().unwrap()).unwrap();
    let areas: u64 = kinds.values().map(|total| total.mappings).sum();
    let me = Process::open(&Root::live().unwrap(), std::process::id()).unwrap();
    let vsyscall = u64::from(std::fs::read_to_string("/proc/self/maps").unwrap().contains("[vsyscall]"));
    let peak = me.status().unwrap().vm.unwrap().high_water;
    parent.ready(format!("{count} {} {}", areas - vsyscall, peak.0));
    parent.listen();
}

/// Says how many processes it sees, of how many PSS is refused, and which figures it has of its argument.
fn count_processes(parent: &mut Parent) {
    let all = Processes::read(&Root::live().unwrap()).unwrap();
    let one = all.get(parent.number(0) as u32).unwrap();
    let (rss, pss) = (u8::from(one.rss().0 > 0 && one.status.is_some()), u8::from(one.pss().is_some()));
    parent.ready(format!("{} {} {rss} {pss}", all.all.len(), all.denied));
    parent.listen();
}

/// [`count_hidden`] with the rights of nobody.
fn count_hidden_as_nobody(parent: &mut Parent) {
    let mut command = Child::command("count hidden", &[&parent.args()[0]]);
    panic!("the same program: {}", command.uid(NOBODY).gid(NOBODY).exec());
}

/// Says how many processes it sees, how many threads it misses, how many processes are closed to it, and
/// whether it sees its argument.
fn count_hidden(parent: &mut Parent) {
    let all = Processes::read(&Root::live().unwrap()).unwrap();
    let seen = u8::from(all.get(parent.number(0) as u32).is_some());
    parent.ready(format!("{} {} {} {seen}", all.all.len(), all.hidden_threads, all.unreadable));
    parent.listen();
}

/// Three threads that hold 2 MiB of small blocks each.
fn three_threads(parent: &mut Parent) {
    let (ready, all_ready) = std::sync::mpsc::channel();
    for _ in 0..3 {
        let ready = ready.clone();
        std::thread::spawn(move || {
            let blocks: Vec<Vec<u8>> = (0..512).map(|_| vec![1; 4000]).collect();
            ready.send(()).unwrap();
            std::thread::park();
            drop(blocks);
        });
    }
    for _ in 0..3 {
        all_ready.recv().unwrap();
    }
    parent.ready("");
    parent.listen();
}
