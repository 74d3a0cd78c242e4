//! The LuaJIT walker against the truth: the collector's own count, the mappings, and pages dropped under states that
//! then check what they hold. On Debian's LuaJIT and on OpenResty's branch, which cannot be installed side by side:
//! the one that is not is unpacked from its package. On luajit itself (whose LuaJIT is in the program), on a C program
//! with many states, and on nginx with the Lua module.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ebbtide_heaps::{Figures, Heap, Live, MemorySource, SizeClass, luajit};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use ebbtide_testkit::child::{Child, is_built};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

#[path = "luajit/moving.rs"]
mod moving;
#[path = "luajit/programs.rs"]
mod programs;

/// What may come between predicted and measured: the program's own few pages.
const SLACK: u64 = 256 << 10;

/// One of Debian's packages with LuaJIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flavour {
    library: &'static str,
    program: &'static str,
    is_openresty: bool,
}

const PLAIN: Flavour = Flavour { library: "libluajit-5.1-2", program: "luajit", is_openresty: false };
const OPENRESTY: Flavour = Flavour { library: "libluajit2-5.1-2", program: "luajit2", is_openresty: true };

impl Flavour {
    /// The directory that its packages were unpacked in.
    fn tree(self) -> Option<PathBuf> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let tree = Path::new(env!("CARGO_TARGET_TMPDIR")).join(self.program);
        if !tree.join("done").exists() {
            std::fs::create_dir_all(&tree).unwrap();
            let quiet = |program: &str| {
                let mut command = Command::new(program);
                command.current_dir(&tree).stdout(Stdio::null()).stderr(Stdio::null());
                command
            };
            let got = quiet("apt-get").args(["download", self.library, self.program]).status();
            if !got.is_ok_and(|status| status.success()) {
                println!("skipped: {}: `apt-get download` could not bring it", self.library);
                return None;
            }
            for package in std::fs::read_dir(&tree).unwrap().flatten() {
                if package.path().extension().is_some_and(|kind| kind == "deb") {
                    assert!(quiet("dpkg").arg("-x").arg(package.path()).arg(".").status().unwrap().success());
                }
            }
            std::fs::write(tree.join("done"), "").unwrap();
        }
        Some(tree)
    }

    fn version(self) -> &'static str {
        if self.is_openresty { "2.1.0-beta3 (OpenResty)" } else { "2.1.0-beta3" }
    }

    fn library(self) -> Option<PathBuf> {
        Some(self.tree()?.join("usr/lib/x86_64-linux-gnu/libluajit-5.1.so.2"))
    }
}

/// Builds the C program.
fn program() -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("luahost");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/luahost.c");
    if !is_built(&program, &source) {
        let arguments = ["-O1", "-Wall", "-Werror", "-pthread", "-o"];
        let status = Command::new("gcc").args(arguments).arg(&program).arg(&source).status().expect("gcc");
        assert!(status.success());
    }
    program
}

/// The C program with some states.
struct Host(Child);

impl Host {
    fn start(flavour: Flavour, states: usize) -> Option<Host> {
        let library = flavour.library()?;
        Some(Host(Child::spawn(Command::new(program()).arg(library).arg(states.to_string()))))
    }

    fn run(&mut self, state: usize, code: &str) -> String {
        self.0.ask(&format!("run {state} {}", code.replace('\n', " "))).to_owned()
    }

    /// What the collector of `state` counts. To ask allocates nothing.
    fn count(&mut self, state: usize) -> Bytes {
        Bytes(self.0.ask(&format!("count {state}")).parse().unwrap())
    }

    fn heap(&self) -> Option<Heap> {
        look(self.0.pid())
    }

    /// Gives back all that `heap` says can be; returns how much that was.
    fn drop(&mut self, heap: &Heap) -> Bytes {
        let ranges = heap.returnable_ranges.as_ref().unwrap();
        if ranges.is_empty() {
            return Bytes::ZERO;
        }
        self.0.tell(&format!("drop {}", ranges.len()));
        let (last, others) = ranges.split_last().unwrap();
        for range in others {
            self.0.tell(&format!("{:x} {:x}", range.start, range.end));
        }
        Bytes(self.0.ask(&format!("{:x} {:x}", last.start, last.end)).parse().unwrap())
    }
}

/// The LuaJIT heap of process `pid`, which waits for its parent and so stands still.
fn look(pid: u32) -> Option<Heap> {
    let process = Process::open(&Root::live().unwrap(), pid).unwrap();
    let live = Live::new(&process, true).unwrap();
    let mut heaps = luajit::find_with_ranges(&live).unwrap();
    assert!(heaps.len() <= 1, "{heaps:#?}");
    heaps.pop().inspect(|heap| sound(heap, &live))
}

/// What holds of every heap that stands still.
fn sound(heap: &Heap, live: &Live<'_>) {
    assert_eq!(heap.corruptions, []);
    assert_eq!((heap.certainty.unresolved, heap.certainty.reread), (Bytes::ZERO, 0));
    let sum = heap.arenas.iter().fold(Figures::default(), |mut sum, arena| {
        sum += arena.figures;
        sum
    });
    assert_eq!(sum, heap.figures);
    let figures = &heap.figures;
    assert_eq!(figures.mapped, figures.live + figures.free + figures.metadata);
    assert_eq!((figures.unused, figures.cached), (Bytes::ZERO, Bytes::ZERO));
    assert_eq!(figures.returnable_by_trim, None);
    assert!(figures.returnable + figures.pinned_free <= figures.free);
    let size =
        |ranges: &[Range<u64>]| ranges.iter().map(|range| Bytes(range.end - range.start)).sum::<Bytes>();
    assert_eq!(size(&heap.claims), figures.mapped);
    assert_eq!(size(heap.returnable_ranges.as_ref().unwrap()), figures.returnable);
    for claim in &heap.claims {
        assert!(live.area_at(claim.start).unwrap().is_unnamed());
        assert!(live.area_at(claim.end - 1).unwrap().is_unnamed());
    }
    let classes = |part: fn(&SizeClass) -> Bytes| heap.histogram.iter().map(part).sum::<Bytes>();
    assert_eq!((classes(|class| class.live), classes(|class| class.free)), (figures.live, figures.free));
}

/// A field of /proc/PID/NAME, which is in kB.
fn kib(pid: u32, name: &str, field: &str) -> Bytes {
    let text = std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    Bytes::from_kib(line.split_whitespace().next().unwrap().parse().unwrap())
}

fn rss(pid: u32) -> Bytes {
    kib(pid, "smaps_rollup", "Rss:")
}

fn address_space(pid: u32) -> Bytes {
    kib(pid, "status", "VmSize:")
}

fn totals(heap: &Heap) -> Vec<Bytes> {
    heap.arenas.iter().filter_map(|arena| arena.collector).map(|collector| collector.total).collect()
}

/// Lua that builds so many tables and keeps every 400th.
fn burst(tables: u32) -> String {
    format!(
        "jit.off() S = S or {{}}
        local all = {{}}
        for i = 1, {tables} do
            all[i] = {{ id = i, name = 'name ' .. i, tags = {{ i, i + 1, 'tag ' .. i % 97 }} }}
        end
        for i = 400, {tables}, 400 do S[#S + 1] = all[i] end
        return #S"
    )
}

/// Lua that says whether what [`burst`] kept is as it was.
const CHECK: &str = "
    local last = 0
    for _, t in ipairs(S) do
        local i = t.id
        assert(i % 400 == 0 and (i == last + 400 or i == 400))
        assert(t.name == 'name ' .. i and t.tags[1] == i and t.tags[2] == i + 1 and t.tags[3] == 'tag ' .. i % 97)
        last = i
    end
    return 'whole'";

#[test]
fn the_collectors_count_and_the_mappings() {
    for flavour in [PLAIN, OPENRESTY] {
        let Some(mut host) = Host::start(flavour, 1) else { continue };
        let pid = host.0.pid();
        host.run(0, "jit.off()");
        let (before, space) = (host.heap().unwrap(), address_space(pid));
        assert_eq!(totals(&before), [host.count(0)]);
        assert_eq!(before.version.as_deref(), Some(flavour.version()));
        assert_eq!(before.arenas[0].figures.mapped, Bytes::from_kib(128));
        // Small and large blocks, one of them grown step by step.
        host.run(0, "T = {} for i = 1, 50000 do T[i] = { i, tostring(i) } end U = {}");
        host.run(0, "for i = 1, 20 do U[i] = string.rep(string.char(64 + i), 150000 + 5000 * i) end");
        let after = host.heap().unwrap();
        assert_eq!(totals(&after), [host.count(0)]);
        assert_eq!(after.figures.mapped - before.figures.mapped, address_space(pid) - space);
        // Each block has a header of 8 bytes, is a multiple of 8 and has room for 24 at least; a large one is
        // whole pages and has 16 and 32 bytes around it.
        let (live, total) = (after.figures.live, host.count(0));
        let blocks: u64 = after.histogram.iter().map(|class| class.live_count).sum();
        let large: u64 =
            after.histogram.iter().filter(|class| class.up_to > Bytes(128 << 10)).map(|c| c.live_count).sum();
        assert!(large >= 21, "{large}");
        assert!(live >= total + Bytes(8 * blocks), "{live:?} {total:?} {blocks}");
        assert!(live <= total + Bytes(32 * blocks + 4096 * large), "{live:?} {total:?} {blocks}");
        // All of it goes.
        host.run(0, "T, U = nil");
        host.run(0, "collectgarbage() collectgarbage()");
        let gone = host.heap().unwrap();
        assert_eq!(totals(&gone), [host.count(0)]);
        assert_eq!(gone.figures.mapped - before.figures.mapped, address_space(pid) - space);
        assert!(gone.histogram.iter().all(|class| class.up_to <= Bytes(128 << 10) || class.live_count == 0));
        println!("{}: {} live in {blocks} blocks for {total}; {}", flavour.library, live, after.notes[0]);
    }
}

#[test]
fn many_states_in_threads() {
    for flavour in [PLAIN, OPENRESTY] {
        let Some(mut host) = Host::start(flavour, 8) else { continue };
        let pid = host.0.pid();
        let (before, space) = (host.heap().unwrap(), address_space(pid));
        assert_eq!(before.arenas.len(), 8);
        for state in 0..8 {
            host.run(state, "jit.off()");
            host.run(state, &burst(8000 * (state as u32 + 1)));
        }
        for state in (0..8).step_by(2) {
            host.run(state, "L = string.rep('large', 100000)");
            host.run(state, "collectgarbage()");
        }
        let heap = host.heap().unwrap();
        let mut counts: Vec<Bytes> = (0..8).map(|state| host.count(state)).collect();
        let mut found = totals(&heap);
        counts.sort_unstable();
        found.sort_unstable();
        assert_eq!(found, counts);
        assert_eq!(heap.figures.mapped - before.figures.mapped, address_space(pid) - space);
        let large = heap.arenas.last().unwrap();
        assert_eq!((large.name.as_str(), large.collector), ("large blocks of all states", None));
        assert!(large.figures.live >= Bytes(4 * 500_000), "{large:?}");
        // What the program's own malloc holds for a state is not LuaJIT's.
        let custom: usize = host.0.ask("custom").parse().unwrap();
        host.run(custom, &burst(8000));
        assert_eq!(host.heap().unwrap().arenas.len(), 9);
        // States that end are gone, with all they had.
        for state in 0..7 {
            host.0.ask(&format!("close {state}"));
        }
        let left = host.heap().unwrap();
        assert_eq!(totals(&left), [host.count(7)]);
        host.0.ask("close 7");
        assert_eq!(host.heap(), None);
    }
}

#[test]
fn what_is_returnable_can_be_dropped_under_a_running_program() {
    for flavour in [PLAIN, OPENRESTY] {
        let Some(mut host) = Host::start(flavour, 3) else { continue };
        let pid = host.0.pid();
        for state in 0..3 {
            host.run(state, &burst(150_000));
            host.run(state, "L = string.rep('large', 100000)");
            host.run(state, "collectgarbage() collectgarbage()");
        }
        let (heap, before) = (host.heap().unwrap(), rss(pid));
        assert!(heap.figures.returnable > Bytes::from_mib(20), "{:?}", heap.figures);
        let dropped = host.drop(&heap);
        assert_eq!(dropped, heap.figures.returnable);
        let fallen = before - rss(pid);
        println!("{}: {} predicted, RSS {before} fell by {} bytes", flavour.library, dropped.0, fallen.0);
        assert!(fallen.0.abs_diff(dropped.0) <= SLACK, "{fallen:?} {dropped:?}");
        // Nothing else changed: the same again, and nothing more to give back.
        let again = host.heap().unwrap();
        assert_eq!(again.figures.returnable, Bytes::ZERO);
        let with = |figures: Figures| {
            (figures.mapped, figures.live, figures.free, figures.pinned_free, figures.free_chunks)
        };
        assert_eq!(with(again.figures), with(heap.figures));
        // And the program goes on: its survivors are whole, and memory is taken from where pages were dropped.
        for state in 0..3 {
            assert_eq!(host.run(state, CHECK), "whole");
            assert_eq!(host.run(state, "return tostring(L == string.rep('large', 100000))"), "true");
            host.run(state, &burst(150_000));
            assert_eq!(host.run(state, CHECK), "whole");
            host.run(state, "collectgarbage()");
        }
        // As often as one likes, in the middle of a collection too.
        for round in 0..10 {
            host.run(round % 3, &burst(20_000));
            host.run(round % 3, "for i = 1, 30 do collectgarbage('step', 20) end");
            let heap = host.heap().unwrap();
            host.drop(&heap);
            for state in 0..3 {
                assert_eq!(host.run(state, CHECK), "whole");
            }
        }
    }
}
