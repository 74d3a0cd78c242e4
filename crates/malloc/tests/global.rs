//! The allocator as a Rust program's own: threads, collections, layouts of every alignment, and that it gives
//! back by itself.
#![allow(unsafe_code, clippy::unwrap_used)]

use ebbtide_malloc::COUNT;
use std::alloc::{Layout, alloc, alloc_zeroed, dealloc, realloc};
use std::collections::{BTreeMap, HashMap};

#[global_allocator]
static HEAP: ebbtide_malloc::Ebbtide = ebbtide_malloc::Ebbtide;

#[test]
fn layouts_up_to_eight_mebibytes_of_alignment() {
    for shift in 0..24 {
        for size in [1, 7, 24, 100, 4096, 70_000, 3_000_000] {
            let layout = Layout::from_size_align(size, 1 << shift).unwrap();
            // SAFETY: the layout is not empty; each block is freed with the layout it was last given.
            unsafe {
                let at = alloc(layout);
                assert!(!at.is_null() && at.addr().is_multiple_of(layout.align()));
                at.write_bytes(7, size);
                let at = realloc(at, layout, size * 3);
                assert!(at.addr().is_multiple_of(layout.align()), "{layout:?}");
                assert!((0..size).all(|i| *at.add(i) == 7));
                dealloc(at, Layout::from_size_align(size * 3, layout.align()).unwrap());
                let at = alloc_zeroed(layout);
                assert!((0..size).all(|i| *at.add(i) == 0));
                dealloc(at, layout);
            }
        }
    }
}

#[test]
fn a_buffer_that_is_cut_by_some_gives_that_back() {
    for (before, after) in [(200 << 10, 120 << 10), (64 << 20, 40 << 20)] {
        let mut bytes: Vec<u8> = (0..before).map(|i: usize| i as u8).collect();
        bytes.truncate(after);
        bytes.shrink_to_fit();
        assert!(bytes.iter().enumerate().all(|(i, byte)| *byte == i as u8));
        // SAFETY: a block of the allocator.
        let usable = unsafe { ebbtide_malloc::usable_size(bytes.as_mut_ptr()) };
        assert!(usable < after + after / 8, "{usable} of {before} for {after}");
        // By less than an eighth it stays as it is.
        bytes.truncate(usable - usable / 16);
        bytes.shrink_to_fit();
        // SAFETY: as above.
        assert_eq!(unsafe { ebbtide_malloc::usable_size(bytes.as_mut_ptr()) }, usable);
    }
}

#[test]
fn collections_on_threads() {
    let work = |seed: u64| {
        let mut map: HashMap<u64, Vec<u64>> = HashMap::new();
        for i in 0..50_000_u64 {
            map.entry(i * seed % 997).or_default().push(i);
        }
        let tree: BTreeMap<_, _> = map.into_iter().collect();
        tree.values().map(Vec::len).sum::<usize>()
    };
    let threads: Vec<_> = (1..9).map(|k| std::thread::spawn(move || work(k))).collect();
    assert!(threads.into_iter().all(|t| t.join().unwrap() == 50_000));
}

fn pss() -> usize {
    let rollup = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap();
    let line = rollup.lines().find_map(|l| l.strip_prefix("Pss:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<usize>().unwrap() << 10
}

/// The turns of the purge in which an idle program must have given everything back; it needs a handful.
const TURNS: u64 = 200;
/// Looks at the statistics block, each with a yield of the processor: minutes, should the purge not run at all.
const LOOKS: u64 = 1 << 28;

/// Gives back without being called. The purge thread tells nobody; its statistics block says when it is done.
#[test]
fn gives_back_by_itself() {
    let blocks: Vec<Vec<u8>> = (0..100_000).map(|i| vec![1; 200 + i % 2000]).collect();
    let full = pss();
    assert!(full > 100 << 20);
    drop(blocks);
    let first = COUNT.turns.get();
    let is_done = || COUNT.dirty.get() * 4096 < 1 << 20 && COUNT.cached.get() == 0;
    for _ in 0..LOOKS {
        if (is_done() && pss() < full / 2) || COUNT.turns.get() > first + TURNS {
            break;
        }
        std::thread::yield_now();
    }
    assert!(pss() < full / 2, "{} bytes were resident, and {} still are", full, pss());
}
