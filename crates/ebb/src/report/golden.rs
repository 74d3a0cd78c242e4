//! Whole reports of made-up targets, compared with the files in tests/golden.

use super::{Beside, Heaps, Report, Target};
use crate::render::golden;
use ebbtide_explain::growth::{Growth, Judged};
use ebbtide_explain::trend::{Rate, Slope, Undecided, Valleys, Verdict};
use ebbtide_explain::{Cause, Finding, Ledger, Line};
use ebbtide_observe::{Bytes, Unread};
use std::time::Duration;

/// Compares what `report` looks like with the golden files of `name`. Commands are never wrapped.
fn check(name: &str, report: &Report, all: bool) {
    let is_command = |line: &str| {
        let mut levers = report.findings.iter().flat_map(|finding| &finding.levers);
        levers.any(|lever| line.trim() == lever.command)
    };
    golden(name, |page| report.text(page, all), is_command);
}

fn ledger(total: Bytes, lines: impl IntoIterator<Item = Line>) -> Ledger {
    let mut ledger = Ledger::of(total);
    lines.into_iter().for_each(|line| ledger.fill(line));
    ledger
}

fn mib(id: &str, mib: u64) -> Line {
    Line::new(id, Bytes::from_mib(mib))
}

fn host() -> Report {
    let target = Target {
        kind: "host",
        name: "db-3".to_owned(),
        kernel: Some("6.12.38+deb13-amd64".to_owned()),
        total: "RAM",
        ..Target::default()
    };
    let lines = [
        mib("free", 301),
        mib("free-per-cpu", 19).note("free pages on per-CPU lists, not in MemFree"),
        mib("anon", 3_902).children([
            mib("postgres (812)", 2_110),
            mib("java (9)", 1_400),
            mib("cron (1)", 2),
        ]),
        mib("page-cache", 2_300).children([mib("files", 2_290), mib("buffers", 10)]),
        mib("slab-reclaimable", 8_954).children([mib("dentry", 8_800), mib("ext4_inode_cache", 90)]),
        mib("slab-unreclaimable", 160),
        mib("page-tables", 11),
        mib("kernel-stacks", 6),
        mib("vmalloc", 5),
    ];
    let bytes = Bytes::from_mib(8_800);
    let slab = Finding::new(
        Cause::SlabReclaimable,
        bytes,
        0.95,
        "48,056,320 negative dentries: the kernel remembers names that were looked up and do not exist.",
    )
    .evidence("/proc/meminfo", "SReclaimable 8.74 GiB, SUnreclaim 160 MiB, MemAvailable 10.7 GiB")
    .evidence("/proc/sys/fs/dentry-state", "48,056,320 of 48,100,000 dentries are negative")
    .not(Cause::Leak, "no process holds it: it is not in any RSS")
    .not(Cause::KernelLeak, "SReclaimable, not SUnreclaim: the kernel has a shrinker for it")
    .lever("find-producer", "ebb dentries --who 5s", Bytes::ZERO, "names the programs and directories")
    .lever("drop", "ebb reclaim --host dentries", bytes.scaled(0.9), "looked up again from disk");
    let twice = Finding::new(
        Cause::CountedTwice,
        Bytes::from_mib(1_024),
        0.75,
        "RSS of 40 processes sums to 3.00 GiB, of which 2.00 GiB is there once: shared_buffers of postgres.",
    )
    .evidence("/proc/*/smaps_rollup", "Rss 3.00 GiB, Pss 1.00 GiB")
    .not(Cause::SharedMemory, "it is in use, by all of them")
    .lever("look-at-pss", "ebb ps", Bytes::ZERO, "");
    let long = Finding::new(Cause::PhysicalFragmentation, Bytes::from_mib(999), 0.5, "Few large blocks.")
        .evidence("/proc/buddyinfo", "2 free blocks of order 9 and above")
        .not(Cause::Leak, "MemFree is as large as ever")
        .lever(
            "compact",
            "ebb reclaim --host compaction; cat /proc/buddyinfo /proc/pagetypeinfo",
            Bytes::from_mib(100),
            "stalls for milliseconds",
        );
    let unread = vec![Unread {
        what: "PSS of 31 processes".to_owned(),
        why: "permission denied; run as root to read it".to_owned(),
    }];
    let mut report =
        Report::new(target, ledger(Bytes::from_mib(15_990), lines), vec![slab, twice, long], unread);
    report.heaps = Some(Heaps::made_up());
    report
}

#[test]
fn golden_host() {
    check("host", &host(), false);
    check("host-all", &host(), true);
}

#[test]
fn golden_clean_host() {
    let mut report = host();
    report.findings.clear();
    report.unread.clear();
    report.heaps = None;
    check("host-clean", &report, false);
}

fn judged(id: &'static str, remark: &'static str, verdict: Verdict) -> Judged {
    Judged { id, remark, from: Bytes::from_mib(300), to: Bytes::from_mib(364), verdict }
}

#[test]
fn golden_process_with_growth() {
    let slope =
        Slope { rate: Rate(1_258_291.2), low: Rate(1_200_000.0), high: Rate(1_310_000.0), p: 0.000_01 };
    let seconds = Duration::from_secs;
    let growth = Growth {
        span: seconds(60),
        samples: 121,
        counters: vec![
            judged("anon", "RssAnon and swap", Verdict::Climb(slope)),
            judged(
                "files",
                "cache: the kernel drops it when it needs room",
                Verdict::Flat { within: Bytes(0) },
            ),
            judged("page-tables", "kernel memory for its mappings", Verdict::Undecided(Undecided::Levelling)),
            judged(
                "shmem",
                "shared memory and tmpfs it maps",
                Verdict::SawTooth {
                    drops: 5,
                    period: Some(seconds(12)),
                    amplitude: Bytes::from_mib(20),
                    valleys: Valleys::Level,
                },
            ),
            judged("stacks", "", Verdict::Flat { within: Bytes::from_kib(12) }),
        ],
    };
    let name = ebbtide_observe::Escaped(b"a) R 1\n\x1b[31m").to_string();
    let target = Target { kind: "process", name, pid: Some(4321), total: "resident", ..Target::default() };
    let lines = [
        mib("heap", 300).note("1 mapping"),
        mib("files", 50).children([mib("/usr/lib/\u{1b}]0;x\u{7}/libruby.so", 20), mib("written copies", 8)]),
        mib("thread-arenas", 14).note("31 mappings"),
    ];
    let finding = Finding::new(
        Cause::Undetermined,
        Bytes::from_mib(64),
        0.6,
        "Its own memory climbs steadily; whether it lives or was freed, only its heap can tell.",
    )
    .evidence("/proc/4321/status RssAnon", "300 MiB to 364 MiB in 60 s")
    .not(Cause::Leak, "nothing seen from outside decides it")
    .lever("watch-longer", "ebb explain 4321 --for 10m", Bytes::ZERO, "");
    let total = Bytes::from_mib(364) + Bytes::from_kib(40);
    let mut report = Report::new(target, ledger(total, lines), Vec::new(), Vec::new());
    report.beside = Beside(vec![
        ("pss", Bytes::from_mib(330), "each page divided by the processes that map it"),
        ("uss", Bytes::from_mib(310), "what ending the process would free"),
        ("swap", Bytes::ZERO, "swapped out"),
        ("page_tables", Bytes::from_kib(980), "kernel memory, in no RSS"),
    ]);
    check("process", &report.with_growth(Some((growth, vec![finding]))), false);
}

#[test]
fn golden_cgroup_with_a_long_name_watched_too_shortly() {
    let path = format!("/kubepods.slice/kubepods-burstable.slice/cri-{}.scope", "0123456789abcdef".repeat(4));
    let target = Target::cgroup(path);
    let lines =
        [mib("anon", 120), mib("page-cache", 380).children([mib("inactive", 300), mib("active", 80)])];
    let short = Verdict::Undecided(Undecided::TooShort { span: Duration::from_millis(2_000) });
    let growth = Growth {
        span: Duration::from_secs(2),
        samples: 1,
        counters: vec![judged("anon", "", short.clone()), judged("page-cache", "cache", short)],
    };
    let mut report = Report::new(target, ledger(Bytes::from_mib(512), lines), Vec::new(), Vec::new());
    report.beside = Beside(vec![
        ("working_set", Bytes::from_mib(212), "charged less inactive file pages: what Kubernetes evicts by"),
        ("limit", Bytes::from_gib(1), "the tightest of its own and those above it"),
    ]);
    check("cgroup", &report.with_growth(Some((growth, Vec::new()))), false);
}
