//! Awkward targets: none, many, dead, dying, changing, huge, and with names made to harm.

use crate::programs::{HOSTILE, HOSTILE_SHOWN, hex};
use crate::{assert_harmless, ebb, run, skipped};
use ebbtide_testkit::Child;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::process::{Command, Stdio};

#[test]
fn targets_that_are_none() {
    for target in [
        "0",
        "4194305",
        "4294967295",
        "4294967296",
        "99999999999999999999999",
        "-1",
        "",
        " 1",
        "1x",
        "../1",
        "self",
        "no such \x1b[31mprocess\n",
    ] {
        for verb in [&["explain"][..], &["explain", "--for", "10m"], &["fork"], &["heap"]] {
            run(ebb(verb).arg(target)).refused();
        }
        assert!(run(ebb(&["ps"]).arg("--").arg(target)).code == 0, "{target:?}");
    }
    for path in ["", "no/such", "/no/such", "/../../etc", "/proc/self", "/sys/fs/cgroup/../..", "\x1b[31m"] {
        run(&mut ebb(&["explain", "--cgroup", path])).refused();
    }
}

#[test]
fn a_name_that_two_processes_have_is_none() {
    let name = "ebb-twins";
    let first = Child::start("named", &[&hex(name)]);
    assert!(run(&mut ebb(&["explain", name])).out.contains(name));
    let second = Child::start("named", &[&hex(name)]);
    let ran = run(&mut ebb(&["explain", name]));
    let said = ran.refused();
    for pid in [first.pid(), second.pid()] {
        assert!(said.contains(&pid.to_string()), "{said}");
    }
}

#[test]
fn a_zombie_has_ended() {
    let mut child = Child::start("named", &[&hex("ebb-zombie")]);
    child.make_zombie();
    let pid = child.pid().to_string();
    // Not after ten minutes.
    for verb in [&["explain", &pid][..], &["explain", &pid, "--for", "10m"], &["heap", &pid]] {
        assert!(run(&mut ebb(verb)).refused().contains("zombie"), "{verb:?}");
    }
    assert!(run(&mut ebb(&["fork", &pid])).refused().contains("it has ended"));
    let list = run(&mut ebb(&["ps", "ebb-zombie", "--json"])).json("ps");
    assert_eq!(list["processes"], Value::Array(Vec::new()), "it holds nothing");
}

#[test]
fn a_kernel_thread_is_the_kernels() {
    if std::fs::read_to_string("/proc/2/comm").unwrap_or_default() != "kthreadd\n" {
        return skipped("process 2 is not kthreadd: a pid namespace");
    }
    assert!(run(&mut ebb(&["explain", "2"])).refused().contains("kernel thread"));
    assert!(run(&mut ebb(&["heap", "2"])).refused().contains("kernel thread"));
    run(&mut ebb(&["fork", "2"])).refused();
}

#[test]
fn hostile_names_are_shown_harmless() {
    for (name, shown) in [
        (HOSTILE.as_bytes(), HOSTILE_SHOWN),
        (b"\xff\xfe ebb \xe2\x82", "\\xff\\xfe ebb \\xe2\\x82"),
        ("ebb\u{202e}txt".as_bytes(), "ebb\\u{202e}txt"),
    ] {
        let child = Child::start("named", &[&hex(name)]);
        let pid = child.pid().to_string();
        let (explain, fork) = (["explain", &pid], ["fork", "--for", "100ms", &pid]);
        for arguments in
            [&["ps"][..], &explain, &fork, &["heap", &pid], &["--all"], &["explain", "--host", "--all"]]
        {
            let ran = run(&mut ebb(arguments));
            assert!(ran.code < 2 && ran.err.is_empty(), "{ran:?}");
            assert_harmless(&ran.out);
            assert!(arguments.last() == Some(&"--all") || ran.out.contains(shown), "{ran:?}");
        }
        let report = run(&mut ebb(&["explain", &pid, "--json"])).report();
        assert_eq!(report["target"]["name"], shown);
        let list = run(&mut ebb(&["ps", "--json"]));
        assert_harmless(&list.out);
        let list = list.json("ps");
        let own = list["processes"].as_array().unwrap().iter().find(|p| p["pid"] == child.pid());
        assert_eq!(own.unwrap()["name"], shown);
    }
    // It is found by the name it has.
    let child = Child::start("named", &[&hex(HOSTILE)]);
    let report = run(&mut ebb(&["explain", HOSTILE, "--json"])).report();
    assert_eq!(report["target"]["pid"], child.pid());
}

/// 65,230 mappings are 60 MB of smaps, and memory is bounded all the same.
#[test]
fn as_many_mappings_as_there_may_be() {
    let child = Child::start("mappings", &[]);
    assert!(child.said().parse::<u64>().unwrap() > 10_000);
    let pid = child.pid().to_string();
    // Not of fork: it measures on a scratch process of its own, which is part of its children's peak.
    for arguments in [&["explain", &pid, "--json"][..], &["ps"], &[]] {
        let measured = Child::start("peak of ebb", arguments);
        let (code, peak) = measured.said().split_once(' ').unwrap();
        assert!(matches!(code, "0" | "1"), "{arguments:?}: {code}");
        assert!(peak.parse::<u64>().unwrap() < 24 << 20, "{arguments:?}: a peak of {peak} bytes");
    }
    run(&mut ebb(&["explain", &pid, "--json"])).report();
}

/// An `ebb explain PID --for 10m --json` that watches already.
struct Watch(std::process::Child);

impl Watch {
    fn start(target: &str) -> Watch {
        let mut command = ebb(&["explain", target, "--for", "10m", "--json"]);
        let watch = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It says nothing before its time is up, so the handshake is what it opens to be interrupted by.
        let fds = format!("/proc/{}/fd", watch.id());
        let is_signalfd = |fd: std::fs::DirEntry| {
            std::fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().contains("signalfd"))
        };
        for _ in 0..60_000 {
            if std::fs::read_dir(&fds).is_ok_and(|fds| fds.flatten().any(is_signalfd)) {
                return Watch(watch);
            }
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        panic!("it never began to watch: {:?}", watch.wait_with_output());
    }

    fn interrupt(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }

    fn report(self) -> Value {
        let output = self.0.wait_with_output().unwrap();
        let (out, err) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        crate::Ran { code: output.status.code().unwrap(), out, err }.report()
    }
}

#[test]
fn a_process_that_ends_while_it_is_watched() {
    let child = Child::start("named", &[&hex("ebb-ending")]);
    let watch = Watch::start(&child.pid().to_string());
    // Killed and reaped: nothing is left of it.
    drop(child);
    let report = watch.report();
    assert_eq!(report["target"]["name"], "ebb-ending");
    assert!(report["growth"]["seconds"].as_f64() < Some(600.0), "{report:#}");
    assert_eq!(report["unread"][0]["what"], "the end of the watch", "{report:#}");
}

#[test]
fn a_process_that_execs_while_it_is_watched() {
    let mut child = Child::start("execs", &[]);
    let watch = Watch::start(&child.pid().to_string());
    child.tell("exec");
    // cat answers what it is told: by then the old memory is gone.
    assert_eq!(child.ask("@ready cat"), "cat");
    watch.interrupt(Signal::INT);
    let report = watch.report();
    assert_eq!((&report["target"]["name"], &report["target"]["pid"]), (&"cat".into(), &child.pid().into()));
}

#[test]
fn an_interrupted_watch_says_what_it_saw() {
    let child = Child::start("named", &[&hex("ebb-watched")]);
    for (target, signal) in [(child.pid().to_string(), Signal::INT), ("--host".to_owned(), Signal::TERM)] {
        let watch = Watch::start(&target);
        watch.interrupt(signal);
        let report = watch.report();
        assert!(report["growth"]["samples"].as_u64() >= Some(1), "{report:#}");
        assert!(report["growth"]["seconds"].as_f64() < Some(600.0), "{report:#}");
    }
}

/// Processes come and go while all are read.
#[test]
fn a_busy_host() {
    let script = "echo '@ready '; read line; while :; do /bin/true; done";
    let mut busy = Child::spawn(Command::new("sh").args(["-c", script]));
    busy.tell("go");
    for _ in 0..5 {
        run(&mut ebb(&["ps", "--json"])).json("ps");
        run(&mut ebb(&["--json"])).report();
    }
}
