//! /proc/meminfo: the kernel's own sums (fs/proc/meminfo.c). Each field names what it overlaps, because the
//! ledger may count a page only once.

use super::keyed::{colon, keyed};
use crate::{Bytes, ReadError, Root, scan};

keyed! {
    /// /proc/meminfo in bytes.
    Meminfo, Bytes, colon, scan::kib, {
        /// RAM the kernel manages: what boot, the kernel's text and firmware took is not in it.
        mem_total = b"MemTotal",
        /// Pages in the buddy allocator, CMA's free ones included; pages on per-CPU lists are not.
        mem_free = b"MemFree",
        /// The kernel's estimate of what can be had without swapping (3.14 and later; zero before).
        mem_available = b"MemAvailable",
        /// Page cache of block devices.
        buffers = b"Buffers",
        /// Page cache of files, `shmem` included; without buffers and swap cache.
        cached = b"Cached",
        /// Pages that are both in swap and in RAM; mapped ones are in `anon_pages` as well.
        swap_cached = b"SwapCached",
        /// On the active anonymous LRU list (`shmem` is on the anonymous lists).
        active_anon = b"Active(anon)",
        /// On the inactive anonymous LRU list.
        inactive_anon = b"Inactive(anon)",
        /// On the active file LRU list.
        active_file = b"Active(file)",
        /// On the inactive file LRU list.
        inactive_file = b"Inactive(file)",
        /// On the unevictable LRU list: mlocked, ramfs, SHM_LOCKed.
        unevictable = b"Unevictable",
        /// mlocked pages; all of them are in other fields too.
        mlocked = b"Mlocked",
        /// Swap space.
        swap_total = b"SwapTotal",
        /// Swap space not used.
        swap_free = b"SwapFree",
        /// RAM of the zswap pool (5.19 and later).
        zswap = b"Zswap",
        /// What the zswap pool holds, uncompressed.
        zswapped = b"Zswapped",
        /// File pages waiting to be written; part of `cached` and `buffers`.
        dirty = b"Dirty",
        /// File pages being written; part of `cached` and `buffers`.
        writeback = b"Writeback",
        /// Anonymous pages mapped into processes, huge ones included.
        anon_pages = b"AnonPages",
        /// File and shmem pages mapped into processes; part of `cached`.
        mapped = b"Mapped",
        /// tmpfs, System V, memfd and shared anonymous pages; part of `cached`.
        shmem = b"Shmem",
        /// `s_reclaimable` and other kernel memory that can be dropped under pressure (4.20 and later).
        k_reclaimable = b"KReclaimable",
        /// Slab pages that can be dropped: dentries, inodes.
        s_reclaimable = b"SReclaimable",
        /// Slab pages that cannot.
        s_unreclaim = b"SUnreclaim",
        /// Stacks of threads in the kernel; with CONFIG_VMAP_STACK they are in `vmalloc_used` too.
        kernel_stack = b"KernelStack",
        /// Page tables of processes.
        page_tables = b"PageTables",
        /// Page tables of virtual machines and IOMMUs (6.1 and later).
        sec_page_tables = b"SecPageTables",
        /// Bounce buffers for devices that cannot reach all of RAM.
        bounce = b"Bounce",
        /// What mode 2 of overcommit allows.
        commit_limit = b"CommitLimit",
        /// What all processes could ask for by what is charged to them.
        committed_as = b"Committed_AS",
        /// Pages behind vmalloc mappings (zero on 4.4 to 5.2).
        vmalloc_used = b"VmallocUsed",
        /// Per-CPU memory (4.20 and later).
        percpu = b"Percpu",
        /// Anonymous pages that are transparent huge pages; part of `anon_pages`.
        anon_huge_pages = b"AnonHugePages",
        /// shmem in transparent huge pages; part of `shmem`.
        shmem_huge_pages = b"ShmemHugePages",
        /// Page cache in transparent huge pages; part of `cached`.
        file_huge_pages = b"FileHugePages",
        /// Pages lent to the hypervisor by a balloon driver that keeps them in MemTotal (6.16 and later).
        balloon = b"Balloon",
        /// Contiguous memory areas; their free pages are in `mem_free`, lent ones in other fields.
        cma_total = b"CmaTotal",
        /// Free pages of contiguous memory areas; part of `mem_free`.
        cma_free = b"CmaFree",
        /// RAM not yet accepted by a confidential guest (6.5 and later).
        unaccepted = b"Unaccepted",
        /// Pages in use by GPUs (6.19 and later).
        gpu_active = b"GPUActive",
        /// Pages GPU drivers keep and would give back (6.19 and later).
        gpu_reclaim = b"GPUReclaim",
        /// All hugetlb pages of every size, free ones included (4.18 and later).
        hugetlb = b"Hugetlb",
        /// The default size of hugetlb pages.
        huge_page_size = b"Hugepagesize",
    }
}

impl Meminfo {
    /// Reads /proc/meminfo; an error where it names no MemTotal, since every share is a share of that.
    pub fn read(root: &Root) -> Result<Meminfo, ReadError> {
        let mut buf = Vec::new();
        let mut info = Meminfo::parse(root.read("proc/meminfo", &mut buf)?);
        if info.mem_total == Bytes::ZERO {
            return Err(ReadError::Malformed { path: root.path("proc/meminfo"), what: "no MemTotal in it" });
        }
        if info.hugetlb == Bytes::ZERO {
            info.hugetlb = hugetlb_before_4_18(buf.as_slice(), info.huge_page_size);
        }
        Ok(info)
    }

    /// Page cache without shmem, buffers included: what files on disks have in RAM.
    pub fn page_cache(&self) -> Bytes {
        self.cached - self.shmem + self.buffers
    }

    /// Swap in use.
    pub fn swap_used(&self) -> Bytes {
        self.swap_total - self.swap_free
    }

    /// All pages on LRU lists: each is there once.
    pub fn lru(&self) -> Bytes {
        self.active_anon + self.inactive_anon + self.active_file + self.inactive_file + self.unevictable
    }
}

/// Older kernels give only a count of pages of the default size.
fn hugetlb_before_4_18(text: &[u8], size: Bytes) -> Bytes {
    scan::lines(text)
        .filter_map(colon)
        .find(|(key, _)| *key == b"HugePages_Total")
        .and_then(|(_, value)| scan::number(value))
        .map_or(Bytes::ZERO, |pages| size * pages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reads_what_this_machine_writes() {
        let info = Meminfo::read(&Root::live().unwrap()).unwrap();
        assert!(info.mem_total > info.mem_free && info.mem_free > Bytes::ZERO);
    }

    #[test]
    fn older_kernels_count_huge_pages() {
        let text = b"MemTotal: 100000 kB\nHugePages_Total:       8\nHugepagesize:       2048 kB\n";
        assert_eq!(hugetlb_before_4_18(text, Bytes::from_mib(2)), Bytes::from_mib(16));
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            let info = Meminfo::parse(&text);
            let _ = (info.page_cache(), info.lru(), info.swap_used());
        }
    }
}
