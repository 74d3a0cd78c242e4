//! The tcmalloc walker against tcmalloc's own properties, to the byte, what its release returns, and pages dropped
//! under a program that then checks what it holds. On the two libraries of each Debian, preloaded.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ebbtide_heaps::{Area, Fault, Heap, Image, Kind, Live, Look, MemorySource, tcmalloc};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use ebbtide_testkit::child::{self, Child};
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

const SHAPES: [&str; 7] = ["fresh", "survivors", "every-class", "large", "all-freed", "released", "threads"];
/// Debian's, without and with the heap profiler, which samples.
const LIBRARIES: [&str; 2] = ["libtcmalloc_minimal.so.4", "libtcmalloc.so.4"];
/// Where they are: this host's, and those of Debian 11 (2.8) and Debian 13 (2.16), which were unpacked.
const UNPACKED: [&str; 2] = ["bullseye/libgoogle-perftools4", "trixie/libgoogle-perftools4t64"];

/// Debian's libraries that are here.
fn libraries() -> Vec<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("vm");
    let dirs = UNPACKED.map(|dir| target.join(dir).join("usr/lib/x86_64-linux-gnu"));
    let dirs = [PathBuf::from("/usr/lib/x86_64-linux-gnu")].into_iter().chain(dirs);
    let all = dirs.flat_map(|dir| LIBRARIES.map(|name| dir.join(name)));
    let is_here = |library: &PathBuf| {
        let exists = library.exists();
        if !exists {
            println!("skipped: {} is not there", library.display());
        }
        exists
    };
    all.filter(is_here).collect()
}

/// The target program; `None`, said aloud, without a compiler.
fn program() -> Option<PathBuf> {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if !child::installed("gcc") {
        println!("skipped: gcc is not installed");
        return None;
    }
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("tcmalloc");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/tcmalloc.c");
    if !child::is_built(&program, &source) {
        let arguments = ["-O1", "-Wall", "-Werror", "-pthread", "-fno-builtin-malloc", "-o"];
        assert!(Command::new("gcc").args(arguments).arg(&program).arg(&source).status().unwrap().success());
    }
    Some(program)
}

/// What tcmalloc says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Truth {
    allocated: u64,
    heap: u64,
    free: u64,
    unmapped: u64,
    threads: u64,
    central: u64,
    transfer: u64,
    /// Blocks that the program itself holds.
    blocks: u64,
}

/// A program under the library.
struct Target(Child);

impl Target {
    fn ready(library: &Path, shape: &str) -> Option<Target> {
        let program = program()?;
        let loader = library.with_file_name("ld-linux-x86-64.so.2");
        let mut command = if library.starts_with("/usr") || !loader.exists() {
            let mut command = Command::new(program);
            command.env("LD_PRELOAD", library);
            command
        } else {
            // It needs a newer C library than this host's, and has it beside it.
            let mut command = Command::new(&loader);
            command.arg("--library-path").arg(loader.parent()?).arg("--preload").arg(library).arg(program);
            command
        };
        let mut target = Target(Child::spawn(&mut command));
        target.0.ask(&format!("shape {shape}"));
        Some(target)
    }

    fn truth(&mut self) -> Truth {
        let said: Vec<u64> = self.0.ask("truth").split(' ').map(|word| word.parse().unwrap()).collect();
        let [allocated, heap, free, unmapped, threads, central, transfer, blocks] = said.try_into().unwrap();
        Truth { allocated, heap, free, unmapped, threads, central, transfer, blocks }
    }

    fn process(&self) -> Process {
        Process::open(&Root::live().unwrap(), self.0.pid()).unwrap()
    }

    fn rss(&self) -> Bytes {
        self.process().rollup().unwrap().rss
    }

    fn heap(&self) -> Heap {
        let process = self.process();
        let mut heaps = tcmalloc::find_with_ranges(&Live::new(&process, true).unwrap()).unwrap();
        assert_eq!(heaps.len(), 1);
        heaps.remove(0)
    }
}

fn compare(truth: Truth, heap: &Heap, what: &str) {
    let figures = heap.figures;
    println!("{what}: {truth:?} {figures:?}");
    assert_eq!(figures.live, Bytes(truth.allocated), "live: {what}");
    assert_eq!(figures.cached, Bytes(truth.threads), "thread caches: {what}");
    // What is left over at the ends of spans counts for the central lists, too.
    let in_spans = figures.free - Bytes(truth.free + truth.unmapped + truth.transfer);
    let overhead = Bytes(truth.central) - in_spans;
    assert!(in_spans.0 <= truth.central && overhead <= figures.unused, "free: {what}");
    let spans = figures.live + figures.cached + figures.free + overhead;
    assert_eq!(spans, Bytes(truth.heap), "all: {what}");
    let counted: u64 = heap.histogram.iter().map(|class| class.live_count).sum();
    assert!((truth.blocks..truth.blocks + 300).contains(&counted), "{what}: {counted} blocks");
    assert_eq!((heap.kind, &heap.corruptions), (Kind::Tcmalloc, &Vec::new()), "{what}");
    assert_eq!((heap.certainty.unresolved, &heap.notes), (Bytes(0), &Vec::new()), "{what}");
    sane(heap);
}

/// What holds of any heap.
fn sane(heap: &Heap) {
    let figures = heap.figures;
    let named = figures.live + figures.cached + figures.free + figures.metadata + figures.unused;
    assert_eq!(named, figures.mapped);
    assert!(figures.returnable + figures.pinned_free <= figures.free);
    assert!(heap.claims.windows(2).all(|pair| pair[0].end <= pair[1].start), "{:x?}", heap.claims);
}

#[test]
fn exact_against_its_properties_and_releases_as_predicted() {
    for library in libraries() {
        for shape in SHAPES {
            let Some(mut target) = Target::ready(&library, shape) else { return };
            let what = format!("{}, {shape}", library.display());
            let truth = target.truth();
            let heap = target.heap();
            compare(truth, &heap, &what);
            let predicted = heap.figures.returnable_by_trim.unwrap();
            let before = target.rss();
            target.0.ask("release");
            let returned = before - target.rss();
            println!("{what}: predicted {predicted}, returned {returned}");
            let off = predicted.0.abs_diff(returned.0);
            assert!(off <= (256 << 10).max(returned.0 / 50), "{what}: {predicted} for {returned}");
            let after = target.heap();
            compare(target.truth(), &after, &what);
            assert_eq!(after.figures.returnable_by_trim, Some(Bytes(0)), "{what}");
        }
    }
}

#[test]
fn what_is_returnable_can_be_given_back_and_nothing_is_harmed() {
    for library in libraries() {
        for shape in ["survivors", "every-class", "threads"] {
            let Some(mut target) = Target::ready(&library, shape) else { return };
            let heap = target.heap();
            let ranges = heap.returnable_ranges.unwrap();
            let before = target.rss();
            if let Some((last, others)) = ranges.split_last() {
                target.0.tell(&format!("drop {}", ranges.len()));
                others.iter().for_each(|range| target.0.tell(&format!("{:x} {:x}", range.start, range.end)));
                target.0.ask(&format!("{:x} {:x}", last.start, last.end));
            }
            let dropped = before - target.rss();
            let off = dropped.0.abs_diff(heap.figures.returnable.0);
            assert!(off <= 256 << 10, "{shape}: {dropped} for {}", heap.figures.returnable);
            assert_eq!(target.0.ask("check"), "0", "{shape}");
            compare(target.truth(), &target.heap(), shape);
        }
    }
}

#[test]
fn no_byte_is_in_two_heaps() {
    for library in libraries() {
        let Some(target) = Target::ready(&library, "threads") else { return };
        let look = Look::into(&target.process(), true).unwrap();
        assert_eq!(look.failed, []);
        let found: Vec<Kind> = look.known().map(|heap| heap.kind).collect();
        assert_eq!(found, [Kind::Tcmalloc]);
        let mut claims: Vec<_> = look.heaps.iter().flat_map(|heap| heap.claims.clone()).collect();
        claims.sort_by_key(|claim| claim.start);
        assert!(claims.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }
}

#[test]
fn a_busy_target_is_read_while_it_runs() {
    for library in libraries() {
        let Some(mut target) = Target::ready(&library, "survivors") else { return };
        target.0.give_way();
        target.0.ask("busy");
        let process = target.process();
        let (mut found, mut rereads, mut unresolved, mut mapped) = (0, 0, Bytes(0), Bytes(0));
        for _ in 0..6 {
            let live = Live::new(&process, false).unwrap();
            for heap in tcmalloc::find(&live).unwrap() {
                sane(&heap);
                assert_eq!(heap.corruptions, []);
                found += 1;
                rereads += heap.certainty.reread;
                unresolved += heap.certainty.unresolved;
                mapped += heap.figures.mapped;
            }
        }
        println!("{found} of 6 found, {rereads} read again, {unresolved} of {mapped} unresolved");
        assert!(found >= 4 && unresolved.0 < mapped.0 / 4, "{found}: {unresolved} of {mapped}");
    }
}

#[test]
fn a_target_that_ends_is_an_answer() {
    let Some(library) = libraries().pop() else { return };
    let Some(target) = Target::ready(&library, "fresh") else { return };
    let process = target.process();
    let live = Live::new(&process, false).unwrap();
    drop(target);
    assert_eq!(tcmalloc::find(&live), Err(Fault::Ended));
}

#[test]
fn nothing_where_it_is_not() {
    let target = Child::spawn(Command::new("sh").args(["-c", "echo @ready; read line"]));
    let process = Process::open(&Root::live().unwrap(), target.pid()).unwrap();
    assert_eq!(tcmalloc::find(&Live::new(&process, false).unwrap()), Ok(Vec::new()));
}

#[test]
fn no_damage_makes_it_panic_or_hang() {
    let Some(library) = libraries().into_iter().next() else { return };
    let Some(mut target) = Target::ready(&library, "every-class") else { return };
    let truth = target.truth();
    let process = target.process();
    let live = Live::new(&process, true).unwrap();
    let keep = |area: &Area| area.perms.write && area.path != b"[stack]";
    let image = Image::of(&live, keep).unwrap();
    let whole = tcmalloc::find(&image).unwrap();
    compare(truth, &whole[0], "from a picture");
    // Every word that is not zero in memory that is claimed: books and objects.
    let mut places = Vec::new();
    let mut reader = ebbtide_heaps::Reader::new(&image);
    for at in whole[0].claims.iter().flat_map(|claim| claim.clone().step_by(8)) {
        if image.area_at(at).is_some() && reader.u64(at).is_ok_and(|word| word != 0) {
            places.push(at);
        }
    }
    let word = prop_oneof![
        any::<u64>(),
        Just(0),
        Just(u64::MAX),
        Just(1 << 63),
        0..600_u64,
        proptest::sample::select(places.clone()),
    ];
    let damage = proptest::collection::vec((proptest::sample::select(places), word), 1..200);
    let config = ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() };
    let image = Mutex::new(image);
    proptest!(config, |(damage in damage)| {
        let mut image = image.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        for (at, word) in damage {
            image.patch(at, &word.to_le_bytes());
        }
        for heap in tcmalloc::find(&*image).unwrap() {
            sane(&heap);
        }
    });
}
