//! Looks at made-up processes, compared with the files in tests/golden.

use super::*;
use crate::render::golden;
use ebbtide_heaps::{Arena, Corruption, Fault, Look, SizeClass};
use ebbtide_observe::process::Name;
use std::time::{Duration, UNIX_EPOCH};

fn check(name: &str, seen: &Seen, all: bool) {
    golden(name, |page| report(page, seen, all), |_| false);
}

fn mib(mib: f64) -> Bytes {
    Bytes((mib * 1024.0 * 1024.0) as u64)
}

fn figures(live: f64, cached: f64, free: f64, returnable: f64, pinned: f64) -> Figures {
    Figures {
        mapped: mib(live + cached + free + 1.5),
        resident: mib(live + cached + returnable + pinned + 0.25),
        live: mib(live),
        cached: mib(cached),
        free: mib(free),
        returnable: mib(returnable),
        returnable_by_trim: Some(mib(returnable / 2.0)),
        pinned_free: mib(pinned),
        metadata: mib(0.5),
        unused: mib(1.0),
        free_chunks: 48_210,
        largest_free: mib(17.0),
    }
}

fn seen(heaps: Vec<Heap>) -> Seen {
    Seen {
        pid: 4321,
        name: Name::new(b"a) R 1\n\x1b[31m"),
        rss: Some(mib(364.0)),
        look: Look { heaps, ..Look::default() },
        stop: None,
        at: UNIX_EPOCH,
    }
}

fn glibc() -> Heap {
    let arena = |name: &str, live, returnable| Arena {
        address: 0x7f00_0000_0030,
        name: name.to_owned(),
        figures: figures(live, 0.0, returnable * 2.0, returnable, 1.0),
        collector: None,
    };
    let class = |up_to: u64, live_count: u64, free_count: u64| SizeClass {
        up_to: Bytes(up_to),
        live_count,
        live: Bytes(live_count * up_to),
        free_count,
        free: Bytes(free_count * up_to),
    };
    let mut heap = Heap::new(Kind::Glibc);
    heap.version = Some("2.36".to_owned());
    heap.figures = figures(3.1, 2.0, 340.0, 112.0, 80.0);
    heap.arenas = vec![arena("thread 1", 1.0, 40.0), arena("main", 2.1, 72.0)];
    heap.arenas.extend((2..9).map(|n| arena(&format!("thread {n}"), 0.0, 0.1)));
    heap.histogram = (4..12).map(|n| class(1 << n, 10_000 >> n, 3_000_000 >> n)).collect();
    heap.certainty = Certainty { still: false, reread: 3, unresolved: Bytes(0) };
    heap.notes = vec!["8 of its 9 arenas are for threads that have ended".to_owned()];
    heap
}

fn unknown(name: &str, resident: f64) -> Heap {
    let mut heap = Heap::new(Kind::Unknown);
    heap.name = Some(name.to_owned());
    (heap.figures.mapped, heap.figures.resident) = (mib(resident * 2.0), mib(resident));
    heap
}

#[test]
fn golden_heap_retained() {
    let mut seen = seen(vec![glibc(), unknown("anonymous", 3.0)]);
    seen.look.stacks = Extent { mapped: mib(72.0), resident: mib(0.25) };
    check("heap", &seen, false);
    check("heap-all", &seen, true);
}

#[test]
fn golden_heap_of_several_allocators_damaged_and_not_sure() {
    let mut lua = Heap::new(Kind::LuaJit);
    lua.version = Some("2.1.0-beta3".to_owned());
    lua.figures = Figures { returnable_by_trim: None, ..figures(40.0, 0.0, 8.0, 6.0, 1.0) };
    lua.certainty.unresolved = Bytes::from_kib(96);
    let mut damaged = glibc();
    damaged.corruptions.push(Corruption {
        address: 0x5581_67cb_2010,
        what: "a chunk's size of 0x4141414141414140 leads out of its arena\x1b[31m".to_owned(),
    });
    damaged.arenas.truncate(1);
    let mut seen = seen(vec![lua, damaged, unknown("\x1b]0;label", 1.0)]);
    seen.look.code = Extent { mapped: mib(2.0), resident: mib(1.0) };
    seen.look.failed.push(("CPython", Fault::Swapped(0x7f00_0000_1000)));
    check("heap-several", &seen, false);
}

#[test]
fn golden_heap_of_nothing_known_standing_still() {
    let mut jvm = unknown("JVM heap", 120.0);
    jvm.notes.push("the JVM's heap: 40.0 MiB used at its last collection of 118 MiB committed".to_owned());
    let mut seen = seen(vec![jvm, unknown("anonymous", 30.0)]);
    seen.stop = Some(Duration::from_micros(2_340));
    check("heap-unknown", &seen, false);
}
