//! The memory counters that smaps writes per mapping and smaps_rollup once per process, and the rollup.
//!
//! Facts (fs/proc/task_mmu.c): a page counts as private when exactly one page table maps it, so a page one
//! process maps twice is "shared". Pss divides each page by its mappers. Hugetlb pages are in none of
//! Rss, Pss, Private_* or Anonymous. A page-table walk under the target's mmap lock: 3.4-5.1 ms per GiB of
//! 4 KiB pages (measured, 6.18).

use super::Process;
use crate::{Bytes, ReadError, scan};
use serde::Serialize;
use std::ops::AddAssign;

/// The counters of one mapping, or of all of a process.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Resident, without hugetlb pages.
    pub rss: Bytes,
    /// Resident, each page divided by the number of its mappers.
    pub pss: Bytes,
    /// The dirty part of `pss` (6.0; zero before).
    pub pss_dirty: Bytes,
    /// `pss` of anonymous pages (rollup only, 5.3).
    pub pss_anon: Bytes,
    /// `pss` of file pages, without shmem (rollup only, 5.3).
    pub pss_file: Bytes,
    /// `pss` of shmem pages: tmpfs, memfd, SysV, shared anonymous (rollup only, 5.3).
    pub pss_shmem: Bytes,
    /// Clean pages that others map too.
    pub shared_clean: Bytes,
    /// Dirty pages that others map too.
    pub shared_dirty: Bytes,
    /// Clean pages mapped once.
    pub private_clean: Bytes,
    /// Dirty pages mapped once; anonymous pages are dirty.
    pub private_dirty: Bytes,
    /// Accessed since the bit was last cleared.
    pub referenced: Bytes,
    /// Resident anonymous pages, also those of a private file mapping.
    pub anonymous: Bytes,
    /// Merged by KSM (6.7; zero before).
    pub ksm: Bytes,
    /// Given up by MADV_FREE and still resident: the kernel takes them without asking.
    pub lazy_free: Bytes,
    /// Anonymous memory in transparent huge pages.
    pub anon_huge_pages: Bytes,
    /// Shmem mapped by huge entries.
    pub shmem_pmd_mapped: Bytes,
    /// File pages mapped by huge entries.
    pub file_pmd_mapped: Bytes,
    /// Hugetlb pages that others map too.
    pub shared_hugetlb: Bytes,
    /// Hugetlb pages mapped once.
    pub private_hugetlb: Bytes,
    /// Swapped out, of anonymous memory and of shmem that only this mapping holds.
    pub swap: Bytes,
    /// Swapped out, divided by the number of sharers.
    pub swap_pss: Bytes,
    /// The share (as `pss`) that is locked.
    pub locked: Bytes,
}

impl Counters {
    /// The counters of a smaps_rollup file; `None` where no line of it is a counter.
    pub fn parse(text: &[u8]) -> Option<Counters> {
        let mut counters = Counters::default();
        let mut any = false;
        for line in scan::lines(text) {
            if let Some((key, value)) = scan::key_value(line, b':') {
                any |= counters.set(key, value);
            }
        }
        any.then_some(counters)
    }

    /// What would be free if this process ended: the pages that only it maps. Without hugetlb pages, which
    /// return to their pool.
    pub fn uss(&self) -> Bytes {
        self.private_clean + self.private_dirty
    }

    /// Hugetlb pages, which `rss` leaves out.
    pub fn hugetlb(&self) -> Bytes {
        self.shared_hugetlb + self.private_hugetlb
    }

    /// Takes line `key`: `value`; false where `key` is no counter.
    pub(super) fn set(&mut self, key: &[u8], value: &[u8]) -> bool {
        let field = match key {
            b"Rss" => &mut self.rss,
            b"Pss" => &mut self.pss,
            b"Pss_Dirty" => &mut self.pss_dirty,
            b"Pss_Anon" => &mut self.pss_anon,
            b"Pss_File" => &mut self.pss_file,
            b"Pss_Shmem" => &mut self.pss_shmem,
            b"Shared_Clean" => &mut self.shared_clean,
            b"Shared_Dirty" => &mut self.shared_dirty,
            b"Private_Clean" => &mut self.private_clean,
            b"Private_Dirty" => &mut self.private_dirty,
            b"Referenced" => &mut self.referenced,
            b"Anonymous" => &mut self.anonymous,
            b"KSM" => &mut self.ksm,
            b"LazyFree" => &mut self.lazy_free,
            b"AnonHugePages" => &mut self.anon_huge_pages,
            b"ShmemPmdMapped" => &mut self.shmem_pmd_mapped,
            b"FilePmdMapped" => &mut self.file_pmd_mapped,
            b"Shared_Hugetlb" => &mut self.shared_hugetlb,
            b"Private_Hugetlb" => &mut self.private_hugetlb,
            b"Swap" => &mut self.swap,
            b"SwapPss" => &mut self.swap_pss,
            b"Locked" => &mut self.locked,
            _ => return false,
        };
        *field = scan::kib(value).unwrap_or_default();
        true
    }
}

impl AddAssign<&Counters> for Counters {
    fn add_assign(&mut self, other: &Counters) {
        self.rss += other.rss;
        self.pss += other.pss;
        self.pss_dirty += other.pss_dirty;
        self.pss_anon += other.pss_anon;
        self.pss_file += other.pss_file;
        self.pss_shmem += other.pss_shmem;
        self.shared_clean += other.shared_clean;
        self.shared_dirty += other.shared_dirty;
        self.private_clean += other.private_clean;
        self.private_dirty += other.private_dirty;
        self.referenced += other.referenced;
        self.anonymous += other.anonymous;
        self.ksm += other.ksm;
        self.lazy_free += other.lazy_free;
        self.anon_huge_pages += other.anon_huge_pages;
        self.shmem_pmd_mapped += other.shmem_pmd_mapped;
        self.file_pmd_mapped += other.file_pmd_mapped;
        self.shared_hugetlb += other.shared_hugetlb;
        self.private_hugetlb += other.private_hugetlb;
        self.swap += other.swap;
        self.swap_pss += other.swap_pss;
        self.locked += other.locked;
    }
}

impl Process {
    /// `smaps_rollup`: the counters of all its mappings. [`ReadError::Vanished`] also for a kernel thread and
    /// a zombie, which have no memory.
    pub fn rollup(&self) -> Result<Counters, ReadError> {
        self.parsed("smaps_rollup", Counters::parse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_real_rollup() {
        let counters = Counters::parse(include_bytes!("testdata/smaps_rollup")).unwrap();
        assert_eq!(counters.rss, Bytes::from_kib(1756));
        assert_eq!(counters.pss_file, Bytes::from_kib(267));
        assert_eq!(counters.uss(), Bytes::from_kib(48 + 116));
        assert_eq!(counters.hugetlb(), Bytes::ZERO);
        assert_eq!(Counters::parse(b""), None);
    }

    #[test]
    fn every_field_is_read_and_summed() {
        let text: String = include_str!("testdata/smaps_rollup")
            .lines()
            .map(|line| format!("{}: 1 kB\n", line.split(':').next().unwrap()))
            .collect();
        let one = Counters::parse(text.as_bytes()).unwrap();
        let mut two = one;
        two += &one;
        let values = |c: &Counters| figures(c);
        assert!(values(&one).iter().all(|&v| v == 1024), "{one:?}");
        assert!(values(&two).iter().all(|&v| v == 2048), "{two:?}");
    }

    /// The figures in a sample's debug form: all fields without naming them a fourth time.
    fn figures(counters: &Counters) -> Vec<u64> {
        let debug = format!("{counters:?}");
        debug.split("Bytes(").skip(1).map(|s| scan::number(s.as_bytes()).unwrap()).collect()
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            let _ = Counters::parse(&text);
        }
    }
}
