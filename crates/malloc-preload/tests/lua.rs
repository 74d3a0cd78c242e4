//! LuaJIT under the library: Lua programs must print what they print without it. The programs and the small server
//! that runs them are in `lua/`; LuaJIT is the shared library of OpenResty's branch.
//!
//! `EBBTIDE_TEST_SECONDS` makes the random programs run longer than their fixed number of seeds, and heaps be at rest for
//! longer. Random programs differ by their seed alone, so a failure names the command that shows it again;
//! `EBBTIDE_TEST_SEED` is the first.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use support::{library, succeed};

/// The server of `lua/host.c`.
struct Host {
    program: PathBuf,
    _dir: tempfile::TempDir,
}

impl Host {
    /// Compiles it; `None`, said aloud, where LuaJIT or a compiler is missing.
    fn build() -> Option<Host> {
        let flags = ["-rdynamic", "-l:libluajit-5.1.so.2"];
        if !have_luajit() {
            return None;
        }
        let (_dir, program) = support::compile("../lua/host.c", &flags)?;
        Some(Host { program, _dir })
    }

    /// Runs a Lua program of `lua/`: options of the server, then its arguments.
    fn command(&self, options: &[&str], program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(options).arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lua").join(program));
        command.args(args);
        command
    }

    /// The same under the library, with its checks at level `check` and its turns so many milliseconds apart.
    fn ours(&self, options: &[&str], program: &str, args: &[&str], check: &str, delay: &str) -> Command {
        let mut command = self.command(options, program, args);
        command.env("LD_PRELOAD", library());
        command.env("EBBTIDE_MALLOC_CHECK", check).env("EBBTIDE_MALLOC_DELAY_MS", delay);
        command
    }
}

/// Whether the shared library is there; says that the test is skipped if not.
fn have_luajit() -> bool {
    let found = Path::new("/usr/lib/x86_64-linux-gnu/libluajit-5.1.so.2").exists();
    if !found {
        println!("skipped: LuaJIT: libluajit2-5.1-2 is not installed");
    }
    found
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

fn seconds() -> u64 {
    number("EBBTIDE_TEST_SECONDS").unwrap_or(0)
}

/// Check levels and delays, to go around.
const WAYS: [(&str, &str); 4] = [("0", "100"), ("1", "2"), ("2", "20"), ("0", "1")];

/// How the server runs random programs, and their operations.
const SERVERS: [(&[&str], &str); 7] = [
    (&[], "12000"),
    (&["-t", "3"], "4000"),
    (&["-m", "-r", "3"], "4000"),
    (&["-i", "30", "-r", "4"], "2600"),
    (&["-n", "30", "-k", "7"], "600"),
    (&["-o"], "6000"),
    (&["-t", "2", "-n", "3", "-m", "-i", "5", "-r", "2"], "1500"),
];

#[test]
fn random_programs_say_the_same() {
    let Some(host) = Host::build() else { return };
    let seconds = seconds();
    let first = number("EBBTIDE_TEST_SEED").unwrap_or(1) as usize;
    let (start, mut seed) = (Instant::now(), first);
    while seed - first < 14 || start.elapsed() < Duration::from_secs(seconds) {
        let ((options, operations), (check, delay)) =
            (SERVERS[seed % SERVERS.len()], WAYS[seed / SERVERS.len() % WAYS.len()]);
        let args = [&*seed.to_string(), operations];
        let plain = succeed(&mut host.command(options, "fuzz.lua", &args));
        let mut command = host.ours(options, "fuzz.lua", &args, check, delay);
        assert_eq!(plain, succeed(&mut command), "{command:?}");
        assert!(options.contains(&"-n") || plain.contains("all but 0 ended"), "{plain}");
        seed += 1;
    }
    println!("{} random programs", seed - first);
}

#[test]
fn states_come_and_go_by_the_thousand() {
    let Some(host) = Host::build() else { return };
    for options in
        [&["-n", "2000", "-k", "20"][..], &["-n", "500", "-k", "90", "-t", "4"], &["-n", "300", "-m"]]
    {
        let plain = succeed(&mut host.command(options, "many.lua", &[]));
        for (check, delay) in [WAYS[0], WAYS[1]] {
            assert_eq!(plain, succeed(&mut host.ours(options, "many.lua", &[], check, delay)), "{options:?}");
        }
    }
}

#[test]
fn memory_that_is_not_to_be_had_is_an_error_of_lua() {
    let Some(host) = Host::build() else { return };
    for (n, mib) in ["1", "6", "30"].into_iter().enumerate() {
        let (check, delay) = WAYS[n];
        let said = succeed(&mut host.ours(&["-s", mib, "-r", "4"], "starve.lua", &[mib], check, delay));
        let runs: Vec<&str> = said.lines().collect();
        for pair in runs.chunks_exact(2).take(2) {
            assert_eq!(pair[0], "fed", "{said}");
            assert!(["starved", "not enough memory"].contains(&pair[1]), "{said}");
        }
        assert!(runs.len() == 5 && runs.last().unwrap().starts_with("notes "), "{said}");
    }
}

/// Debian's command is linked with its own copy of LuaJIT.
#[test]
fn a_luajit_inside_the_program_is_left_alone() {
    if !support::have("luajit") {
        return;
    }
    let file = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lua").join(name);
    let luajit = |command: &mut Command| {
        command.arg(file("standalone.lua")).arg(file("fuzz.lua")).args(["5", "4000"]).output().unwrap()
    };
    let plain = luajit(&mut Command::new("luajit"));
    let ours = luajit(&mut support::under("luajit"));
    assert!(plain.status.success() && ours.status.success(), "{}", support::text(&ours));
    assert_eq!(plain.stdout, ours.stdout);
    if support::defines("luaL_newstate") {
        let said = String::from_utf8_lossy(&ours.stderr);
        assert!(said.starts_with("ebbtide: ") && said.lines().count() == 1, "{said:?} does not say it once");
    }
}

/// Runs a program whose heap is nearly always at rest, as pages come to share memory only after some time: 50 seconds,
/// or `EBBTIDE_TEST_SECONDS`. Eight at once, so that they are held up, and in the midst of something when they go
/// on. What each says last.
fn at_rest(program: &str) -> Vec<String> {
    let Some(host) = Host::build().filter(|_| support::defines("luaL_newstate")) else { return Vec::new() };
    let runs = (seconds() / 5).max(10).to_string();
    let run = || {
        let said = succeed(&mut host.ours(&["-r", &runs, "-i", "5000"], program, &[&runs], "1", "100"));
        said.lines().rev().nth(1).unwrap().to_owned()
    };
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..8).map(|_| scope.spawn(run)).collect();
        running.into_iter().map(|run| run.join().unwrap()).collect()
    })
}

#[test]
fn what_c_writes_to_cdata_is_not_lost() {
    for said in at_rest("scribble.lua") {
        assert_eq!(said, "meshed");
    }
}

#[test]
fn what_shares_memory_is_still_each_ones_own() {
    for said in at_rest("sparse.lua") {
        assert!(said.ends_with(" meshed") && said != "0 meshed", "{said}");
    }
}

/// What `proxies.lua` says last: how many finalisers have run, and how many of them saw signals blocked.
fn finalised(said: &str) -> (u64, u64) {
    let last = said.lines().rev().nth(1).unwrap();
    let number = |n| last.split(' ').nth(n).unwrap().parse().unwrap();
    (number(0), number(2))
}

/// However the program has set the collector's steps; 0 is a whole cycle.
#[test]
fn finalisers_run_with_the_signals_of_the_program() {
    let Some(host) = Host::build().filter(|_| support::defines("luaL_newstate")) else { return };
    for stepmul in ["200", "0", "30000", "2000000000"] {
        let options = ["-r", "21", "-i", "60000", "-p"];
        let said = succeed(&mut host.ours(&options, "proxies.lua", &["10", stepmul], "1", "100"));
        assert_eq!(finalised(&said), (200, 0), "{stepmul}: {said}");
    }
}

/// Of a heap with 100,000 finalisers the first sends the signal. They take many slices.
#[test]
fn a_signal_that_only_the_wait_lets_in_ends_it_before_all_slices_are_done() {
    let Some(host) = Host::build().filter(|_| support::defines("luaL_newstate")) else { return };
    let options = ["-r", "2", "-i", "60000", "-p"];
    let said = succeed(&mut host.ours(&options, "proxies.lua", &["100000", "200", "first"], "1", "100"));
    let (ended, blocked) = finalised(&said);
    assert!((1..50_000).contains(&ended) && blocked == 0, "{said}");
}

/// They are kept while all signals are blocked, and would end the wait that follows, though nobody handles them.
#[test]
fn signals_that_are_ignored_end_no_wait() {
    let Some(host) = Host::build() else { return };
    succeed(&mut host.ours(&["-w", "-r", "8", "-i", "100"], "fuzz.lua", &["7", "8000"], "0", "100"));
}

/// On x86_64; elsewhere there is epoll_pwait only.
#[test]
fn a_program_that_may_not_call_epoll_pwait_waits_all_the_same() {
    let Some(host) = Host::build().filter(|_| cfg!(target_arch = "x86_64")) else { return };
    succeed(&mut host.ours(&["-f", "-r", "2", "-i", "100"], "fuzz.lua", &["7", "8000"], "0", "100"));
}

#[test]
fn no_finaliser_runs_beside_a_thread_that_another_has_made() {
    let Some(host) = Host::build().filter(|_| support::defines("luaL_newstate")) else { return };
    // What ended in the first wait is said by the second run: time enough for a busy machine to come to the first one.
    let options = ["-r", "2", "-i", "5000"];
    let said = succeed(&mut host.ours(&options, "proxies.lua", &["10", "thread"], "1", "100"));
    assert_eq!(finalised(&said), (1, 0), "{said}");
}

#[test]
fn states_are_made_while_another_thread_loads_libraries() {
    let part = |flags: &[&str]| support::compile("../lua/loading.c", flags);
    let Some((_dir, program)) = part(&["-ldl"]).filter(|_| support::defines("luaL_newstate")) else { return };
    let library = |flags: &[&str]| part(&[&["-DLIBRARY", "-shared", "-fPIC"], flags].concat()).unwrap();
    let (_other, other) = library(&[]);
    let run = |path: &Path, states: &str| {
        let mut command = support::under(&program);
        let output = command.arg(path).arg(&other).arg(states).env("EBBTIDE_SUMMARY", "1").output().unwrap();
        assert!(output.status.success(), "{}: {}", output.status, support::text(&output));
        support::text(&output)
    };
    let (_stub, stub) = library(&["-DSTUB"]);
    let said = run(&stub, "20000");
    assert!(!said.contains("Lua"), "{said}");
    if have_luajit() {
        let (_luajit, luajit) = library(&["-l:libluajit-5.1.so.2"]);
        let said = run(&luajit, "20");
        assert!(said.contains("Lua: states 20,"), "{said}");
    }
}

#[test]
fn an_address_space_limited_from_the_start_will_do() {
    let Some(host) = Host::build() else { return };
    if !support::have("prlimit") {
        return;
    }
    let plain = succeed(&mut host.command(&["-r", "2"], "fuzz.lua", &["99", "8000"]));
    for mib in [120, 300] {
        let mut limited = Command::new("prlimit");
        limited.arg(format!("--as={}", mib << 20)).arg(&host.program);
        let inner = host.command(&["-r", "2"], "fuzz.lua", &["99", "8000"]);
        limited.args(inner.get_args()).env("LD_PRELOAD", library());
        assert_eq!(plain, succeed(&mut limited), "within {mib} MiB");
    }
}
