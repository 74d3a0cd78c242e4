//! Never hurt the target: programs at work from which memory is taken back again and again. None crashes, no byte of
//! theirs changes, no request of theirs fails.
//!
//! How often each is reclaimed from, `EBB_RECLAIMS` says, 10 times by default. Ten thousand in all:
//! `EBB_RECLAIMS=1000 cargo test --release -p ebbtide-reclaim --test unharmed -- --nocapture`.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{MUSL, build, build_as};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use ebbtide_reclaim::process::{Options, reclaim};
use ebbtide_testkit::child::{self, installed};
use ebbtide_testkit::{Child, Nginx, Parent, Redis};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

fn rounds() -> usize {
    std::env::var("EBB_RECLAIMS").map_or(10, |rounds| rounds.parse().expect("EBB_RECLAIMS is a number"))
}

/// Takes memory back from `pid` so often.
fn take_back(name: &str, pid: u32) {
    let process = Process::open(&Root::live().unwrap(), pid).unwrap();
    let (mut applied, mut stops, mut returned) = (0, 0, Bytes::ZERO);
    let mut longest = Duration::ZERO;
    for round in 0..rounds() {
        // Stops short enough for pages, and long enough for the allocator's own function.
        let max_stop = Duration::from_millis(if round % 2 == 0 { 2 } else { 200 });
        let options = Options { max_stop, patience: Duration::from_millis(20), ..Options::default() };
        let report = reclaim(&process, &options).unwrap();
        applied += report.levers.iter().filter(|lever| lever.short.is_none()).count();
        stops += report.levers.iter().map(|lever| lever.stops).sum::<u32>();
        returned += report.returned.unwrap_or_default();
        longest = longest.max(report.longest_stop);
    }
    println!(
        "{name}: {} reclaims, {applied} levers to the end, {stops} stops, {longest:?} at most, {returned} returned",
        rounds()
    );
}

/// Not a test of its own: takes memory back from a process until it is killed.
#[test]
#[ignore = "plays the child programs of the other tests"]
fn child_program() {
    child::play(&[("reclaimer", reclaimer)]);
}

fn reclaimer(parent: &mut Parent) {
    let process = Process::open(&Root::live().unwrap(), parent.number(0) as u32).unwrap();
    let mut said = false;
    for round in 0.. {
        let max_stop = Duration::from_millis(if round % 2 == 0 { 2 } else { 200 });
        let options = Options { max_stop, patience: Duration::from_millis(20), ..Options::default() };
        reclaim(&process, &options).unwrap();
        if !std::mem::replace(&mut said, true) {
            parent.ready("");
        }
    }
}

/// Killed wherever it stands: looking, with threads stopped, or with one away in a call.
#[test]
fn a_reclaimer_that_is_killed() {
    let mut target = Child::spawn(Command::new(build("tests/programs/storm.c")).arg("3"));
    for round in 0..rounds() * 3 {
        let reclaimer = Child::start("reclaimer", &[&target.pid().to_string()]);
        // At another point each time: reading a file takes some microseconds.
        (0..round * 97 % 1500).for_each(|_| drop(std::fs::read("/proc/self/status")));
        drop(reclaimer);
    }
    assert_eq!(target.ask("what is wrong?"), "0 0");
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs").join(name)
}

/// A program that answers a line with how much is wrong.
fn answers_well(name: &str, command: &mut Command, right: &str) {
    let mut child = Child::spawn(command);
    take_back(name, child.pid());
    assert_eq!(child.ask("what is wrong?"), right, "{name}");
}

#[test]
fn threads_at_work() {
    answers_well("threads", Command::new(build("tests/programs/storm.c")).arg("4"), "0 0");
}

#[test]
fn a_storm_of_signals() {
    answers_well("signals", Command::new(build("tests/programs/storm.c")).args(["2", "signals"]), "0 0");
}

#[test]
fn a_static_program() {
    let program = build_as("storm-static", "tests/programs/storm.c", &["-static"]);
    answers_well("static", Command::new(program).arg("2"), "0 0");
}

/// Threads at work, a storm of signals and forks all the time, on musl's malloc, shared and in the program.
#[test]
fn programs_on_musl() {
    if !installed("musl-gcc") {
        return println!("skipped: musl-tools is not installed");
    }
    for (name, options) in [("musl", &[MUSL][..]), ("musl-static", &[MUSL, "-static"])] {
        let program = build_as(&format!("storm-{name}"), "tests/programs/storm.c", options);
        answers_well(&format!("{name}, threads"), Command::new(&program).arg("4"), "0 0");
        answers_well(&format!("{name}, signals"), Command::new(&program).args(["2", "signals"]), "0 0");
    }
    // A static one that sets no signal's action is left alone.
    forks_well("musl, forks", &build_as("busy-musl", "../heaps/tests/programs/busy.c", &[MUSL]));
}

#[test]
fn one_that_forks_all_the_time() {
    forks_well("forks", &build("../heaps/tests/programs/busy.c"));
}

/// A program that checks its blocks and those of its children.
fn forks_well(name: &str, program: &Path) {
    let child = Child::spawn(Command::new("nice").args(["-n", "19"]).arg(program).arg("threads"));
    take_back(name, child.pid());
    assert!(child.wait().success(), "{name}: a block was damaged");
}

#[test]
fn one_in_namespaces_of_its_own() {
    if !rustix::process::geteuid().is_root() {
        return println!("skipped: namespaces: only root makes them here");
    }
    let mut command = Command::new("unshare");
    command.args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child"]);
    let mut child = Child::spawn(command.arg(build("tests/programs/storm.c")).arg("2"));
    let children = format!("/proc/{0}/task/{0}/children", child.pid());
    let inner = std::fs::read_to_string(children).unwrap().trim().parse().unwrap();
    take_back("namespaces", inner);
    assert_eq!(child.ask("what is wrong?"), "0 0");
}

#[test]
fn one_under_a_seccomp_filter() {
    let mut child = Child::spawn(Command::new(build("tests/programs/awkward.c")).arg("seccomp"));
    take_back("seccomp", child.pid());
    child.ask("still there?");
}

#[test]
fn cpython_with_threads() {
    answers_well("python3", Command::new("python3").arg(script("churn.py")), "0");
}

#[test]
fn a_jvm() {
    if !installed("java") {
        return println!("skipped: java is not installed");
    }
    answers_well("java", Command::new("java").arg("-Xmx256m").arg(script("Churn.java")), "0");
}

/// On its own jemalloc, and on glibc's malloc.
#[test]
fn redis_under_load() {
    for (name, library) in [("redis, jemalloc", ""), ("redis, glibc", "libc.so.6")] {
        let Some(mut redis) = Redis::start(&[], &[("LD_PRELOAD", library)]) else { return };
        for n in 1..1000 {
            redis.call(&format!("SET fixed:{n} {}", format!("{n}-").repeat(n)));
        }
        let over = AtomicBool::new(false);
        let benchmark = || {
            let mut runs = 0;
            while !over.load(Ordering::Relaxed) {
                let mut command = Command::new("redis-benchmark");
                command.arg("-s").arg(redis.socket()).args(["-t", "set,get,lpush,lpop", "-q", "-d", "600"]);
                command.args(["-n", "20000", "-r", "20000"]).stdout(Stdio::null());
                assert!(command.status().unwrap().success(), "a request failed");
                runs += 1;
            }
            runs
        };
        std::thread::scope(|scope| {
            let runs = scope.spawn(benchmark);
            take_back(name, redis.pid());
            over.store(true, Ordering::Relaxed);
            println!("{name}: {} requests meanwhile", 80_000 * runs.join().unwrap());
        });
        for n in 1..1000 {
            assert_eq!(redis.call(&format!("GET fixed:{n}")).trim_end(), format!("{n}-").repeat(n), "{name}");
        }
    }
}

/// Requests that build tables and drop them, checked by what they answer.
#[test]
fn nginx_with_lua_under_load() {
    let Some(nginx) = Nginx::start() else { return };
    (0..3).for_each(|_| nginx.burst());
    let code = "local all = {} for i = 1, 200 do all[i] = { id = i, name = 'name ' .. i } end
                local sum = 0 for i = 1, #all do sum = sum + all[i].id + #all[i].name end return sum";
    let right = nginx.run(code);
    let (over, requests) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    assert_eq!(nginx.run(code), right);
                    requests.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        take_back("nginx", nginx.pid());
        // As many requests as the soak asks for.
        while requests.load(Ordering::Relaxed) < 100 * rounds() as u64 {
            std::thread::yield_now();
        }
        over.store(true, Ordering::Relaxed);
    });
    println!("nginx: {} requests meanwhile", requests.load(Ordering::Relaxed));
}
