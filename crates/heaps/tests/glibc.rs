//! The glibc walker against the truth: a C program brings its heap into twenty shapes, tells what it holds and
//! what mallinfo and malloc_info say, then calls malloc_trim(0). On this host's glibc, statically linked, and on
//! those of Debian 11 (2.31) and 13 (2.41) where `cargo xtask test` has unpacked them under target/vm.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ebbtide_heaps::{Area, Corruption, Heap, Image, Live, MemorySource, glibc};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use ebbtide_testkit::child::{Child, is_built};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// What malloc_trim may be off by: 2%, or this.
const SLACK: Bytes = Bytes(256 << 10);

/// Which C library the program runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Libc {
    /// This host's.
    Host,
    /// This host's, in the program itself.
    Static,
    /// The same, at addresses that are chosen at each start.
    StaticPie,
    /// That of a Debian release unpacked in a directory.
    Tree(PathBuf),
}

impl Libc {
    /// The release `suite`, if it was unpacked.
    fn release(suite: &str) -> Option<Libc> {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?;
        let tree = target.join("vm").join(suite).join("libc6");
        if tree.exists() {
            return Some(Libc::Tree(tree));
        }
        println!("skipped: glibc of {suite}: `cargo xtask test` could not unpack it");
        None
    }

    /// Builds the program of the shapes.
    fn build(&self) -> PathBuf {
        static ONE_AT_A_TIME: std::sync::Mutex<()> = std::sync::Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (name, mut options) = match self {
            Libc::Host => ("host".to_owned(), Vec::new()),
            Libc::Static => ("static".to_owned(), vec!["-static".to_owned()]),
            Libc::StaticPie => ("static-pie".to_owned(), vec!["-static-pie".to_owned()]),
            Libc::Tree(tree) => {
                let suite = tree.parent().and_then(Path::file_name).unwrap().to_string_lossy();
                let lib = tree.join("lib/x86_64-linux-gnu");
                let options = vec![
                    format!("--sysroot={}", tree.display()),
                    format!("-B{}", tree.join("usr/lib/x86_64-linux-gnu").display()),
                    format!("-Wl,--dynamic-linker={}", lib.join("ld-linux-x86-64.so.2").display()),
                    format!("-Wl,-rpath,{}", lib.display()),
                ];
                (suite.into_owned(), options)
            }
        };
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("shapes-{name}"));
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/shapes.c");
        if is_built(&program, &source) {
            return program;
        }
        let all = ["-O1", "-Wall", "-Wno-deprecated-declarations", "-fno-builtin", "-pthread"];
        options.extend(all.map(str::to_owned));
        let status =
            Command::new("gcc").arg("-o").arg(&program).arg(&source).args(&options).status().expect("gcc");
        assert!(status.success(), "gcc {options:?}");
        program
    }
}

/// The program in one shape.
struct Shaped {
    child: Child,
    info: PathBuf,
    shape: &'static str,
    libc: Libc,
}

impl Drop for Shaped {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.info);
    }
}

/// What mallinfo says.
#[derive(Debug, PartialEq, Eq)]
struct Mallinfo {
    arena: u64,
    in_use: u64,
    free: u64,
    fast: u64,
    mmaps: u64,
    mmapped: u64,
}

/// What malloc_info says of an arena.
#[derive(Debug)]
struct Info {
    /// Bytes in quick lists.
    fast: u64,
    /// Count and bytes of what is in bins, and the top. Its sums forget to mask the flags in the sizes of what
    /// is in bins (chunksize_nomask): 1 in each, or 5 in a thread arena.
    rest: (u64, u64),
}

impl Info {
    /// Whether `free` bytes can be what it means.
    fn agrees(&self, free: u64, is_main: bool) -> bool {
        let (count, sum) = self.rest;
        let flags = sum.wrapping_sub(free).wrapping_sub(count - 1);
        if is_main { flags == 0 } else { flags <= 4 * (count - 1) && flags.is_multiple_of(4) }
    }
}

impl Shaped {
    fn start(libc: &Libc, shape: &'static str) -> Shaped {
        // Tests run side by side: each program writes a file of its own.
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let program = libc.build();
        let name = format!("{}-{}.xml", std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        let info = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let child = Child::spawn(Command::new(program).arg(shape).arg(&info));
        Shaped { child, info, shape, libc: libc.clone() }
    }

    fn heap(&self) -> Heap {
        let root = Root::live().unwrap();
        let process = Process::open(&root, self.child.pid()).unwrap();
        let live = Live::new(&process, true).unwrap();
        let mut heaps = glibc::find(&live).unwrap();
        assert_eq!(heaps.len(), 1, "{} on {:?}: {heaps:?}", self.shape, self.libc);
        heaps.remove(0)
    }

    /// Makes the shape; how many bytes of chunks it holds.
    fn make(&mut self) -> Bytes {
        Bytes(self.child.ask("shape").parse().unwrap())
    }

    fn mallinfo(&mut self) -> Mallinfo {
        let said: Vec<u64> = self.child.ask("truth").split(' ').map(|n| n.parse().unwrap()).collect();
        let &[arena, in_use, free, fast, mmaps, mmapped] = said.as_slice() else { panic!("{said:?}") };
        Mallinfo { arena, in_use, free, fast, mmaps, mmapped }
    }

    /// What malloc_info said with the last answer of mallinfo, the main arena first and the newest second.
    fn malloc_info(&self) -> Vec<Info> {
        let text = std::fs::read_to_string(&self.info).unwrap();
        let total = |heap: &str, kind: &str| -> (u64, u64) {
            // 2.43 has no quick lists.
            let Some((_, rest)) = heap.split_once(&format!("<total type=\"{kind}\" ")) else { return (0, 0) };
            let mut quoted = rest.split('"').skip(1).step_by(2).map(|number| number.parse().unwrap());
            (quoted.next().unwrap(), quoted.next().unwrap())
        };
        let heaps = text.split("<heap nr=").skip(1);
        heaps.map(|heap| Info { fast: total(heap, "fast").1, rest: total(heap, "rest") }).collect()
    }

    /// Anonymous memory that is resident.
    fn anonymous(&self) -> Bytes {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.pid())).unwrap();
        let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
        Bytes::from_kib(line.trim().trim_end_matches(" kB").parse().unwrap())
    }
}

/// Every shape, and whether its threads make glibc allocate what the program does not count.
const SHAPES: [(&str, bool); 20] = [
    ("fresh", false),
    ("below-a-pin", false),
    ("trimmed-already", false),
    ("alternate", false),
    ("alternate-runs", false),
    ("caches-full", false),
    ("quick-lists", false),
    ("quick-lists-at-random", false),
    ("large-blocks", false),
    ("large-bins", false),
    ("reallocated", false),
    ("aligned", false),
    ("gap-in-brk", false),
    ("blocked-brk", false),
    ("bursts-at-once", true),
    ("bursts-in-turn", true),
    ("ended-threads", true),
    ("several-heaps", true),
    ("tops-of-arenas", true),
    ("shared-arenas", true),
];

/// Checks one shape in full.
fn check(libc: &Libc, shape: &'static str, threads: bool) {
    let name = format!("{shape} on {libc:?}");
    let mut shaped = Shaped::start(libc, shape);
    let before = shaped.heap();
    let held = shaped.make();
    let heap = shaped.heap();
    let figures = heap.figures;
    let mallinfo = shaped.mallinfo();
    let arenas = shaped.malloc_info();

    assert_eq!(heap.corruptions, Vec::<Corruption>::new(), "{name}");
    assert_eq!(heap.certainty.unresolved, Bytes::ZERO, "{name}: {:?}", heap.notes);

    // What lives: to the byte what the program holds, but for what glibc allocates for threads.
    let grown = figures.live.0.wrapping_sub(before.figures.live.0);
    let of_threads = if threads { 64 << 10 } else { 0 };
    assert!(
        grown.wrapping_sub(held.0) <= of_threads,
        "{name}: {} live more than before, {} held",
        Bytes(grown),
        held
    );

    // What is free, per arena: bins and tops exactly, quick lists within what is cached.
    let parts: Vec<_> = heap.arenas.iter().filter(|arena| arena.name != "mmapped").collect();
    assert_eq!(parts.len(), arenas.len(), "{name}");
    // malloc_info begins with the main arena and goes on with the newest.
    let in_order = arenas[..1].iter().chain(arenas[1..].iter().rev());
    for (part, info) in parts.iter().zip(in_order) {
        let name = format!("{name}, {}: {info:?} {:?}", part.name, part.figures);
        assert!(info.agrees(part.figures.free.0, part.name == "main"), "{name}");
        // A scattered part's first chunk may lie right behind the top of another: for pages, the two are one.
        let merged = u64::from(shape == "blocked-brk");
        assert!(info.rest.0 - part.figures.free_chunks <= merged, "{name}");
        assert!(part.figures.cached.0 >= info.fast, "{name}");
    }
    assert_eq!(figures.free.0 + mallinfo.fast, mallinfo.free, "{name}");
    // In 2.43 every mremap of a block counts 16 bytes too many, and the shape has four.
    let miscounts = shape == "large-blocks" && heap.version.as_deref() == Some("2.43");
    let too_many = if miscounts { 64 } else { 0 };
    let named = figures.live + figures.cached + figures.free + figures.metadata;
    assert_eq!((named + figures.unused), figures.mapped, "{name}");
    // Other code's brk memory counts as mallinfo's, and is not the heap's.
    let foreign = if shape == "gap-in-brk" { Bytes(50008 + 4096) } else { Bytes::ZERO };
    let all = Bytes(mallinfo.arena + mallinfo.mmapped - too_many);
    assert!(named <= all && all - named <= foreign, "{name}: {named} of {all}: {:?}", heap.notes);
    let mmapped = heap.arenas.iter().find(|arena| arena.name == "mmapped");
    let mapped = mmapped.map_or(0, |arena| arena.figures.mapped.0);
    assert_eq!(mapped, mallinfo.mmapped - too_many, "{name}");

    // What trimming gives back.
    let resident = shaped.anonymous();
    shaped.child.ask("trim");
    let given = resident - shaped.anonymous();
    let said = figures.returnable_by_trim.unwrap();
    let off = Bytes(said.0.abs_diff(given.0));
    println!("{name}: {given} given back, {said} foreseen, {off} off");
    assert!(off <= SLACK || off <= given.scaled(0.02), "{name}: {given} given back, {said} foreseen");
    let left = shaped.heap().figures.returnable_by_trim.unwrap();
    assert!(left <= Bytes(64 << 10), "{name}: {left} left after trimming");
}

#[test]
fn every_shape_on_this_host() {
    for (shape, threads) in SHAPES {
        check(&Libc::Host, shape, threads);
    }
}

#[test]
fn every_shape_of_static_programs() {
    for (shape, threads) in SHAPES {
        check(&Libc::Static, shape, threads);
    }
    check(&Libc::StaticPie, "alternate", false);
    check(&Libc::StaticPie, "bursts-in-turn", true);
}

#[test]
fn every_shape_on_glibc_2_31() {
    let Some(libc) = Libc::release("bullseye") else { return };
    for (shape, threads) in SHAPES {
        check(&libc, shape, threads);
    }
}

#[test]
fn every_shape_on_glibc_2_41() {
    let Some(libc) = Libc::release("trixie") else { return };
    for (shape, threads) in SHAPES {
        check(&libc, shape, threads);
    }
}

/// Every page that is called returnable can be dropped, also in the tops of thread arenas that malloc_trim leaves
/// alone: resident memory falls by just so much, no block changes, and malloc goes on.
#[test]
fn returnable_pages_can_be_dropped() {
    let libcs = [Some(Libc::Host), Libc::release("bullseye"), Libc::release("trixie")];
    for (libc, (shape, _)) in libcs.iter().flatten().flat_map(|libc| SHAPES.map(|shape| (libc, shape))) {
        let mut shaped = Shaped::start(libc, shape);
        shaped.make();
        let process = Process::open(&Root::live().unwrap(), shaped.child.pid()).unwrap();
        let heap = glibc::find_with_ranges(&Live::new(&process, true).unwrap()).unwrap().remove(0);
        let ranges = heap.returnable_ranges.unwrap();
        let sum: Bytes = ranges.iter().map(|range| Bytes(range.end - range.start)).sum();
        assert_eq!(sum, heap.figures.returnable, "{shape} on {libc:?}");
        let content = shaped.child.ask("sum").to_owned();
        let resident = shaped.anonymous();
        for range in ranges {
            assert_eq!(shaped.child.ask(&format!("drop {:x} {:x}", range.start, range.end)), "0");
        }
        assert_eq!(resident - shaped.anonymous(), sum, "{shape} on {libc:?}");
        assert_eq!(shaped.child.ask("sum"), content, "{shape} on {libc:?}");
        shaped.child.ask("end");
        let after = shaped.heap();
        assert_eq!(after.corruptions, [], "{shape} on {libc:?}");
    }
}

/// The picture of a real heap with damage in it: the walk ends, names no byte twice, and what it calls damaged
/// is damaged.
#[test]
fn damage_in_a_real_heap() {
    let mut shaped = Shaped::start(&Libc::Host, "shared-arenas");
    shaped.make();
    let process = Process::open(&Root::live().unwrap(), shaped.child.pid()).unwrap();
    let live = Live::new(&process, true).unwrap();
    let is_libc = |area: &Area| area.path.ends_with(b"/libc.so.6");
    let mut image = Image::of(&live, |area| area.is_private_anon() || is_libc(area)).unwrap();
    for area in live.areas().iter().filter(|area| is_libc(area)) {
        let mut content = Vec::new();
        live.file(area).unwrap().read_to_end(&mut content).unwrap();
        Image::file(&mut image, &area.path, content);
    }
    let whole = glibc::find(&image).unwrap().remove(0);
    assert_eq!(whole.figures, glibc::find(&live).unwrap().remove(0).figures);
    assert_eq!(whole.corruptions, []);
    // A generator of its own, so that a failure can be had again.
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    let mut draw = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    for round in 0..200 {
        let mut damaged = image.clone();
        for _ in 0..1 + draw(20) {
            let claim = &whole.claims[draw(whole.claims.len() as u64) as usize];
            let word = [draw(u64::MAX), draw(4096), claim.start + draw(1 << 20), 0][draw(4) as usize];
            damaged.patch((claim.start + draw(8 << 20)) & !7, &word.to_le_bytes());
        }
        for heap in glibc::find(&damaged).unwrap() {
            let figures = heap.figures;
            let named = figures.live + figures.cached + figures.free + figures.metadata;
            assert_eq!(named + figures.unused, figures.mapped, "round {round}");
        }
    }
}
