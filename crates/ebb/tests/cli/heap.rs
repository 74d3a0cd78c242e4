//! `ebb heap`: its contract on a real process, and what becomes of the process.

use crate::{Ran, ebb, run, skipped};
use ebbtide_testkit::child::installed;
use ebbtide_testkit::{Child, Nginx};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use unicode_width::UnicodeWidthStr;

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
fn a_watch_ends_well_by_a_signal_and_after_its_time() {
    let child = Child::start("kept", &[]);
    let pid = child.pid().to_string();
    for signal in [Signal::INT, Signal::TERM] {
        let mut command = ebb(&["heap", &pid, "--watch", "1h", "--csv"]);
        let mut watch = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
        // The heading and the first row are there before the hour is over.
        assert!(lines.by_ref().take(2).all(|line| line.contains(',')));
        kill_process(Pid::from_child(&watch), signal).unwrap();
        assert_eq!(lines.count(), 0);
        let ended = watch.wait_with_output().unwrap();
        assert!(ended.status.success() && ended.stderr.is_empty(), "{ended:?}");
    }
    let ran = run(&mut ebb(&["heap", &pid, "--watch", "20ms", "--for", "60ms", "--json"]));
    assert_eq!((ran.code, ran.err.as_str()), (0, ""));
    let mut times = Vec::new();
    for line in ran.out.lines() {
        let look = Ran { code: 0, out: line.to_owned(), err: String::new() }.json("heap");
        times.push(look["unix_ms"].as_u64().unwrap());
    }
    assert!(times.len() == 4 && times.is_sorted(), "{times:?}");
}

#[test]
fn a_watch_names_the_sizes_that_grow() {
    let mut child = Child::start("grows", &[]);
    let pid = child.pid().to_string();
    // It ends by itself where it never says what it should.
    let mut watch = ebb(&["heap", &pid, "--watch", "10ms", "--for", "5m"]);
    let mut watch = watch.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut rows = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(rows.next().unwrap().ends_with("GREW MOST"));
    assert!(rows.next().unwrap().contains("iB"));
    child.ask("more");
    let grown = rows.find(|row| row.contains("≤1.00 KiB +")).unwrap();
    assert!(grown.contains(" KiB") && grown.width() <= 80, "{grown}");
    drop(child);
    rows.for_each(drop);
    assert!(watch.wait().unwrap().success());
}

/// A look is taken again if the program changed below it.
#[test]
fn a_process_that_becomes_another_program_again_and_again() {
    let script = "read line; test \"$line\" && echo \"@ready $line\"; exec sh -c \"$0\" \"$0\"";
    let busy = "exec sh -c \"$0\" \"$0\" $(($1 + 1))";
    let start = |script: &str| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("echo \"@ready $$\"; {script}"), script, "0"]);
        Child::spawn(&mut command)
    };
    for script in [busy, script] {
        let child = start(script);
        for round in 0..20 {
            let options = if round % 2 == 0 { &["--json"][..] } else { &["--json", "--freeze"] };
            let ran = run(ebb(&["heap", &child.pid().to_string()]).args(options));
            match ran.code {
                0 => drop(ran.json("heap")),
                _ => drop(ran.refused().to_owned()),
            }
        }
        let state = std::fs::read_to_string(format!("/proc/{}/stat", child.pid())).unwrap();
        assert!(!state.contains(") Z ") && !state.contains(") T "), "it runs on: {state}");
    }
}

/// However far the walk is when it happens.
#[test]
fn a_process_that_is_killed_while_it_is_read() {
    for round in 0..20u32 {
        let child = Child::start("kept", &[]);
        let options = if round % 2 == 0 { &["--json"][..] } else { &["--json", "--freeze"] };
        let mut command = ebb(&["heap", &child.pid().to_string()]);
        let ebb = command.args(options).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // What is read of the other takes ever longer, and so does the way to its end.
        (0..round).for_each(|_| drop(std::fs::read(format!("/proc/{}/smaps", ebb.id()))));
        drop(child);
        let output = ebb.wait_with_output().unwrap();
        let (out, err) =
            (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
        let ran = Ran { code: output.status.code().unwrap(), out, err };
        match ran.code {
            0 => drop(ran.json("heap")),
            _ => assert!(
                ran.refused().contains("there is no process") || ran.err.contains("has ended"),
                "{ran:?}"
            ),
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

/// Calls of the C library that only a program in another language makes without unsafe code.
fn python(script: &str, argument: &str) -> Option<Child> {
    if !installed("python3") {
        skipped("python3 is not installed");
        return None;
    }
    Some(Child::spawn(Command::new("python3").args(["-c", script, argument])))
}

#[test]
fn a_process_whose_first_thread_has_ended() {
    const SCRIPT: &str = "
import ctypes, platform, sys, threading, time
main = threading.get_native_id()
def answer():
    while open('/proc/self/task/%d/stat' % main).read().rpartition(') ')[2][0] != 'Z': time.sleep(0.001)
    print('@ready', flush=True)
    sys.stdin.readline()
threading.Thread(target=answer).start()
ctypes.CDLL(None).syscall({'x86_64': 60}.get(platform.machine(), 93), 0)
";
    let Some(child) = python(SCRIPT, "") else { return };
    let pid = child.pid().to_string();
    for options in [&["--json"][..], &["--json", "--freeze"]] {
        let report = run(ebb(&["heap", &pid]).args(options)).json("heap");
        assert_eq!(report["pid"].as_u64(), Some(child.pid().into()));
        assert!(bytes(glibc(&report), "live") > 0, "{report:#}");
    }
}

#[test]
fn a_process_that_is_traced_already() {
    const SCRIPT: &str = "
import ctypes, sys
PTRACE_SEIZE = 0x4206
print('@ready', ctypes.CDLL(None).ptrace(PTRACE_SEIZE, int(sys.argv[1]), 0, 0), flush=True)
sys.stdin.readline()
";
    let child = Child::start("kept", &[]);
    let pid = child.pid().to_string();
    let Some(tracer) = python(SCRIPT, &pid) else { return };
    if tracer.said() != "0" {
        return skipped("tracing a child's sibling is forbidden here");
    }
    let refused = run(&mut ebb(&["heap", &pid, "--freeze"]));
    let said = refused.refused();
    assert!(said.contains(&format!("process {} (python3) traces it already", tracer.pid())), "{said}");
    assert!(said.contains(&format!("ebb heap {pid}")), "{said}");
    // To read it, nobody needs to trace it.
    run(&mut ebb(&["heap", &pid, "--json"])).json("heap");
}

/// Its threads are stopped in the middle of malloc now and then.
#[test]
fn a_busy_process_that_is_frozen_is_not_damaged() {
    let script =
        "print('@ready', flush=True)\nwhile True:\n    k = [[i] for i in range(100000)]\n    k = None";
    let Some(child) = python(script, "") else { return };
    for _ in 0..20 {
        let report = run(&mut ebb(&["heap", &child.pid().to_string(), "--freeze", "--json"])).json("heap");
        for heap in report["allocators"].as_array().unwrap() {
            assert_eq!(heap["corruptions"], serde_json::json!([]), "{heap:#}");
        }
    }
}

#[test]
fn a_damaged_process_that_is_frozen_is() {
    // A block is written past its end, over the size of the block behind it, which is free.
    const SCRIPT: &str = "
import ctypes, sys
libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
blocks = [libc.malloc(0x4f8) for _ in range(64)]
ctypes.memset(max(blocks[:32]) + 0x4f8, 0x41, 7)
print('@ready', hex(max(blocks[:32]) + 0x4f0), flush=True)
sys.stdin.readline()
";
    let Some(child) = python(SCRIPT, "") else { return };
    let report = run(&mut ebb(&["heap", &child.pid().to_string(), "--freeze", "--json"])).json("heap");
    let damage = glibc(&report)["corruptions"].as_array().unwrap();
    let address = u64::from_str_radix(child.said().trim_start_matches("0x"), 16).unwrap();
    assert!(damage.iter().any(|damage| damage["address"] == address), "{address:#x}: {damage:#?}");
}

/// What is foreseen comes back, the process goes on, and a dry run changes nothing.
#[test]
fn what_a_process_keeps_comes_back() {
    let mut child = Child::start("kept", &[]);
    let pid = child.pid().to_string();
    let reclaim = |options: &[&str]| run(ebb(&["reclaim", &pid, "--json"]).args(options)).json("reclaim");
    let dry = reclaim(&["--dry-run"]);
    assert!(dry["predicted_bytes"].as_u64().unwrap() >= FREED && dry["returned_bytes"].is_null(), "{dry:#}");
    let done = reclaim(&[]);
    let [foreseen, returned] = ["predicted_bytes", "returned_bytes"].map(|key| done[key].as_u64().unwrap());
    assert!(foreseen >= FREED && foreseen.abs_diff(returned) <= (256 << 10).max(returned / 50), "{done:#}");
    assert!(reclaim(&[])["predicted_bytes"].as_u64().unwrap() < 1 << 20);
    assert_eq!(child.ask("still there?"), "still there?");
    let text = run(&mut ebb(&["reclaim", &pid])).out;
    assert!(text.lines().all(|line| line.chars().count() <= 80), "{text}");
    assert!(run(&mut ebb(&["reclaim", "4194304"])).refused().contains("there is no process"));
}

/// A program whose C library is musl: what it asked for, the cause's place and the lever.
#[test]
fn a_program_on_musl() {
    if !installed("musl-gcc") {
        return skipped("musl-tools is not installed");
    }
    let program = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("on-musl");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../heaps/tests/programs/musl.c");
    let built = Command::new("musl-gcc").args(["-O1", "-pthread", "-o"]).arg(&program).arg(source).status();
    assert!(built.unwrap().success());
    let mut child = Child::spawn(&mut Command::new(program));
    let asked: u64 = child.ask("shape survivors").split(' ').nth(1).unwrap().parse().unwrap();
    let pid = child.pid().to_string();
    let report = run(&mut ebb(&["heap", &pid, "--freeze", "--json"])).json("heap");
    let heap = &report["allocators"][0];
    assert_eq!((&heap["kind"], &heap["corruptions"]), (&"musl".into(), &serde_json::json!([])), "{report:#}");
    assert!((asked..asked + (64 << 10)).contains(&bytes(heap, "requested")), "{heap:#}");
    assert!(bytes(heap, "requested") <= bytes(heap, "live"), "{heap:#}");
    let done = run(&mut ebb(&["reclaim", &pid, "--json"])).json("reclaim");
    let [foreseen, returned] = ["predicted_bytes", "returned_bytes"].map(|key| done[key].as_u64().unwrap());
    assert!(
        foreseen >= 20 << 20 && foreseen.abs_diff(returned) <= (256 << 10).max(returned / 50),
        "{done:#}"
    );
    assert_eq!(done["levers"][0]["id"], "musl-pages", "{done:#}");
    assert_eq!(child.ask("check"), "whole");
}
