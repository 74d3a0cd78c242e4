//! Giving back what real programs' allocators keep: as much as was predicted, no byte of what they hold changed, and
//! they go on.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

mod common;

use common::{SLACK, build, give_back, give_back_with};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use ebbtide_reclaim::process::{Options, reclaim};
use ebbtide_testkit::{Child, Nginx};
use std::process::Command;
use std::time::Duration;

const SHAPES: [&str; 18] = [
    "below-a-pin",
    "trimmed-already",
    "alternate",
    "alternate-runs",
    "caches-full",
    "quick-lists",
    "quick-lists-at-random",
    "large-blocks",
    "large-bins",
    "reallocated",
    "aligned",
    "gap-in-brk",
    "bursts-at-once",
    "bursts-in-turn",
    "ended-threads",
    "several-heaps",
    "tops-of-arenas",
    "shared-arenas",
];

/// By malloc_trim where that may take its time, and page by page where it may not.
#[test]
fn every_shape_of_glibcs_heap() {
    for (max_stop, lever, least) in [(1_000, "malloc-trim", 10), (5, "free-pages", 2)] {
        let options = Options { max_stop: Duration::from_millis(max_stop), ..Options::default() };
        let ways = SHAPES.map(|shape| every_way(shape, &options)).concat();
        assert!(ways.iter().filter(|way| **way == lever).count() >= least, "{ways:?}");
    }
}

/// The levers that gave back what a program in this shape keeps.
fn every_way(shape: &str, options: &Options) -> Vec<&'static str> {
    let program = build("../heaps/tests/programs/shapes.c");
    let info = program.with_extension(format!("{shape}.xml"));
    let mut child = Child::spawn(Command::new(&program).arg(shape).arg(&info));
    child.ask("shape");
    let content = child.ask("sum").to_owned();
    let report = give_back_with(child.pid(), options);
    let (predicted, returned) = (report.predicted, report.returned.unwrap_or_default());
    let ways: Vec<&str> = report.levers.iter().map(|lever| lever.id).collect();
    let stop = report.longest_stop;
    println!("{shape}: {predicted} predicted, {returned} returned by {ways:?}, {stop:?} stopped");
    let off = Bytes(predicted.0.abs_diff(returned.0));
    assert!(off <= SLACK || off <= returned.scaled(0.02), "{shape}: {report:#?}");
    assert!(report.levers.iter().all(|lever| lever.short.is_none()), "{shape}: {report:#?}");
    let left = give_back(child.pid()).predicted;
    assert!(left <= Bytes(64 << 10), "{shape}: {left} left");
    assert_eq!(child.ask("sum"), content, "{shape}");
    child.ask("end");
    let _ = std::fs::remove_file(info);
    ways
}

#[test]
fn an_nginx_worker_with_lua() {
    let Some(nginx) = Nginx::start() else { return };
    (0..5).for_each(|_| nginx.burst());
    nginx.run("collectgarbage() collectgarbage()");
    let report = give_back(nginx.pid());
    println!("{report:#?}");
    let (predicted, returned) = (report.predicted, report.returned.unwrap_or_default());
    assert!(returned > predicted.scaled(0.9) && returned > Bytes::from_mib(100), "{report:#?}");
    (0..3).for_each(|_| nginx.burst());
    nginx.run("collectgarbage() collectgarbage()");
}

/// What cannot be known to be safe is not done.
#[test]
fn processes_that_are_left_alone() {
    let program = build("tests/programs/awkward.c");
    let attempt = |kind: &str, options: &Options| {
        let mut child = Child::spawn(Command::new(&program).arg(kind));
        let process = Process::open(&Root::live().unwrap(), child.pid()).unwrap();
        let result = reclaim(&process, options);
        if kind != "computes" {
            child.ask("still there?");
        }
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.pid())).unwrap();
        assert!(status.contains("TracerPid:\t0\n") && !status.contains("State:\tZ"), "{kind}: {status}");
        result
    };
    // An event loop that never waits is met at the end of a poll.
    for kind in ["usual", "busy"] {
        let report = attempt(kind, &Options::default()).unwrap();
        assert!(report.returned.unwrap() > Bytes::from_mib(20), "{kind}: {report:#?}");
    }
    let impatient = Options { patience: Duration::from_millis(50), ..Options::default() };
    for kind in ["handler", "fiber", "busy-handler", "busy-fiber", "computes"] {
        let report = attempt(kind, &impatient).unwrap();
        let lever = &report.levers[0];
        assert!(lever.predicted > Bytes::from_mib(20), "{kind}: {report:#?}");
        assert!(lever.stops == 0 || kind.starts_with("busy-"), "{kind}: {report:#?}");
        assert!(lever.short.as_ref().is_some_and(|why| why.contains("at rest")), "{kind}: {report:#?}");
        assert!(report.returned.unwrap() < Bytes::from_mib(1), "{kind}: {report:#?}");
    }
}

/// Its filter ends the process for process_madvise, which is made with the filter suspended.
#[test]
fn a_process_under_a_seccomp_filter() {
    let mut child = Child::spawn(Command::new(build("tests/programs/awkward.c")).arg("seccomp"));
    let report = give_back(child.pid());
    let lever = &report.levers[0];
    if lever.short.as_ref().is_some_and(|why| why.contains("CAP_SYS_ADMIN")) {
        return println!("skipped: {}", lever.short.as_ref().unwrap());
    }
    assert!(lever.id == "free-pages" && lever.short.is_none(), "{report:#?}");
    assert!(report.returned.unwrap() > Bytes::from_mib(20), "{report:#?}");
    child.ask("still there?");
}

/// Eight threads that allocate at full speed, each block checked, beside one that forks all the while.
#[test]
fn a_storm() {
    const ROUNDS: usize = 30;
    let program = build("../heaps/tests/programs/busy.c");
    // On a machine with few processors nobody else would get a turn.
    let child = Child::spawn(Command::new("nice").args(["-n", "19"]).arg(program).arg("threads"));
    let process = Process::open(&Root::live().unwrap(), child.pid()).unwrap();
    let options = Options { patience: Duration::from_millis(2), ..Options::default() };
    let mut applied = 0;
    for _ in 0..ROUNDS {
        let report = reclaim(&process, &options).unwrap();
        applied += report.levers.iter().filter(|lever| lever.short.is_none()).count();
    }
    assert!(child.wait().success(), "a block was damaged");
    println!("{applied} levers applied in {ROUNDS} rounds");
}
