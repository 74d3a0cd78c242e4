//! `overcommit-refusal`, `other-limit` and `cow-after-fork`: what stands in the way of a fork, and what one cost.

use super::{Host, Subject, worth};
use crate::fork::{Outcome, predict};
use crate::{Cause, Finding, count};
use ebbtide_observe::Bytes;
use ebbtide_observe::fork::ForkSample;
use ebbtide_observe::process::Name;

/// A limit counts as met from this share of it on.
const NEARLY: f64 = 0.95;

/// One process whose forks are refused.
pub(super) fn refused(subject: &Subject) -> Vec<Finding> {
    subject.fork.and_then(refusal).into_iter().collect()
}

/// Processes of the host whose forks are refused for want of books, not of memory.
pub(super) fn refused_host(host: &Host) -> Vec<Finding> {
    host.large_forks
        .iter()
        .filter_map(refusal)
        .filter(|finding| finding.cause == Cause::OvercommitRefusal)
        .collect()
}

fn refusal(sample: &ForkSample) -> Option<Finding> {
    let prediction = predict(sample);
    let Outcome::Refused(refusal) = prediction.outcome else { return None };
    let who = format!("{} (pid {})", sample.name, sample.pid);
    let available = sample.memory.mem_available;
    if refusal.errno == "EAGAIN" {
        let summary = format!(
            "{who} cannot fork or start threads: {}. Programs report that as lack of memory.",
            refusal.reason
        );
        return Some(
            Finding::new(Cause::OtherLimit, Bytes::ZERO, 0.95, summary)
                .evidence(refusal.limit, refusal.reason)
                .not(Cause::OvercommitRefusal, "EAGAIN: a count is at its limit, not memory")
                .not(Cause::Leak, format!("{available} of RAM is available")),
        );
    }
    let summary = format!("{who} cannot fork: {}, though {available} of RAM is available.", refusal.reason);
    let mode = sample.sysctls.get("vm/overcommit_memory").unwrap_or_default();
    Some(
        Finding::new(Cause::OvercommitRefusal, prediction.charge, 0.95, summary)
            .evidence(refusal.limit, refusal.reason)
            .evidence("/proc/sys/vm/overcommit_memory", mode.to_string())
            .evidence(format!("/proc/{}/smaps", sample.pid), charged(sample))
            .not(Cause::Leak, "address space is counted here, whether or not a page is behind it")
            .not(Cause::VirtualOnly, "its size does matter: the kernel counts it when it forks")
            .lever(
                "dontfork",
                "madvise(MADV_DONTFORK) on the large mapping, or posix_spawn instead of fork",
                Bytes::ZERO,
                "a change in the program",
            )
            .lever(
                "overcommit-mode",
                "ebb tune vm.overcommit_memory=1 --apply --for 1h",
                Bytes::ZERO,
                "the kernel then promises any amount; what is touched beyond RAM ends in an OOM kill",
            ),
    )
}

fn charged(sample: &ForkSample) -> String {
    match sample.charge {
        Some(charge) => format!(
            "charged mappings {}, the largest {} at {:x}",
            charge.total, charge.largest, charge.largest_start
        ),
        None => "could not be read".to_owned(),
    }
}

/// Limits of one process that look like lack of memory.
pub(super) fn limits(subject: &Subject) -> Vec<Finding> {
    let detail = subject.detail;
    let mut found = Vec::new();
    let mut nearly = |what: &str, current: f64, max: f64, shown: String, errno: &str, raise: &str| {
        if max > 0.0 && current / max >= NEARLY {
            let summary = format!(
                "{what} is at its limit: {shown}. The next mmap or malloc fails with {errno} while memory is free."
            );
            found.push(
                Finding::new(Cause::OtherLimit, Bytes::ZERO, 0.95, summary)
                    .evidence(what, shown)
                    .not(Cause::OvercommitRefusal, "the overcommit rules allow it; this limit does not")
                    .not(Cause::Leak, "a limit says nothing of what the memory is for")
                    .lever(
                        "raise",
                        raise,
                        Bytes::ZERO,
                        "takes effect at once, or at the program's next start for RLIMIT_*",
                    ),
            );
        }
    };
    if let Some(max) = subject.host.sysctls.get("vm/max_map_count") {
        let shown = format!("{} of {} mappings", count(detail.mappings), count(max));
        nearly(
            "vm.max_map_count",
            detail.mappings as f64,
            max as f64,
            shown,
            "ENOMEM",
            "ebb tune vm.max_map_count=262144 --apply",
        );
    }
    let Some(limits) = &detail.limits else { return found };
    let locked_counts = !subject.may_lock;
    for (what, current, limit, raise) in [
        ("RLIMIT_AS", detail.vm.size, limits.address_space.soft, "ulimit -v, LimitAS="),
        ("RLIMIT_DATA", detail.vm.data, limits.data.soft, "ulimit -d, LimitDATA="),
        (
            "RLIMIT_MEMLOCK",
            detail.vm.locked,
            limits.locked.soft.filter(|_| locked_counts),
            "ulimit -l, LimitMEMLOCK=",
        ),
    ] {
        let Some(limit) = limit else { continue };
        let errno = if what == "RLIMIT_MEMLOCK" { "ENOMEM or EAGAIN" } else { "ENOMEM" };
        // A limit of a few pages is met by nothing that matters.
        if limit >= Bytes::from_kib(64) {
            nearly(what, current.0 as f64, limit.0 as f64, format!("{current} of {limit}"), errno, raise);
        }
    }
    found
}

/// A parent and a child that share memory by copy-on-write, and what they no longer share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CowPair {
    /// The parent.
    pub parent: (u32, Name),
    /// The child.
    pub child: (u32, Name),
    /// Pages that each has for itself.
    pub copied: Bytes,
    /// The child's resident set.
    pub child_rss: Bytes,
}

pub(super) fn cow_host(host: &Host) -> Vec<Finding> {
    cow(host.cow, worth(host.sample.meminfo.mem_total) * 2)
}

pub(super) fn cow_process(subject: &Subject) -> Vec<Finding> {
    cow(subject.cow, subject.worth())
}

fn cow(pairs: &[CowPair], floor: Bytes) -> Vec<Finding> {
    let mut pairs: Vec<&CowPair> =
        pairs.iter().filter(|pair| pair.copied.share_of(pair.child_rss) >= 0.1).collect();
    pairs.sort_by_key(|pair| std::cmp::Reverse(pair.copied));
    let copied: Bytes = pairs.iter().map(|pair| pair.copied).sum();
    let Some(first) = pairs.first() else { return Vec::new() };
    if copied < floor {
        return Vec::new();
    }
    let summary = format!(
        "{copied} is there twice: {} (pid {}) forked, and parent and child have written since to what they shared.",
        first.parent.1, first.parent.0
    );
    let mut finding = Finding::new(Cause::CowAfterFork, copied, 0.9, summary);
    for pair in pairs.iter().take(4) {
        finding = finding.evidence(
            format!("/proc/{}/smaps", pair.child.0),
            format!(
                "{} of {} private where its parent (pid {}) has memory too",
                pair.copied, pair.child_rss, pair.parent.0
            ),
        );
    }
    vec![
        finding
            .not(Cause::Leak, "copies of pages that were shared; they go when the child ends")
            .not(Cause::CountedTwice, "these pages are private: they really are there twice")
            .lever(
                "end-child",
                "let the child end sooner, fork before loading, or use posix_spawn",
                Bytes::ZERO,
                "a change in the program",
            ),
    ]
}
