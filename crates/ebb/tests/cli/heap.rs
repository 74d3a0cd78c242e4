//! `ebb heap`: its contract on a real process, and what becomes of the process.

use crate::{ebb, run};
use ebbtide_testkit::{Child, Nginx};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// What [`crate::programs`]'s "kept" has freed, nearly.
const FREED: u64 = 60 << 20;

fn glibc(report: &Value) -> &Value {
    let allocators = report["allocators"].as_array().unwrap();
    allocators.iter().find(|heap| heap["kind"] == "glibc").unwrap_or_else(|| panic!("{report:#}"))
}

fn bytes(heap: &Value, name: &str) -> u64 {
    heap[format!("{name}_bytes")].as_u64().unwrap_or_else(|| panic!("{name} in {heap:#}"))
}

#[test]
fn every_byte_is_in_one_line() {
    let child = Child::start("kept", &[]);
    let pid = child.pid().to_string();
    let report = run(&mut ebb(&["heap", &pid, "--json"])).json("heap");
    assert_eq!(
        (report["pid"].as_u64(), report["longest_stop_us"].as_u64()),
        (Some(child.pid().into()), Some(0))
    );
    let heap = glibc(&report);
    let sum: u64 =
        ["live", "cached", "free", "metadata", "unused"].map(|name| bytes(heap, name)).iter().sum();
    assert_eq!(sum, bytes(heap, "mapped"), "{heap:#}");
    assert!(bytes(heap, "returnable") >= FREED, "{heap:#}");
    assert!(bytes(heap, "returnable") + bytes(heap, "pinned_free") <= bytes(heap, "free"), "{heap:#}");
    let text = run(&mut ebb(&["heap", &pid, "--all"]));
    assert!(text.code == 0 && text.out.contains("can be given back"), "{text:?}");
    assert!(text.out.lines().all(|line| line.chars().count() <= 80), "{}", text.out);
}

#[test]
fn a_frozen_process_runs_on_and_the_stop_is_told() {
    let mut child = Child::start("kept", &[]);
    let pid = child.pid().to_string();
    let report = run(&mut ebb(&["heap", &pid, "--freeze", "--json"])).json("heap");
    assert!(report["longest_stop_us"].as_u64().unwrap() > 0, "{report:#}");
    let heap = glibc(&report);
    assert_eq!(heap["certainty"]["still"], true, "{heap:#}");
    assert_eq!(bytes(&heap["certainty"], "unresolved"), 0, "{heap:#}");
    assert_eq!(child.ask("still there?"), "still there?");
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("TracerPid:\t0\n"), "{status}");
}

#[test]
fn the_cause_is_named() {
    let child = Child::start("kept", &[]);
    let ran = run(&mut ebb(&["explain", &child.pid().to_string(), "--json"]));
    let report = ran.report();
    assert_eq!(report["findings"][0]["cause"], "allocator-retention", "{report:#}");
    assert!(report["findings"][0]["bytes"].as_u64().unwrap() >= FREED);
}

#[test]
fn a_watch_has_a_row_for_each_look_and_ends_with_its_process() {
    let child = Child::start("kept", &[]);
    let pid = child.pid().to_string();
    let mut watch = ebb(&["heap", &pid, "--watch", "10ms", "--csv"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    let columns = lines.next().unwrap();
    assert!(columns.starts_with("unix_ms,allocator,"), "{columns}");
    for row in lines.by_ref().take(5) {
        assert_eq!(row.split(',').count(), columns.split(',').count(), "{row}");
        assert!(row.split(',').nth(1) == Some("glibc"), "{row}");
    }
    drop(child);
    lines.for_each(drop);
    let ended = watch.wait_with_output().unwrap();
    assert!(ended.status.success(), "{ended:?}");
    assert!(String::from_utf8_lossy(&ended.stderr).contains("has ended"), "{ended:?}");
}

#[test]
fn a_watch_ends_well_when_its_reader_goes() {
    let child = Child::start("kept", &[]);
    let pid = child.pid().to_string();
    for options in [&["--csv"][..], &["--json"], &[]] {
        let mut watch = ebb(&["heap", &pid, "--watch", "10ms"]);
        let mut watch = watch.args(options).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(watch.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(!line.is_empty() && watch.wait().unwrap().success(), "{options:?}");
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let child = Child::start("kept", &[]);
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut watch = ebb(&["heap", &child.pid().to_string(), "--watch", "10ms", "--csv"]);
    let output = watch.stdout(full).stderr(Stdio::piped()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot write"), "{output:?}");
}

#[test]
fn a_process_that_becomes_another_program_is_read_or_refused() {
    let mut child = Child::start("execs", &[]);
    let pid = child.pid().to_string();
    let watch = |pid: &str| -> Command { ebb(&["heap", pid, "--json"]) };
    run(&mut watch(&pid)).json("heap");
    child.tell("go");
    for _ in 0..20 {
        let ran = run(&mut watch(&pid));
        match ran.code {
            0 => drop(ran.json("heap")),
            _ => drop(ran.refused().to_owned()),
        }
    }
}

/// The answer about an nginx worker after its bursts: garbage before a collection, kept pages after it.
#[test]
fn an_nginx_worker_with_lua() {
    let Some(nginx) = Nginx::start() else { return };
    let pid = nginx.pid().to_string();
    let first = || {
        let report = run(&mut ebb(&["explain", &pid, "--json"])).report();
        let finding = report["findings"][0].clone();
        assert!(finding["summary"].as_str().is_some_and(|text| text.contains("LuaJIT")), "{report:#}");
        let cause = finding["cause"].as_str().unwrap().to_owned();
        (cause, finding["bytes"].as_u64().unwrap())
    };
    nginx.run("collectgarbage() collectgarbage('stop')");
    nginx.burst();
    let (cause, bytes) = first();
    assert!(cause == "gc-headroom" && bytes > 50 << 20, "{cause} {bytes}");
    nginx.run("collectgarbage('restart')");
    (0..4).for_each(|_| nginx.burst());
    nginx.run("collectgarbage() collectgarbage()");
    let (cause, bytes) = first();
    assert!(cause == "allocator-retention" && bytes > 100 << 20, "{cause} {bytes}");
}
