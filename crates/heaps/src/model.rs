//! What a walker finds, in the words of the JSON contract.

use ebbtide_observe::Bytes;
use serde::Serialize;
use std::fmt::{self, Display};
use std::ops::Range;

/// Which allocator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The GNU C library's malloc (ptmalloc).
    Glibc,
    /// LuaJIT's lj_alloc.
    #[serde(rename = "luajit")]
    LuaJit,
    /// jemalloc 5.
    Jemalloc,
    /// mimalloc 2.
    Mimalloc,
    /// musl's mallocng.
    Musl,
    /// gperftools' tcmalloc.
    Tcmalloc,
    /// CPython's obmalloc.
    #[serde(rename = "cpython")]
    CPython,
    /// Ebbtide's own malloc.
    Ebbtide,
    /// Memory in which nothing known was found.
    Unknown,
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Glibc => "glibc",
            Kind::LuaJit => "luajit",
            Kind::Jemalloc => "jemalloc",
            Kind::Mimalloc => "mimalloc",
            Kind::Musl => "musl",
            Kind::Tcmalloc => "tcmalloc",
            Kind::CPython => "cpython",
            Kind::Ebbtide => "ebbtide",
            Kind::Unknown => "unknown",
        })
    }
}

/// Memory that is not divided further.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Extent {
    /// Address space.
    #[serde(rename = "mapped_bytes")]
    pub mapped: Bytes,
    /// What of it is in memory.
    #[serde(rename = "resident_bytes")]
    pub resident: Bytes,
}

impl std::ops::AddAssign for Extent {
    fn add_assign(&mut self, other: Extent) {
        self.mapped += other.mapped;
        self.resident += other.resident;
    }
}

/// How a heap's memory divides. `mapped = live + cached + free + metadata + unused`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Figures {
    /// Address space taken from the system, and readable.
    #[serde(rename = "mapped_bytes")]
    pub mapped: Bytes,
    /// What of it is in memory.
    #[serde(rename = "resident_bytes")]
    pub resident: Bytes,
    /// Blocks handed to the program, headers included.
    #[serde(rename = "live_bytes")]
    pub live: Bytes,
    /// Freed, held in thread caches and quick lists.
    #[serde(rename = "cached_bytes")]
    pub cached: Bytes,
    /// Freed, in the allocator's bins and tops.
    #[serde(rename = "free_bytes")]
    pub free: Bytes,
    /// Whole free pages that are resident now.
    #[serde(rename = "returnable_bytes")]
    pub returnable: Bytes,
    /// What the allocator's own way of giving back would return of it; `None` where it has none.
    #[serde(rename = "returnable_by_trim_bytes")]
    pub returnable_by_trim: Option<Bytes>,
    /// The resident rest of `free`: on pages that hold other blocks too.
    #[serde(rename = "pinned_free_bytes")]
    pub pinned_free: Bytes,
    /// The allocator's own books.
    #[serde(rename = "metadata_bytes")]
    pub metadata: Bytes,
    /// Mapped, never handed out.
    #[serde(rename = "unused_bytes")]
    pub unused: Bytes,
    /// How many free blocks; neighbours count as one.
    pub free_chunks: u64,
    /// The largest of them.
    #[serde(rename = "largest_free_bytes")]
    pub largest_free: Bytes,
}

/// Blocks of one range of sizes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct SizeClass {
    /// The largest size that belongs here; the class below ends the range.
    #[serde(rename = "up_to_bytes")]
    pub up_to: Bytes,
    /// How many live.
    pub live_count: u64,
    /// Their bytes.
    #[serde(rename = "live_bytes")]
    pub live: Bytes,
    /// How many are free or cached.
    pub free_count: u64,
    /// Their bytes.
    #[serde(rename = "free_bytes")]
    pub free: Bytes,
}

/// A part of a heap with books of its own: a glibc arena, a jemalloc arena, a Lua state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Arena {
    /// Where its books are.
    pub address: u64,
    /// As its allocator's users would call it: "main", "thread 3", "state 1".
    pub name: String,
    /// Its part of the heap's figures.
    #[serde(flatten)]
    pub figures: Figures,
    /// What its garbage collector counts, where it has one that counts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub collector: Option<Collector>,
}

/// A garbage collector's own count. It counts what was asked for, without the allocator's headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Collector {
    /// All that it has handed out and not yet taken back, garbage included.
    #[serde(rename = "total_bytes")]
    pub total: Bytes,
    /// At which total it goes on collecting.
    #[serde(rename = "threshold_bytes")]
    pub threshold: Bytes,
    /// What it estimates is in use: what was left at its last sweep, or is left while it sweeps. `None` before
    /// its first collection.
    #[serde(rename = "estimate_bytes", skip_serializing_if = "Option::is_none")]
    pub estimate: Option<Bytes>,
    /// What it is doing: "pause", "propagate", "sweep" and the like.
    pub phase: &'static str,
}

/// How sure the figures are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Certainty {
    /// Whether the process stood still, so that all was read at one moment.
    pub still: bool,
    /// How often something did not add up and was read again.
    pub reread: u64,
    /// What still did not add up, and is counted by neither name: in `unused`.
    #[serde(rename = "unresolved_bytes")]
    pub unresolved: Bytes,
}

/// Something in a heap that no running program could have left there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Corruption {
    /// Where.
    pub address: u64,
    /// What is wrong.
    pub what: String,
}

/// A live block from this size on is huge: a collection, a buffer, a table; nobody's small object.
pub const HUGE_BLOCK: Bytes = Bytes::from_mib(1);

/// So many huge blocks are known by address.
pub(crate) const HUGE_MOST: usize = 256;

/// One allocator in one process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Heap {
    /// Which.
    pub kind: Kind,
    /// Its version, as far as its structure tells: "2.36", "2.35-2.42".
    pub version: Option<String>,
    /// Of [`Kind::Unknown`]: what its mappings say it is, "Go heap", "brk heap"; "anonymous" where nothing does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The whole of it.
    #[serde(flatten)]
    pub figures: Figures,
    /// What the program asked for with the blocks that live, headers and rounding left out; `None` where its allocator
    /// does not keep that, or not all of it could be read.
    #[serde(rename = "requested_bytes", skip_serializing_if = "Option::is_none")]
    pub requested: Option<Bytes>,
    /// Its parts.
    pub arenas: Vec<Arena>,
    /// Its blocks by size, smallest first, empty classes left out.
    pub histogram: Vec<SizeClass>,
    /// How sure this is.
    pub certainty: Certainty,
    /// Damage found, the first few.
    pub corruptions: Vec<Corruption>,
    /// What else is worth knowing, for people: "the collector counts 2.8 MiB live (gc.total)".
    pub notes: Vec<String>,
    /// The addresses it takes, in order: whoever walks after it leaves them alone.
    #[serde(skip)]
    pub claims: Vec<Range<u64>>,
    /// The returnable pages, in order, where they were asked for: no byte of them means anything to the program or
    /// its allocator while the process stands still.
    #[serde(skip)]
    pub returnable_ranges: Option<Vec<Range<u64>>>,
    /// The huge live blocks, the first [`HUGE_MOST`], where the walker knows their addresses.
    #[serde(skip)]
    pub huge: Vec<Range<u64>>,
}

impl Heap {
    /// A heap with nothing in it.
    pub fn new(kind: Kind) -> Heap {
        Heap {
            kind,
            version: None,
            name: None,
            figures: Figures::default(),
            requested: None,
            arenas: Vec::new(),
            histogram: Vec::new(),
            certainty: Certainty::default(),
            corruptions: Vec::new(),
            notes: Vec::new(),
            claims: Vec::new(),
            returnable_ranges: None,
            huge: Vec::new(),
        }
    }
}

impl Heap {
    /// Adds `arena` with its blocks by size to the whole.
    pub(crate) fn enter(&mut self, arena: Arena, classes: Vec<SizeClass>) {
        self.figures += arena.figures;
        self.arenas.push(arena);
        for class in classes.into_iter().filter(|class| class.live_count + class.free_count > 0) {
            match self.histogram.binary_search_by_key(&class.up_to, |known| known.up_to) {
                Ok(at) => self.histogram[at] += class,
                Err(at) => self.histogram.insert(at, class),
            }
        }
    }
}

impl std::ops::AddAssign for SizeClass {
    fn add_assign(&mut self, other: SizeClass) {
        self.live_count += other.live_count;
        self.live += other.live;
        self.free_count += other.free_count;
        self.free += other.free;
    }
}

impl std::ops::AddAssign for Figures {
    fn add_assign(&mut self, other: Figures) {
        self.mapped += other.mapped;
        self.resident += other.resident;
        self.live += other.live;
        self.cached += other.cached;
        self.free += other.free;
        self.returnable += other.returnable;
        self.returnable_by_trim = match (self.returnable_by_trim, other.returnable_by_trim) {
            (Some(a), Some(b)) => Some(a + b),
            (a, b) => a.or(b),
        };
        self.pinned_free += other.pinned_free;
        self.metadata += other.metadata;
        self.unused += other.unused;
        self.free_chunks += other.free_chunks;
        self.largest_free = self.largest_free.max(other.largest_free);
    }
}
