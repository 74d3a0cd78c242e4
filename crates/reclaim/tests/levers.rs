//! The levers of allocators other than glibc's, each on a real program: jemalloc preloaded and in Redis, gperftools'
//! tcmalloc, mimalloc and Ebbtide's own. What returns is what was predicted, and the program's contents are unharmed.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::{MUSL, SLACK, build, build_as, give_back_with};
use ebbtide_observe::Bytes;
use ebbtide_reclaim::process::Options;
use ebbtide_reclaim::{Lever, Report};
use ebbtide_testkit::{Child, Redis};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// Debian's library, if it is installed.
fn library(name: &str) -> Option<PathBuf> {
    let path = Path::new("/usr/lib/x86_64-linux-gnu").join(name);
    if !path.exists() {
        println!("skipped: {name} is not installed");
        return None;
    }
    Some(path)
}

/// Whatever time it takes.
fn give_back(pid: u32) -> Report {
    give_back_with(pid, &Options { max_stop: Duration::from_secs(1), ..Options::default() })
}

fn lever<'r>(report: &'r Report, id: &str) -> &'r Lever {
    let lever = report.levers.iter().find(|lever| lever.id == id).unwrap_or_else(|| panic!("{report:#?}"));
    println!(
        "{id}: {} predicted, {} returned, {:?} stopped",
        lever.predicted,
        returned(lever),
        lever.longest_stop
    );
    assert_eq!(lever.short, None, "{report:#?}");
    lever
}

fn returned(lever: &Lever) -> Bytes {
    lever.returned.unwrap_or_default()
}

/// Returned is what was predicted, and that is worth it.
fn holds(lever: &Lever, least: Bytes) {
    let off = Bytes(lever.predicted.0.abs_diff(returned(lever).0));
    assert!(lever.predicted >= least && (off <= SLACK || off <= lever.predicted.scaled(0.02)), "{lever:#?}");
}

#[test]
fn jemalloc() {
    let Some(library) = library("libjemalloc.so.2") else { return };
    let program = build("../heaps/tests/programs/jemalloc.c");
    let options = "dirty_decay_ms:-1,muzzy_decay_ms:-1";
    for shape in ["burst", "large", "threads", "own-arenas"] {
        let mut command = Command::new(&program);
        let mut child =
            Child::spawn(command.arg(shape).env("LD_PRELOAD", &library).env("MALLOC_CONF", options));
        child.ask("shape");
        let refused =
            give_back_with(child.pid(), &Options { max_stop: Duration::ZERO, ..Options::default() });
        assert_eq!((refused.predicted, refused.returned), (Bytes::ZERO, Some(Bytes::ZERO)), "{refused:#?}");
        assert!(
            refused.levers[0].short.as_ref().is_some_and(|why| why.contains("--max-stop")),
            "{refused:#?}"
        );
        holds(lever(&give_back(child.pid()), "jemalloc-purge"), Bytes::from_mib(1));
        assert_eq!(child.ask("check"), "0", "{shape}");
    }
}

#[test]
fn a_redis_server() {
    let options = ["--jemalloc-bg-thread", "no"];
    let Some(mut redis) = Redis::start(&options, &[("MALLOC_CONF", "dirty_decay_ms:-1")]) else { return };
    redis.call("DEBUG POPULATE 100000 key 700");
    redis.call("EVAL \"for i = 0, 99999 do if i % 100 > 0 then redis.call('DEL', 'key:' .. i) end end\" 0");
    let digest = redis.call("DEBUG DIGEST");
    let report = give_back(redis.pid());
    holds(lever(&report, "jemalloc-purge"), Bytes::from_mib(10));
    assert_eq!(redis.call("DEBUG DIGEST"), digest);
    assert_eq!(redis.call("DBSIZE"), "1000");
}

#[test]
fn tcmalloc() {
    let program = build("../heaps/tests/programs/tcmalloc.c");
    for name in ["libtcmalloc_minimal.so.4", "libtcmalloc.so.4"] {
        let Some(library) = library(name) else { return };
        for shape in ["survivors", "all-freed"] {
            let mut child = Child::spawn(Command::new(&program).env("LD_PRELOAD", &library));
            child.ask(&format!("shape {shape}"));
            holds(lever(&give_back(child.pid()), "tcmalloc-release"), Bytes::from_mib(1));
            assert_eq!(child.ask("check"), "0", "{shape}");
        }
    }
}

/// In stops of 5 ms, in programs whose C library is not glibc; and how they go on.
#[test]
fn musl() {
    if !ebbtide_testkit::child::installed("musl-gcc") {
        return println!("skipped: musl-tools is not installed");
    }
    let source = "../heaps/tests/programs/musl.c";
    for (name, options) in [("musl", &[MUSL][..]), ("musl-static", &[MUSL, "-static"])] {
        let program = build_as(name, source, options);
        for shape in ["survivors", "small", "middling", "reallocated"] {
            let mut child = Child::spawn(&mut Command::new(&program));
            child.ask(&format!("shape {shape}"));
            let report = give_back_with(child.pid(), &Options::default());
            holds(lever(&report, "musl-pages"), Bytes::from_mib(1));
            assert!(give_back(child.pid()).predicted <= Bytes(64 << 10), "{name} {shape}");
            assert_eq!(child.ask("check"), "whole", "{name} {shape}");
        }
    }
}

/// mi_collect is not foreseen, and said to be so.
#[test]
fn mimalloc() {
    let Some(library) = library("libmimalloc.so.2") else { return };
    let program = build("../heaps/tests/programs/mimalloc.c");
    for shape in ["survivors", "freed"] {
        let mut child = Child::spawn(Command::new(&program).env("LD_PRELOAD", &library));
        child.ask(&format!("shape {shape}"));
        let report = give_back(child.pid());
        assert_eq!(lever(&report, "mi-collect").predicted, Bytes::ZERO);
        assert!(report.notes.iter().any(|note| note.contains("cannot be foreseen")), "{report:#?}");
        assert_eq!(child.ask("check"), "whole", "{shape}");
    }
}

#[test]
fn ebbtides_own() {
    let exe = std::env::current_exe().unwrap();
    // target/PROFILE/deps/THIS
    let target = exe.ancestors().nth(3).unwrap();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["build", "--quiet", "--release", "--package", "ebbtide-malloc-preload", "--target-dir"]);
    assert!(cargo.arg(target).status().unwrap().success(), "the library does not build");
    let library = target.join("release/libebbtide_malloc_preload.so");
    let program = build("../heaps/tests/programs/shapes.c");
    for shape in ["below-a-pin", "large-bins", "bursts-at-once", "ended-threads"] {
        let info = program.with_extension(format!("own-{shape}.xml"));
        let mut command = Command::new(&program);
        command.arg(shape).arg(&info).env("LD_PRELOAD", &library).env("EBBTIDE_MALLOC_THREAD", "off");
        let mut child = Child::spawn(&mut command);
        child.ask("shape");
        let content = child.ask("sum").to_owned();
        let report = give_back(child.pid());
        holds(lever(&report, "ebbtide-trim"), Bytes::ZERO);
        assert_eq!(child.ask("sum"), content, "{shape}");
        child.ask("end");
        let _ = std::fs::remove_file(info);
    }
}

#[test]
fn a_jvm() {
    if !ebbtide_testkit::child::installed("java") {
        return println!("skipped: java is not installed");
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/Churn.java");
    // Threads at work would have it collect by itself.
    let mut java = Command::new("java");
    java.args(["-Xms16m", "-Xmx600m", "-XX:+UseG1GC"]).arg(source).args(["300", "0"]);
    let mut child = Child::spawn(&mut java);
    let report = give_back_with(child.pid(), &Options { collect: true, ..Options::default() });
    assert!(returned(lever(&report, "jvm-gc")) > Bytes::from_mib(100), "{report:#?}");
    // Connected to now, it is asked again without a signal.
    give_back(child.pid());
    assert_eq!(child.ask("what is wrong?"), "0");
}

/// One that catches no SIGQUIT would end by it.
#[test]
fn jvms_that_take_no_requests() {
    if !ebbtide_testkit::child::installed("java") {
        return println!("skipped: java is not installed");
    }
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/Churn.java");
    for options in [&["-XX:+DisableAttachMechanism"][..], &["-XX:+DisableAttachMechanism", "-Xrs"]] {
        let mut child = Child::spawn(Command::new("java").args(options).arg("-Xmx100m").arg(&source));
        let patience = Duration::from_millis(300);
        let report = give_back_with(child.pid(), &Options { collect: true, patience, ..Options::default() });
        let lever = report.levers.iter().find(|lever| lever.id == "jvm-gc").unwrap();
        assert!(lever.short.as_ref().is_some_and(|why| why.contains("takes no requests")), "{report:#?}");
        assert_eq!(child.ask("what is wrong?"), "0", "{options:?}");
    }
}
