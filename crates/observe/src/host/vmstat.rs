//! /proc/vmstat: events since boot, and the few levels that meminfo lacks (mm/vmstat.c).

use super::keyed::{blank, keyed};
use crate::{Pages, ReadError, Root, scan};

keyed! {
    /// /proc/vmstat. Levels are in pages, events are counts since boot.
    Vmstat, u64, blank, scan::number, {
        /// Pages of zsmalloc, the pool under zram and zswap.
        nr_zspages = b"nr_zspages",
        /// Pages of struct page for memory added after boot (6.10 and later); boot's own are not in MemTotal.
        nr_memmap = b"nr_memmap_pages",
        /// Pages the balloon driver took, since boot.
        balloon_inflate = b"balloon_inflate",
        /// Pages the balloon driver gave back, since boot.
        balloon_deflate = b"balloon_deflate",
        /// Processes killed for lack of memory (4.13 and later).
        oom_kill = b"oom_kill",
        /// Page faults that read from a disk.
        pgmajfault = b"pgmajfault",
        /// Pages read back from swap.
        pswpin = b"pswpin",
        /// Pages written to swap.
        pswpout = b"pswpout",
        /// File pages read again soon after they had been reclaimed.
        workingset_refault_file = b"workingset_refault_file",
        /// Anonymous pages read again soon after they had been reclaimed.
        workingset_refault_anon = b"workingset_refault_anon",
        /// Times somebody had to compact memory before an allocation.
        compact_stall = b"compact_stall",
        /// Of those, in vain.
        compact_fail = b"compact_fail",
        /// Of those, with success.
        compact_success = b"compact_success",
        /// Huge pages that khugepaged put together.
        thp_collapse_alloc = b"thp_collapse_alloc",
        /// Huge pages given at a page fault.
        thp_fault_alloc = b"thp_fault_alloc",
        /// Page faults that wanted a huge page and got a small one.
        thp_fault_fallback = b"thp_fault_fallback",
        /// Times the page cache was dropped by hand (drop_caches).
        drop_pagecache = b"drop_pagecache",
        /// Times the slab was dropped by hand (drop_caches).
        drop_slab = b"drop_slab",
        /// Slab objects reclaimed, since boot.
        slabs_scanned = b"slabs_scanned",
        /// Pages that per-process memory reclaim (direct reclaim) freed.
        pgsteal_direct = b"pgsteal_direct",
        /// Pages that background reclaim freed.
        pgsteal_kswapd = b"pgsteal_kswapd",
    }
}

impl Vmstat {
    /// Reads /proc/vmstat.
    pub fn read(root: &Root) -> Result<Vmstat, ReadError> {
        let mut buf = Vec::new();
        Ok(Vmstat::parse(root.read("proc/vmstat", &mut buf)?))
    }

    /// Pages the balloon holds now. Drivers that lower MemTotal as they inflate count here too.
    pub fn balloon(&self) -> Pages {
        Pages(self.balloon_inflate.saturating_sub(self.balloon_deflate))
    }

    /// Pages of struct page that MemTotal includes.
    pub fn memmap(&self) -> Pages {
        Pages(self.nr_memmap)
    }

    /// Pages of zsmalloc now.
    pub fn zspages(&self) -> Pages {
        Pages(self.nr_zspages)
    }
}
