//! `ebb dentries --who` on real programs: each look-up pattern that makes dentries, and every way to end.
//!
//! The programs are this test binary itself, started again in a role. Handshakes, no sleeps: a program says
//! "ready" and waits for a line; ebb says that it traces before the program is told to go; it is then ended by
//! SIGINT, which is also how people end it. What needs root or tracefs is skipped without.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, statat};
use rustix::process::{Pid, Signal, geteuid, kill_process};
use serde_json::Value;
use std::ffi::CStr;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

const ROLE: &str = "EBB_TEST_ROLE";
const INSTANCES: &str = "/sys/kernel/tracing/instances";

/// Not a test of its own: what this binary does when a test starts it in a role, which is "KIND N DIRECTORY".
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let mut words = role.splitn(3, ' ');
    let (kind, n, dir) = (words.next().unwrap(), words.next().unwrap(), Path::new(words.next().unwrap()));
    let n: u64 = n.parse().unwrap();
    let missing = |at: rustix::fd::BorrowedFd<'_>, before: &str| {
        // One buffer for all paths, as C programs have.
        let mut path = format!("{before}missing").into_bytes();
        let stem = path.len();
        for i in 0..n {
            path.truncate(stem);
            write!(path, "{i}\0").unwrap();
            assert!(statat(at, CStr::from_bytes_until_nul(&path).unwrap(), AtFlags::empty()).is_err());
        }
    };
    match kind {
        "absolute" => steps(|| missing(CWD, &format!("{}/", dir.display()))),
        "working-directory" => {
            std::env::set_current_dir(dir).unwrap();
            steps(|| missing(CWD, "below/../"));
        }
        "descriptor" => {
            let fd = openat(CWD, dir, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
            steps(|| missing(rustix::fd::AsFd::as_fd(&fd), ""));
        }
        "chroot" => {
            rustix::process::chroot(dir).unwrap();
            steps(|| missing(CWD, "/etc/"));
        }
        "short-lived" => missing(CWD, &format!("{}/", dir.display())),
        other => panic!("no role {other}"),
    }
}

/// Says ready, waits for a line, does it, says done, and lives on until its input closes.
fn steps(work: impl FnOnce()) {
    let mut lines = std::io::stdin().lines();
    println!("\nready");
    if lines.next().is_some() {
        work();
        println!("\ndone");
        lines.next();
    }
}

/// This binary in a role.
struct Actor {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Actor {
    fn start(role: &str) -> Actor {
        let mut child = in_role(role).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let mut actor = Actor { child, input, output };
        actor.wait_for("ready");
        actor
    }

    fn pid(&self) -> u64 {
        self.child.id().into()
    }

    fn go(&mut self) {
        writeln!(self.input.as_mut().unwrap()).unwrap();
    }

    fn wait_for(&mut self, word: &str) {
        read_until(&mut self.output, |line| line == word);
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

fn in_role(role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "role", "--nocapture"]).env(ROLE, role);
    command
}

fn read_until(from: &mut impl BufRead, wanted: impl Fn(&str) -> bool) {
    let mut line = String::new();
    while !wanted(line.trim()) {
        line.clear();
        assert_ne!(from.read_line(&mut line).unwrap(), 0, "it ended before it said so");
    }
}

/// A running `ebb dentries`, which traces already.
struct Ebb {
    child: Child,
}

impl Ebb {
    fn start(arguments: &[&str]) -> Ebb {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ebb"));
        command.args(["dentries", "--who", "10m"]).args(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        read_until(&mut BufReader::new(child.stderr.as_mut().unwrap()), |line| line.starts_with("Tracing"));
        Ebb { child }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Ends it as Ctrl-C does and returns its report.
    fn interrupt(self) -> Output {
        self.signal(Signal::INT);
        self.child.wait_with_output().unwrap()
    }

    fn report(self) -> Value {
        let output = self.interrupt();
        assert!(output.status.success(), "{output:?}");
        let report = serde_json::from_slice(&output.stdout).unwrap();
        let schema = serde_json::from_str(include_str!("../../../schema/dentries.schema.json")).unwrap();
        let valid = jsonschema::validate(&schema, &report);
        valid.unwrap_or_else(|e| panic!("{e} at {}", e.instance_path()));
        report
    }

    fn instance(&self) -> PathBuf {
        let prefix = format!("ebb-{}-", self.child.id());
        let entries = std::fs::read_dir(INSTANCES).unwrap().map(|entry| entry.unwrap());
        let own = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(&prefix));
        own.map(|entry| entry.path()).next().expect("an instance of this ebb")
    }
}

/// Leave to trace, one test at a time: a trace is of the whole host, other tests' actors and ebbs included.
/// Where tracing cannot be tested it says why.
fn can_trace() -> Option<MutexGuard<'static, ()>> {
    static ONE: Mutex<()> = Mutex::new(());
    let why = match (geteuid().is_root(), Path::new(INSTANCES).is_dir()) {
        (false, _) => "not root",
        (_, false) => "tracefs is not mounted on /sys/kernel/tracing",
        _ => return Some(ONE.lock().unwrap_or_else(PoisonError::into_inner)),
    };
    println!("skipped: tracing: {why}");
    None
}

fn process(report: &Value, is: impl Fn(&Value) -> bool) -> &Value {
    let processes = report["processes"].as_array().unwrap();
    processes.iter().find(|p| is(p)).unwrap_or_else(|| panic!("it is not in {report:#}"))
}

fn by_pid(report: &Value, pid: u64) -> &Value {
    process(report, |p| p["pid"] == pid)
}

/// Asserts that `process` of `report` looked up about `n` missing names, and all of them in `dir`.
fn looked_up(report: &Value, process: &Value, n: u64, dir: &Path) {
    let failed = process["failed"].as_u64().unwrap();
    // Exact if nothing was lost; a little above it, because programs look for libraries too. What a busy machine
    // lost is made up for by the share of all records, which is not each process's own.
    let about = if report["lost_events"] == 0 { n * 9 / 10..n * 11 / 10 + 200 } else { n / 2..n * 2 };
    assert!(about.contains(&failed), "{process:#}");
    assert_eq!(process["mostly_in"]["path"], dir.to_str().unwrap(), "{process:#}");
    assert_eq!(process["directories"][0]["path"], dir.to_str().unwrap(), "{process:#}");
    // Every name was another one.
    assert!(process["missing_names"].as_u64().unwrap() > n / 2, "{process:#}");
}

fn trace_of(role: &str, n: u64, dir: &Path) -> (Value, Actor) {
    let mut actor = Actor::start(&format!("{role} {n} {}", dir.display()));
    let ebb = Ebb::start(&["--json", "--top", "100"]);
    actor.go();
    actor.wait_for("done");
    (ebb.report(), actor)
}

#[test]
fn the_program_and_the_directory_are_named() {
    let Some(_alone) = can_trace() else { return };
    let dir = tempfile::tempdir().unwrap();
    let (report, actor) = trace_of("absolute", 600_000, dir.path());
    assert_eq!(report["processes"][0]["pid"], actor.pid());
    looked_up(&report, &report["processes"][0], 600_000, dir.path());
    assert_eq!(report["directories"][0]["path"], dir.path().to_str().unwrap());
    assert_eq!(report["directories"][0]["by"]["pid"], actor.pid());
    assert_eq!(report["schema_version"], 1);
    let me = u64::from(std::process::id());
    assert_eq!(report["processes"][0]["parent"]["pid"], me);
    for when in ["before", "after"] {
        assert!(report["dentries"][when]["dentries"].as_u64().unwrap() > 0);
    }
}

#[test]
fn two_programs_are_told_apart() {
    let Some(_alone) = can_trace() else { return };
    let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let role = |dir: &tempfile::TempDir| format!("absolute 100000 {}", dir.path().display());
    let mut actors = dirs.each_ref().map(|dir| Actor::start(&role(dir)));
    let ebb = Ebb::start(&["--json", "--top", "100"]);
    actors.iter_mut().for_each(Actor::go);
    actors.iter_mut().for_each(|actor| actor.wait_for("done"));
    let report = ebb.report();
    for (actor, dir) in actors.iter().zip(&dirs) {
        looked_up(&report, by_pid(&report, actor.pid()), 100_000, dir.path());
    }
}

#[test]
fn relative_paths_are_resolved() {
    let Some(_alone) = can_trace() else { return };
    let dir = tempfile::tempdir().unwrap();
    for role in ["working-directory", "descriptor"] {
        let (report, actor) = trace_of(role, 50_000, dir.path());
        looked_up(&report, by_pid(&report, actor.pid()), 50_000, dir.path());
    }
}

#[test]
fn a_chroot_is_seen_from_outside() {
    let Some(_alone) = can_trace() else { return };
    let jail = tempfile::tempdir().unwrap();
    std::fs::create_dir(jail.path().join("etc")).unwrap();
    let (report, actor) = trace_of("chroot", 50_000, jail.path());
    let process = by_pid(&report, actor.pid());
    looked_up(&report, process, 50_000, &jail.path().join("etc"));
    assert_eq!(process["root"], jail.path().to_str().unwrap());
}

#[test]
fn short_lived_processes_are_one_family() {
    let Some(_alone) = can_trace() else { return };
    let dir = tempfile::tempdir().unwrap();
    let ebb = Ebb::start(&["--json", "--top", "100"]);
    let lookups = format!("short-lived 3000 {}", dir.path().display());
    for _ in 0..20 {
        assert!(in_role(&lookups).stdout(Stdio::null()).status().unwrap().success());
    }
    let report = ebb.report();
    // Other tests' actors have the same name and parent, but live on.
    let family =
        process(&report, |p| p["processes"].as_u64() >= Some(20) && p["failed"].as_u64() >= Some(50_000));
    assert_eq!(family["pid"], Value::Null);
    assert_eq!(family["parent"]["pid"], u64::from(std::process::id()));
    let unknown = family["unknown_directory"].as_u64().unwrap();
    if unknown * 10 > family["lookups"].as_u64().unwrap() * 9 {
        return println!(
            "skipped: directories: an emulated machine reads too late, {unknown} paths were gone"
        );
    }
    assert_eq!(family["directories"][0]["path"], dir.path().to_str().unwrap(), "{family:#}");
}

#[test]
fn an_interrupted_trace_prints_what_it_has_and_leaves_nothing() {
    let Some(_alone) = can_trace() else { return };
    let ebb = Ebb::start(&[]);
    let instance = ebb.instance();
    let output = ebb.interrupt();
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("tracing took"));
    assert!(!instance.exists());
}

/// How many probes the ebb with this pid has.
fn probes_of(pid: u32) -> usize {
    let all = std::fs::read_to_string("/sys/kernel/tracing/kprobe_events").unwrap_or_default();
    all.lines().filter(|line| line.contains(&format!("ebb_{pid}_"))).count()
}

#[test]
fn a_killed_traces_instance_goes_with_the_next_start_and_a_living_ones_stays() {
    let Some(_alone) = can_trace() else { return };
    let living = Ebb::start(&[]);
    let mut killed = Ebb::start(&[]);
    let (instance, other) = (killed.instance(), living.instance());
    let foreign = Path::new(INSTANCES).join(format!("not-ebb-{}", std::process::id()));
    std::fs::create_dir(&foreign).unwrap();
    killed.signal(Signal::KILL);
    killed.child.wait().unwrap();
    let next = Ebb::start(&[]);
    let left = (instance.exists(), other.exists(), foreign.exists());
    std::fs::remove_dir(&foreign).unwrap();
    assert_eq!(left, (false, true, true));
    let (killed, lives) = (killed.child.id(), living.child.id());
    assert_eq!(probes_of(killed), 0);
    // Where this kernel makes probes, the living one still has its own.
    assert_eq!(probes_of(lives) > 0, probes_of(next.child.id()) > 0);
    next.interrupt();
    living.interrupt();
    assert!(!other.exists());
    assert_eq!(probes_of(lives), 0);
}

#[test]
fn without_root_it_says_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("ebb");
    let mut command = Command::new(env!("CARGO_BIN_EXE_ebb"));
    if geteuid().is_root() {
        // Where the build lies nobody else may be able to go.
        assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_ebb")).arg(&program).status().unwrap().success());
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(dir.path(), open).unwrap();
        command = Command::new(&program);
        command.uid(65534).gid(65534);
    }
    let output = command.args(["dentries", "--who", "100ms"]).current_dir("/").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("permission denied") && said.contains("sudo ebb dentries --who 5s"), "{said}");
    assert!(output.stdout.is_empty());
}
