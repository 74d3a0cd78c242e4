//! The rules: from a model to findings, one file for each group of causes.
//!
//! Invariants: a rule fires on its cause's decisive evidence or not at all; every finding says what it is not.
//! What is worth a finding is a share of the machine with a floor ([`worth`]), so that a gigabyte matters on a
//! laptop and not on a database host.

mod accounting;
pub mod caps;
mod cgroup;
mod fork;
mod heap;
mod inside;
mod kernel;
mod memory;
mod outliving;
mod pools;
mod runtime;
mod shared;
mod slab;

pub use cgroup::{Group, cgroup};
pub use fork::CowPair;
pub use heap::Used;
pub use inside::Inside;
pub use pools::commit_setting;

use crate::{Finding, Ledger};
use ebbtide_heaps::Heap;
use ebbtide_observe::Bytes;
use ebbtide_observe::fork::ForkSample;
use ebbtide_observe::host::HostSample;
use ebbtide_observe::host::bpf::BpfObject;
use ebbtide_observe::hsperf::Jvm;
use ebbtide_observe::process::{Detail, Name, ProcSample};
use ebbtide_observe::shared::SharedMemory;

/// What the host's rules look at.
#[derive(Debug)]
pub struct Host<'a> {
    /// The machine's own files.
    pub sample: &'a HostSample,
    /// What became of MemTotal.
    pub ledger: &'a Ledger,
    /// Every process that could be seen.
    pub processes: &'a [ProcSample],
    /// Shared memory by its objects.
    pub shared: &'a SharedMemory,
    /// Who still maps deleted tmpfs files, among the processes with much shared memory: (pid, name, its share).
    pub deleted_mapped: &'a [(u32, Name, Bytes)],
    /// Cgroups of the memory controller.
    pub cgroups: Cgroups,
    /// BPF maps that no process has open.
    pub orphan_maps: &'a [BpfObject],
    /// Processes so large that a fork may be refused.
    pub large_forks: &'a [ForkSample],
    /// Parents and children that have written to what they shared.
    pub cow: &'a [CowPair],
    /// What heaps may grow to by their own settings: (pid, setting).
    pub caps: &'a [(u32, caps::Cap)],
    /// What was seen inside processes: those that were looked into.
    pub inside: &'a [Inside<'a>],
}

/// How many cgroups there are, and how many are gone and still there.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cgroups {
    /// Removed and not yet released; `None` where that cannot be told.
    pub dying: Option<u64>,
    /// In the file system.
    pub living: u64,
    /// Where that was read.
    pub source: &'static str,
}

impl Host<'_> {
    /// The processes with the most of something, at most `most` and none that has nothing of it.
    fn largest(&self, of: impl Fn(&ProcSample) -> Bytes, most: usize) -> Vec<&ProcSample> {
        let mut some: Vec<&ProcSample> = self.processes.iter().filter(|p| of(p) > Bytes::ZERO).collect();
        some.sort_by_key(|p| std::cmp::Reverse(of(p)));
        some.truncate(most);
        some
    }
}

/// What the rules about one process look at.
#[derive(Debug)]
pub struct Subject<'a> {
    /// The process.
    pub detail: &'a Detail,
    /// The machine's own files.
    pub host: &'a HostSample,
    /// The tightest memory limit of its cgroups.
    pub limit: Option<Bytes>,
    /// Shared memory by its objects.
    pub shared: &'a SharedMemory,
    /// What bears on its forks.
    pub fork: Option<&'a ForkSample>,
    /// It as a parent or child of processes that share memory with it by copy-on-write.
    pub cow: &'a [CowPair],
    /// The JVM it runs.
    pub jvm: Option<&'a Jvm>,
    /// What is inside its heaps; empty where nobody looked.
    pub heaps: &'a [Heap],
    /// Whether its huge blocks are used, where that was watched.
    pub used: Option<&'a Used>,
    /// Whether RLIMIT_MEMLOCK does not hold for it (CAP_IPC_LOCK).
    pub may_lock: bool,
}

impl Subject<'_> {
    /// The least memory that is worth a finding about one process: less than on the whole machine, because
    /// somebody asked about this one.
    fn worth(&self) -> Bytes {
        worth(self.host.meminfo.mem_total).min(Bytes::from_mib(64))
    }

    fn file(&self, name: &str) -> String {
        format!("/proc/{}/{name}", self.detail.pid)
    }
}

/// What all heaps of the host may grow to by their settings, against its RAM and swap.
fn limits_exceed_host(host: &Host) -> Vec<Finding> {
    let mem = &host.sample.meminfo;
    caps::exceed(host.caps, mem.mem_total + mem.swap_total, "MemTotal and SwapTotal").into_iter().collect()
}

/// What the process may grow to by its own settings, against what it may have.
fn limits_exceed_box(subject: &Subject) -> Vec<Finding> {
    let pid = subject.detail.pid;
    let caps: Vec<_> = caps::caps(&subject.detail.cmdline).into_iter().map(|cap| (pid, cap)).collect();
    let total = subject.host.meminfo.mem_total;
    let found = match subject.limit.filter(|&limit| limit < total) {
        Some(limit) => caps::exceed(&caps, limit, "the tightest of its cgroups"),
        None => caps::exceed(&caps, total, "MemTotal"),
    };
    found.into_iter().collect()
}

/// Findings about one process, the answer first.
pub fn process(subject: &Subject) -> Vec<Finding> {
    let rules: [fn(&Subject) -> Vec<Finding>; 13] = [
        limits_exceed_box,
        fork::refused,
        fork::limits,
        fork::cow_process,
        shared::held,
        runtime::gc_headroom,
        heap::rule,
        memory::lazily_freed,
        memory::stacks_and_locked,
        memory::page_tables,
        memory::thp_bloat,
        accounting::shared_rss,
        accounting::virtual_only,
    ];
    let mut findings: Vec<Finding> = rules.iter().flat_map(|rule| rule(subject)).collect();
    // Doubt about the heap is no answer where something else explains as much.
    let explains = |heap: &Finding| {
        findings.iter().any(|other| other.cause.urgency() == 1 && other.bytes >= heap.bytes.scaled(0.5))
    };
    let doubt = if heap::is_answered(subject) { heap::huge_blocks(subject) } else { runtime::heap(subject) };
    let doubt = doubt.filter(|heap| !explains(heap));
    findings.extend(doubt);
    ordered(findings)
}

/// The least memory that is worth a finding on a machine of this size.
fn worth(total: Bytes) -> Bytes {
    Bytes(total.0 / 512).max(Bytes::from_mib(32))
}

/// Findings about the whole host, the answer first.
pub fn host(host: &Host) -> Vec<Finding> {
    let rules: [fn(&Host) -> Vec<Finding>; 14] = [
        limits_exceed_host,
        fork::refused_host,
        fork::cow_host,
        inside::rule,
        shared::rule,
        outliving::rule,
        slab::rule,
        kernel::rule,
        pools::reserved,
        pools::fragmented,
        pools::strict_overcommit,
        memory::lazily_freed_host,
        memory::page_tables_host,
        accounting::counted_twice,
    ];
    ordered(rules.iter().flat_map(|rule| rule(host)).collect())
}

/// The answer first: what refuses memory now, then by size, mere accounting last.
pub fn ordered(mut findings: Vec<Finding>) -> Vec<Finding> {
    findings.sort_by_key(|finding| (finding.cause.urgency(), std::cmp::Reverse(finding.bytes)));
    findings
}

#[cfg(test)]
mod testing {
    //! A healthy 16 GiB host that tests make ill.

    use super::*;
    use crate::{Cause, ledger};
    use ebbtide_observe::host::{DentryState, Meminfo};

    pub(super) fn gib(n: u64) -> Bytes {
        Bytes::from_gib(n)
    }

    pub(super) fn mib(n: u64) -> Bytes {
        Bytes::from_mib(n)
    }

    pub(super) fn healthy() -> HostSample {
        let meminfo = Meminfo {
            mem_total: gib(16),
            mem_free: gib(6),
            mem_available: gib(12),
            cached: gib(7),
            shmem: mib(40),
            anon_pages: mib(2400),
            s_reclaimable: mib(300),
            s_unreclaim: mib(100),
            page_tables: mib(20),
            ..Meminfo::default()
        };
        let dentries = DentryState { dentries: 200_000, unused: 180_000, negative: 40_000 };
        HostSample { meminfo, dentries, ..HostSample::default() }
    }

    /// A host of which only its own files are known.
    pub(super) fn alone<'a>(
        sample: &'a HostSample,
        ledger: &'a Ledger,
        shared: &'a SharedMemory,
    ) -> Host<'a> {
        Host {
            sample,
            ledger,
            processes: &[],
            shared,
            deleted_mapped: &[],
            cgroups: Cgroups::default(),
            orphan_maps: &[],
            large_forks: &[],
            cow: &[],
            caps: &[],
            inside: &[],
        }
    }

    pub(super) fn causes(sample: &HostSample) -> Vec<Cause> {
        found(sample).iter().map(|finding| finding.cause).collect()
    }

    pub(super) fn found(sample: &HostSample) -> Vec<Finding> {
        let ledger = ledger::host(sample, Vec::new(), Vec::new());
        let findings = host(&alone(sample, &ledger, &SharedMemory::default()));
        for finding in &findings {
            assert!(!finding.evidence.is_empty() && !finding.not.is_empty(), "{finding:?}");
            assert!(finding.returnable <= finding.bytes, "{finding:?}");
        }
        findings
    }

    #[test]
    fn a_healthy_host_has_no_finding() {
        assert_eq!(causes(&healthy()), []);
    }
}
