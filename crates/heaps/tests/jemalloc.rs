//! The jemalloc walker against the truth, to the byte: a C program brings jemalloc into many shapes and tells what
//! mallctl says. With this host's library preloaded, with it linked statically and stripped, and with Debian 11's
//! (5.2.1), whose package is unpacked for it; and a Redis server, which tells by itself.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ebbtide_heaps::{Figures, Heap, Live, MemorySource, jemalloc};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use ebbtide_testkit::child::{Child, is_built};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

#[path = "jemalloc/moving.rs"]
mod moving;
#[path = "jemalloc/programs.rs"]
mod programs;

/// What purging may be off by: 2%, or this.
const SLACK: Bytes = Bytes(256 << 10);
const PAGE: u64 = 4096;

/// Where jemalloc is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Build {
    /// A library is preloaded.
    Preloaded(PathBuf),
    /// In the program itself, of which symbols are stripped.
    Static,
    /// In the program itself, which is at a fixed address.
    NoPie,
}

impl Build {
    /// This host's library, if it has one.
    fn host() -> Option<Build> {
        let library = "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2";
        if !Path::new(library).exists() {
            println!("skipped: libjemalloc2 is not installed");
            return None;
        }
        Some(Build::Preloaded(library.into()))
    }

    /// That of the release `suite`, if it was unpacked.
    fn release(suite: &str) -> Option<Build> {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?;
        let library = "libjemalloc2/usr/lib/x86_64-linux-gnu/libjemalloc.so.2";
        let library = target.join("vm").join(suite).join(library);
        if !library.exists() {
            println!("skipped: jemalloc of {suite}: `cargo xtask test` could not unpack it");
            return None;
        }
        Some(Build::Preloaded(library))
    }

    /// The program, built once.
    fn program(&self) -> PathBuf {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let (name, options): (_, &[&str]) = match self {
            Build::Preloaded(_) => ("jemalloc-none", &[]),
            Build::Static => ("jemalloc-static", &["-s", "-l:libjemalloc_pic.a", "-lstdc++", "-lm"]),
            Build::NoPie => {
                ("jemalloc-no-pie", &["-no-pie", "-static", "-l:libjemalloc.a", "-lstdc++", "-lm"])
            }
        };
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/jemalloc.c");
        if !is_built(&program, &source) {
            let mut gcc = Command::new("gcc");
            gcc.args(["-O1", "-Wall", "-Werror", "-fno-builtin", "-pthread", "-o"]).arg(&program);
            assert!(gcc.arg(&source).args(options).status().expect("gcc").success(), "{self:?}");
        }
        program
    }
}

/// The program in one shape.
struct Shaped(Child);

/// What mallctl says of an arena: stats.arenas.N.pactive and so on.
#[derive(Debug, Clone, Copy)]
struct Part {
    dirty_pages: u64,
    muzzy_pages: u64,
    small: u64,
    large: u64,
    /// In the caches that the arena has, of whatever arena it is.
    cached: u64,
    base: u64,
    internal: u64,
    retained: u64,
    mapped: u64,
    free_in_slabs: u64,
}

/// What mallctl says.
#[derive(Debug, Default)]
struct Truth {
    sums: BTreeMap<String, u64>,
    arenas: BTreeMap<u64, Part>,
    /// By size: blocks that are not in slabs and extents, and so live, cached, or its own.
    classes: BTreeMap<u64, u64>,
}

impl Truth {
    fn parse(said: &str) -> Truth {
        let mut truth = Truth::default();
        let numbers = |list: &str| -> Vec<u64> { list.split(':').map(|n| n.parse().unwrap()).collect() };
        for (name, value) in said.split(' ').map(|part| part.split_once('=').unwrap()) {
            let numbers = numbers(value);
            match (name, numbers.as_slice()) {
                ("arena", &[number, _, dirty_pages, muzzy_pages, small, large, cached, ref rest @ ..]) => {
                    let &[base, internal, retained, mapped, free_in_slabs] = rest else { panic!("{rest:?}") };
                    let part = Part {
                        dirty_pages,
                        muzzy_pages,
                        small,
                        large,
                        cached,
                        base,
                        internal,
                        retained,
                        mapped,
                        free_in_slabs,
                    };
                    truth.arenas.insert(number, part);
                }
                ("class", &[size, count]) => {
                    truth.classes.insert(size, count);
                }
                (name, &[value]) => {
                    truth.sums.insert(name.to_owned(), value);
                }
                other => panic!("{other:?}"),
            }
        }
        truth
    }
}

impl Shaped {
    fn start(build: &Build, shape: &str, conf: &str) -> Shaped {
        let program = build.program();
        let mut command = Command::new(&program);
        if let Build::Preloaded(library) = build {
            let loader = library.with_file_name("ld-linux-x86-64.so.2");
            if library.starts_with("/usr") || !loader.exists() {
                command.env("LD_PRELOAD", library);
            } else {
                // It needs a newer C library than this host's, and has it beside it.
                command = Command::new(&loader);
                command.arg("--library-path").arg(loader.parent().unwrap());
                command.arg("--preload").arg(library).arg(&program);
            }
        }
        Shaped(Child::spawn(command.arg(shape).env("MALLOC_CONF", conf)))
    }

    /// Makes the shape; how many bytes of blocks the program holds.
    fn make(&mut self) -> Bytes {
        Bytes(self.0.ask("shape").parse().unwrap())
    }

    fn truth(&mut self) -> Truth {
        Truth::parse(self.0.ask("truth"))
    }

    fn process(&self) -> Process {
        Process::open(&Root::live().unwrap(), self.0.pid()).unwrap()
    }

    /// Its one jemalloc.
    fn look(&self) -> Heap {
        let process = self.process();
        let live = Live::new(&process, true).unwrap();
        let mut heaps = jemalloc::find_with_ranges(&live).unwrap();
        assert_eq!(heaps.len(), 1, "{heaps:#?}");
        heaps.remove(0)
    }

    /// The same, of which all is known.
    fn heap(&self) -> Heap {
        let heap = self.look();
        let process = self.process();
        sound(&heap, &Live::new(&process, true).unwrap());
        heap
    }

    /// Gives back all that `heap` says can be; returns how much that was.
    fn drop(&mut self, heap: &Heap) -> Bytes {
        let ranges = heap.returnable_ranges.as_ref().unwrap();
        let Some((last, others)) = ranges.split_last() else { return Bytes::ZERO };
        self.0.tell(&format!("drop {}", ranges.len()));
        for range in others {
            self.0.tell(&format!("{:x} {:x}", range.start, range.end));
        }
        Bytes(self.0.ask(&format!("{:x} {:x}", last.start, last.end)).parse().unwrap())
    }

    /// Anonymous memory that is resident.
    fn anonymous(&self) -> Bytes {
        anonymous(self.0.pid())
    }
}

fn anonymous(pid: u32) -> Bytes {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).unwrap();
    Bytes::from_kib(line.trim().trim_end_matches(" kB").parse().unwrap())
}

/// What holds of every heap.
fn adds_up(heap: &Heap) {
    let sum = heap.arenas.iter().fold(Figures::default(), |mut sum, arena| {
        sum += arena.figures;
        sum
    });
    let figures = heap.figures;
    assert_eq!(sum, figures);
    let named = figures.live + figures.cached + figures.free + figures.metadata + figures.unused;
    assert_eq!(named, figures.mapped);
    assert!(heap.claims.windows(2).all(|pair| pair[0].end < pair[1].start));
    let live: Bytes = heap.histogram.iter().map(|class| class.live).sum();
    assert_eq!(live, figures.live);
}

/// What holds of every heap that stands still.
fn sound(heap: &Heap, live: &Live<'_>) {
    adds_up(heap);
    assert_eq!(heap.corruptions, []);
    assert_eq!((heap.certainty.unresolved, heap.certainty.reread), (Bytes::ZERO, 0), "{:?}", heap.notes);
    let claimed: u64 = heap.claims.iter().map(|claim| claim.end - claim.start).sum();
    assert_eq!(Bytes(claimed), heap.figures.mapped);
    for claim in &heap.claims {
        assert!(live.area_at(claim.start).is_some_and(|area| area.inode == 0), "{claim:x?}");
    }
}

/// Checks `heap` against what jemalloc says of itself: all of it is exact, but for bytes of jemalloc's own that cannot
/// be told from the program's. Returns how many those are.
fn agrees(name: &str, heap: &Heap, truth: &Truth) -> u64 {
    let figures = heap.figures;
    let sum = |of: fn(&Part) -> u64| truth.arenas.values().map(of).sum::<u64>();
    let is_old = heap.version.as_deref() == Some("5.2.1");
    // 5.2 forgets the large blocks of caches (arena_stats_merge takes the index of the class for that of the bin).
    let forgotten = figures.cached.0 - sum(|part| part.cached);
    assert!(if is_old { forgotten.is_multiple_of(PAGE) } else { forgotten == 0 }, "{name}: {forgotten}");
    // Until 5.2 each thread has a small block with a ticker for each arena, which cannot be told from the program's.
    let blocks = truth.sums["allocated"] - sum(|part| part.internal);
    let tickers = (figures.live + figures.cached).0 - blocks;
    assert!(tickers <= if is_old { 2048 } else { 0 }, "{name}: {tickers}");
    for (number, part) in &truth.arenas {
        let arena = heap.arenas.iter().find(|arena| arena.name == format!("arena {number}"));
        let figures = arena.unwrap_or_else(|| panic!("{name}: no arena {number}")).figures;
        let name = format!("{name}, arena {number}: {figures:?} {part:?}");
        let internal = part.internal - if *number == 0 { tickers } else { 0 };
        assert_eq!(figures.mapped.0, part.mapped + part.retained, "{name}");
        // Blocks handed out are the program's, in caches, or the stacks of caches.
        assert_eq!((figures.live + figures.cached).0 + internal, part.small + part.large, "{name}");
        let free = (part.dirty_pages + part.muzzy_pages) * PAGE + part.free_in_slabs;
        assert_eq!(figures.free.0, free, "{name}");
        assert!(figures.returnable_by_trim.unwrap().0 <= free - part.free_in_slabs, "{name}");
        assert!(figures.returnable_by_trim.unwrap() <= figures.returnable, "{name}");
        // The rest of the cache line that the header of a block of books ends in is counted here only.
        let headers = figures.metadata.0 - part.base - internal;
        assert!(headers.is_multiple_of(16) && headers < 4096, "{name}: {headers}");
    }
    assert_eq!(heap.arenas.len(), truth.arenas.len(), "{name}");
    tickers
}

/// Checks one shape in full.
fn check(build: &Build, shape: &str, conf: &str) {
    let name = format!("{shape} ({conf}) on {build:?}");
    let mut shaped = Shaped::start(build, shape, conf);
    let before = shaped.heap();
    let held = shaped.make();
    let heap = shaped.heap();
    let truth = shaped.truth();
    let tickers = agrees(&name, &heap, &truth);
    let grown = heap.figures.live - before.figures.live;
    // What threads take is the C library's too.
    let more = grown.0 - held.0;
    assert!(more <= tickers || shape.contains("threads"), "{name}: {grown}, {held} held");
    let resident = shaped.anonymous();
    shaped.0.ask("purge");
    let given = resident - shaped.anonymous();
    let said = heap.figures.returnable_by_trim.unwrap();
    let off = Bytes(said.0.abs_diff(given.0));
    println!("{name}: {given} given back, {said} foreseen, {off} off; {:?}", heap.notes);
    assert!(off <= SLACK || off <= given.scaled(0.02), "{name}: {given} given back, {said} foreseen");
    let after = shaped.heap();
    assert_eq!(after.figures.returnable_by_trim, Some(Bytes::ZERO), "{name}");
    assert_eq!(after.figures.live, heap.figures.live);
    agrees(&name, &after, &shaped.truth());
}

/// Checks that all of what is said to be returnable is, and nothing more: blocks hold what they held, and the program
/// goes on.
fn check_drop(build: &Build, shape: &str) {
    let name = format!("{shape} on {build:?}");
    let mut shaped = Shaped::start(build, shape, "");
    shaped.make();
    let heap = shaped.heap();
    let resident = shaped.anonymous();
    let dropped = shaped.drop(&heap);
    let given = resident - shaped.anonymous();
    println!("{name}: {dropped} dropped, {given} given back");
    assert_eq!(dropped, heap.figures.returnable, "{name}");
    // The program's buffer took in what was said.
    assert!(given <= dropped && dropped - given <= Bytes(64 << 10), "{name}: {given}");
    assert_eq!(shaped.0.ask("check"), "0", "{name}");
    let after = shaped.heap().figures;
    assert_eq!(
        (after.returnable, after.live, after.free),
        (Bytes::ZERO, heap.figures.live, heap.figures.free)
    );
    shaped.make();
    assert_eq!(shaped.0.ask("check"), "0", "{name}");
}

/// Options with which dirty pages become muzzy soon, and stay so.
const MUZZY: &str = "dirty_decay_ms:1,muzzy_decay_ms:-1";

const SHAPES: [&str; 12] = [
    "fresh",
    "small",
    "large",
    "of-one-size",
    "aligned",
    "reallocated",
    "burst",
    "purged",
    "zeroes",
    "threads",
    "ended-threads",
    "own-arenas",
];

#[test]
fn every_shape_of_this_hosts() {
    let Some(build) = Build::host() else { return };
    for shape in SHAPES {
        check(&build, shape, "");
    }
    check(&build, "muzzy", MUZZY);
}

#[test]
fn returnable_pages_can_be_dropped() {
    let Some(build) = Build::host() else { return };
    for shape in ["small", "of-one-size", "aligned", "burst", "own-arenas"] {
        check_drop(&build, shape);
    }
}

#[test]
fn every_shape_in_the_program() {
    for shape in SHAPES {
        check(&Build::Static, shape, "");
    }
    check(&Build::NoPie, "small", "");
    check(&Build::NoPie, "threads", "");
}

#[test]
fn every_shape_of_5_2_1() {
    let Some(build) = Build::release("bullseye") else { return };
    for shape in SHAPES {
        check(&build, shape, "");
    }
    check(&build, "muzzy", MUZZY);
}

#[test]
fn every_shape_of_debian_13s() {
    let Some(build) = Build::release("trixie") else { return };
    for shape in SHAPES {
        check(&build, shape, "");
    }
}

/// jemalloc's own options change where blocks and books are.
#[test]
fn every_option() {
    const OPTIONS: [&str; 12] = [
        "tcache:false",
        "narenas:1",
        "dirty_decay_ms:0,muzzy_decay_ms:-1",
        "dirty_decay_ms:-1",
        "retain:false",
        "metadata_thp:always",
        "thp:always",
        "percpu_arena:percpu",
        "lg_tcache_max:22",
        "background_thread:true,dirty_decay_ms:-1",
        "zero:true",
        "lg_extent_max_active_fit:1",
    ];
    let Some(build) = Build::host() else { return };
    for options in OPTIONS {
        for shape in ["small", "burst", "threads"] {
            check(&build, shape, options);
        }
    }
}

/// Options that are experiments, or debugging aids: what lives and what is cached is exact all the same.
#[test]
fn options_that_are_told_of() {
    let Some(build) = Build::host() else { return };
    for options in ["hpa:true", "san_guard_small:4,san_guard_large:4"] {
        for shape in ["small", "burst", "threads", "own-arenas"] {
            let mut shaped = Shaped::start(&build, shape, options);
            shaped.make();
            let heap = shaped.look();
            adds_up(&heap);
            let name = format!("{shape} ({options}): {:?}", heap.notes);
            assert_eq!(heap.corruptions, [], "{name}");
            assert!(heap.certainty.unresolved <= Bytes(4 * PAGE), "{name}");
            assert_eq!(
                heap.notes.iter().any(|note| note.contains("opt.hpa")),
                options == "hpa:true",
                "{name}"
            );
            let truth = shaped.truth();
            let internal: u64 = truth.arenas.values().map(|part| part.internal).sum();
            assert_eq!(
                (heap.figures.live + heap.figures.cached).0 + internal,
                truth.sums["allocated"],
                "{name}"
            );
        }
    }
}

/// The profiler gives sampled small blocks an extent each, and keeps books in blocks of jemalloc's own.
#[test]
fn sampled_blocks_have_their_own_size() {
    let Some(build) = Build::host() else { return };
    for shape in ["small", "burst", "own-arenas"] {
        let mut shaped = Shaped::start(&build, shape, "prof:true,lg_prof_sample:12");
        let before = shaped.heap().figures.live;
        let held = shaped.make();
        let more = shaped.heap().figures.live - before - held;
        let truth = shaped.truth();
        let internal: u64 = truth.arenas.values().map(|part| part.internal).sum();
        let cached: u64 = truth.arenas.values().map(|part| part.cached).sum();
        assert!(truth.sums["allocated"] > held.0 + internal + cached, "{shape}: nothing was sampled");
        assert!(more.0 <= internal, "{shape}: {more} more than {held}");
    }
}
