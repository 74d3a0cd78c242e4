//! The mimalloc walker against the truth: a C program on Debian's library, preloaded, which knows every block that it
//! holds; and what mi_collect gives back.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ebbtide_heaps::{Heap, Image, Kind, Live, Look, mimalloc};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use ebbtide_testkit::Child;
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

const LIBRARY: &str = "/usr/lib/x86_64-linux-gnu/libmimalloc.so.2.0";
/// Of a program that never asked for memory there is nothing to find.
const SHAPES: [&str; 5] = ["survivors", "every-size", "freed", "large", "freed-elsewhere"];

fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("on-mimalloc");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/mimalloc.c");
        let mut gcc = Command::new("gcc");
        gcc.args(["-O1", "-Wall", "-fno-builtin", "-pthread", "-o"]).arg(&program).arg(&source);
        assert!(gcc.status().unwrap().success());
        program
    })
}

fn start() -> Option<Child> {
    if !Path::new(LIBRARY).exists() {
        println!("skipped: mimalloc: libmimalloc2.0 is not installed");
        return None;
    }
    Some(Child::spawn(Command::new(program()).env("LD_PRELOAD", LIBRARY)))
}

fn with_process<R>(child: &Child, still: bool, see: impl FnOnce(&Live<'_>) -> R) -> R {
    let process = Process::open(&Root::live().unwrap(), child.pid()).unwrap();
    see(&Live::new(&process, still).unwrap())
}

fn heap(child: &Child) -> Heap {
    let mut heaps = with_process(child, true, |live| mimalloc::find_with_ranges(live).unwrap());
    assert_eq!(heaps.len(), 1);
    heaps.remove(0)
}

fn blocks(heap: &Heap) -> u64 {
    heap.histogram.iter().map(|class| class.live_count).sum()
}

fn resident(child: &Child) -> Bytes {
    let process = Process::open(&Root::live().unwrap(), child.pid()).unwrap();
    process.rollup().unwrap().anonymous
}

#[test]
fn every_block_is_found() {
    for shape in SHAPES {
        let Some(mut child) = start() else { return };
        assert_eq!(with_process(&child, true, |live| mimalloc::find(live).unwrap()), []);
        let said: Vec<u64> =
            child.ask(&format!("shape {shape}")).split(' ').map(|number| number.parse().unwrap()).collect();
        let after = heap(&child);
        let figures = after.figures;
        println!("{shape}: {said:?} held, {figures:?}");
        assert_eq!(after.corruptions, [], "{shape}");
        assert_eq!(after.certainty.unresolved, Bytes::ZERO, "{shape}");
        let named = figures.live + figures.cached + figures.free + figures.metadata + figures.unused;
        assert_eq!(named, figures.mapped, "{shape}");
        // A thread brings a few blocks of its own (its stack's books).
        let own = if shape == "freed-elsewhere" { (4, 4096) } else { (0, 0) };
        let more = (blocks(&after) - said[0], figures.live.0 - said[1]);
        assert!(more.0 <= own.0 && more.1 <= own.1, "{shape}: {more:?} more than is held");
    }
}

#[test]
fn returnable_pages_can_be_dropped() {
    for shape in SHAPES {
        let Some(mut child) = start() else { return };
        child.ask(&format!("shape {shape}"));
        let (found, held) = (heap(&child), resident(&child));
        for range in found.returnable_ranges.unwrap() {
            assert_eq!(child.ask(&format!("drop {:x} {:x}", range.start, range.end)), "0");
        }
        assert_eq!(held - resident(&child), found.figures.returnable, "{shape}");
        assert_eq!(child.ask("check"), "whole", "{shape}");
        assert_eq!(heap(&child).corruptions, [], "{shape}");
    }
}

#[test]
fn a_busy_target_is_read_while_it_runs() {
    let Some(mut child) = start() else { return };
    child.ask("busy");
    for _ in 0..50 {
        let heaps = with_process(&child, false, |live| mimalloc::find(live).unwrap());
        for heap in heaps {
            assert_eq!(heap.corruptions, []);
            let figures = heap.figures;
            let named = figures.live + figures.cached + figures.free + figures.metadata + figures.unused;
            assert_eq!(named, figures.mapped);
        }
    }
}

#[test]
fn beside_glibc_and_where_it_is_not() {
    let Some(mut child) = start() else { return };
    child.ask("shape survivors");
    let process = Process::open(&Root::live().unwrap(), child.pid()).unwrap();
    let look = Look::into(&process, true).unwrap();
    assert!(look.failed.is_empty(), "{:?}", look.failed);
    assert_eq!(look.known().next().map(|heap| heap.kind), Some(Kind::Mimalloc));
    let mut claims: Vec<_> = look.heaps.iter().flat_map(|heap| heap.claims.clone()).collect();
    claims.sort_by_key(|claim| claim.start);
    assert!(claims.windows(2).all(|pair| pair[0].end <= pair[1].start));
    let plain = Child::spawn(&mut Command::new(program()));
    assert_eq!(with_process(&plain, true, |live| mimalloc::find(live).unwrap()), []);
}

#[test]
fn damaged_pictures() {
    let Some(mut child) = start() else { return };
    child.ask("shape freed-elsewhere");
    let image = with_process(&child, true, |live| {
        // The main thread's heap, which bears out the books, is in the library's data.
        Image::of(live, |area| area.perms.write && !area.perms.shared).unwrap()
    });
    let claims = mimalloc::find(&image).unwrap().remove(0).claims;
    let patch = (0..claims.len(), 0u64..(1 << 20) / 8, prop_oneof![any::<u64>(), 0u64..4096, Just(0)]);
    proptest!(ProptestConfig::with_cases(60), |(patches in proptest::collection::vec(patch, 1..20))| {
        let mut damaged = image.clone();
        for (claim, word, value) in patches {
            let Some(claim) = claims.get(claim) else { continue };
            damaged.patch(claim.start + word * 8, &value.to_le_bytes());
        }
        for heap in mimalloc::find(&damaged).unwrap() {
            let figures = heap.figures;
            let named = figures.live + figures.cached + figures.free + figures.metadata + figures.unused;
            prop_assert_eq!(named, figures.mapped);
        }
    });
}
