//! `slab-reclaimable`: dentries, inodes and other caches the kernel drops when it needs the memory.

use super::{Host, worth};
use crate::{Cause, Finding, count};
use ebbtide_observe::Bytes;

/// From this share of MemTotal on, reclaimable slab is worth a word even if its dentries are of real files.
const LARGE: f64 = 0.10;

/// From this share on, the negative dentries are the story: somebody asks for names that do not exist. A host
/// at rest has 10 to 40 of 100 (shared libraries and configuration files are searched for along paths).
const MOSTLY_NEGATIVE: f64 = 0.5;

pub(super) fn rule(host: &Host) -> Vec<Finding> {
    let mem = &host.sample.meminfo;
    let state = &host.sample.dentries;
    let negative_share = state.negative as f64 / state.dentries.max(1) as f64;
    let negative = negative_bytes(host, negative_share);
    if negative_share >= MOSTLY_NEGATIVE && negative >= worth(mem.mem_total) {
        return vec![negative_dentries(host, negative)];
    }
    if mem.s_reclaimable.share_of(mem.mem_total) >= LARGE {
        return vec![large_caches(host)];
    }
    Vec::new()
}

/// Size of a dentry where slabinfo cannot be read: struct dentry is 192 bytes on 64-bit kernels since 2.6.38
/// (measured: 21 to a page on 6.1 and 6.18).
const DENTRY: Bytes = Bytes(4096 / 21);

/// What the negative ones take: their share of the dentry cache, and of the cache their long names are in
/// (names above 39 bytes are kmalloc-rcl objects of their own: fs/dcache.c, DNAME_INLINE_LEN).
fn negative_bytes(host: &Host, share: f64) -> Bytes {
    let Some(slabs) = &host.sample.slabs else { return DENTRY * host.sample.dentries.negative };
    let names: Bytes = slabs
        .caches
        .iter()
        .filter(|cache| cache.name.starts_with("kmalloc-rcl-"))
        .map(|cache| cache.bytes)
        .sum();
    (slabs.bytes("dentry") + names).scaled(share)
}

fn negative_dentries(host: &Host, bytes: Bytes) -> Finding {
    let state = &host.sample.dentries;
    let summary = format!(
        "{} negative dentries: the kernel remembers names that were looked up and do not exist. It drops them \
         when memory gets short; until then they look like used memory.",
        count(state.negative)
    );
    let says = format!("{} of {} dentries are negative", count(state.negative), count(state.dentries));
    base(host, Finding::new(Cause::SlabReclaimable, bytes, 0.95, summary))
        .evidence("/proc/sys/fs/dentry-state", says)
        .lever(
            "find-producer",
            "ebb dentries --who 5s",
            Bytes::ZERO,
            "names the programs and directories whose look-ups make them",
        )
        .lever("drop-dentries", DROP, bytes.scaled(RETURNED), DROP_RISK)
}

fn large_caches(host: &Host) -> Finding {
    let mem = &host.sample.meminfo;
    let largest = host.sample.slabs.as_ref().map(|slabs| {
        let caches = slabs.caches.iter().filter(|cache| cache.is_reclaimable()).take(3);
        caches.map(|cache| format!("{} {}", cache.name, cache.bytes)).collect::<Vec<_>>().join(", ")
    });
    let summary = format!(
        "{} of RAM is kernel caches of dentries, inodes and the like. The kernel drops them when memory gets short.",
        mem.s_reclaimable
    );
    let unused = host.sample.dentries.unused as f64 / host.sample.dentries.dentries.max(1) as f64;
    let returned = mem.s_reclaimable.scaled(unused.min(1.0) * RETURNED);
    let finding = base(host, Finding::new(Cause::SlabReclaimable, mem.s_reclaimable, 0.9, summary));
    match largest {
        Some(largest) => finding.evidence("/proc/slabinfo", format!("largest: {largest}")),
        None => finding,
    }
    .lever("drop-dentries", DROP, returned, DROP_RISK)
}

const DROP: &str = "ebb reclaim --host dentries";
const DROP_RISK: &str = "every dentry and inode in use by nobody is looked up again from disk afterwards";

/// A slab page goes back only with its last object: measured 0.97 of the bytes of unused dentries made in one
/// run on 6.18; older, more mixed slabs return less.
const RETURNED: f64 = 0.9;

fn base(host: &Host, finding: Finding) -> Finding {
    let mem = &host.sample.meminfo;
    finding
        .evidence(
            "/proc/meminfo",
            format!(
                "SReclaimable {}, SUnreclaim {}, MemAvailable {}",
                mem.s_reclaimable, mem.s_unreclaim, mem.mem_available
            ),
        )
        .not(
            Cause::Leak,
            "no process holds it: it is not in any RSS, and MemAvailable counts it as available",
        )
        .not(Cause::KernelLeak, "SReclaimable, not SUnreclaim: the kernel has a shrinker for it")
}

#[cfg(test)]
mod tests {
    use super::super::testing::{alone, causes, healthy, mib};
    use super::*;
    use ebbtide_observe::host::{DentryState, Slabs};
    use ebbtide_observe::shared::SharedMemory;

    #[test]
    fn many_negative_dentries() {
        let mut s = healthy();
        s.dentries = DentryState { dentries: 659_000, unused: 655_000, negative: 649_741 };
        assert_eq!(causes(&s), [Cause::SlabReclaimable]);
        s.dentries.negative = 100_000;
        assert_eq!(causes(&s), [], "few of them negative");
        s.dentries = DentryState { dentries: 60_000, unused: 59_000, negative: 58_000 };
        assert_eq!(causes(&s), [], "too few to matter");
    }

    #[test]
    fn their_names_count_with_them() {
        let mut s = healthy();
        s.dentries = DentryState { dentries: 100_000, unused: 99_000, negative: 50_000 };
        s.slabs = Some(Slabs::parse(
            b"dentry 1 1 192 21 1 : tunables 0 0 0 : slabdata 0 25600 0\n\
              kmalloc-rcl-64 1 1 64 64 1 : tunables 0 0 0 : slabdata 0 2560 0\n",
        ));
        let ledger = crate::ledger::host(&s, vec![], vec![]);
        let findings = rule(&alone(&s, &ledger, &SharedMemory::default()));
        assert_eq!(findings[0].bytes, mib(55));
    }

    #[test]
    fn large_positive_caches() {
        let mut s = healthy();
        s.meminfo.s_reclaimable = mib(3000);
        assert_eq!(causes(&s), [Cause::SlabReclaimable]);
    }
}
