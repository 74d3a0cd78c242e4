//! A cgroup's ledger: what is charged to it (memory.current, v1: memory.usage_in_bytes) in exclusive lines.
//!
//! Charges are taken in batches per CPU, so a small part of the total is in no line and stays unaccounted
//! (MEMCG_CHARGE_BATCH: 64 pages for each CPU). v1 counts kernel memory in one sum, and TCP buffers not at all.

use super::{Ledger, Line};
use ebbtide_observe::Bytes;
use ebbtide_observe::cgroup::CgroupSample;

/// Splits what is charged to `sample`; at the root of v2, which charges nothing to itself, the sum of its lines.
pub fn cgroup(sample: &CgroupSample) -> Ledger {
    let stat = &sample.stat;
    let of = |value: Option<Bytes>| value.unwrap_or_default();
    let shmem = of(stat.shmem);
    let cached = of(stat.swap_cached);
    let kernel_parts = [
        ("slab-reclaimable", stat.slab_reclaimable),
        ("slab-unreclaimable", stat.slab_unreclaimable),
        ("kernel-stacks", stat.kernel_stack),
        ("page-tables", Some(of(stat.page_tables) + of(stat.secondary_page_tables))),
        ("percpu", stat.percpu),
        ("vmalloc", stat.vmalloc),
    ];
    let named: Bytes = kernel_parts.iter().map(|(_, bytes)| of(*bytes)).sum();
    let mut lines = vec![
        Line::new("anon", of(stat.anon)).children([Line::new("huge pages", of(stat.anon_huge))]),
        page_cache(sample, of(stat.file) - shmem - cached),
        Line::new("shmem", shmem),
        Line::new("swap-cache", cached),
    ];
    lines.extend(kernel_parts.iter().map(|(id, bytes)| Line::new(*id, of(*bytes))));
    lines.push(Line::new("kernel-other", of(sample.kernel()) - named));
    lines.push(Line::new("socket-buffers", of(stat.sock)));
    lines.push(Line::new("zswap", of(stat.zswap)));
    lines.push(Line::new("hugetlb", of(stat.hugetlb)));
    let sum = lines.iter().map(|line| line.bytes).sum();
    let mut ledger = Ledger::of(sample.current.unwrap_or(sum));
    lines.into_iter().for_each(|line| ledger.fill(line));
    ledger
}

fn page_cache(sample: &CgroupSample, bytes: Bytes) -> Line {
    let stat = &sample.stat;
    Line::new("page-cache", bytes).children([
        Line::new("active", stat.active_file.unwrap_or_default()),
        Line::new("inactive", stat.inactive_file.unwrap_or_default()),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_observe::cgroup::{MemoryStat, Version};
    use std::path::PathBuf;

    fn sample(version: Version, current: u64, stat: MemoryStat) -> CgroupSample {
        CgroupSample {
            current: Some(Bytes(current)),
            stat,
            ..CgroupSample::new(PathBuf::from("/x"), version)
        }
    }

    #[test]
    fn v2_lines_sum_to_current() {
        let stat = MemoryStat::parse_v2(
            b"anon 100\nfile 300\nkernel 90\nkernel_stack 10\nshmem 50\nslab_reclaimable 40\nsock 20\nactive_file 200\ninactive_file 50\n",
        );
        let ledger = cgroup(&sample(Version::V2, 520, stat));
        assert_eq!(ledger.bytes("page-cache"), Bytes(250));
        assert_eq!(ledger.bytes("kernel-other"), Bytes(40));
        assert_eq!(ledger.unaccounted, Bytes(10));
        assert_eq!(ledger.lines.iter().map(|l| l.bytes).sum::<Bytes>() + ledger.unaccounted, Bytes(520));
    }

    #[test]
    fn v1_counts_kernel_memory_in_one_sum() {
        let stat = MemoryStat::parse_v1(b"cache 1\ntotal_rss 100\ntotal_cache 300\ntotal_shmem 50\n");
        let ledger = cgroup(&CgroupSample { kmem: Some(Bytes(30)), ..sample(Version::V1, 440, stat) });
        assert_eq!((ledger.bytes("kernel-other"), ledger.unaccounted), (Bytes(30), Bytes(10)));
    }
}
