//! `reserved-pool`, `physical-fragmentation` and `overcommit-refusal` of the whole host: memory that is free
//! and cannot be had.

use super::{Host, worth};
use crate::{Cause, Finding};
use ebbtide_observe::host::{Meminfo, Zone};
use ebbtide_observe::{Bytes, Pages};

pub(super) fn reserved(host: &Host) -> Vec<Finding> {
    let idle: Bytes = host.sample.huge_pools.iter().map(|pool| pool.idle()).sum();
    if idle < worth(host.sample.meminfo.mem_total) {
        return Vec::new();
    }
    let summary = format!(
        "{idle} is reserved as hugetlb pages that nobody uses. Only programs that ask for hugetlb pages can have it."
    );
    let mut finding = Finding::new(Cause::ReservedPool, idle, 0.97, summary);
    for pool in host.sample.huge_pools.iter().filter(|pool| pool.total > 0) {
        let says = format!("{} pages, {} free, {} of them promised", pool.total, pool.free, pool.reserved);
        finding = finding.evidence(format!("/sys/kernel/mm/hugepages, {} pages", pool.page), says);
    }
    vec![
        finding
            .lever(
                "shrink-pool",
                "ebb reclaim --host hugetlb",
                idle,
                "a program that starts later and wants them may not get them",
            )
            .not(Cause::Leak, "set aside at boot or by vm.nr_hugepages, not lost")
            .not(Cause::KernelLeak, "HugePages_Free accounts for it"),
    ]
}

/// Order from which on the kernel's larger allocations fail where memory is in splinters (jumbo frames, kernel
/// stacks without vmalloc, drivers): 64 KiB with 4 KiB pages.
const HIGH_ORDER: usize = 4;

/// Below this share of a zone's free memory in blocks of that order, it is fragmented: a healthy zone of this
/// size has 0.6 and more there.
const SPLINTERED: f64 = 0.02;

pub(super) fn fragmented(host: &Host) -> Vec<Finding> {
    let mem = &host.sample.meminfo;
    // The rest of a nearly full machine is always in splinters: that is shortage, not fragmentation.
    let plenty = |zone: &Zone| {
        let floor = (zone.high * 2).bytes().max(worth(mem.mem_total));
        zone.free.bytes() >= floor && !zone.free_blocks.is_empty()
    };
    let zones: Vec<&Zone> = host.sample.zones.zones.iter().filter(|zone| plenty(zone)).collect();
    let free: Bytes = zones.iter().map(|zone| zone.free.bytes()).sum();
    let usable: Bytes = zones.iter().map(|zone| zone.free_at_or_above(HIGH_ORDER).bytes()).sum();
    if zones.is_empty() || usable.share_of(free) >= SPLINTERED {
        return Vec::new();
    }
    let summary = format!(
        "{free} is free, but only {usable} of it in blocks of {} or more: an allocation of that size fails with memory to spare.",
        Pages(1 << HIGH_ORDER).bytes()
    );
    let vmstat = &host.sample.vmstat;
    let mut finding = Finding::new(Cause::PhysicalFragmentation, free, 0.85, summary);
    for zone in zones {
        let blocks: Vec<String> = zone.free_blocks.iter().map(u64::to_string).collect();
        finding = finding.evidence(
            "/proc/buddyinfo",
            format!("node {} zone {}: free blocks by order {}", zone.node, zone.name, blocks.join(" ")),
        );
        finding = match zone.fragmentation_index.get(HIGH_ORDER) {
            Some(index @ 0..) => finding.evidence(
                "/sys/kernel/debug/extfrag/extfrag_index",
                format!(
                    "zone {}, order {HIGH_ORDER}: {:.3}; the nearer to 1, the smaller the pieces",
                    zone.name,
                    f64::from(*index) / 1000.0
                ),
            ),
            _ => finding,
        };
    }
    vec![
        finding
            .evidence(
                "/proc/vmstat",
                format!("compact_stall {}, compact_fail {}", vmstat.compact_stall, vmstat.compact_fail),
            )
            .not(Cause::Leak, "the memory is free; it is only in small pieces")
            .lever(
                "compact",
                "ebb reclaim --host compaction",
                Bytes::ZERO,
                "moves movable pages together; takes kernel time, frees nothing",
            ),
    ]
}

/// Mode 2 refuses when this little of the commit limit is left.
const NEARLY_COMMITTED: f64 = 0.95;

/// ... while this much of RAM could still be had.
const TO_SPARE: f64 = 0.20;

pub(super) fn strict_overcommit(host: &Host) -> Vec<Finding> {
    let mem = &host.sample.meminfo;
    let strict = host.sample.sysctls.get("vm/overcommit_memory") == Some(2);
    let full = mem.committed_as.share_of(mem.commit_limit) >= NEARLY_COMMITTED;
    if !strict || !full || mem.mem_available.share_of(mem.mem_total) < TO_SPARE {
        return Vec::new();
    }
    let left = mem.commit_limit - mem.committed_as;
    let summary = format!(
        "the kernel refuses memory by its books, not for lack of it: {} of the {} that overcommit mode 2 allows are \
         promised, while {} of RAM is available.",
        mem.committed_as, mem.commit_limit, mem.mem_available
    );
    let ratio = host.sample.sysctls.get("vm/overcommit_ratio").unwrap_or(50);
    let kbytes = host.sample.sysctls.get("vm/overcommit_kbytes");
    let (setting, value) = commit_setting(mem, kbytes, mem.committed_as.scaled(1.25));
    vec![
        Finding::new(Cause::OvercommitRefusal, mem.mem_available, 0.95, summary)
            .evidence("/proc/meminfo", format!("Committed_AS {}, CommitLimit {}, {left} left", mem.committed_as, mem.commit_limit))
            .evidence("/proc/sys/vm", format!("overcommit_memory 2, overcommit_ratio {ratio}"))
            .not(Cause::Leak, "nothing has to have grown: address space is charged when it is asked for, not when it is touched")
            .lever(
                "commit-limit",
                format!("ebb tune {setting}={value} --apply --for 1h"),
                Bytes::ZERO,
                "room for a quarter more than is promised now: what is promised may then be missing when touched",
            ),
    ]
}

/// The setting, and its value, with which the commit limit is `wanted`: `overcommit_kbytes` where that is in force
/// (`kbytes`), else the ratio, in percent of RAM without hugetlb (vm_commit_limit, mm/util.c).
pub fn commit_setting(mem: &Meminfo, kbytes: Option<u64>, wanted: Bytes) -> (&'static str, u64) {
    let of_ram = wanted - mem.swap_total;
    match kbytes {
        Some(1..) => ("vm.overcommit_kbytes", of_ram.0.div_ceil(1024)),
        _ => ("vm.overcommit_ratio", (of_ram.share_of(mem.mem_total - mem.hugetlb) * 100.0).ceil() as u64),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{causes, found, gib, healthy};
    use super::*;
    use ebbtide_observe::host::HugePool;

    #[test]
    fn an_unused_pool() {
        let mut s = healthy();
        let page = Bytes::from_mib(2);
        s.meminfo.mem_free -= gib(2);
        s.meminfo.hugetlb = gib(2);
        s.huge_pools = vec![HugePool { page, total: 1024, free: 1024, reserved: 0, surplus: 0 }];
        assert_eq!(causes(&s), [Cause::ReservedPool]);
        s.huge_pools[0].free = 10;
        assert_eq!(causes(&s), [], "in use");
        s.huge_pools[0] = HugePool { page, total: 1024, free: 1024, reserved: 1020, surplus: 0 };
        assert_eq!(causes(&s), [], "promised");
    }

    #[test]
    fn splinters() {
        let mut s = healthy();
        let zone = |free_blocks: Vec<u64>| Zone {
            name: "Normal".into(),
            free: Pages(free_blocks.iter().enumerate().map(|(order, n)| n << order).sum()),
            high: Pages(10_000),
            free_blocks,
            ..Zone::default()
        };
        s.zones.zones = vec![zone(vec![426_212, 90_000, 30_000, 2_000, 100, 0, 0, 0, 0, 0, 0])];
        assert_eq!(causes(&s), [Cause::PhysicalFragmentation]);
        s.zones.zones[0].fragmentation_index = vec![-1000, -1000, -1000, -1000, 979];
        assert!(found(&s)[0].evidence.iter().any(|evidence| evidence.says.contains("0.979")));
        s.zones.zones = vec![zone(vec![426_212, 90_000, 30_000, 2_000, 1167, 50, 20, 10, 10, 10, 100])];
        assert_eq!(causes(&s), [], "enough large blocks");
        s.zones.zones = vec![zone(vec![9_000, 90, 0, 0, 0, 0, 0, 0, 0, 0, 0])];
        assert_eq!(causes(&s), [], "nearly full is not fragmented");
    }

    #[test]
    fn strict_books() {
        let mut s = healthy();
        s.meminfo.commit_limit = gib(8);
        s.meminfo.committed_as = gib(8);
        assert_eq!(causes(&s), [], "mode 0 does not look at the limit");
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("proc/sys/vm")).unwrap();
        std::fs::write(dir.path().join("proc/sys/vm/overcommit_memory"), "2\n").unwrap();
        let root = ebbtide_observe::Root::at(dir.path()).unwrap();
        s.sysctls = ebbtide_observe::host::Sysctls::read(&root);
        assert_eq!(causes(&s), [Cause::OvercommitRefusal]);
        assert_eq!(
            found(&s)[0].levers[0].command,
            "ebb tune vm.overcommit_ratio=63 --apply --for 1h",
            "10 of 16 GiB"
        );
        assert_eq!(commit_setting(&s.meminfo, Some(1), gib(10)), ("vm.overcommit_kbytes", 10 << 20));
        s.meminfo.committed_as = gib(5);
        assert_eq!(causes(&s), []);
    }
}
