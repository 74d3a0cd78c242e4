//! Keys of sysctl files that kernels had once, or that only some vendors' kernels have.

/// (key, what became of it). Versions are those of kernel.org.
const GONE: &[(&str, &str)] = &[
    ("vm.percpu_pagelist_fraction", "replaced by vm.percpu_pagelist_high_fraction in 5.14"),
    ("vm.block_dump", "gone since 5.13"),
    ("vm.nr_pdflush_threads", "has done nothing since pdflush went in 2.6.32"),
    ("vm.hugepages_treat_as_movable", "gone since 4.16"),
    ("vm.swap_token_timeout", "gone since 3.5"),
    ("vm.numa_zonelist_order", "only the default is left since 4.14; any other value fails"),
    ("vm.extra_free_kbytes", "a vendor's (Android, RHEL 7); vm.watermark_scale_factor is what kernels have"),
    ("vm.pagecache_limit_mb", "a vendor's (SUSE 11, 12); no kernel.org kernel limits the page cache"),
    ("vm.pagecache_limit_ignore_dirty", "a vendor's (SUSE 11, 12)"),
    ("vm.pagecache", "2.6.9's at RHEL 4; no later kernel limits the page cache"),
    ("vm.inactive_clean_percent", "RHEL 4's"),
    ("fs.negative-dentry-limit", "a vendor's; no kernel.org kernel limits negative dentries"),
];

/// What became of `key`.
pub(super) fn gone(key: &str) -> Option<&'static str> {
    GONE.iter().find(|(name, _)| *name == key).map(|(_, what)| *what)
}
