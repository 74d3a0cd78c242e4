//! Ebbtide's malloc against what it says of itself (mallinfo2, malloc_stats), exact to the slot, and against what
//! its malloc_trim returns: C programs under the preload library, and this test program itself.
//!
//! A target tells its figures and stops itself (SIGSTOP), so nothing changes while it is read.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ebbtide_heaps::{Fault, Heap, Image, Kind, Live, ebbtide};
use ebbtide_malloc::COUNT;
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use ebbtide_testkit::child::{self, Child, Parent};
use proptest::prelude::*;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

#[global_allocator]
static HEAP: ebbtide_malloc::Ebbtide = ebbtide_malloc::Ebbtide;

const SHAPES: [&str; 9] =
    ["little", "small", "survivors", "holes", "runs", "large", "cut", "all-freed", "threads"];

/// The preload library as it is released, built once.
fn library() -> PathBuf {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let build = || {
        let exe = std::env::current_exe().unwrap();
        // target/PROFILE/deps/THIS
        let target = exe.ancestors().nth(3).unwrap();
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.args(["build", "--quiet", "--release", "--package", "ebbtide-malloc-preload", "--target-dir"]);
        cargo.arg(target).current_dir(env!("CARGO_MANIFEST_DIR"));
        assert!(cargo.status().unwrap().success(), "the library does not build");
        target.join("release/libebbtide_malloc_preload.so")
    };
    BUILT.get_or_init(build).clone()
}

/// The target program; `None`, said aloud, without a compiler.
fn program(dir: &Path) -> Option<PathBuf> {
    if !child::installed("gcc") {
        println!("skipped: gcc is not installed");
        return None;
    }
    let program = dir.join("target");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c/ebbtide.c");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-pthread", "-fno-builtin", "-o"]).arg(&program).arg(source);
    assert!(gcc.status().unwrap().success(), "the target does not compile");
    Some(program)
}

/// A program under the library.
struct Target {
    child: Child,
    said: tempfile::NamedTempFile,
}

impl Target {
    fn ready(program: &Path, shape: &str, library: &Path, keeper: bool) -> Target {
        let said = tempfile::NamedTempFile::new().unwrap();
        let mut command = Command::new(program);
        command.arg(shape).stderr(Stdio::from(said.reopen().unwrap())).env("LD_PRELOAD", library);
        command.env("EBBTIDE_MALLOC_THREAD", if keeper { "on" } else { "off" });
        Target { child: Child::spawn(&mut command), said }
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.pid().try_into().unwrap()).unwrap()
    }

    fn wait_for_stop(&self) {
        let status = rustix::process::waitid(WaitId::Pid(self.pid()), WaitIdOptions::STOPPED).unwrap();
        assert!(status.is_some_and(|status| status.stopped()), "the target did not stop");
    }

    /// Has it tell its figures and stop.
    fn stop(&mut self) -> Truth {
        self.child.tell("");
        self.wait_for_stop();
        Truth::parse(&std::fs::read_to_string(self.said.path()).unwrap())
    }

    /// Has it trim and stop again.
    fn trim(&mut self) {
        rustix::process::kill_process(self.pid(), Signal::CONT).unwrap();
        self.wait_for_stop();
    }

    fn process(&self) -> Process {
        Process::open(&Root::live().unwrap(), self.child.pid()).unwrap()
    }

    fn rss(&self) -> Bytes {
        self.process().rollup().unwrap().rss
    }

    fn look(&self) -> Heap {
        let process = self.process();
        let live = Live::new(&process, true).unwrap();
        let mut heaps = ebbtide::find(&live).unwrap();
        assert_eq!(heaps.len(), 1);
        heaps.remove(0)
    }
}

/// What the target says of its malloc.
#[derive(Debug, Default)]
struct Truth {
    arena: u64,
    hblkhd: u64,
    uordblks: u64,
    keepcost: u64,
    /// By size: live slots, slots in magazines, free slots, pages.
    classes: Vec<(u64, [u64; 4])>,
}

impl Truth {
    fn parse(text: &str) -> Truth {
        let mut truth = Truth::default();
        for line in text.lines() {
            let numbers: Vec<u64> =
                line.split(|c: char| !c.is_ascii_digit()).filter_map(|word| word.parse().ok()).collect();
            if line.starts_with("arena ") {
                [truth.arena, truth.hblkhd, truth.uordblks, truth.keepcost] =
                    numbers[..4].try_into().unwrap();
            } else if let [size, live, magazines, free, pages] = numbers[..] {
                truth.classes.push((size, [live, magazines, free, pages]));
            }
        }
        assert!(text.contains("uordblks") && text.contains("in magazines"), "no figures in {text}");
        truth
    }

    fn sum(&self, which: usize) -> u64 {
        self.classes.iter().map(|(size, counts)| size * counts[which]).sum()
    }

    /// Exact where no purge thread ran between the figures and the stop.
    fn compare(&self, heap: &Heap, keeper: bool, what: &str) {
        let figures = heap.figures;
        assert_eq!(figures.live, Bytes(self.uordblks), "live: {what}");
        if !keeper {
            let heap_and_large = figures.mapped - figures.metadata;
            assert_eq!(heap_and_large, Bytes(self.arena + self.hblkhd), "mapped: {what}");
            let slots = self.sum(0);
            let kept = figures.cached - Bytes(self.sum(1));
            assert!(figures.live >= Bytes(slots) && kept <= Bytes(self.hblkhd), "{what}");
            let waste: u64 = self
                .classes
                .iter()
                .map(|(size, [live, magazine, free, pages])| pages * 4096 - size * (live + magazine + free))
                .sum();
            assert_eq!(figures.unused, Bytes(waste), "waste: {what}");
            let pages = figures.free - Bytes(self.sum(2));
            assert!(pages.0.is_multiple_of(4096), "free pages: {what}");
            assert_eq!(
                figures.live + figures.cached + figures.free + figures.unused,
                heap_and_large,
                "{what}"
            );
        }
        let counts = |which: usize| self.classes.iter().map(|(_, counts)| counts[which]).sum::<u64>();
        let live: u64 = heap.histogram.iter().map(|class| class.live_count).sum();
        assert!(live >= counts(0), "{what}: {live} blocks, at least {} slots", counts(0));
        assert_eq!(heap.corruptions, [], "{what}");
        assert_eq!(heap.certainty.unresolved, Bytes(0), "{what}");
        assert!(!heap.notes.iter().any(|note| note.contains("disagree")), "{what}: {:?}", heap.notes);
    }
}

#[test]
fn exact_against_what_it_says_and_trims_as_predicted() {
    let dir = tempfile::tempdir().unwrap();
    let Some(program) = program(dir.path()) else { return };
    for keeper in [false, true] {
        for shape in SHAPES {
            let mut target = Target::ready(&program, shape, &library(), keeper);
            let truth = target.stop();
            let heap = target.look();
            let what = format!("{shape:?}, purge thread {keeper}");
            truth.compare(&heap, keeper, &what);
            assert_eq!((heap.kind, heap.version.as_deref()), (Kind::Ebbtide, Some("1")));
            let before = target.rss();
            target.trim();
            let returned = before - target.rss();
            let predicted = heap.figures.returnable_by_trim.unwrap();
            let off = predicted.0.abs_diff(returned.0);
            println!("{what}: predicted {predicted}, returned {returned}; {:?}", heap.figures);
            assert!(
                off <= (256 << 10).max(returned.0 / 50),
                "{what}: {predicted} predicted, {returned} returned"
            );
            let after = target.look();
            assert_eq!(after.figures.live, heap.figures.live, "{what}");
            assert_eq!(after.figures.returnable_by_trim, Some(Bytes(0)), "{what}");
            assert_eq!(after.figures.cached, Bytes(0), "{what}");
        }
    }
}

#[test]
#[ignore = "plays the child programs of the other tests"]
fn child_program() {
    child::play(&[("rust", rust), ("busy", busy), ("lua", lua)]);
}

/// A program with a Lua state's heap, of whose blocks each fiftieth is left, at rest: tells the bytes of what is left,
/// its pages that share frames, and the frames.
#[allow(unsafe_code, reason = "a lua_Alloc is called as C calls it")]
fn lua(parent: &mut Parent) {
    use ebbtide_malloc::lua::{State, lua_alloc};
    let state = State::new().unwrap();
    // SAFETY: this heap's blocks, used by this thread alone.
    let call = |at: *mut u8, old, new| unsafe { lua_alloc(state.data(), at.cast(), old, new).cast::<u8>() };
    let mut blocks: Vec<*mut u8> = (0..50_000).map(|_| call(std::ptr::null_mut(), 0, 96)).collect();
    let mut index = 0;
    blocks.retain(|block| {
        index += 1;
        index % 50 == 0 || !call(*block, 96, 0).is_null()
    });
    // SAFETY: as above.
    let told = unsafe {
        state.rest();
        state.age();
        while state.mesh() == Some(0) {}
        state.told()
    };
    // One more, so that the heap has slots in its hand.
    blocks.push(call(std::ptr::null_mut(), 0, 96));
    parent.ready(format!("{} {} {}", blocks.len() * 96, told.meshed.get(), told.frames.get()));
    parent.listen();
}

#[test]
fn a_lua_heap_and_what_shares_frames_in_it() {
    let mut target = Child::start("lua", &[]);
    let said = target.said().to_owned();
    let [live, meshed, frames] =
        said.split_whitespace().map(|n| n.parse().unwrap()).collect::<Vec<u64>>()[..]
    else {
        panic!("{said}")
    };
    assert!(meshed > 500 && frames * 4 < meshed, "{said}");
    let process = Process::open(&Root::live().unwrap(), target.pid()).unwrap();
    let heaps = ebbtide::find(&Live::new(&process, true).unwrap()).unwrap();
    let heap = &heaps[0];
    let shares = format!("share {frames} frames");
    assert!(
        heap.notes.iter().any(|n| n.contains(&format!("{meshed} pages")) && n.contains(&shares)),
        "{heap:?}"
    );
    assert_eq!((heap.corruptions.len(), heap.certainty.unresolved), (0, Bytes(0)), "{heap:?}");
    let class = heap.histogram.iter().find(|class| class.up_to >= Bytes(96)).unwrap();
    assert!(class.live >= Bytes(live) && class.live < Bytes(live + 20_000), "{live}, {class:?}");
    target.tell("");
    assert_eq!(target.wait().code(), Some(0));
}

/// A Rust program with the allocator as its own: at a line it tells its live bytes and stops.
fn rust(parent: &mut Parent) {
    use std::io::Write;
    let mut kept: Vec<Vec<u8>> = (0..20_000).map(|i| vec![1; i % 3000]).collect();
    let mut index = 0;
    kept.retain(|_| {
        index += 1;
        index % 3 == 0
    });
    parent.ready("");
    parent.listen();
    let mut line = [0; 200];
    let mut cursor = std::io::Cursor::new(&mut line[..]);
    let magazines: u64 = (1..COUNT.classes as u8)
        .map(|class| COUNT.magazines(class) * u64::from(COUNT.tables.shape[usize::from(class)].slot_bytes))
        .sum();
    write!(cursor, "{} {}", COUNT.live_bytes(), magazines + COUNT.cached.get()).unwrap();
    let len = cursor.position() as usize;
    rustix::io::write(rustix::stdio::stderr(), &line[..len]).unwrap();
    rustix::process::kill_process(rustix::process::getpid(), Signal::STOP).unwrap();
    // Another thread may take the signal, and this one run on for a moment; this takes nothing before it waits.
    parent.listen();
}

/// Takes and frees on four threads until its input ends.
fn busy(parent: &mut Parent) {
    for thread in 0..4_usize {
        std::thread::spawn(move || {
            let mut kept: Vec<Vec<u8>> = Vec::new();
            let mut seed = thread;
            loop {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let size = 1_usize << (seed >> 60 & 15);
                kept.push(vec![1; size + (seed >> 40) % size]);
                if kept.len() > 3000 {
                    kept.drain(..seed >> 52 & 2047);
                }
            }
        });
    }
    parent.ready("");
    parent.listen();
}

#[test]
fn a_rust_programs_own_allocator() {
    let said = tempfile::NamedTempFile::new().unwrap();
    let mut command = Child::command("rust", &[]);
    command.stderr(Stdio::from(said.reopen().unwrap()));
    let mut target = Target { child: Child::spawn(&mut command), said };
    target.child.tell("");
    target.wait_for_stop();
    let heap = target.look();
    let said = std::fs::read_to_string(target.said.path()).unwrap();
    let numbers: Vec<u64> = said.split_whitespace().map(|word| word.parse().unwrap()).collect();
    assert_eq!(heap.figures.live, Bytes(numbers[0]));
    assert_eq!(heap.figures.cached, Bytes(numbers[1]));
    assert_eq!(heap.corruptions, []);
    assert!(!heap.notes.iter().any(|note| note.contains("disagree")), "{:?}", heap.notes);
}

#[test]
fn a_busy_target_is_read_while_it_runs_and_not_harmed() {
    let target = Child::start("busy", &[]);
    target.give_way();
    let process = Process::open(&Root::live().unwrap(), target.pid()).unwrap();
    let (mut rereads, mut unresolved, mut mapped) = (0, Bytes(0), Bytes(0));
    for _ in 0..200 {
        let live = Live::new(&process, false).unwrap();
        for heap in ebbtide::find(&live).unwrap() {
            let figures = heap.figures;
            assert_eq!(heap.corruptions, []);
            assert!(figures.live > Bytes(0) && figures.live < figures.mapped, "{figures:?}");
            rereads += heap.certainty.reread;
            unresolved += heap.certainty.unresolved;
            mapped += figures.mapped;
        }
    }
    println!("200 looks: {rereads} chunks read again, {unresolved} of {mapped} unresolved");
    assert!(mapped > Bytes(0) && unresolved < Bytes(mapped.0 / 20), "{unresolved} of {mapped}");
    assert_eq!(target.wait().code(), Some(0));
}

#[test]
fn a_target_that_ends_is_an_answer() {
    let target = Child::start("busy", &[]);
    let process = Process::open(&Root::live().unwrap(), target.pid()).unwrap();
    let live = Live::new(&process, false).unwrap();
    drop(target);
    assert_eq!(ebbtide::find(&live), Err(Fault::Ended));
}

#[test]
fn nothing_where_it_is_not() {
    let target = Child::spawn(Command::new("sh").args(["-c", "echo @ready; read line"]));
    let process = Process::open(&Root::live().unwrap(), target.pid()).unwrap();
    assert_eq!(ebbtide::find(&Live::new(&process, false).unwrap()), Ok(Vec::new()));
}

/// Where a picture may be damaged: the block, the tables of the first chunks, the first thread heap.
fn places(image: &Image, heap: &Heap) -> Vec<u64> {
    use ebbtide_heaps::{MemorySource, Reader};
    let mut reader = Reader::new(image);
    let data = image.areas().iter().filter(|area| area.inode != 0 && area.perms.write);
    let pages = data.flat_map(|area| area.range.clone().step_by(4096));
    let block = pages.filter(|page| reader.array::<8>(*page) == Ok(*b"EBBTIDE\0")).collect::<Vec<_>>();
    let tables =
        heap.claims.iter().filter(|claim| claim.end - claim.start < 4 << 20).map(|claim| claim.start);
    let starts = block.into_iter().chain(tables);
    starts.flat_map(|start| (0..512).map(move |word| start + 8 * word)).collect()
}

#[test]
fn no_damage_makes_it_panic_or_hang() {
    let dir = tempfile::tempdir().unwrap();
    let Some(program) = program(dir.path()) else { return };
    let mut target = Target::ready(&program, "threads", &library(), false);
    let truth = target.stop();
    let process = target.process();
    let live = Live::new(&process, true).unwrap();
    let image = Image::of(&live, |area| area.perms.write && area.path != b"[stack]").unwrap();
    let whole = ebbtide::find(&image).unwrap();
    truth.compare(&whole[0], false, "from a picture");
    let places = places(&image, &whole[0]);
    let word = prop_oneof![
        any::<u64>(),
        Just(0),
        Just(u64::MAX),
        Just(1 << 63),
        0..600_u64,
        proptest::sample::select(places.clone()),
    ];
    let damage = proptest::collection::vec((proptest::sample::select(places), word), 1..8);
    let config = ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(damage in damage)| {
        let mut image = image.clone();
        for (at, word) in damage {
            image.patch(at, &word.to_le_bytes());
        }
        for heap in ebbtide::find(&image).unwrap() {
            let figures = heap.figures;
            let named = figures.live + figures.cached + figures.free + figures.metadata + figures.unused;
            prop_assert_eq!(named, figures.mapped);
            prop_assert!(figures.returnable + figures.pinned_free <= figures.free);
        }
    });
}
