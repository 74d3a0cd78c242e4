//! CPython's obmalloc against what each Python says of itself (`sys._debugmallocstats`): every Python that is
//! installed here, from 3.8 on, each in several shapes of heap, exact to the block.
//!
//! A target tells its figures and stops itself (SIGSTOP): from its last figure on it takes and frees nothing, and looks
//! up no attribute either, for CPython's cache of attributes owns the names in it and may free the one it replaces
//! (`update_cache` in `Objects/typeobject.c`).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ebbtide_heaps::{Fault, Heap, Image, Kind, Live, MemorySource, cpython};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use ebbtide_testkit::{Child, Python};
use proptest::prelude::*;
use rustix::process::{Pid, WaitId, WaitIdOptions};
use std::collections::BTreeMap;
use std::process::{Command, Stdio};

/// Makes the heap that its first argument names; then at each line on its input does the next thing.
const TARGET: &str = r#"
import gc, os, signal, sys
gc.disable()
shape, stats, kill, me, stop = sys.argv[1], sys._debugmallocstats, os.kill, os.getpid(), signal.SIGSTOP
if shape == "fresh":
    kept = []
elif shape == "alternate":
    kept = [(i, str(i), [i]) for i in range(60000)]
    del kept[::2]
elif shape == "emptied":
    kept = {i: b"%64d" % i for i in range(200000)}
    last = kept.popitem()
    kept.clear()
elif shape == "sizes":
    kept = [b"x" * (i % 700) for i in range(150000)]
    kept = [b for i, b in enumerate(kept) if i % 7 < 2]
elif shape == "grown":
    kept = [[float(i)] for i in range(400000)]
print("@ready", flush=True)
sys.stdin.readline()
stats()
kill(me, stop)
"#;

const SHAPES: [&str; 5] = ["fresh", "alternate", "emptied", "sizes", "grown"];

/// Those that the walker is for; says aloud where there is none.
fn targets() -> Vec<(Python, String)> {
    let mut targets = Vec::new();
    for python in Python::all() {
        match python.version() {
            Some((number, text)) if number >= (3, 8) => targets.push((python, text)),
            other => println!("skipped: {} is {other:?}", python.program().display()),
        }
    }
    if targets.is_empty() {
        println!("skipped: no Python here");
    }
    targets
}

/// A Python that has told its figures and stands still.
struct Target {
    child: Child,
    stats: tempfile::NamedTempFile,
}

impl Target {
    fn ready(python: &Python, script: &str, shape: &str, configure: impl FnOnce(&mut Command)) -> Target {
        let stats = tempfile::NamedTempFile::new().unwrap();
        let mut command = python.command();
        command.args(["-c", script, shape]).stderr(Stdio::from(stats.reopen().unwrap()));
        command.env_remove("PYTHONMALLOC");
        configure(&mut command);
        Target { child: Child::spawn(&mut command), stats }
    }

    /// Has it tell its figures and stop.
    fn stop(&mut self) -> Truth {
        self.child.tell("");
        let pid = Pid::from_raw(self.child.pid().try_into().unwrap()).unwrap();
        let stopped =
            rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED | WaitIdOptions::NOWAIT);
        assert!(stopped.unwrap().is_some_and(|status| status.stopped()), "the target did not stop");
        Truth::parse(&std::fs::read_to_string(self.stats.path()).unwrap())
    }

    fn process(&self) -> Process {
        Process::open(&Root::live().unwrap(), self.child.pid()).unwrap()
    }

    fn look(&self, still: bool) -> Vec<Heap> {
        let process = self.process();
        let live = Live::new(&process, still).unwrap();
        cpython::find(&live).unwrap()
    }
}

/// What `sys._debugmallocstats` prints.
#[derive(Debug, Default)]
struct Truth {
    /// By size: blocks in use, available blocks.
    classes: BTreeMap<u64, (u64, u64)>,
    arenas: u64,
    arena: u64,
    live: u64,
    available: u64,
    unused_pools: u64,
    headers: u64,
    quantization: u64,
    alignment: u64,
}

impl Truth {
    /// The figures of the last table in `text`.
    fn parse(text: &str) -> Truth {
        let mut truth = Truth::default();
        for line in text.lines() {
            let numbers: Vec<u64> = line
                .split(|c: char| !c.is_ascii_digit() && c != ',')
                .filter_map(|word| word.replace(',', "").parse().ok())
                .collect();
            let last = numbers.last().copied().unwrap_or(0);
            if line.starts_with("Small block threshold") {
                truth = Truth::default();
            } else if let [_, size, _, used, free] = numbers[..]
                && line.starts_with(' ')
            {
                truth.classes.insert(size, (used, free));
            } else if line.contains("bytes/arena") {
                (truth.arenas, truth.arena) = (numbers[0], numbers[1]);
            } else if line.contains("bytes in allocated blocks") {
                truth.live = last;
            } else if line.contains("bytes in available blocks") {
                truth.available = last;
            } else if line.contains("unused pools") {
                truth.unused_pools = last;
            } else if line.contains("lost to pool headers") {
                truth.headers = last;
            } else if line.contains("lost to quantization") {
                truth.quantization = last;
            } else if line.contains("lost to arena alignment") {
                truth.alignment = last;
            }
        }
        assert!(truth.arenas > 0 && truth.live > 0, "no figures in {text}");
        truth
    }

    fn compare(&self, heap: &Heap, what: &str) {
        let figures = heap.figures;
        assert_eq!(figures.live, Bytes(self.live), "live: {what}");
        assert_eq!(figures.free, Bytes(self.available + self.unused_pools), "free: {what}");
        assert_eq!(figures.metadata, Bytes(self.headers), "headers: {what}");
        assert_eq!(figures.unused, Bytes(self.quantization + self.alignment), "waste: {what}");
        assert_eq!(figures.mapped, Bytes(self.arenas * self.arena), "mapped: {what}");
        assert_eq!(figures.cached, Bytes(0), "cached: {what}");
        assert_eq!(figures.returnable_by_trim, None, "trim: {what}");
        for (size, (used, _)) in &self.classes {
            // The histogram's classes are 4 to a doubling: only those up to 128 bytes are one size each.
            if *size <= 128 && size.is_multiple_of(16) {
                let found = heap.histogram.iter().find(|class| class.up_to.0 == *size);
                assert_eq!(found.map_or(0, |class| class.live_count), *used, "{size}: {what}");
            }
        }
        let counts: u64 = self.classes.values().map(|(used, _)| used).sum();
        assert_eq!(heap.histogram.iter().map(|class| class.live_count).sum::<u64>(), counts, "{what}");
        let resident = figures.returnable + figures.pinned_free;
        assert!(resident <= figures.free && figures.resident <= figures.mapped, "{what}: {figures:?}");
    }
}

#[test]
fn exact_against_what_python_says() {
    for (python, version) in targets() {
        for shape in SHAPES {
            let mut target = Target::ready(&python, TARGET, shape, |_| {});
            let truth = target.stop();
            let heaps = target.look(true);
            let what = format!("{version} {shape}");
            let [heap] = &heaps[..] else { panic!("{what}: {} heaps", heaps.len()) };
            println!("{what}: {:?} {:?}", heap.figures, heap.notes);
            truth.compare(heap, &what);
            assert_eq!(heap.kind, Kind::CPython);
            assert_eq!(heap.version.as_deref(), Some(version.as_str()), "{what}");
            assert_eq!(heap.corruptions, [], "{what}");
            assert_eq!(heap.certainty.unresolved, Bytes(0), "{what}");
            assert!(heap.certainty.still && heap.certainty.reread == 0, "{what}");
            assert!(
                !heap.notes.iter().any(|note| note.contains("no radix tree")),
                "{what}: {:?}",
                heap.notes
            );
        }
    }
}

/// In a further interpreter with a GIL and so an obmalloc of its own, which tells its figures and stops all.
const INTERPRETERS: &str = r#"
import os, sys
code = """
import gc, os, signal, sys
gc.disable()
stats, kill, me, stop = sys._debugmallocstats, os.kill, os.getpid(), signal.SIGSTOP
kept = [str(i) for i in range(50000)]
del kept[::3]
stats()
kill(me, stop)
"""
kept = [str(i) for i in range(20000)]
if sys.version_info >= (3, 13):
    import _interpreters
    first, second = (_interpreters.create("isolated") for _ in range(2))
    run = _interpreters.exec
else:
    import _xxsubinterpreters
    first, second = (_xxsubinterpreters.create(isolated=True) for _ in range(2))
    run = _xxsubinterpreters.run_string
print("@ready", flush=True)
sys.stdin.readline()
run(second, code)
"#;

#[test]
fn interpreters_with_heaps_of_their_own() {
    for (python, version) in targets() {
        if !["3.12.", "3.13.", "3.14."].iter().any(|release| version.starts_with(release)) {
            println!("skipped: {version} has one obmalloc for all interpreters");
            continue;
        }
        let mut target = Target::ready(&python, INTERPRETERS, "", |_| {});
        let truth = target.stop();
        let heaps = target.look(true);
        let [heap] = &heaps[..] else { panic!("{version}: {} heaps", heaps.len()) };
        let names: Vec<_> = heap.arenas.iter().map(|arena| arena.name.as_str()).collect();
        println!("{version}: {:?}", heap.arenas);
        assert_eq!(names, ["main", "interpreter 2", "interpreter 1"], "{version}");
        let second = heap.arenas[1].figures;
        assert_eq!(second.live, Bytes(truth.live), "{version}");
        assert_eq!(second.free, Bytes(truth.available + truth.unused_pools), "{version}");
        assert_eq!(second.mapped, Bytes(truth.arenas * truth.arena), "{version}");
        assert!(heap.arenas[0].figures.live > Bytes(1 << 20), "{version}");
        assert_eq!(
            heap.figures.mapped,
            heap.arenas.iter().map(|arena| arena.figures.mapped).sum(),
            "{version}"
        );
        assert_eq!(heap.corruptions, [], "{version}");
    }
}

#[test]
fn nothing_where_all_objects_come_from_malloc() {
    for (python, version) in targets() {
        let script = "print('@ready', flush=True); import sys; sys.stdin.readline()";
        let target = Target::ready(&python, script, "", |command| {
            command.env("PYTHONMALLOC", "malloc");
        });
        assert_eq!(target.look(false), [], "{version}");
    }
}

/// Takes and frees on several threads, as fast as it can, until its input ends.
const BUSY: &str = r#"
import os, sys, threading
def work(seed):
    kept = {}
    while True:
        for i in range(2000):
            seed = seed * 1103515245 + 12345 & 0x7fffffff
            kept[seed % 20000] = (seed, str(seed), b"x" * (seed % 500))
        if seed % 5 == 0:
            kept.clear()
for seed in range(2):
    threading.Thread(target=work, args=(seed,), daemon=True).start()
print("@ready", flush=True)
sys.stdin.readline()
os._exit(7)
"#;

/// Looks that must find it, and how often it is tried: a look at what moves may find nothing that makes sense.
const FOUND: u32 = 4;
const LOOKS: u32 = 200;

#[test]
fn a_busy_target_is_read_while_it_runs_and_not_harmed() {
    for (python, version) in targets() {
        let mut target = Target::ready(&python, BUSY, "", |_| {});
        let (mut looks, mut found, mut unresolved, mut rereads) = (0, 0, Bytes(0), 0);
        while found < FOUND && looks < LOOKS {
            looks += 1;
            let heaps = target.look(false);
            for heap in &heaps {
                let figures = heap.figures;
                assert_eq!(heap.corruptions, [], "{version}");
                assert!(
                    figures.live > Bytes(1 << 20) && figures.live < figures.mapped,
                    "{version}: {figures:?}"
                );
                unresolved += heap.certainty.unresolved;
                rereads += heap.certainty.reread;
                found += 1;
            }
        }
        println!(
            "{version}: found {found} times of {looks}, {rereads} pools read again, {unresolved} unresolved"
        );
        assert_eq!(found, FOUND, "{version}: {looks} looks");
        target.child.tell("");
        assert_eq!(target.child.wait().code(), Some(7), "{version}");
    }
}

#[test]
fn a_target_that_ends_is_an_answer() {
    let Some((python, _)) = targets().pop() else { return };
    let target = Target::ready(&python, BUSY, "", |_| {});
    let process = target.process();
    let live = Live::new(&process, false).unwrap();
    drop(target);
    assert_eq!(cpython::find(&live), Err(Fault::Ended));
}

/// The picture of a stopped Python: what of it the walker looks at.
fn picture(target: &Target) -> Image {
    let process = target.process();
    let live = Live::new(&process, true).unwrap();
    let mut image = Image::of(&live, |area| area.perms.write && area.path != b"[stack]").unwrap();
    for area in live.areas().iter().filter(|area| area.inode != 0) {
        let name = String::from_utf8_lossy(&area.path).into_owned();
        if name.rsplit('/').next().is_some_and(|name| name.contains("python3")) {
            Image::file(&mut image, &area.path, std::fs::read(&name).unwrap());
        }
    }
    image
}

/// Where the books of a picture are, to damage them: `usedpools` and what is behind, and the pools' headers.
fn targets_of_damage(heap: &Heap) -> Vec<u64> {
    let used = heap.arenas[0].address;
    let books = (0..256).map(|word| used + 8 * word);
    let pools = heap.claims.iter().flat_map(|claim| (claim.start & !4095..claim.end).step_by(4096));
    let headers = pools.take(64).flat_map(|pool| (0..8).map(move |word| pool + 8 * word));
    books.chain(headers).collect()
}

#[test]
fn no_damage_makes_it_panic_or_hang() {
    for (python, version) in targets() {
        let mut target = Target::ready(&python, TARGET, "fresh", |_| {});
        let truth = target.stop();
        let image = picture(&target);
        let whole = cpython::find(&image).unwrap();
        truth.compare(&whole[0], &format!("{version}, from a picture"));
        let places = targets_of_damage(&whole[0]);
        let word = prop_oneof![
            any::<u64>(),
            Just(0),
            Just(u64::MAX),
            Just(1 << 63),
            0..4096_u64,
            proptest::sample::select(places.clone()),
        ];
        let config = ProptestConfig { cases: 20, failure_persistence: None, ..ProptestConfig::default() };
        let damage = proptest::collection::vec((proptest::sample::select(places), word), 1..8);
        proptest!(config, |(damage in damage)| {
            let mut image = image.clone();
            for (at, word) in damage {
                image.patch(at, &word.to_le_bytes());
            }
            for heap in cpython::find(&image).unwrap() {
                let figures = heap.figures;
                let named = figures.live.0 as u128 + figures.free.0 as u128 + figures.metadata.0 as u128 + figures.unused.0 as u128;
                prop_assert!(named == figures.mapped.0 as u128, "{:?} {:?}", figures, heap.corruptions);
                prop_assert!(figures.returnable + figures.pinned_free <= figures.free);
            }
        });
    }
}
