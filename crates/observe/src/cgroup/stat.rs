//! memory.stat of both versions in one struct.
//!
//! v2 writes bytes, or counts for events; v1 writes each group's own lines and then hierarchical `total_`
//! ones, of which only the latter are taken. What a version or a kernel does not write is `None`.

use crate::{Bytes, scan};
use serde::Serialize;

/// Declares the struct and its parser from one table: field, its key in v2, its key in v1; "" for none, as no
/// line has an empty key.
macro_rules! memory_stat {
    ($($(#[$doc:meta])* $field:ident: $unit:ident = $v2:literal, $v1:literal;)*) => {
        /// What a group's memory consists of, with everything below it.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
        pub struct MemoryStat {
            $($(#[$doc])* pub $field: Option<$unit>,)*
        }

        impl MemoryStat {
            fn field_v2(&mut self, key: &[u8], value: u64) {
                $(if key == $v2.as_bytes() {
                    self.$field = Some($unit::from(Counter(value)));
                    return;
                })*
            }

            fn field_v1(&mut self, key: &[u8], value: u64) {
                $(if key == $v1.as_bytes() {
                    self.$field = Some($unit::from(Counter(value)));
                    return;
                })*
            }
        }
    };
}

/// A number before its unit is known.
struct Counter(u64);

impl From<Counter> for Bytes {
    fn from(counter: Counter) -> Bytes {
        Bytes(counter.0)
    }
}

impl From<Counter> for u64 {
    fn from(counter: Counter) -> u64 {
        counter.0
    }
}

memory_stat! {
    /// Anonymous memory, huge pages included; v1: with its swap cache.
    anon: Bytes = "anon", "total_rss";
    /// Page cache, with `shmem`.
    file: Bytes = "file", "total_cache";
    /// All kernel memory of the group (5.18).
    kernel: Bytes = "kernel", "";
    /// Kernel stacks.
    kernel_stack: Bytes = "kernel_stack", "";
    /// Page tables.
    page_tables: Bytes = "pagetables", "";
    /// Page tables of virtual machines and IOMMUs (6.1).
    secondary_page_tables: Bytes = "sec_pagetables", "";
    /// Per-CPU memory (5.10).
    percpu: Bytes = "percpu", "";
    /// Socket buffers; part of `current` in v2.
    sock: Bytes = "sock", "";
    /// vmalloc (5.19).
    vmalloc: Bytes = "vmalloc", "";
    /// tmpfs, memfd, System V, shared anonymous (v1: 4.13).
    shmem: Bytes = "shmem", "total_shmem";
    /// The compressed pool that swapped pages are kept in (5.19).
    zswap: Bytes = "zswap", "";
    /// What is compressed in it.
    zswapped: Bytes = "zswapped", "";
    /// File pages that are mapped.
    file_mapped: Bytes = "file_mapped", "total_mapped_file";
    /// File pages that differ from the disk.
    file_dirty: Bytes = "file_dirty", "total_dirty";
    /// File pages on their way to the disk.
    file_writeback: Bytes = "file_writeback", "total_writeback";
    /// Swapped pages that are in memory too (v2 5.12, v1 6.10).
    swap_cached: Bytes = "swapcached", "total_swapcached";
    /// v1: swapped out.
    swap: Bytes = "", "total_swap";
    /// Anonymous memory in huge pages (v2: 4.20).
    anon_huge: Bytes = "anon_thp", "total_rss_huge";
    /// Page cache in huge pages (5.10).
    file_huge: Bytes = "file_thp", "";
    /// Shmem in huge pages (5.10).
    shmem_huge: Bytes = "shmem_thp", "";
    /// Anonymous and shmem pages not used of late.
    inactive_anon: Bytes = "inactive_anon", "total_inactive_anon";
    /// Anonymous and shmem pages in use.
    active_anon: Bytes = "active_anon", "total_active_anon";
    /// File pages not used of late: what reclaim takes first.
    inactive_file: Bytes = "inactive_file", "total_inactive_file";
    /// File pages in use, or once used twice.
    active_file: Bytes = "active_file", "total_active_file";
    /// Locked pages, ramfs, unevictable shmem.
    unevictable: Bytes = "unevictable", "total_unevictable";
    /// Dentries, inodes and other slab the kernel can drop.
    slab_reclaimable: Bytes = "slab_reclaimable", "";
    /// Other slab.
    slab_unreclaimable: Bytes = "slab_unreclaimable", "";
    /// Hugetlb pages, where they are charged (6.7, mount option).
    hugetlb: Bytes = "hugetlb", "";
    /// Page faults.
    faults: u64 = "pgfault", "total_pgfault";
    /// Page faults that had to read.
    major_faults: u64 = "pgmajfault", "total_pgmajfault";
    /// Anonymous pages that came back soon after they had been swapped out (5.9).
    refaults_anon: u64 = "workingset_refault_anon", "total_workingset_refault_anon";
    /// File pages that came back soon after they had been dropped (5.9; before, without suffix).
    refaults_file: u64 = "workingset_refault_file", "total_workingset_refault_file";
    /// Pages reclaim looked at.
    scanned: u64 = "pgscan", "";
    /// Pages reclaim took.
    stolen: u64 = "pgsteal", "";
}

impl MemoryStat {
    /// The figures of a v2 file.
    pub fn parse_v2(text: &[u8]) -> MemoryStat {
        MemoryStat::parse(text, MemoryStat::field_v2)
    }

    /// The figures of a v1 file.
    pub fn parse_v1(text: &[u8]) -> MemoryStat {
        MemoryStat::parse(text, MemoryStat::field_v1)
    }

    fn parse(text: &[u8], set: fn(&mut MemoryStat, &[u8], u64)) -> MemoryStat {
        let mut stat = MemoryStat::default();
        for line in scan::lines(text) {
            let mut words = scan::words(line);
            if let (Some(key), Some(value)) = (words.next(), words.next().and_then(scan::number)) {
                set(&mut stat, key, value);
            }
        }
        stat
    }

    /// The sum of the kernel memory it names, where there is no `kernel` line; `None` where nothing is named.
    pub(super) fn kernel_parts(&self) -> Option<Bytes> {
        let parts = [
            self.slab_reclaimable,
            self.slab_unreclaimable,
            self.kernel_stack,
            self.page_tables,
            self.secondary_page_tables,
            self.percpu,
        ];
        parts.iter().any(Option::is_some).then(|| parts.into_iter().flatten().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn v2() {
        let stat = MemoryStat::parse_v2(
            b"anon 8192\nfile 4096\nkernel 100\nsock 7\npercpu 0\ninactive_file 5\npgfault 12\nthe_next_one 1\n",
        );
        assert_eq!(
            (stat.anon, stat.file, stat.kernel),
            (Some(Bytes(8192)), Some(Bytes(4096)), Some(Bytes(100)))
        );
        assert_eq!((stat.sock, stat.percpu, stat.vmalloc), (Some(Bytes(7)), Some(Bytes(0)), None));
        assert_eq!((stat.inactive_file, stat.faults), (Some(Bytes(5)), Some(12)));
        assert_eq!(stat.kernel_parts(), Some(Bytes(0)));
    }

    #[test]
    fn v1_takes_the_hierarchical_lines() {
        let stat = MemoryStat::parse_v1(
            b"cache 1\nrss 2\nshmem 3\ninactive_file 4\ntotal_cache 10\ntotal_rss 20\ntotal_shmem 30\n\
              total_inactive_file 40\ntotal_swap 50\ntotal_rss_huge 60\n",
        );
        assert_eq!((stat.file, stat.anon, stat.shmem), (Some(Bytes(10)), Some(Bytes(20)), Some(Bytes(30))));
        assert_eq!(
            (stat.inactive_file, stat.swap, stat.anon_huge),
            (Some(Bytes(40)), Some(Bytes(50)), Some(Bytes(60)))
        );
        assert_eq!((stat.kernel, stat.kernel_parts()), (None, None));
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            let _ = (MemoryStat::parse_v1(&text), MemoryStat::parse_v2(&text));
        }
    }
}
