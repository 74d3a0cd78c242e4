//! Causes that one process's own mappings decide: `lazily-freed`, `stacks-and-locked`, `page-tables`,
//! `thp-bloat`.

use super::{Host, Subject, worth};
use crate::{Cause, Finding, count};
use ebbtide_observe::Bytes;
use ebbtide_observe::process::ProcSample;

/// Lazily freed pages are worth a word from this share of the resident set on.
const PART_OF_RSS: f64 = 0.10;

pub(super) fn lazily_freed(subject: &Subject) -> Vec<Finding> {
    let c = &subject.detail.counters;
    if c.lazy_free < subject.worth() || c.lazy_free.share_of(c.rss) < PART_OF_RSS {
        return Vec::new();
    }
    vec![
        lazy(c.lazy_free, format!("{} of its RSS", c.lazy_free))
            .evidence(subject.file("smaps_rollup"), format!("LazyFree {}, Rss {}", c.lazy_free, c.rss)),
    ]
}

fn lazy(bytes: Bytes, what: String) -> Finding {
    let summary = format!(
        "{what} was given up with MADV_FREE. It still counts as resident, but the kernel takes it the moment it needs it."
    );
    Finding::new(Cause::LazilyFreed, bytes, 0.97, summary)
        .not(Cause::Leak, "the program freed it")
        .not(Cause::AllocatorRetention, "the allocator has given it back; only the counter has not moved")
}

/// Lazily freed pages of all processes.
pub(super) fn lazily_freed_host(host: &Host) -> Vec<Finding> {
    let freed = |p: &ProcSample| p.counters().map_or(Bytes::ZERO, |c| c.lazy_free);
    let total: Bytes = host.processes.iter().map(freed).sum();
    if total < worth(host.sample.meminfo.mem_total) * 2 {
        return Vec::new();
    }
    let mut finding = lazy(total, format!("{total} of processes' RSS"));
    for process in host.largest(freed, 3) {
        let says = format!("{}: LazyFree {}", process.name(), freed(process));
        finding = finding.evidence(format!("/proc/{}/smaps_rollup", process.pid), says);
    }
    vec![finding]
}

/// Stacks and locked memory: what a program makes resident without using it. Locked memory that holds data is
/// the program's own business; locked pages that are all zero were locked for nothing.
pub(super) fn stacks_and_locked(subject: &Subject) -> Vec<Finding> {
    let detail = subject.detail;
    let stacks = &detail.stacks;
    let empty = detail.locked.map_or(Bytes::ZERO, |sample| detail.locked_rss.scaled(sample.zero_share()));
    let bytes = stacks.prefaulted + empty;
    if bytes < subject.worth() || bytes.share_of(detail.counters.rss) < PART_OF_RSS {
        return Vec::new();
    }
    let summary = if stacks.prefaulted >= empty {
        format!(
            "{} threads' stacks are resident from end to end: {} of them lie below the stack pointers, prefaulted \
             or locked, and hold nothing.",
            stacks.prefaulted_count, stacks.prefaulted
        )
    } else {
        format!("{empty} of its locked memory holds nothing: mlock made it resident, not use.")
    };
    let mut finding = Finding::new(Cause::StacksAndLocked, bytes, 0.9, summary).evidence(
        subject.file("smaps"),
        format!("{} stacks of threads: {} mapped, {} resident", stacks.count, stacks.size, stacks.rss),
    );
    if let Some(sample) = &detail.locked {
        let share = sample.zero_share() * 100.0;
        let says = format!("of {} locked pages sampled {share:.0}% are all zero", count(sample.present));
        finding = finding.evidence("the target's memory", says);
    }
    vec![
        finding
            .evidence(
                subject.file("status"),
                format!("VmLck {}, Threads {}", detail.vm.locked, detail.status.threads),
            )
            .not(
                Cause::Leak,
                "it does not grow with work: it was made resident when the threads or the lock were",
            )
            .not(Cause::ArenaMultiplication, "these mappings are stacks or locked ranges, not heaps")
            .lever(
                "lock-on-fault",
                "mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT)",
                Bytes::ZERO,
                "a change in the program; or smaller stacks: ulimit -s, pthread_attr_setstacksize",
            ),
    ]
}

/// Ordinary page tables are 1/512 of what they map (8 bytes for each 4 KiB). This many times that is sparse.
const SPARSE: u64 = 16;

pub(super) fn page_tables(subject: &Subject) -> Vec<Finding> {
    let tables = subject.detail.vm.page_tables;
    let mapped =
        subject.detail.counters.rss + subject.detail.counters.swap + subject.detail.counters.hugetlb();
    let dense = Bytes(mapped.0 / 512);
    if tables < subject.worth() || tables < dense * SPARSE {
        return Vec::new();
    }
    vec![tables_finding(tables, mapped).evidence(
        subject.file("status"),
        format!("VmPTE {tables} for {mapped} of memory; {dense} would be ordinary"),
    )]
}

fn tables_finding(tables: Bytes, mapped: Bytes) -> Finding {
    let summary = format!(
        "page tables take {tables} for {mapped} of memory: pages touched far apart need a table each, and the tables stay after the pages are gone."
    );
    Finding::new(Cause::PageTables, tables, 0.93, summary)
        .not(Cause::Leak, "kernel memory that goes with the mapping; it is in no RSS")
        .not(Cause::KernelLeak, "PageTables and VmPTE account for it")
        .lever(
            "unmap",
            "munmap, or madvise(MADV_DONTNEED) over whole ranges",
            Bytes::ZERO,
            "a change in the program; huge pages for large dense mappings",
        )
}

/// Page tables of all processes: what each has beyond four times the ordinary, so that many processes that map the
/// same memory densely are not taken for sparse ones.
pub(super) fn page_tables_host(host: &Host) -> Vec<Finding> {
    let excess = |p: &ProcSample| {
        let mapped = p.counters().map_or(Bytes::ZERO, |c| c.rss + c.swap + c.hugetlb());
        p.page_tables().unwrap_or_default() - Bytes(mapped.0 / 512) * 4
    };
    let total: Bytes = host.processes.iter().map(excess).sum();
    if total < worth(host.sample.meminfo.mem_total) * 2 {
        return Vec::new();
    }
    let sparse = host.largest(excess, usize::MAX);
    let mapped = sparse.iter().filter_map(|p| p.counters()).map(|c| c.rss + c.swap).sum();
    let tables: Bytes = sparse.iter().filter_map(|p| p.page_tables()).sum();
    let mut finding = tables_finding(tables, mapped)
        .evidence("/proc/meminfo", format!("PageTables {}", host.sample.meminfo.page_tables));
    for process in sparse.iter().take(3) {
        let says = format!("{}: VmPTE {}", process.name(), process.page_tables().unwrap_or_default());
        finding = finding.evidence(format!("/proc/{}/status", process.pid), says);
    }
    vec![finding]
}

/// From this share of untouched small pages on, huge pages are bloat. A dense heap has 0 to 10 of 100.
const UNTOUCHED: f64 = 0.5;

pub(super) fn thp_bloat(subject: &Subject) -> Vec<Finding> {
    let Some(thp) = &subject.detail.huge else { return Vec::new() };
    let bloat = subject.detail.counters.anon_huge_pages.scaled(thp.zero_share());
    if bloat < subject.worth() || thp.zero_share() < UNTOUCHED || thp.windows < 4 {
        return Vec::new();
    }
    let huge = subject.detail.counters.anon_huge_pages;
    let summary = format!(
        "{huge} of its memory is in transparent huge pages, and about {bloat} of that holds nothing: the kernel gave or refilled 2 MiB where the program uses a few KiB."
    );
    vec![
        Finding::new(Cause::ThpBloat, bloat, 0.92, summary)
            .evidence(
                subject.file("smaps_rollup"),
                format!("AnonHugePages {huge}, Rss {}", subject.detail.counters.rss),
            )
            .evidence(
                "the target's memory",
                format!(
                    "{} huge pages sampled: {:.0}% of their 4 KiB pages are all zero",
                    count(thp.windows),
                    thp.zero_share() * 100.0
                ),
            )
            .not(Cause::Leak, "the program did not ask for these pages: khugepaged or the page fault did")
            .lever(
                "max-ptes-none",
                "ebb tune khugepaged.max_ptes_none=0 --apply --for 1h",
                Bytes::ZERO,
                "stops refilling for every process; what is filled stays until it is split or freed",
            ),
    ]
}
