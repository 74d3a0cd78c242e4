//! The walker of musl's malloc against the truth: a C program, dynamic and static, on Debian's releases of musl, which
//! knows every block that it holds and what it asked for.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ebbtide_heaps::{Heap, Image, Kind, Live, Look, musl};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use ebbtide_testkit::child::{self, Child};
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

const SHAPES: [&str; 11] = [
    "survivors",
    "every-size",
    "freed",
    "small",
    "large",
    "middling",
    "huge",
    "aligned",
    "reallocated",
    "bouncing",
    "freed-elsewhere",
];

/// A musl, and how a program has it.
#[derive(Debug, Clone)]
struct Build {
    name: &'static str,
    /// Where its files are: libc.so, which is the dynamic linker, and libc.a.
    dir: PathBuf,
    is_static: bool,
}

const INSTALLED: &str = "/usr/lib/x86_64-linux-musl";

impl Build {
    /// Builds the program, if it was not before.
    fn program(&self) -> PathBuf {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap();
        let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
        // A dynamic one is the same on each.
        let name = if self.is_static { format!("on-musl-{}", self.name) } else { "on-musl".to_owned() };
        let (program, specs) = (tmp.join(&name), tmp.join(format!("{name}.specs")));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/musl.c");
        if !child::is_built(&program, &source) {
            let own = std::fs::read_to_string(Path::new(INSTALLED).join("musl-gcc.specs")).unwrap();
            // The headers of another release say nothing else, and may be this one's.
            std::fs::write(&specs, own.replace(INSTALLED, self.dir.to_str().unwrap())).unwrap();
            let mut gcc = Command::new("gcc");
            gcc.args(["-O1", "-Wall", "-fno-builtin", "-pthread"]).args(self.is_static.then_some("-static"));
            assert!(
                gcc.arg("-specs")
                    .arg(&specs)
                    .arg("-o")
                    .arg(&program)
                    .arg(&source)
                    .status()
                    .unwrap()
                    .success()
            );
        }
        program
    }

    fn start(&self) -> Child {
        let program = self.program();
        if self.is_static {
            return Child::spawn(&mut Command::new(program));
        }
        Child::spawn(Command::new(self.dir.join("libc.so")).arg(program))
    }
}

/// Debian's releases of musl that are here: this host's, and the others', which were unpacked; each twice.
fn builds() -> Vec<Build> {
    let vm = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap().join("vm");
    let releases = [
        ("1.2.3", PathBuf::from(INSTALLED)),
        ("1.2.2", vm.join("bullseye/musl/usr/lib/x86_64-linux-musl")),
        ("1.2.5", vm.join("trixie/musl/usr/lib/x86_64-linux-musl")),
    ];
    let mut builds = Vec::new();
    for (name, dir) in releases {
        if !dir.join("libc.a").exists() || !Path::new(INSTALLED).join("musl-gcc.specs").exists() {
            println!("skipped: musl {name}: no {}, or no musl-gcc", dir.display());
            continue;
        }
        // Debian 11 has it in /lib, which was not yet the same.
        let shared = [dir.clone(), dir.join("../../../lib/x86_64-linux-musl")];
        let shared = shared.into_iter().find(|dir| dir.join("libc.so").exists()).unwrap();
        builds.push(Build { name, dir: shared, is_static: false });
        builds.push(Build { name, dir, is_static: true });
    }
    builds
}

/// Every build, with every shape.
fn cases() -> Vec<(Build, &'static str)> {
    builds().into_iter().flat_map(|build| SHAPES.map(|shape| (build.clone(), shape))).collect()
}

fn with_process<R>(child: &Child, still: bool, see: impl FnOnce(&Live<'_>) -> R) -> R {
    let process = Process::open(&Root::live().unwrap(), child.pid()).unwrap();
    see(&Live::new(&process, still).unwrap())
}

fn heaps(child: &Child) -> Vec<Heap> {
    with_process(child, true, |live| musl::find_with_ranges(live).unwrap())
}

fn heap(child: &Child) -> Heap {
    let mut heaps = heaps(child);
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

/// What must hold of every heap.
fn adds_up(heap: &Heap) {
    let figures = heap.figures;
    let named = figures.live + figures.cached + figures.free + figures.metadata + figures.unused;
    assert_eq!(named, figures.mapped, "{heap:?}");
    assert!(figures.returnable + figures.pinned_free <= figures.resident, "{heap:?}");
}

#[test]
fn every_block_is_found() {
    for (build, shape) in cases() {
        let mut child = build.start();
        // The dynamic linker has blocks of its own; a static program has asked for nothing yet.
        let before = heaps(&child);
        assert_eq!(before.len(), usize::from(!build.is_static), "{build:?}");
        let own = before.first().map_or((0, 0), |heap| (blocks(heap), heap.requested.unwrap().0));
        let said: Vec<u64> =
            child.ask(&format!("shape {shape}")).split(' ').map(|number| number.parse().unwrap()).collect();
        let after = heap(&child);
        let (figures, release) = (after.figures, build.name);
        println!("{release} {shape}: {said:?} held, {own:?} by the linker, {figures:?}");
        assert_eq!(after.corruptions, [], "{build:?} {shape}");
        assert_eq!(after.certainty.unresolved, Bytes::ZERO, "{build:?} {shape}");
        adds_up(&after);
        let found = [blocks(&after) - own.0, after.requested.unwrap().0 - own.1];
        assert_eq!(found.as_slice(), said, "{build:?} {shape}");
        // Slots are larger than their blocks by a fifth at most, besides 16 bytes; large ones by a page; aligned ones by more.
        let slack = figures.live.0 - after.requested.unwrap().0;
        assert!(shape == "aligned" || slack < after.requested.unwrap().0 / 2 + 4096 * blocks(&after));
    }
}

#[test]
fn returnable_pages_can_be_dropped() {
    // What is in a static program does not differ, and there are thousands of pages to be named.
    let cases = cases().into_iter().filter(|(build, _)| !build.is_static || build.name == "1.2.3");
    for (build, shape) in cases {
        let mut child = build.start();
        let said = child.ask(&format!("shape {shape}")).to_owned();
        // What answering takes is there before.
        child.ask("drop 0 0");
        let (found, held) = (heap(&child), resident(&child));
        for range in found.returnable_ranges.unwrap() {
            assert_eq!(child.ask(&format!("drop {:x} {:x}", range.start, range.end)), "0");
        }
        assert_eq!(held - resident(&child), found.figures.returnable, "{build:?} {shape}");
        let again = heap(&child);
        assert_eq!(again.corruptions, [], "{build:?} {shape}");
        assert_eq!((again.figures.live, again.requested), (found.figures.live, found.requested));
        assert_eq!(again.figures.returnable, Bytes::ZERO, "{build:?} {shape}");
        println!("{} {shape}: {said} held, {} dropped", build.name, found.figures.returnable);
        assert_eq!(child.ask("check"), "whole", "{build:?} {shape}");
        assert_eq!(heap(&child).corruptions, [], "{build:?} {shape}");
    }
}

#[test]
fn a_busy_target_is_read_while_it_runs() {
    for build in builds() {
        let mut child = build.start();
        child.give_way();
        child.ask("busy");
        let (mut found, mut rereads, mut unresolved, mut resident) = (0, 0, Bytes(0), Bytes(0));
        for _ in 0..20 {
            for heap in with_process(&child, false, |live| musl::find(live).unwrap()) {
                assert_eq!(heap.corruptions, []);
                adds_up(&heap);
                found += 1;
                rereads += heap.certainty.reread;
                unresolved += heap.certainty.unresolved;
                resident += heap.figures.resident;
            }
        }
        println!(
            "{build:?}: {found} of 20 found, {rereads} read again, {unresolved} of {resident} unresolved"
        );
        assert!(found >= 19 && unresolved.0 < resident.0 / 4, "{build:?}: {unresolved} of {resident}");
    }
}

/// A byte behind a block, which the program would end by when it frees that.
#[test]
fn a_block_that_was_written_behind() {
    for build in builds() {
        let mut child = build.start();
        child.ask("shape survivors");
        let sound = heap(&child);
        let behind = child.ask("overrun").parse().unwrap();
        let damaged = heap(&child);
        let spots: Vec<u64> = damaged.corruptions.iter().map(|damage| damage.address).collect();
        assert_eq!(spots, [behind], "{build:?}: {:?}", damaged.corruptions);
        assert_eq!((damaged.figures.live, damaged.requested), (sound.figures.live, sound.requested));
        child.ask("mend");
        assert_eq!(heap(&child).corruptions, []);
        assert_eq!(child.ask("check"), "whole");
    }
}

#[test]
fn beside_others_and_where_it_is_not() {
    for build in builds() {
        let mut child = build.start();
        child.ask("shape survivors");
        let process = Process::open(&Root::live().unwrap(), child.pid()).unwrap();
        let look = Look::into(&process, true).unwrap();
        assert!(look.failed.is_empty(), "{:?}", look.failed);
        let kinds: Vec<Kind> = look.known().map(|heap| heap.kind).collect();
        assert_eq!(kinds, [Kind::Musl], "{build:?}");
        // What is nobody's is the program's static data, and little else.
        let rest = look.heaps.iter().filter(|heap| heap.kind == Kind::Unknown);
        let rest: Vec<_> = rest.map(|heap| (heap.name.clone().unwrap(), heap.figures.resident)).collect();
        let anonymous: Bytes = rest.iter().filter(|(name, _)| name != "static data").map(|rest| rest.1).sum();
        assert!(anonymous < Bytes(64 << 10), "{build:?}: {rest:?}");
        let mut claims: Vec<_> = look.heaps.iter().flat_map(|heap| heap.claims.clone()).collect();
        claims.sort_by_key(|claim| claim.start);
        assert!(claims.windows(2).all(|pair| pair[0].end <= pair[1].start));
    }
    let own = Process::open(&Root::live().unwrap(), std::process::id()).unwrap();
    assert_eq!(musl::find(&Live::new(&own, false).unwrap()).unwrap(), []);
}

#[test]
fn damaged_pictures() {
    // Releases do not differ in what is damaged.
    for build in builds().into_iter().take(2) {
        let mut child = build.start();
        child.ask("shape small");
        let image = with_process(&child, true, |live| {
            Image::of(live, |area| area.perms.write && !area.perms.shared).unwrap()
        });
        let found = musl::find(&image).unwrap().remove(0);
        assert_eq!(found.figures, heap(&child).figures);
        let claims = found.claims;
        let value = prop_oneof![
            any::<u64>(),
            0u64..4096,
            Just(0),
            prop::sample::select(claims.clone()).prop_map(|c| c.start)
        ];
        let patch = (0..claims.len(), 0u64..(1 << 16) / 8, value);
        proptest!(ProptestConfig::with_cases(60), |(patches in proptest::collection::vec(patch, 1..20))| {
            let mut damaged = image.clone();
            for (claim, word, value) in patches {
                let claim = &claims[claim];
                damaged.patch(claim.start + word * 8 % (claim.end - claim.start), &value.to_le_bytes());
            }
            let groups = musl::Groups::find(&damaged).unwrap();
            for part in groups.iter().flat_map(|groups| (0..groups.parts()).map(move |part| (groups, part))) {
                part.0.free(&damaged, part.1).unwrap();
            }
            for heap in musl::find(&damaged).unwrap() {
                adds_up(&heap);
            }
        });
    }
}
