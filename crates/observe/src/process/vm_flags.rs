//! The `VmFlags:` line of smaps: what the kernel may and may not do with a mapping.
//!
//! Source: show_smap_vma_flags (fs/proc/task_mmu.c, 3.8 to 6.18). A code this table lacks is ignored.

use crate::scan;
use std::fmt::{self, Debug};

/// A set of two-letter flags.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct VmFlags(u64);

macro_rules! flags {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        impl VmFlags {
            flags!(@consts 0u32; $($(#[$doc])* $name;)*);
            /// Every flag with its code, in the order of its bit.
            const CODES: &[(&[u8; 2], VmFlags)] = &[$(($code, VmFlags::$name)),*];
        }
    };
    (@consts $bit:expr; $(#[$doc:meta])* $name:ident; $($rest:tt)*) => {
        $(#[$doc])*
        pub const $name: VmFlags = VmFlags(1 << ($bit));
        flags!(@consts $bit + 1; $($rest)*);
    };
    (@consts $bit:expr;) => {};
}

flags! {
    /// `rd`: readable.
    READ = b"rd";
    /// `wr`: writable.
    WRITE = b"wr";
    /// `ex`: executable.
    EXEC = b"ex";
    /// `sh`: shared.
    SHARED = b"sh";
    /// `mr`: may become readable.
    MAY_READ = b"mr";
    /// `mw`: may become writable.
    MAY_WRITE = b"mw";
    /// `me`: may become executable.
    MAY_EXEC = b"me";
    /// `ms`: may be shared.
    MAY_SHARE = b"ms";
    /// `gd`: grows down: the main thread's stack.
    GROWS_DOWN = b"gd";
    /// `pf`: bare page frames of a device.
    PFN_MAP = b"pf";
    /// `lo`: locked.
    LOCKED = b"lo";
    /// `lf`: locked as pages are touched (MCL_ONFAULT).
    LOCK_ON_FAULT = b"lf";
    /// `io`: memory of a device.
    IO = b"io";
    /// `sr`: read sequentially.
    SEQUENTIAL = b"sr";
    /// `rr`: read at random.
    RANDOM = b"rr";
    /// `dc`: not copied by fork (MADV_DONTFORK).
    DONT_COPY = b"dc";
    /// `de`: mremap may not grow it.
    DONT_EXPAND = b"de";
    /// `ac`: charged to the overcommit account.
    ACCOUNT = b"ac";
    /// `nr`: mapped MAP_NORESERVE; never under overcommit mode 2.
    NO_RESERVE = b"nr";
    /// `ht`: hugetlb pages.
    HUGETLB = b"ht";
    /// `sf`: page faults wait for the file system (DAX).
    SYNC = b"sf";
    /// `ar`: of the architecture.
    ARCH = b"ar";
    /// `wf`: zeroes in a forked child (MADV_WIPEONFORK).
    WIPE_ON_FORK = b"wf";
    /// `dd`: not in core dumps.
    DONT_DUMP = b"dd";
    /// `sd`: soft-dirty.
    SOFT_DIRTY = b"sd";
    /// `mm`: page frames and pages mixed.
    MIXED_MAP = b"mm";
    /// `hg`: MADV_HUGEPAGE.
    HUGE_PAGE = b"hg";
    /// `nh`: MADV_NOHUGEPAGE, and since 6.7 every MAP_STACK mapping.
    NO_HUGE_PAGE = b"nh";
    /// `mg`: KSM may merge its pages.
    MERGEABLE = b"mg";
    /// `um`: userfaultfd hears of missing pages.
    UFFD_MISSING = b"um";
    /// `uw`: userfaultfd write-protects.
    UFFD_WP = b"uw";
    /// `ui`: userfaultfd hears of minor faults.
    UFFD_MINOR = b"ui";
    /// `ss`: a shadow stack.
    SHADOW_STACK = b"ss";
    /// `sl`: sealed.
    SEALED = b"sl";
    /// `dp`: droppable under pressure.
    DROPPABLE = b"dp";
    /// `gu`: holds guard pages (MADV_GUARD_INSTALL).
    GUARD = b"gu";
}

impl VmFlags {
    /// The flags in the value of a `VmFlags:` line.
    pub fn parse(value: &[u8]) -> VmFlags {
        let mut flags = VmFlags::default();
        for word in scan::words(value) {
            if let Some((_, flag)) = Self::CODES.iter().find(|(code, _)| code.as_slice() == word) {
                flags.0 |= flag.0;
            }
        }
        flags
    }

    /// Whether all of `flags` are set.
    pub fn has(self, flags: VmFlags) -> bool {
        self.0 & flags.0 == flags.0
    }
}

/// As the kernel writes them: "rd wr mr".
impl Debug for VmFlags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut set = Self::CODES.iter().filter(|(_, flag)| self.has(*flag));
        set.try_for_each(|(code, _)| write!(f, "{} ", String::from_utf8_lossy(*code)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn named_flags() {
        let flags = VmFlags::parse(b"rd wr mr mw me ac zz ");
        assert!(flags.has(VmFlags::ACCOUNT) && flags.has(VmFlags::READ) && !flags.has(VmFlags::NO_RESERVE));
        assert_eq!(format!("{flags:?}"), "rd wr mr mw me ac ");
    }

    #[test]
    fn every_code_has_a_bit_of_its_own() {
        let all = VmFlags::CODES.iter().fold(0, |bits, (_, flag)| bits ^ flag.0);
        assert_eq!(all.count_ones() as usize, VmFlags::CODES.len());
    }

    proptest! {
        #[test]
        fn never_panics(value: Vec<u8>) {
            let _ = format!("{:?}", VmFlags::parse(&value));
        }
    }
}
