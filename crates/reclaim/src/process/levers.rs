//! What can be done for each heap: its allocator's own function, or its free pages dropped from outside.
//!
//! Facts: what each function reaches was measured by this crate's tests (tests/levers.rs) on what Debian 12 ships.

use crate::report::Lever;
use ebbtide_heaps::cpython::Requests;
use ebbtide_heaps::{Heap, Kind};
use ebbtide_observe::Bytes;
use ebbtide_observe::hsperf::Jvm;
use std::time::Duration;

/// A function of an allocator, by which it gives back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Function {
    /// What it is called, wherever it is.
    pub(super) names: &'static [&'static str],
    /// What the same file must define too, so that it is this allocator's.
    pub(super) beside: &'static str,
    /// Its first argument is this text's address, where there is one.
    pub(super) text: Option<&'static str>,
    /// Its arguments.
    pub(super) args: [u64; 6],
}

impl Function {
    pub(super) const fn plain(name: &'static [&'static str], beside: &'static str, first: u64) -> Function {
        Function { names: name, beside, text: None, args: [first, 0, 0, 0, 0, 0] }
    }
}

/// How a lever is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// A thread calls it.
    Call(&'static Function),
    /// glibc's free pages: `all`, or only the tops of thread arenas.
    Arenas { all: bool },
    /// lj_alloc's free chunks, page by page.
    Trees,
    /// musl's free slots, page by page.
    Slots,
    /// The JVM does it itself.
    Jvm(&'static str),
    /// A thread of the Python does it, by itself.
    Python(Requests),
    /// Redis purges its jemalloc itself.
    Redis,
    /// Redis moves its blocks together.
    Defragment,
    /// Settings of this allocator.
    Lasting(Kind),
}

/// `malloc_trim(0)`.
const GLIBC: Function = Function::plain(&["malloc_trim"], "gnu_get_libc_version", 0);
/// `malloc_trim(0)` too.
const EBBTIDE: Function = Function::plain(&["malloc_trim"], "ebbtide_stats", 0);
/// `mallctl("arena.4096.purge", NULL, NULL, NULL, 0)`: MALLCTL_ARENAS_ALL (jemalloc.h, 5.0 and later). Redis and Rust
/// programs that have a jemalloc of their own give its functions a prefix.
pub(super) const JEMALLOC: Function = Function {
    names: &["mallctl", "je_mallctl", "_rjem_mallctl"],
    beside: "",
    text: Some("arena.4096.purge"),
    args: [0; 6],
};
/// `MallocExtension_ReleaseFreeMemory()`.
const TCMALLOC: Function = Function::plain(&["MallocExtension_ReleaseFreeMemory"], "", 0);
/// `mi_collect(true)`.
const MIMALLOC: Function = Function::plain(&["mi_collect"], "", 1);

/// Of a heap this share is left free at most after a full collection (MaxHeapFreeRatio, 70 by default, of the Serial,
/// Parallel and G1 collectors).
const FREE_MOST: f64 = 0.7;

/// Redis's own command, over its socket.
pub(super) const PURGE: &str = "jemalloc's free pages, by MEMORY PURGE";
const LOCKED: &str = "each arena is locked while it is gone through: 7 to 11 ms for 300 MB (glibc 2.36)";
const STOPS: &str = "all threads stop for a moment, as often as it takes";

/// How long the thread that calls an allocator's function is held up by dropping pages: 0.22 us for each (malloc_trim of
/// glibc 2.36 on Linux 6.18: 5.4 ms for 96 MiB in one chunk; jemalloc's purge: 13 ms for 190 MiB on a busy machine).
pub(super) fn dropping_takes(bytes: Bytes) -> Duration {
    Duration::from_nanos((bytes.0 / 4096).saturating_mul(220))
}

/// malloc_trim goes through each free chunk, too: 1 us.
fn trim_takes(bytes: Bytes, chunks: u64) -> Duration {
    dropping_takes(bytes) + Duration::from_micros(chunks)
}

/// What the levers depend on, besides the heap.
#[derive(Debug, Clone)]
pub(super) struct Planner {
    /// For how long a thread may be held up.
    pub(super) max_stop: Duration,
    /// Whether a seccomp filter watches its system calls: then no function is called, which makes who knows which.
    pub(super) is_filtered: bool,
    /// Whether it is a Redis, which can be asked.
    pub(super) is_redis: bool,
    /// What its JVM counts, if it runs one.
    pub(super) jvm: Option<Jvm>,
}

impl Planner {
    /// What a collection would give back of the JVM's heap, of which so much is resident: at least, because what is used
    /// the JVM counts at collections only.
    pub(super) fn collection(&self, resident: Bytes) -> Option<(Lever, Way)> {
        let heap = self.jvm.as_ref()?.heap;
        let predicted = heap.committed.min(resident) - heap.used.scaled(1.0 / (1.0 - FREE_MOST));
        let on = "the room in the JVM's heap, and what turns out to be garbage".to_owned();
        let cost = "the program stops for a full collection";
        let lever = Lever::planned("jvm-gc", on, predicted, cost);
        Some((Lever { unforeseen: predicted == Bytes::ZERO, ..lever }, Way::Jvm("GC.run")))
    }

    /// The levers for one heap; what else is worth knowing goes into `notes`.
    pub(super) fn levers(&self, heap: &Heap, notes: &mut Vec<String>) -> Vec<(Lever, Way)> {
        if !heap.corruptions.is_empty() {
            notes.push(format!("{}: it looks damaged, and is left alone", heap.kind));
            return Vec::new();
        }
        let returnable = heap.figures.returnable;
        let by_trim = heap.figures.returnable_by_trim.unwrap_or_default();
        let lever = |id, on: &str, bytes, cost| Lever::planned(id, on.to_owned(), bytes, cost);
        let takes_long = trim_takes(by_trim, heap.figures.free_chunks) > self.max_stop;
        let mut levers = match heap.kind {
            Kind::Glibc if self.jvm.is_some() => {
                let way = Way::Jvm("System.trim_native_heap");
                vec![(lever("jvm-trim", "glibc's free chunks", by_trim, LOCKED), way)]
            }
            Kind::Glibc if takes_long || self.is_filtered => {
                let on = "glibc's free chunks and tops";
                vec![(lever("free-pages", on, returnable, STOPS), Way::Arenas { all: true })]
            }
            Kind::Glibc => {
                let tops = returnable - by_trim;
                vec![
                    (lever("malloc-trim", "glibc's free chunks", by_trim, LOCKED), Way::Call(&GLIBC)),
                    (
                        lever("arena-tops", "the tops of glibc's thread arenas", tops, STOPS),
                        Way::Arenas { all: false },
                    ),
                ]
            }
            Kind::LuaJit => {
                vec![(lever("lua-pages", "lj_alloc's free chunks", returnable, STOPS), Way::Trees)]
            }
            Kind::Musl => {
                vec![(lever("musl-pages", "free slots of musl's malloc", returnable, STOPS), Way::Slots)]
            }
            Kind::Jemalloc if self.is_redis && self.is_filtered => {
                let cost = "Redis answers nobody while its dirty and muzzy pages are dropped";
                vec![(lever("redis-purge", PURGE, by_trim, cost), Way::Redis)]
            }
            Kind::Jemalloc => {
                let cost = "each arena is locked while its dirty and muzzy pages are dropped";
                vec![(lever("jemalloc-purge", "jemalloc's free pages", by_trim, cost), Way::Call(&JEMALLOC))]
            }
            Kind::Tcmalloc => {
                let cost = "the page heap is locked while its free spans are released";
                vec![(
                    lever("tcmalloc-release", "tcmalloc's free spans", by_trim, cost),
                    Way::Call(&TCMALLOC),
                )]
            }
            Kind::Ebbtide => {
                let cost = "each class is locked while its free pages are dropped";
                vec![(lever("ebbtide-trim", "Ebbtide's free pages", by_trim, cost), Way::Call(&EBBTIDE))]
            }
            Kind::Mimalloc => {
                notes.push(format!(
                    "mimalloc: of {returnable} in free pages, mi_collect reaches those of the thread that calls it, and \
                     of threads that ended; how much that is cannot be foreseen"
                ));
                let cost = "the thread that calls goes through its own heap";
                let on = "what mi_collect(true) reaches".to_owned();
                vec![(Lever::unforeseen("mi-collect", on, cost), Way::Call(&MIMALLOC))]
            }
            kind => {
                notes.push(format!("{kind}: {returnable} could be given back; no lever for it"));
                Vec::new()
            }
        };
        levers.retain(|(lever, _)| lever.predicted > Bytes::ZERO || lever.unforeseen);
        if self.is_filtered && levers.iter().any(|(_, way)| matches!(way, Way::Call(_))) {
            notes.push(format!(
                "{}: it runs under a seccomp filter, so that nothing is called in it",
                heap.kind
            ));
            levers.retain(|(_, way)| !matches!(way, Way::Call(_)));
        }
        for (lever, _) in levers.iter_mut().filter(|(_, way)| matches!(way, Way::Call(_) | Way::Redis)) {
            let takes = dropping_takes(lever.predicted);
            if takes > self.max_stop {
                let takes = takes.as_millis() + 1;
                lever.short = Some(format!("it would hold up a thread for about {takes} ms (--max-stop)"));
            }
        }
        levers
    }
}
