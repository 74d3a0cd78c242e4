//! Settings that last, in real programs: what they were and are, and that less is kept from then on.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{build, give_back, give_back_with};
use ebbtide_heaps::Look;
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use ebbtide_reclaim::process::Options;
use ebbtide_reclaim::{Report, Setting};
use ebbtide_testkit::{Child, Redis};
use std::process::Command;
use std::time::Duration;

fn lasting(pid: u32) -> Report {
    give_back_with(pid, &Options { max_stop: Duration::from_secs(1), lasting: true, ..Options::default() })
}

/// What lever `id` of `report` set, in a few words, with nothing left undone.
fn set(report: &Report, id: &str) -> Vec<(String, Option<i64>, Option<i64>)> {
    let lever = report.levers.iter().find(|lever| lever.id == id).unwrap_or_else(|| panic!("{report:#?}"));
    assert_eq!(lever.short, None, "{report:#?}");
    let told = |setting: &Setting| (setting.name.clone(), setting.before, setting.after);
    lever.settings.iter().map(told).collect()
}

/// What the heaps of `child` could give back.
fn returnable(child: &Child) -> Bytes {
    let process = Process::open(&Root::live().unwrap(), child.pid()).unwrap();
    Look::into(&process, false).unwrap().known().map(|heap| heap.figures.returnable).sum()
}

#[test]
fn tops_of_arenas_stay_low() {
    let program = build("../heaps/tests/programs/shapes.c");
    let kept = |settles: bool| {
        let info = program.with_extension(format!("lasting-{settles}.xml"));
        let mut child = Child::spawn(Command::new(&program).arg("tops-of-arenas").arg(&info));
        child.ask("shape");
        if settles {
            let planned = Options { dry_run: true, lasting: true, ..Options::default() };
            let risen = 2 * (30 << 20) + 8192;
            let plan = set(&give_back_with(child.pid(), &planned), "glibc-lasting");
            assert_eq!(plan, [("M_TRIM_THRESHOLD".to_owned(), Some(risen), None)]);
            let done = set(&lasting(child.pid()), "glibc-lasting");
            assert_eq!(done, [("M_TRIM_THRESHOLD".to_owned(), Some(risen), Some(131_072))]);
            let again = lasting(child.pid());
            assert!(again.notes.iter().any(|note| note.contains("--lasting")), "{again:#?}");
        } else {
            give_back(child.pid());
        }
        // Threads come and burst as before, and free it all.
        child.ask("shape");
        let kept = returnable(&child);
        child.ask("end");
        let _ = std::fs::remove_file(info);
        kept
    };
    let (without, with) = (kept(false), kept(true));
    println!("kept after another burst: {without}, and with the setting {with}");
    assert!(without > Bytes::from_mib(50) && with < without.scaled(0.1), "{without} {with}");
}

/// On one processor arenas are made up to the ninth; five are more than enough.
#[test]
fn no_more_arenas() {
    if !ebbtide_testkit::child::installed("taskset") {
        return println!("skipped: taskset is not installed");
    }
    let mut command = Command::new("taskset");
    let mut child = Child::spawn(command.args(["-c", "0"]).arg(build("tests/programs/storm.c")).arg("3"));
    let done = set(&lasting(child.pid()), "glibc-lasting");
    let arenas = done.iter().find(|(name, ..)| name == "M_ARENA_MAX").unwrap();
    println!("{arenas:?}");
    assert!(arenas.1 == Some(0) && matches!(arenas.2, Some(2..=8)), "{done:?}");
    assert_eq!(child.ask("how is it?"), "0 0");
}

#[test]
fn under_a_seccomp_filter_nothing_is_set() {
    let child = Child::spawn(Command::new(build("tests/programs/awkward.c")).arg("seccomp"));
    let report = lasting(child.pid());
    let lever = report.levers.iter().find(|lever| lever.id == "glibc-lasting").unwrap();
    assert!(lever.short.as_ref().is_some_and(|why| why.contains("seccomp")), "{report:#?}");
    assert_eq!(lever.settings[0].after, None);
}

#[test]
fn jemalloc_forgets_sooner() {
    let library = std::path::Path::new("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2");
    if !library.exists() {
        return println!("skipped: libjemalloc.so.2 is not installed");
    }
    let program = build("../heaps/tests/programs/jemalloc.c");
    let mut command = Command::new(&program);
    command.arg("own-arenas").env("LD_PRELOAD", library);
    let mut child =
        Child::spawn(command.env("MALLOC_CONF", "dirty_decay_ms:-1,muzzy_decay_ms:7000,narenas:3"));
    child.ask("shape");
    let done = set(&lasting(child.pid()), "jemalloc-lasting");
    println!("{done:?}");
    let told = |name: &str, before, after| (name.to_owned(), Some(before), Some(after));
    assert_eq!(
        done,
        [
            told("arenas.dirty_decay_ms", -1, 1000),
            told("arena.<i>.dirty_decay_ms", -1, 1000),
            told("arenas.muzzy_decay_ms", 7000, 0),
            told("arena.<i>.muzzy_decay_ms", 7000, 0),
        ]
    );
    let again = set(&lasting(child.pid()), "jemalloc-lasting");
    assert!(again.iter().all(|(_, before, after)| before == after), "{again:?}");
    assert_eq!(child.ask("check"), "0");
    child.ask("shape");
    assert_eq!(child.ask("check"), "0", "it works on");
}

/// Asked again and again while threads allocate and a timer interrupts them, jemalloc's arenas all the while.
#[test]
fn nobody_is_hurt() {
    let library = std::path::Path::new("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2");
    if !library.exists() {
        return println!("skipped: libjemalloc.so.2 is not installed");
    }
    let mut command = Command::new(build("tests/programs/storm.c"));
    let mut child = Child::spawn(command.args(["3", "signals"]).env("LD_PRELOAD", library));
    // How many are made depends on what else the machine does.
    let (mut made, mut rounds) = (0, 0);
    while made < 8 && rounds < 60 {
        rounds += 1;
        let report = lasting(child.pid());
        let lever = report.levers.iter().find(|lever| lever.id == "jemalloc-lasting").unwrap();
        made += u32::from(lever.short.is_none());
        assert_eq!(child.ask("how is it?"), "0 0", "{lever:#?}");
    }
    println!("{made} of {rounds}");
    assert_eq!(made, 8, "of {rounds}");
}

#[test]
fn a_redis_server_with_its_own_thread() {
    let Some(mut redis) = Redis::start(&["--jemalloc-bg-thread", "yes"], &[]) else { return };
    redis.call("DEBUG POPULATE 20000 key 700");
    let digest = redis.call("DEBUG DIGEST");
    let done = set(&lasting(redis.pid()), "jemalloc-lasting");
    assert!(done.iter().all(|(_, _, after)| after.is_some_and(|ms| (0..=1000).contains(&ms))), "{done:?}");
    assert_eq!(redis.call("DEBUG DIGEST"), digest);
}
