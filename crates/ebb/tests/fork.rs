//! `ebb fork` against real forks: whatever it predicts, the process then really forks, and the two must agree.
//!
//! The processes are this test binary itself, started again in a role, and a real redis-server. It runs under
//! whatever overcommit mode the host has; those of the virtual machine add mode 2. The large mappings of mode 0
//! (one beyond RAM, MADV_DONTFORK and so on) are cases of the lab.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ebbtide_observe::host::{Meminfo, Sysctls};
use ebbtide_observe::{Bytes, Root};
use ebbtide_testkit::Redis;
use rustix::process::{Resource, Rlimit, geteuid, getuid, setrlimit};
use serde_json::Value;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const ROLE: &str = "EBB_TEST_ROLE";

/// Not a test of its own: what this binary does when a test starts it in a role. Each role says "ready", waits
/// for a line, forks, and says how that went.
#[test]
fn role() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let words: Vec<&str> = role.split(' ').collect();
    let held: Vec<Vec<u8>> = match words[..] {
        ["allocate", size, times] => {
            // Only reserved, never touched: address space is what the rules count.
            (0..times.parse().unwrap()).map(|_| Vec::with_capacity(size.parse().unwrap())).collect()
        }
        ["tasks-left", left] => {
            let own = ebbtide_observe::Process::open(&Root::live().unwrap(), std::process::id()).unwrap();
            let limit = u64::from(own.status().unwrap().threads) + left.parse::<u64>().unwrap();
            setrlimit(Resource::Nproc, Rlimit { current: Some(limit), maximum: Some(limit) }).unwrap();
            Vec::new()
        }
        _ => panic!("no role {role}"),
    };
    println!("\nready");
    let mut lines = std::io::stdin().lines();
    if lines.next().is_some() {
        // Asking for a user makes std fork and not posix_spawn, which copies nothing.
        match Command::new("/bin/true").uid(getuid().as_raw()).status() {
            Ok(_) => println!("\nforked"),
            Err(e) => println!("\nerrno {}", e.raw_os_error().unwrap_or(0)),
        }
        lines.next();
    }
    drop(std::hint::black_box(held));
}

struct Actor {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Actor {
    fn start(role: &str, uid: Option<u32>, program: &Path) -> Actor {
        let mut command = Command::new(program);
        command.args(["--exact", "role", "--nocapture"]).env(ROLE, role).current_dir("/");
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (input, output) = (child.stdin.take(), BufReader::new(child.stdout.take().unwrap()));
        let mut actor = Actor { child, input, output };
        actor.line(|line| line == "ready");
        actor
    }

    /// Lets it fork: None if that went well, or the error.
    fn fork(&mut self) -> Option<&'static str> {
        writeln!(self.input.as_mut().unwrap()).unwrap();
        let said = self.line(|line| line == "forked" || line.starts_with("errno "));
        match said.as_str() {
            "forked" => None,
            "errno 12" => Some("ENOMEM"),
            "errno 11" => Some("EAGAIN"),
            other => panic!("{other}"),
        }
    }

    fn line(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        let mut line = String::new();
        while !wanted(line.trim()) {
            line.clear();
            assert_ne!(self.output.read_line(&mut line).unwrap(), 0, "it ended before it said so");
        }
        line.trim().to_owned()
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.wait();
    }
}

fn own() -> PathBuf {
    std::env::current_exe().unwrap()
}

/// What ebb says about `pid`, which must be as its schema has it.
fn predict(pid: u32, arguments: &[&str]) -> Value {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ebb"));
    let output = command.args(["fork", &pid.to_string(), "--json"]).args(arguments).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let report = serde_json::from_slice(&output.stdout).unwrap();
    let schema = serde_json::from_str(include_str!("../../../schema/fork.schema.json")).unwrap();
    jsonschema::validate(&schema, &report).unwrap_or_else(|e| panic!("{e} at {}", e.instance_path()));
    report
}

/// Predicts, lets it fork, and returns what both say.
fn predicted_and_real(actor: &mut Actor) -> (Value, Option<&'static str>) {
    let report = predict(actor.child.id(), &["--for", "100ms"]);
    let real = actor.fork();
    assert_eq!(report["would_succeed"], real.is_none(), "{real:?}: {report:#}");
    assert_eq!(report["errno"].as_str(), real, "{report:#}");
    (report, real)
}

#[test]
fn the_overcommit_rule_of_this_host() {
    let root = Root::live().unwrap();
    let memory = Meminfo::read(&root).unwrap();
    let mode = Sysctls::read(&root).get("vm/overcommit_memory").unwrap();
    // What one request may have, and whether the fork of a process that has 60 % of it is refused.
    let (bound, refused) = match mode {
        0 => (memory.mem_total + memory.swap_total, None),
        1 => (memory.mem_total * 4, None),
        _ => (memory.commit_limit - memory.committed_as, Some("CommitLimit")),
    };
    for (share, times, limit) in
        [(0.3, 1, None), (0.6, 1, refused), (0.85, if mode == 2 { 1 } else { 2 }, None)]
    {
        let size = bound.scaled(share);
        let mut actor = Actor::start(&format!("allocate {} {times}", size.0), None, &own());
        let (report, real) = predicted_and_real(&mut actor);
        // Whether two reservations become one mapping is the kernel's choice; then the real fork alone decides.
        if share < 0.8 {
            assert_eq!(report["limit"].as_str(), limit, "mode {mode}: {report:#}");
        }
        println!("mode {mode}, {times} x {size}: {}", real.unwrap_or("forked"));
        assert!(report["charge_bytes"].as_u64().unwrap() >= size.0);
        let headroom = report["headroom_bytes"].as_u64().map(Bytes);
        assert_eq!(headroom.is_none(), mode == 1);
    }
}

#[test]
fn a_limit_on_the_users_tasks() {
    if !geteuid().is_root() {
        return println!("skipped: RLIMIT_NPROC: not root");
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("role");
    // By a process of its own: a file that this one has open for writing may be inherited by another test's
    // child, and then cannot be run (ETXTBSY).
    assert!(Command::new("cp").arg(own()).arg(&program).status().unwrap().success());
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    // A user that nobody else is.
    let user = 3_000_000 + std::process::id();
    for (left, limit) in [(0, Some("RLIMIT_NPROC")), (1, None)] {
        let mut actor = Actor::start(&format!("tasks-left {left}"), Some(user), &program);
        let (report, _) = predicted_and_real(&mut actor);
        assert_eq!(report["limit"].as_str(), limit, "{report:#}");
    }
    // Root is exempt from its own.
    let mut root = Actor::start("tasks-left 0", None, &own());
    assert_eq!(predicted_and_real(&mut root).1, None);
}

/// A cgroup with a pids controller that is removed at the end.
struct Group(PathBuf);

impl Group {
    fn make() -> Option<Group> {
        for top in ["/sys/fs/cgroup/pids", "/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            let dir = Path::new(top).join(format!("ebb-fork-test-{}", std::process::id()));
            if std::fs::create_dir(&dir).is_err() {
                continue;
            }
            let group = Group(dir);
            if group.0.join("pids.max").exists() && group.0.join("cgroup.procs").exists() {
                return Some(group);
            }
        }
        None
    }

    fn set(&self, file: &str, value: impl ToString) {
        std::fs::write(self.0.join(file), value.to_string()).unwrap();
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}

#[test]
fn a_limit_of_a_cgroup_above() {
    let Some(group) = Group::make() else {
        return println!("skipped: pids.max: no pids controller that this user may make groups in");
    };
    for (left, limit) in [(0, Some("pids.max")), (1, None)] {
        let mut actor = Actor::start("allocate 0 0", None, &own());
        group.set("pids.max", "max");
        group.set("cgroup.procs", actor.child.id());
        let tasks = std::fs::read_to_string(group.0.join("pids.current")).unwrap();
        group.set("pids.max", tasks.trim().parse::<u64>().unwrap() + left);
        let (report, _) = predicted_and_real(&mut actor);
        assert_eq!(report["limit"].as_str(), limit, "{report:#}");
    }
}

#[test]
fn a_redis_server_that_saves_in_the_background() {
    let Some(mut redis) = Redis::start(&[], &[]) else { return };
    redis.call("DEBUG POPULATE 200000 key 1000");
    let pid = redis.pid();
    let quiet = predict(pid, &["--for", "200ms"]);
    assert_eq!(quiet["would_succeed"], true, "{quiet:#}");
    assert_eq!(quiet["live_forks"].as_array().unwrap().len(), 0);
    assert!(quiet["cow"]["worst_case_bytes"].as_u64().unwrap() > 200_000_000);
    // The child saves one key in a millisecond, so it lives for as long as the test looks.
    redis.call("CONFIG SET rdb-key-save-delay 1000");
    redis.call("BGSAVE");
    assert_eq!(redis.info("rdb_bgsave_in_progress"), 1);
    println!(
        "fork: predicted {} of {} us, redis-server took {} us",
        quiet["page_table_copy_us"],
        quiet["page_table_copy_us_range"],
        redis.info("latest_fork_usec")
    );
    // Every page is written once more: all is copied.
    for n in 0..200_000 {
        if n % 4 == 0 {
            redis.call(&format!("SETRANGE key:{n} 0 y"));
        }
    }
    let saving = predict(pid, &["--for", "100ms"]);
    let forks = saving["live_forks"].as_array().unwrap();
    assert_eq!(forks.len(), 1, "{saving:#}");
    assert!(forks[0]["cow_bytes"].as_u64().unwrap() > 100_000_000, "{saving:#}");
}

#[test]
fn a_writers_rate_is_seen() {
    let Some(mut redis) = Redis::start(&[], &[]) else { return };
    redis.call("DEBUG POPULATE 50000 key 1000");
    let idle = predict(redis.pid(), &["--for", "200ms"])["dirty_bytes_per_s"].as_u64().unwrap();
    let pid = redis.pid();
    let watching = std::thread::spawn(move || predict(pid, &["--for", "1s"]));
    let mut n: u64 = 0;
    while !watching.is_finished() {
        redis.call(&format!("SETRANGE key:{} 0 {}", n * 7919 % 50_000, n));
        n += 1;
    }
    let busy = watching.join().unwrap()["dirty_bytes_per_s"].as_u64().unwrap();
    assert!(busy > 10 * idle.max(100_000), "{busy} against {idle} bytes/s with {n} writes");
}

#[test]
fn what_cannot_fork_is_an_error_that_says_so() {
    for (target, says) in
        [("4194304", "no process"), ("no-such-name", "no process is named"), ("2", "no memory")]
    {
        let output = Command::new(env!("CARGO_BIN_EXE_ebb")).args(["fork", target]).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{target}: {said}");
        assert!(said.contains(says), "{target}: {said}");
    }
}
