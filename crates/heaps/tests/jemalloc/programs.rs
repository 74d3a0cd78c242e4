//! A Redis server, programs with two allocators, and programs without jemalloc.

use super::{Build, SLACK, Shaped, anonymous, sound};
use ebbtide_heaps::{Heap, Kind, Live, Look, jemalloc};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use ebbtide_testkit::{Child, Redis};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions};
use std::io::{Read, Write};
use std::process::{Command, Stdio};

/// Stops it where it waits for its clients, and not within jemalloc.
fn stop(pid: Pid) {
    let stat = format!("/proc/{0}/stat", pid.as_raw_nonzero());
    let sleeps = || std::fs::read_to_string(&stat).unwrap().contains(") S ");
    while !sleeps() {
        std::thread::yield_now();
    }
    rustix::process::kill_process(pid, Signal::STOP).unwrap();
    rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED).unwrap();
}

/// Its jemalloc, while it is stopped.
fn jemalloc_of(redis: &Redis) -> Heap {
    let pid = Pid::from_raw(redis.pid() as i32).unwrap();
    stop(pid);
    let process = Process::open(&Root::live().unwrap(), redis.pid()).unwrap();
    let live = Live::new(&process, true).unwrap();
    let heaps = jemalloc::find(&live).unwrap();
    sound(&heaps[0], &live);
    rustix::process::kill_process(pid, Signal::CONT).unwrap();
    heaps.into_iter().next().unwrap()
}

/// What its jemalloc says: allocated, active and mapped bytes, by "MEMORY MALLOC-STATS".
fn stats(redis: &mut Redis) -> [Bytes; 3] {
    let stats = redis.call("MEMORY MALLOC-STATS");
    let line = stats.lines().find_map(|line| line.strip_prefix("Allocated: ")).unwrap();
    let number = |name: &str| -> Bytes {
        let (_, rest) = line.split_once(name).unwrap();
        Bytes(rest.trim_start_matches([':', ' ']).split([',', ' ']).next().unwrap().parse().unwrap())
    };
    let allocated = Bytes(line.split(',').next().unwrap().parse().unwrap());
    [allocated, number("active"), number("mapped")]
}

#[test]
fn a_redis_server() {
    // Nothing is given back by itself.
    let options = ["--jemalloc-bg-thread", "no"];
    let Some(mut redis) = Redis::start(&options, &[("MALLOC_CONF", "dirty_decay_ms:-1")]) else { return };
    if !redis.call("INFO memory").contains("mem_allocator:jemalloc-5") {
        return println!("skipped: redis: built without jemalloc 5");
    }
    redis.call("DEBUG POPULATE 100000 key 700");
    let [allocated, active, mapped] = stats(&mut redis);
    let heap = jemalloc_of(&redis);
    let figures = heap.figures;
    println!("{allocated} allocated, {active} active, {mapped} mapped; {figures:?}");
    // Between the two it serves its connection and its clock.
    let taken = figures.live + figures.cached;
    assert!(taken.0.abs_diff(allocated.0) <= 128 << 10, "{taken} of {allocated}");
    assert!(figures.live > Bytes(100_000 * 700));
    assert!(figures.mapped >= mapped, "{:?}", heap.notes);

    // FLUSHALL would purge by itself.
    redis.call("EVAL \"for i = 0, 99999 do redis.call('DEL', 'key:' .. i) end\" 0");
    let (said, before) = (jemalloc_of(&redis).figures.returnable_by_trim.unwrap(), anonymous(redis.pid()));
    redis.call("MEMORY PURGE");
    let given = before - anonymous(redis.pid());
    println!("{given} given back, {said} foreseen");
    assert!(said > Bytes(50 << 20), "{said}");
    let off = Bytes(said.0.abs_diff(given.0));
    assert!(off <= SLACK || off <= given.scaled(0.02), "{given} given back, {said} foreseen");
}

/// Everything that is known of a process is said once.
fn disjoint(look: &Look) {
    let mut claims: Vec<_> = look.heaps.iter().flat_map(|heap| heap.claims.clone()).collect();
    claims.sort_by_key(|claim| claim.start);
    assert!(claims.windows(2).all(|pair| pair[0].end <= pair[1].start), "{claims:x?}");
}

/// Blocks from 1 MiB on are known by address.
#[test]
fn huge_blocks_have_addresses() {
    let Some(build) = Build::host() else { return };
    let mut shaped = Shaped::start(&build, "zeroes", "");
    shaped.make();
    let huge = shaped.heap().huge;
    assert_eq!(huge.len(), 100);
    assert!(huge.iter().all(|range| range.end - range.start == 1 << 20), "{huge:x?}");
}

/// jemalloc beside the C library's own malloc; with `dss:primary` the two share the brk heap.
#[test]
fn two_allocators_at_once() {
    let Some(build) = Build::host() else { return };
    for options in ["", "dss:primary"] {
        let mut shaped = Shaped::start(&build, "both", options);
        let before = shaped.heap().figures.live;
        let held = shaped.make();
        let look = Look::into(&shaped.process(), true).unwrap();
        assert!(look.failed.is_empty(), "{:?}", look.failed);
        disjoint(&look);
        let of = |kind: Kind| {
            look.heaps.iter().find(|heap| heap.kind == kind).unwrap_or_else(|| panic!("{look:?}"))
        };
        assert_eq!(of(Kind::Jemalloc).figures.live - before, held, "{options}");
        let glibc = of(Kind::Glibc);
        assert_eq!(glibc.corruptions, [], "{options}");
        // A hundred blocks of 5,008 with their headers, and what else the C library allocates by itself.
        let live = glibc.figures.live;
        assert!((Bytes(100 * 5008)..Bytes(100 * 5008 + 8192)).contains(&live), "{options}: {live}");
        assert!(glibc.figures.free >= Bytes(99 * 5008), "{options}: {:?}", glibc.figures);
    }
}

#[test]
fn programs_without_jemalloc() {
    let none = Build::Preloaded("".into());
    let mut shaped = Shaped::start(&none, "tiny", "");
    shaped.make();
    let mut cat = Command::new("cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    // It answers, so it runs.
    cat.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    cat.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    let mut python = Child::spawn(Command::new("python3").args(["-uc", "print('@ready'); input()"]));
    for pid in [shaped.0.pid(), cat.id(), python.pid(), std::process::id()] {
        let process = Process::open(&Root::live().unwrap(), pid).unwrap();
        let live = Live::new(&process, pid != std::process::id()).unwrap();
        assert_eq!(jemalloc::find(&live).unwrap(), [], "{pid}");
    }
    python.tell("");
    drop(cat.stdin.take());
    cat.wait().unwrap();
}
