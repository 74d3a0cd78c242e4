//! The causes a finding can name. Their ids are public API: added to, never renamed.

use serde::{Serialize, Serializer};
use std::fmt;

macro_rules! causes {
    ($($variant:ident $id:literal $line:literal,)*) => {
        /// Why memory is where it is.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Cause {
            $(#[doc = $line] $variant,)*
        }

        impl Cause {
            /// Every cause, in the order of `ebb causes`.
            pub const ALL: &[Cause] = &[$(Cause::$variant,)*];

            /// The stable id, as in the JSON.
            pub const fn id(self) -> &'static str {
                match self { $(Cause::$variant => $id,)* }
            }

            /// One line for people.
            pub const fn line(self) -> &'static str {
                match self { $(Cause::$variant => $line,)* }
            }

            /// The page that `ebb causes ID` prints (Markdown).
            pub const fn page(self) -> &'static str {
                match self { $(Cause::$variant => include_str!(concat!("../causes/", $id, ".md")),)* }
            }
        }
    };
}

causes! {
    Leak "leak" "the live set grows for ever",
    AllocatorRetention "allocator-retention" "freed pages the allocator keeps",
    HeapFragmentation "heap-fragmentation" "free bytes, but hardly a whole page free",
    ArenaMultiplication "arena-multiplication" "many arenas, each keeping its own peak",
    CapacitySlack "capacity-slack" "collections that kept their capacity",
    GcHeadroom "gc-headroom" "a managed heap larger than what lives in it",
    LazilyFreed "lazily-freed" "MADV_FREE pages still counted as resident",
    ThpBloat "thp-bloat" "huge pages over little data",
    StacksAndLocked "stacks-and-locked" "prefaulted stacks, thread-local storage, mlock",
    PageTables "page-tables" "the page tables themselves",
    SharedMemory "shared-memory" "tmpfs, memfd, SysV, deleted-but-mapped files",
    CowAfterFork "cow-after-fork" "pages that parent and child no longer share",
    VirtualOnly "virtual-only" "address space taken for memory",
    CountedTwice "counted-twice" "shared pages counted in every process's RSS",
    SlabReclaimable "slab-reclaimable" "dentries, inodes and other caches the kernel can drop",
    PageCache "page-cache" "file pages counted as use",
    OutlivingCharge "outliving-charge" "memory charged to something that is gone",
    KernelPages "kernel-pages" "socket buffers, drivers, ZFS ARC, zram, balloon: outside meminfo's sums",
    KernelLeak "kernel-leak" "kernel memory with no owner",
    ReservedPool "reserved-pool" "hugetlb or CMA, reserved and unused",
    OvercommitRefusal "overcommit-refusal" "ENOMEM with memory to spare, at fork, mmap or malloc",
    OtherLimit "other-limit" "a count limit (maps, pids, RLIMIT) taken for lack of memory",
    PhysicalFragmentation "physical-fragmentation" "high-order allocations fail with memory free",
    LimitsExceedBox "limits-exceed-box" "heaps and caps that together exceed the limit",
    Undetermined "undetermined" "the evidence does not decide",
}

impl Cause {
    /// The cause with this id.
    pub fn from_id(id: &str) -> Option<Cause> {
        Cause::ALL.iter().copied().find(|cause| cause.id() == id)
    }
}

impl Cause {
    /// Where findings of this cause stand among others: what refuses memory now comes first, what holds memory
    /// next (by size), what only looks like memory last.
    pub(crate) const fn urgency(self) -> u8 {
        match self {
            Cause::OvercommitRefusal | Cause::OtherLimit | Cause::LimitsExceedBox => 0,
            Cause::VirtualOnly | Cause::CountedTwice => 2,
            Cause::Undetermined => 3,
            _ => 1,
        }
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.id())
    }
}

impl Serialize for Cause {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.id())
    }
}
