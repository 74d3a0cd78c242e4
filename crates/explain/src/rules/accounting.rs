//! `counted-twice` and `virtual-only`: figures that look like memory and are none.

use super::{Host, Subject};
use crate::{Cause, Finding, count};
use ebbtide_observe::process::{Counters, ProcSample};
use ebbtide_observe::{Bytes, Pages};

/// RSS is worth a warning when its sum is this many times what is really there.
const TIMES: u64 = 3;

/// Sum of RSS against sum of PSS, over all processes.
pub(super) fn counted_twice(host: &Host) -> Vec<Finding> {
    let counted: Vec<(&ProcSample, Counters)> = host
        .processes
        .iter()
        .filter_map(|p| Some((p, p.counters()?)))
        .filter(|(_, c)| c.rss > Bytes::ZERO)
        .collect();
    let rss: Bytes = counted.iter().map(|(_, c)| c.rss).sum();
    let pss: Bytes = counted.iter().map(|(_, c)| c.pss).sum();
    let floor = host.sample.meminfo.mem_total.scaled(0.25).max(Bytes::from_gib(1));
    if rss - pss < floor || rss < pss * TIMES {
        return Vec::new();
    }
    let mut sharers = counted;
    sharers.sort_by_key(|(_, c)| std::cmp::Reverse(c.rss - c.pss));
    let names: Vec<String> =
        sharers.iter().take(3).map(|(p, c)| format!("{} (pid {}) {}", p.name(), p.pid, c.rss)).collect();
    let summary = format!(
        "RSS counts {rss} in {} processes, but they hold {pss}: memory they share is in the RSS of each. Nothing is lost.",
        count(sharers.len() as u64)
    );
    vec![
        Finding::new(Cause::CountedTwice, rss - pss, 0.97, summary)
            .evidence("/proc/*/smaps_rollup", format!("sum of Rss {rss}, sum of Pss {pss}"))
            .evidence("/proc/*/smaps_rollup", format!("largest shares: {}", names.join(", ")))
            .not(Cause::Leak, "the difference is one piece of memory seen from many processes")
            .lever("look-at-pss", "ebb ps", Bytes::ZERO, "shows PSS: each shared page divided by its users"),
    ]
}

/// One process whose RSS is mostly others' too.
pub(super) fn shared_rss(subject: &Subject) -> Vec<Finding> {
    let c = &subject.detail.counters;
    let shared = c.rss - c.pss;
    if shared < subject.worth().max(Bytes::from_mib(64)) || c.rss < c.pss * TIMES {
        return Vec::new();
    }
    let summary = format!(
        "RSS says {}, but most of it is shared with other processes: this one's share is {}, and ending it would free {}.",
        c.rss,
        c.pss,
        c.uss()
    );
    vec![
        Finding::new(Cause::CountedTwice, shared, 0.95, summary)
            .evidence(
                subject.file("smaps_rollup"),
                format!("Rss {}, Pss {}, private {}", c.rss, c.pss, c.uss()),
            )
            .not(Cause::Leak, "shared pages are there once, however many processes map them")
            .lever("look-at-pss", "ebb ps", Bytes::ZERO, "shows PSS: each shared page divided by its users"),
    ]
}

/// Address space beyond which people take VSZ for memory: a JVM reserves a quarter of RAM, Go and Node a
/// gigabyte, and all of that is ordinary.
const FAR_BEYOND: Bytes = Bytes::from_gib(16);

/// One process with far more address space than memory.
pub(super) fn virtual_only(subject: &Subject) -> Vec<Finding> {
    let size = subject.detail.vm.size;
    let touched = subject.detail.counters.rss + subject.detail.counters.swap + subject.detail.vm.page_tables;
    if size < FAR_BEYOND.max(subject.host.meminfo.mem_total) || size < touched * 10 {
        return Vec::new();
    }
    let reserved = subject.detail.reserved;
    let summary = format!(
        "VSZ says {size}, but that is address space: {touched} of it is memory. A reservation costs nothing until it is touched."
    );
    vec![
        Finding::new(Cause::VirtualOnly, size - touched, 0.97, summary)
            .evidence(subject.file("status"), format!("VmSize {size}, VmRSS {}", subject.detail.vm.rss))
            .evidence(
                subject.file("smaps"),
                format!(
                    "{reserved} without access or without charge; page tables {}",
                    subject.detail.vm.page_tables
                ),
            )
            .not(Cause::Leak, "no page is behind it")
            .not(
                Cause::PageTables,
                format!(
                    "{} of page tables: {} pages",
                    subject.detail.vm.page_tables,
                    pages(subject.detail.vm.page_tables)
                ),
            ),
    ]
}

fn pages(bytes: Bytes) -> String {
    count(bytes.0 / Pages(1).bytes().0.max(1))
}
