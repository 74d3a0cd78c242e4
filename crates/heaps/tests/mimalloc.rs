//! The mimalloc walker against the truth: a C program on Debian's libraries, preloaded, which knows every block that it
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

/// Of a program that never asked for memory there is nothing to find.
const SHAPES: [&str; 7] = ["survivors", "every-size", "freed", "large", "huge", "aligned", "freed-elsewhere"];

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

/// Debian's libraries that are here: this host's, and Debian 13's, which was unpacked.
fn libraries() -> Vec<PathBuf> {
    let unpacked = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("vm/trixie/libmimalloc3");
    let libraries = [
        PathBuf::from("/usr/lib/x86_64-linux-gnu/libmimalloc.so.2.0"),
        unpacked.join("usr/lib/x86_64-linux-gnu/libmimalloc.so.3"),
    ];
    let is_here = |library: &PathBuf| {
        let exists = library.exists();
        if !exists {
            println!("skipped: {} is not there", library.display());
        }
        exists
    };
    libraries.into_iter().filter(is_here).collect()
}

fn start(library: &Path) -> Child {
    let loader = library.with_file_name("ld-linux-x86-64.so.2");
    if library.starts_with("/usr") || !loader.exists() {
        return Child::spawn(Command::new(program()).env("LD_PRELOAD", library));
    }
    // It needs a newer C library than this host's, and has it beside it.
    let mut command = Command::new(&loader);
    command.arg("--library-path").arg(loader.parent().unwrap());
    Child::spawn(command.arg("--preload").arg(library).arg(program()))
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

/// Every library, with every shape.
fn cases() -> Vec<(PathBuf, &'static str)> {
    let of = |library: PathBuf| SHAPES.map(|shape| (library.clone(), shape));
    libraries().into_iter().flat_map(of).collect()
}

#[test]
fn every_block_is_found() {
    for (library, shape) in cases() {
        let mut child = start(&library);
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
        // A thread brings a few blocks of its own (its stack's books); an aligned block begins somewhere in one that is
        // larger by the alignment.
        let own = match shape {
            "freed-elsewhere" => (4, 4096),
            "aligned" => (0, 2 * (64 << 20)),
            _ => (0, 0),
        };
        let more = (blocks(&after) - said[0], figures.live.0 - said[1]);
        assert!(more.0 <= own.0 && more.1 <= own.1, "{shape}: {more:?} more than is held");
    }
}

#[test]
fn returnable_pages_can_be_dropped() {
    for (library, shape) in cases() {
        let mut child = start(&library);
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
    for library in libraries() {
        let mut child = start(&library);
        child.give_way();
        child.ask("busy");
        let (mut found, mut rereads, mut unresolved, mut resident) = (0, 0, Bytes(0), Bytes(0));
        for _ in 0..20 {
            for heap in with_process(&child, false, |live| mimalloc::find(live).unwrap()) {
                assert_eq!(heap.corruptions, []);
                let figures = heap.figures;
                let named = figures.live + figures.cached + figures.free + figures.metadata + figures.unused;
                assert_eq!(named, figures.mapped);
                found += 1;
                rereads += heap.certainty.reread;
                unresolved += heap.certainty.unresolved;
                resident += figures.resident;
            }
        }
        let what = library.display();
        println!("{what}: {found} of 20 found, {rereads} read again, {unresolved} of {resident} unresolved");
        assert!(found >= 15 && unresolved.0 < resident.0 / 2, "{what}: {found}: {unresolved} of {resident}");
    }
}

#[test]
fn beside_glibc_and_where_it_is_not() {
    for library in libraries() {
        let mut child = start(&library);
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
}

#[test]
fn damaged_pictures() {
    for library in libraries() {
        let mut child = start(&library);
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
}
