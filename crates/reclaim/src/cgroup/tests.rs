//! Both versions on fake roots: what is written, and what is refused.

use super::*;
use ebbtide_testkit::FakeRoot;
use std::time::Duration;

const V2: &str = "41 31 0:38 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
const V1: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";

fn meminfo(swap_kib: u64, free_kib: u64) -> String {
    format!("MemTotal: 9000000 kB\nSwapTotal: {swap_kib} kB\nSwapFree: {free_kib} kB\n")
}

/// 50 MiB of cache in a group of 100 MiB.
fn v2() -> FakeRoot {
    let dir = "sys/fs/cgroup/a b";
    FakeRoot::new()
        .file("proc/self/mountinfo", V2)
        .file("proc/meminfo", meminfo(0, 0))
        .file("sys/fs/cgroup/cgroup.controllers", "memory\n")
        .file(format!("{dir}/cgroup.controllers"), "memory\n")
        .file(format!("{dir}/memory.current"), "104857600\n")
        .file(format!("{dir}/memory.stat"), "inactive_file 52428800\ninactive_anon 52428800\n")
        .file(format!("{dir}/memory.reclaim"), "")
}

fn run(fake: &FakeRoot, path: &str, goal: Goal, dry_run: bool) -> Result<Report, LeverError> {
    let root = Root::at(fake.path()).unwrap();
    let hierarchy = Hierarchy::find(&root).unwrap().unwrap();
    let mut terms = Terms { dry_run, patience: Duration::from_secs(60), watch: &mut |_, _| {} };
    reclaim(&root, &hierarchy, Path::new(path), goal, &mut terms)
}

fn written(fake: &FakeRoot, file: &str) -> String {
    std::fs::read_to_string(fake.path().join("sys/fs/cgroup").join(file)).unwrap()
}

#[test]
fn v2_is_asked_step_by_step() {
    let fake = v2();
    let plan = run(&fake, "/a b", Goal::Caches, true).unwrap();
    assert_eq!((plan.predicted, plan.returned), (Bytes::from_mib(45), None));
    assert_eq!(written(&fake, "a b/memory.reclaim"), "");
    let report = run(&fake, "/a b", Goal::Bytes(Bytes::from_mib(40)), false).unwrap();
    // Nothing comes back from a fake; the writes lie one behind the other.
    assert_eq!(written(&fake, "a b/memory.reclaim"), format!("{}{}", 32 << 20, 8 << 20));
    assert_eq!(report.returned, Some(Bytes::ZERO));
    assert!(report.levers[0].fell_short() && report.notes.iter().any(|note| note.contains("no swap")));
}

#[test]
fn v2_leaves_anonymous_memory_alone_where_caches_are_enough() {
    let fake = v2().file("proc/meminfo", meminfo(1_000_000, 1_000_000));
    let report = run(&fake, "/a b", Goal::Bytes(Bytes::from_mib(8)), false).unwrap();
    assert_eq!(written(&fake, "a b/memory.reclaim"), format!("0 swappiness=0{} swappiness=0", 8 << 20));
    assert_eq!(report.predicted, Bytes::from_mib(8));
}

#[test]
fn v2_without_the_file_or_the_figures() {
    let fake = v2();
    fake.remove("sys/fs/cgroup/a b/memory.reclaim");
    let missing = run(&fake, "/a b", Goal::Caches, false).unwrap_err();
    assert!(missing.to_string().contains("does not have it"), "{missing}");
    let root = run(&fake, "/", Goal::Caches, true).unwrap_err();
    assert!(root.to_string().contains("--host"), "{root}");
    assert!(matches!(run(&fake, "/gone", Goal::Caches, false), Err(LeverError::Read(_))));
}

fn v1(meminfo: String) -> FakeRoot {
    let dir = "sys/fs/cgroup/memory/x";
    FakeRoot::new()
        .file("proc/self/mountinfo", V1)
        .file("proc/meminfo", meminfo)
        .file(format!("{dir}/memory.usage_in_bytes"), "104857600\n")
        .file(format!("{dir}/memory.limit_in_bytes"), "9223372036854771712\n")
        .file(
            format!("{dir}/memory.stat"),
            "total_inactive_file 52428800\ntotal_inactive_anon 31457280\ntotal_active_anon 10485760\n",
        )
        .file(format!("{dir}/memory.force_empty"), "")
}

#[test]
fn v1_takes_all_or_nothing() {
    let fake = v1(meminfo(0, 0));
    let report = run(&fake, "/x", Goal::Caches, false).unwrap();
    assert_eq!((report.predicted, report.returned), (Bytes::from_mib(50), Some(Bytes::ZERO)));
    assert_eq!(written(&fake, "memory/x/memory.force_empty"), "0");
    assert!(run(&fake, "/x", Goal::Bytes(Bytes(1)), false).is_err());
}

#[test]
fn v1_never_fills_swap() {
    let fake = v1(meminfo(100_000, 30_000));
    let refused = run(&fake, "/x", Goal::Caches, false).unwrap_err();
    assert!(refused.to_string().contains("40.0 MiB of anonymous memory"), "{refused}");
    assert_eq!(written(&fake, "memory/x/memory.force_empty"), "");
}
