//! The LuaJIT walker against the truth: the collector's own count, the mappings, and pages dropped under states that
//! then check what they hold. On Debian's LuaJIT and on OpenResty's branch, which cannot be installed side by side:
//! the one that is not is unpacked from its package. On luajit itself (whose LuaJIT is in the program), on a C program
//! with many states, and on nginx with the Lua module.
#![allow(clippy::unwrap_used, clippy::expect_used)]

#![allow(clippy::unwrap_used, clippy::expect_used)]

use ebbtide_heaps::{Fault, Figures, Heap, Image, Live, MemorySource, Reader, SizeClass, luajit};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use ebbtide_testkit::child::Child;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

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
    let age = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    if age(&program) <= age(&source) {
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
        println!("{}: {} predicted, RSS {before} fell by {fallen}", flavour.library, dropped);
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

#[test]
fn the_luajit_program_itself() {
    // The one that is installed, and those that are unpacked.
    let unpacked = [PLAIN, OPENRESTY].map(|flavour| flavour.tree().map(|tree| tree.join("usr/bin/luajit")));
    for program in unpacked.into_iter().flatten().chain([PathBuf::from("luajit")]) {
        let script = "print('@ready') for line in io.lines() do print('@ready ' .. tostring((loadstring(line)()))) end";
        let mut command = Command::new(&program);
        let Ok(version) = Command::new(&program).arg("-v").output() else {
            println!("skipped: {}: not installed", program.display());
            continue;
        };
        assert!(version.status.success());
        let mut child = Child::spawn(command.args(["-e", "io.stdout:setvbuf('line')", "-e", script]));
        child.ask(&burst(100_000).replace('\n', " "));
        child.ask("collectgarbage() collectgarbage()");
        let before = look(child.pid()).unwrap();
        // The code of the second question is the same as that of the first: it takes as much as it gives back.
        let count = "C = C or {} C[1] = collectgarbage('count') * 1024 return C[1]";
        child.ask(count);
        let total: f64 = child.ask(count).parse().unwrap();
        let found = look(child.pid()).unwrap();
        assert!(
            (found.arenas[0].collector.unwrap().total.0 as f64 - total).abs() < 2048.0,
            "{total} {found:?}"
        );
        let Figures { resident, live, returnable, .. } = before.figures;
        println!(
            "{} {}: {resident} resident, {live} live, {returnable} returnable",
            program.display(),
            found.version.unwrap()
        );
        assert!(returnable > Bytes::from_mib(20) && returnable + live <= resident + Bytes::from_mib(1));
        assert!(before.certainty.still);
    }
}

/// nginx with the Lua module, one process, on a socket in a directory of its own.
struct Nginx {
    child: Child,
    dir: tempfile::TempDir,
}

impl Nginx {
    /// Debian's module wants OpenResty's branch: it calls lua_setexdata.
    fn start() -> Option<Nginx> {
        let modules = Path::new("/usr/lib/nginx/modules");
        if !modules.join("ngx_http_lua_module.so").exists() {
            println!("skipped: nginx: libnginx-mod-http-lua is not installed");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().display();
        let config = format!(
            "daemon off; master_process off; pid {path}/pid; error_log stderr error;
            load_module {0}/ndk_http_module.so; load_module {0}/ngx_http_lua_module.so;
            events {{}}
            http {{
                access_log off;
                client_body_temp_path {path}/1; proxy_temp_path {path}/2; fastcgi_temp_path {path}/3;
                uwsgi_temp_path {path}/4; scgi_temp_path {path}/5;
                init_worker_by_lua_block {{ io.stdout:write('@ready\\n') io.stdout:flush() }}
                server {{
                    listen unix:{path}/socket;
                    location / {{ content_by_lua_block {{
                        ngx.req.read_body()
                        ngx.say(assert(loadstring(ngx.req.get_body_data()))())
                    }} }}
                }}
            }}",
            modules.display()
        );
        std::fs::write(dir.path().join("nginx.conf"), config).unwrap();
        let mut command = Command::new("setpriv");
        // It ends with this test: it does not read the standard input whose end would tell it.
        command
            .args(["--pdeathsig", "KILL", "nginx", "-e", "stderr", "-c"])
            .arg(dir.path().join("nginx.conf"));
        command.arg("-p").arg(dir.path());
        Some(Nginx { child: Child::spawn(&mut command), dir })
    }

    /// Runs `code` in the worker and returns what it returns.
    fn run(&self, code: &str) -> String {
        let mut stream = UnixStream::connect(self.dir.path().join("socket")).unwrap();
        let (length, head) = (code.len(), "POST / HTTP/1.0\r\nContent-Length:");
        write!(stream, "{head} {length}\r\n\r\n{code}").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains(" 200 "), "{answer}");
        body.trim().to_owned()
    }
}

#[test]
fn nginx_with_lua() {
    let Some(nginx) = Nginx::start() else { return };
    let pid = nginx.child.pid();
    for _ in 0..5 {
        nginx.run(
            "local kept = package.loaded.kept or {} package.loaded.kept = kept
                local all = {}
                for i = 1, 400000 do all[i] = { id = i, name = 'name ' .. i, tags = { 'a', 'b', i } } end
                for i = 400, 400000, 400 do kept[#kept + 1] = all[i] end
                return #kept",
        );
    }
    let (burst, burst_rss) = (look(pid).unwrap(), rss(pid));
    nginx.run("collectgarbage() collectgarbage()");
    let count: f64 = nginx.run("return collectgarbage('count') * 1024").parse().unwrap();
    let (after, after_rss) = (look(pid).unwrap(), rss(pid));
    println!("nginx, LuaJIT {}", after.version.as_deref().unwrap());
    for (when, heap, rss) in [("before", &burst, burst_rss), ("after", &after, after_rss)] {
        let Figures {
            mapped, resident, live, free, returnable, pinned_free, largest_free, free_chunks, ..
        } = heap.figures;
        println!(
            "{when} the collection: RSS {rss}; mapped {mapped}, resident {resident}, live {live}, free {free}, returnable {returnable}, pinned {pinned_free}, largest {largest_free} of {free_chunks}; {}",
            heap.notes[0]
        );
    }
    assert!(burst.figures.live > Bytes::from_mib(50));
    assert!(after.figures.live < Bytes::from_mib(8));
    assert!(after.figures.returnable > Bytes::from_mib(100));
    let total = after.arenas[0].collector.unwrap().total.0 as f64;
    assert!((total - count).abs() < 65536.0, "{total} {count}");
}

/// A heap of process `pid`, which is not stopped.
fn look_running(pid: u32) -> Result<Vec<Heap>, Fault> {
    let process = Process::open(&Root::live().unwrap(), pid).unwrap();
    let live = Live::new(&process, false).map_err(|_| Fault::Ended)?;
    luajit::find_with_ranges(&live)
}

#[test]
fn states_that_run_meanwhile() {
    let Some(mut host) = Host::start(OPENRESTY, 4) else { return };
    let pid = host.0.pid();
    let work = "
        S = S or {}
        for i = 1, 3000 do
            S[math.random(4000)] = { i, string.rep('x', math.random(300)), { tostring(i) } }
            if i % 500 == 0 then S[math.random(4000)] = string.rep('y', math.random(300000)) end
        end";
    for state in 0..2 {
        host.run(state, work);
        host.0.ask(&format!("spin {state} {}", work.replace('\n', " ")));
    }
    let (mut rereads, mut torn, mut unresolved, mut most) = (0, 0, Bytes::ZERO, 0.0_f64);
    let rounds = 60;
    for round in 0..rounds {
        // Now and then a state comes, works and goes.
        if round % 15 == 7 {
            let state: usize = host.0.ask("new").parse().unwrap();
            host.run(state, &burst(4000));
            host.0.ask(&format!("close {state}"));
        }
        let heap = look_running(pid).unwrap().pop().unwrap();
        assert_eq!(heap.corruptions, [], "round {round}");
        assert!(heap.arenas.iter().filter(|arena| arena.collector.is_some()).count() >= 4, "{heap:#?}");
        let figures = heap.figures;
        assert_eq!(figures.mapped, figures.live + figures.free + figures.metadata + figures.unused);
        assert_eq!(figures.unused, heap.certainty.unresolved);
        let total: Bytes = totals(&heap).into_iter().sum();
        assert!(
            figures.live > total.scaled(0.5) && figures.live < total.scaled(2.0),
            "round {round}: {figures:?} {total:?}"
        );
        rereads += heap.certainty.reread;
        torn += u64::from(heap.certainty.unresolved > Bytes::ZERO);
        unresolved += heap.certainty.unresolved;
        most = most.max(heap.certainty.unresolved.share_of(figures.mapped));
    }
    println!(
        "{rounds} walks: {rereads} spots read again, {torn} walks with something unresolved, {unresolved} in all, at most {:.1}%",
        100.0 * most
    );
    for state in 0..2 {
        assert_eq!(host.0.ask(&format!("stop {state}")), "nil");
    }
    assert_eq!(host.heap().unwrap().corruptions, []);
}

#[test]
fn a_process_that_ends_meanwhile() {
    let mut ended = 0;
    for round in 0..40_u64 {
        let Some(mut host) = Host::start(OPENRESTY, 2) else { return };
        host.run(0, &burst(2000));
        let pid = host.0.pid();
        let process = Process::open(&Root::live().unwrap(), pid).unwrap();
        let Ok(live) = Live::new(&process, false) else { continue };
        let killer = std::thread::spawn(move || {
            for _ in 0..round * 20_000 {
                std::hint::spin_loop();
            }
            drop(host);
        });
        match luajit::find(&live) {
            Ok(_) => {}
            Err(Fault::Ended) => ended += 1,
            Err(fault) => panic!("{fault}"),
        }
        killer.join().unwrap();
        // Once it is gone there is nothing, and no error but that.
        assert!(matches!(luajit::find(&live), Ok(_) | Err(Fault::Ended)));
    }
    println!("ended under the walk: {ended} of 40");
}

/// Real states, damaged in many ways: never a panic, never figures that do not add up.
#[test]
fn a_real_picture_damaged() {
    let Some(mut host) = Host::start(PLAIN, 2) else { return };
    for state in 0..2 {
        host.run(state, &burst(3000));
        host.run(state, "L = string.rep('large', 40000) collectgarbage()");
    }
    let process = Process::open(&Root::live().unwrap(), host.0.pid()).unwrap();
    let live = Live::new(&process, true).unwrap();
    let whole = luajit::find(&live).unwrap().pop().unwrap();
    let mut picture = Image::of(&live, |area| area.is_unnamed()).unwrap();
    let library = live.areas().iter().find(|area| area.perms.exec && area.path.ends_with(b"2.1.0")).unwrap();
    let mut content = Vec::new();
    live.file(library).unwrap().read_to_end(&mut content).unwrap();
    Image::file(&mut picture, &library.path, content);
    assert_eq!(luajit::find(&picture).unwrap(), std::slice::from_ref(&whole));
    let mut seed = 88_172_645_463_325_252_u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let (mut told, mut unnoticed) = (0, 0);
    let mut reader = Reader::new(&picture);
    for _ in 0..100 {
        let mut damaged = picture.clone();
        for _ in 0..1 + random(6) {
            let claim = &whole.claims[random(whole.claims.len() as u64) as usize];
            let mut address = claim.start + random((claim.end - claim.start) / 8) * 8;
            if random(2) == 0 {
                // What looks like a chunk's header more often is one than not.
                let is_header = |word: u64| (32..8192).contains(&word) && matches!(word & 7, 1..=3);
                let next =
                    (address..claim.end - 8).step_by(8).find(|&at| reader.u64(at).is_ok_and(is_header));
                address = next.unwrap_or(address);
            }
            let value = match random(4) {
                0 => 0,
                1 => random(u64::MAX),
                2 => claim.start + random(claim.end - claim.start),
                _ => random(4096),
            };
            damaged.patch(address, &value.to_le_bytes());
        }
        for heap in luajit::find(&damaged).unwrap() {
            let figures = heap.figures;
            assert_eq!(figures.mapped, figures.live + figures.free + figures.metadata + figures.unused);
            assert_eq!(figures.unused, heap.certainty.unresolved);
            // What was lost was also told.
            assert!(figures.unused == Bytes::ZERO || !heap.corruptions.is_empty());
            told += u64::from(!heap.corruptions.is_empty());
            unnoticed += u64::from(heap.corruptions.is_empty());
        }
    }
    println!("100 damaged pictures: {told} told as damaged, {unnoticed} hit only what the program wrote");
}
