//! The lab as a program: the ready line, the ways out (end of input, SIGTERM, SIGKILL and the next start),
//! and a check of a stand-in `ebb` that is wrong on purpose.
#![allow(clippy::unwrap_used)]

use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// 400 MiB: no part of a case takes more than 100.
const BOX: &str = "419430400";

/// Cases measure the whole host (Shmem), so no two run at once.
static HOST: Mutex<()> = Mutex::new(());

/// A case that runs, with a temporary directory (and so a journal) of its own.
struct Running {
    child: Child,
    ready: Value,
    /// Held while it runs.
    alone: MutexGuard<'static, ()>,
}

fn lab(tmp: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ebbtide-lab"));
    command.env("TMPDIR", tmp).stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

impl Running {
    fn start(tmp: &Path, case: &str) -> Running {
        Running::beside(HOST.lock().unwrap_or_else(PoisonError::into_inner), tmp, case)
    }

    fn beside(alone: MutexGuard<'static, ()>, tmp: &Path, case: &str) -> Running {
        let mut child = lab(tmp).args(["run", case, "--box", BOX]).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let ready: Value =
            serde_json::from_str(&line).unwrap_or_else(|e| panic!("{case} said {line:?}: {e}"));
        assert_eq!(ready["ready"], true, "{ready}");
        Running { child, ready, alone }
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap()
    }

    fn signal(&self, signal: i32) {
        let pid = rustix::process::Pid::from_raw(self.pid()).unwrap();
        let signal = rustix::process::Signal::from_named_raw(signal).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// The file that shared-memory/dev-shm makes.
    fn shm(&self) -> PathBuf {
        Path::new("/dev/shm").join(format!("ebbtide-lab-{}", self.pid()))
    }
}

/// What is left of journals in `tmp`.
fn journals(tmp: &Path) -> Vec<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    fs::read_dir(tmp.join(format!("ebbtide-lab-{uid}"))).unwrap().map(|e| e.unwrap().path()).collect()
}

#[test]
fn a_case_ends_with_its_input() {
    let tmp = tempfile::tempdir().unwrap();
    let mut running = Running::start(tmp.path(), "shared-memory/dev-shm");
    assert!(running.shm().exists());
    assert_eq!(running.ready["figures"]["shm_bytes"], 100 << 20);
    assert_eq!(running.ready["pid"], running.pid());
    drop(running.child.stdin.take());
    assert!(running.child.wait().unwrap().success());
    assert!(!running.shm().exists());
    assert!(journals(tmp.path()).is_empty());
}

#[test]
fn a_case_cleans_up_on_sigterm() {
    let tmp = tempfile::tempdir().unwrap();
    let mut running = Running::start(tmp.path(), "shared-memory/dev-shm");
    let _open = running.child.stdin.take();
    running.signal(libc::SIGTERM);
    assert!(running.child.wait().unwrap().success());
    assert!(!running.shm().exists());
    assert!(journals(tmp.path()).is_empty());
}

#[test]
fn the_next_start_cleans_up_after_a_kill() {
    let tmp = tempfile::tempdir().unwrap();
    let mut killed = Running::start(tmp.path(), "shared-memory/dev-shm");
    killed.signal(libc::SIGKILL);
    killed.child.wait().unwrap();
    assert!(killed.shm().exists());
    let shm = killed.shm();
    let mut next = Running::beside(killed.alone, tmp.path(), "innocent/idle");
    assert!(!shm.exists());
    drop(next.child.stdin.take());
    assert!(next.child.wait().unwrap().success());
    assert!(journals(tmp.path()).is_empty());
}

/// The end of an orphan has no event for a process that is not its parent: bounded polling.
#[test]
fn actors_die_with_their_stage() {
    let tmp = tempfile::tempdir().unwrap();
    let mut running = Running::start(tmp.path(), "shared-memory/memfd-two-holders");
    let holder = format!("/proc/{}/status", running.ready["figures"]["holder_pid"]);
    assert!(Path::new(&holder).exists());
    running.signal(libc::SIGKILL);
    running.child.wait().unwrap();
    let until = Instant::now() + Duration::from_secs(20);
    while fs::read_to_string(&holder).is_ok_and(|status| !status.contains("State:\tZ")) {
        assert!(Instant::now() < until, "{holder} is still there");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_case_whose_actor_dies_says_so() {
    let tmp = tempfile::tempdir().unwrap();
    let mut running = Running::start(tmp.path(), "shared-memory/memfd");
    let holder = i32::try_from(running.ready["figures"]["holder_pid"].as_i64().unwrap()).unwrap();
    let holder = rustix::process::Pid::from_raw(holder).unwrap();
    let _open = running.child.stdin.take();
    rustix::process::kill_process(holder, rustix::process::Signal::KILL).unwrap();
    assert_eq!(running.child.wait().unwrap().code(), Some(2));
    assert!(journals(tmp.path()).is_empty());
}

/// Checks two cases with an `ebb` that answers everything with `answer`.
fn check(tmp: &Path, answer: &str) -> (Output, Value) {
    let ebb = tmp.join("ebb");
    fs::write(&ebb, format!("#!/bin/sh\n{answer}\n")).unwrap();
    fs::set_permissions(&ebb, fs::Permissions::from_mode(0o755)).unwrap();
    let json = tmp.join("result.json");
    let output = lab(tmp)
        .args(["check", "--only", "innocent/idle,lazily-freed/300m", "--box", BOX])
        .arg("--ebb")
        .arg(&ebb)
        .arg("--json")
        .arg(&json)
        .output()
        .unwrap();
    let result = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    (output, result)
}

#[test]
fn an_ebb_that_finds_nothing_misses_the_incident() {
    let tmp = tempfile::tempdir().unwrap();
    let answer = r#"echo '{"schema_version":1,"target":{"kind":"process"},"findings":[]}'"#;
    let (output, result) = check(tmp.path(), answer);
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert_eq!((&result["right"], &result["wrong"]), (&1.into(), &1.into()), "{said}");
    assert!(said.contains("named nothing") && said.ends_with("1 passed, 1 failed, 0 skipped\n"), "{said}");
}

#[test]
fn an_ebb_that_fails_misses_everything() {
    let tmp = tempfile::tempdir().unwrap();
    let (output, result) = check(tmp.path(), "echo no such process >&2; exit 2");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(result["wrong"], 2);
    assert!(String::from_utf8_lossy(&output.stdout).contains("no such process"));
}

#[test]
fn nonsense_is_refused() {
    let tmp = tempfile::tempdir().unwrap();
    for args in
        [&["run", "no/such-case"][..], &["check"], &["--frobnicate"], &["run", "innocent/idle", "--box", "x"]]
    {
        let output = lab(tmp.path()).args(args).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(!output.stderr.is_empty());
    }
}

#[test]
fn the_readme_has_the_table_of_cases() {
    let tmp = tempfile::tempdir().unwrap();
    let output = lab(tmp.path()).arg("list").output().unwrap();
    let table = String::from_utf8(output.stdout).unwrap();
    let readme = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    assert!(readme.contains(&table), "put the output of `ebbtide-lab list` into lab/README.md");
}
