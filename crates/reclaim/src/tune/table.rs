//! The settings that ebb changes, with what each really does. A table, not code: [`Setting`] has the meaning.
//!
//! Sources are the kernel's own documents and files; where a version is named, something changed in it.

use super::Setting;
use super::Values::{Number, Word};

const INT: u64 = i32::MAX as u64;
const LONG: u64 = i64::MAX as u64;

/// Every setting that ebb reads, judges and changes.
pub static SETTINGS: &[Setting] = &[
    Setting {
        name: "vm.vfs_cache_pressure",
        path: "proc/sys/vm/vfs_cache_pressure",
        values: Number(0, INT),
        does: "Multiplies, in percent (from 6.16 in parts of vm.vfs_cache_pressure_denom), how many unused dentries and \
               inodes are looked at each time memory is reclaimed. 100 is fair against the page cache. It is no cap: \
               while memory is free nothing is reclaimed, whatever it says.",
        danger: "100000, as the web has it, does not keep the caches small: at reclaim it asks for 1000 times more \
                 objects than there are, and contends for their locks. 0 never reclaims them and can end in an OOM kill.",
        source: "Documentation/admin-guide/sysctl/vm.rst, vfs_cache_pressure; super_cache_count, fs/super.c",
        twin: None,
    },
    Setting {
        name: "vm.overcommit_memory",
        path: "proc/sys/vm/overcommit_memory",
        values: Number(0, 2),
        does: "What is promised: 0 refuses only a single request beyond RAM and swap (5.2 and later), 1 refuses \
               nothing, 2 keeps the sum of all promises (Committed_AS) below CommitLimit.",
        danger: "1: what is touched beyond RAM and swap ends in an OOM kill. 2: malloc and fork fail with memory free \
                 as soon as the books are full, and what is committed now counts at once.",
        source: "Documentation/mm/overcommit-accounting.rst; __vm_enough_memory, mm/util.c",
        twin: None,
    },
    Setting {
        name: "vm.overcommit_ratio",
        path: "proc/sys/vm/overcommit_ratio",
        values: Number(0, INT),
        does: "CommitLimit is this percentage of RAM (without hugetlb) plus swap. It counts only where \
               vm.overcommit_memory is 2.",
        danger: "Too low refuses memory that is free; too high promises what may be missing when touched.",
        source: "Documentation/admin-guide/sysctl/vm.rst, overcommit_ratio; vm_commit_limit, mm/util.c",
        twin: Some("vm.overcommit_kbytes"),
    },
    Setting {
        name: "vm.overcommit_kbytes",
        path: "proc/sys/vm/overcommit_kbytes",
        values: Number(0, LONG),
        does: "CommitLimit is so many KiB plus swap; turns vm.overcommit_ratio off. It counts only where \
               vm.overcommit_memory is 2.",
        danger: "As overcommit_ratio's. 0 turns the ratio on again.",
        source: "Documentation/admin-guide/sysctl/vm.rst, overcommit_kbytes",
        twin: Some("vm.overcommit_ratio"),
    },
    Setting {
        name: "vm.min_free_kbytes",
        path: "proc/sys/vm/min_free_kbytes",
        values: Number(0, INT),
        does: "Free memory that only the kernel's emergencies may use, spread over the zones. kswapd starts a quarter \
               above it and goes on to half above it, or further by watermark_scale_factor.",
        danger: "Below 1024 the kernel may deadlock under load; too high takes memory from everybody and can end in \
                 OOM kills at once.",
        source: "Documentation/admin-guide/sysctl/vm.rst, min_free_kbytes; __setup_per_zone_wmarks, mm/page_alloc.c",
        twin: None,
    },
    Setting {
        name: "vm.watermark_scale_factor",
        path: "proc/sys/vm/watermark_scale_factor",
        values: Number(1, 3000),
        does: "How far above the minimum kswapd starts and stops, in 1/10000 of RAM for each step: 10 is 0.1 %. More \
               makes it start earlier, so that fewer allocations have to reclaim by themselves.",
        danger: "Twice this share of RAM is kept free. Kernels before 5.17 take 1000 at most.",
        source: "Documentation/admin-guide/sysctl/vm.rst, watermark_scale_factor; __setup_per_zone_wmarks, mm/page_alloc.c",
        twin: None,
    },
    Setting {
        name: "vm.compaction_proactiveness",
        path: "proc/sys/vm/compaction_proactiveness",
        values: Number(0, 100),
        does: "How eagerly kcompactd moves pages together in the background, ahead of need, for huge-page sized \
               blocks. 0 never; 20 is the default. Writing it starts a round at once.",
        danger: "Towards 100 kcompactd works all the time, and pages that are being moved cannot be touched meanwhile.",
        source: "Documentation/admin-guide/sysctl/vm.rst, compaction_proactiveness (5.9 and later)",
        twin: None,
    },
    Setting {
        name: "khugepaged.max_ptes_none",
        path: "sys/kernel/mm/transparent_hugepage/khugepaged/max_ptes_none",
        values: Number(0, 8191),
        does: "khugepaged makes a huge page where at most so many of its small pages were never touched: 511 of 512 \
               turns one touched page into 2 MiB. From 6.12 the kernel also splits huge pages with more all-zero pages \
               than this when memory is short, but not while it is 511.",
        danger: "0 means fewer huge pages, and more misses of the TLB for sparse heaps. What is filled already stays \
                 until it is split or freed.",
        source: "Documentation/admin-guide/mm/transhuge.rst, max_ptes_none; thp_underused, mm/huge_memory.c (6.12)",
        twin: None,
    },
    Setting {
        name: "thp.enabled",
        path: "sys/kernel/mm/transparent_hugepage/enabled",
        values: Word(&["always", "madvise", "never"]),
        does: "Who gets transparent huge pages at a page fault and from khugepaged: everybody, those who ask by \
               madvise(MADV_HUGEPAGE), nobody.",
        danger: "always gives 2 MiB for one touched byte; madvise and never take the speed of huge pages from programs \
                 that do not ask. Pages that are huge already stay. The kernel computes vm.min_free_kbytes anew, \
                 which is larger while there are huge pages.",
        source: "Documentation/admin-guide/mm/transhuge.rst, enabled; set_recommended_min_free_kbytes, mm/khugepaged.c",
        twin: None,
    },
    Setting {
        name: "thp.defrag",
        path: "sys/kernel/mm/transparent_hugepage/defrag",
        values: Word(&["always", "defer", "defer+madvise", "madvise", "never"]),
        does: "Whether a page fault that could have a huge page waits for memory to be compacted (always; madvise for \
               those who ask), or leaves that to kcompactd (defer).",
        danger: "always stalls page faults for compaction; never and defer give fewer huge pages at first.",
        source: "Documentation/admin-guide/mm/transhuge.rst, defrag",
        twin: None,
    },
    Setting {
        name: "vm.max_map_count",
        path: "proc/sys/vm/max_map_count",
        values: Number(0, INT),
        does: "How many mappings a process may have. At the limit mmap, malloc and thread creation fail with ENOMEM, \
               with any amount of memory free.",
        danger: "Each mapping takes about 200 bytes of kernel memory; below 65530 ordinary programs fail.",
        source: "Documentation/admin-guide/sysctl/vm.rst, max_map_count",
        twin: None,
    },
    Setting {
        name: "vm.swappiness",
        path: "proc/sys/vm/swappiness",
        values: Number(0, 200),
        does: "How dear swapping is taken to be beside reading files again: 100 is equal, less spares anonymous \
               memory, more (5.8 and later) is for swap in RAM (zram, zswap). Without swap it does nothing.",
        danger: "0 swaps only when free memory and file pages together are nearly gone: then it thrashes or kills \
                 instead. It is no percentage of memory used.",
        source: "Documentation/admin-guide/sysctl/vm.rst, swappiness; get_scan_count, mm/vmscan.c",
        twin: None,
    },
    Setting {
        name: "vm.dirty_ratio",
        path: "proc/sys/vm/dirty_ratio",
        values: Number(0, 100),
        does: "From this percentage of available memory in unwritten file pages on, who writes has to wait for the disk.",
        danger: "High on a large machine means gigabytes to be written at once, and stalls meanwhile.",
        source: "Documentation/admin-guide/sysctl/vm.rst, dirty_ratio",
        twin: Some("vm.dirty_bytes"),
    },
    Setting {
        name: "vm.dirty_bytes",
        path: "proc/sys/vm/dirty_bytes",
        values: Number(0, LONG),
        does: "The same limit in bytes; turns vm.dirty_ratio off.",
        danger: "Below two pages it is refused; a few MiB slows every writer down.",
        source: "Documentation/admin-guide/sysctl/vm.rst, dirty_bytes",
        twin: Some("vm.dirty_ratio"),
    },
    Setting {
        name: "vm.dirty_background_ratio",
        path: "proc/sys/vm/dirty_background_ratio",
        values: Number(0, 100),
        does: "From this percentage of available memory in unwritten file pages on, the kernel writes in the background.",
        danger: "At or above vm.dirty_ratio the kernel takes half of that instead.",
        source: "Documentation/admin-guide/sysctl/vm.rst, dirty_background_ratio; domain_dirty_limits, mm/page-writeback.c",
        twin: Some("vm.dirty_background_bytes"),
    },
    Setting {
        name: "vm.dirty_background_bytes",
        path: "proc/sys/vm/dirty_background_bytes",
        values: Number(0, LONG),
        does: "The same threshold in bytes; turns vm.dirty_background_ratio off.",
        danger: "As vm.dirty_background_ratio's.",
        source: "Documentation/admin-guide/sysctl/vm.rst, dirty_background_bytes",
        twin: Some("vm.dirty_background_ratio"),
    },
];
