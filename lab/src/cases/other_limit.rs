//! `other-limit`: a count or an rlimit at its end, which programs report as lack of memory.

use crate::actor::{self, Actor};
use crate::case::{Case, Need, Truth, is};
use crate::cgroup;
use crate::procfs;
use crate::region::{HUGE, Kind, PAGE, Region};
use crate::stage::Stage;
use crate::sys;
use anyhow::{Context, Result, ensure};
use ebbtide_observe::Bytes;
use serde_json::json;
use std::convert::Infallible;
use std::fs;
use std::thread;

const TRUTH: Truth = is("other-limit");

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::process("other-limit/map-count", "a process at 98% of vm.max_map_count", TRUTH, map_count),
    Case::process("other-limit/pids-max", "a process in a cgroup that is full of tasks", TRUTH, |s| {
        pids_max(s, 60)
    })
    .needs(&[Need::Root, Need::PidsCgroup]),
    Case::fork("other-limit/pids-max-fork", "a fork in a cgroup that is full of tasks", TRUTH, |s| {
        pids_max(s, 60)
    })
    .needs(&[Need::Root, Need::PidsCgroup]),
    Case::process("other-limit/nproc", "a user at its RLIMIT_NPROC", TRUTH, |s| nproc(s, 80))
        .needs(&[Need::Root]),
    Case::fork("other-limit/nproc-fork", "a fork of a user at its RLIMIT_NPROC", TRUTH, |s| nproc(s, 80))
        .needs(&[Need::Root]),
    Case::process("other-limit/address-space", "a process at its RLIMIT_AS", TRUTH, |s| {
        memory_limit(s, libc::RLIMIT_AS, "VmSize")
    }),
    Case::process("other-limit/data", "a process at its RLIMIT_DATA", TRUTH, |s| {
        memory_limit(s, libc::RLIMIT_DATA, "VmData")
    }),
    Case::process("other-limit/memlock", "an unprivileged process at its RLIMIT_MEMLOCK", TRUTH, memlock)
        .needs(&[Need::Root]),
];

/// A uid that nothing else on the machine has: RLIMIT_NPROC counts per user.
const NOBODY_ELSE: u32 = 612_345;

fn map_count(stage: &mut Stage) -> Result<()> {
    let most = procfs::number("/proc/sys/vm/max_map_count")?;
    let maps = split(stage, most * 98 / 100)?;
    stage.figure("max_map_count", most);
    ensure!(maps >= most * 95 / 100, "{maps} of {most} maps: no such incident here");
    Ok(())
}

/// Makes about `count` mappings out of one, by forbidding every second page. How many there are.
pub(super) fn split(stage: &mut Stage, count: u64) -> Result<u64> {
    let pages = count as usize / 2 * 2;
    let mut region = Region::anon(Bytes((pages * PAGE) as u64), Kind::Private)?;
    for at in region.all().step_by(2 * PAGE) {
        region.forbid(at..at + PAGE)?;
    }
    stage.hold(region);
    let maps = procfs::maps(std::process::id() as i32)?;
    stage.figure("maps", maps);
    Ok(maps)
}

/// Starts threads that wait for ever, until the kernel gives no more; the error it gave.
fn threads_to_the_end() -> Result<i32> {
    loop {
        match thread::Builder::new().stack_size(64 << 10).spawn(|| sys::park()) {
            Ok(_) => {}
            Err(e) => return e.raw_os_error().context("no errno"),
        }
    }
}

/// Fills its limit with threads, verifies that a fork fails with EAGAIN, and holds.
fn crowd(line: &mut actor::Line) -> Result<Infallible> {
    let errno = threads_to_the_end()?;
    ensure!(errno == libc::EAGAIN, "a thread too many gave errno {errno}");
    let fork = sys::try_fork().err().and_then(|e| e.raw_os_error());
    ensure!(fork == Some(libc::EAGAIN), "a process too many gave errno {fork:?}");
    line.ready()?;
    line.park()
}

fn pids_max(stage: &mut Stage, most: u64) -> Result<()> {
    let group = cgroup::pids().context("no pids controller")?.create(&mut stage.journal, "crowd")?;
    group.limit_pids(most)?;
    let actor = Actor::ready(|line| {
        group.enter()?;
        crowd(line)
    })?;
    let pid = stage.cast(actor);
    stage.target(pid);
    stage.figure("tasks", group.tasks()?);
    ensure!(group.tasks()? == most, "{} of {most} tasks: no such incident here", group.tasks()?);
    Ok(())
}

fn nproc(stage: &mut Stage, most: u64) -> Result<()> {
    let parent = rustix::process::getpid();
    let actor = Actor::ready(|line| {
        sys::set_rlimit(libc::RLIMIT_NPROC, most)?;
        sys::become_uid(NOBODY_ELSE)?;
        actor::die_with_parent(parent)?;
        crowd(line)
    })?;
    let pid = stage.cast(actor);
    stage.target(pid);
    let threads = procfs::status(pid)?.number("Threads")?;
    stage.figure("threads", threads);
    ensure!(threads >= most - 1, "{threads} of {most} threads: no such incident here");
    Ok(())
}

/// A process maps until a limit of 300 MB on `key` of its status refuses the next 2 MB.
fn memory_limit(stage: &mut Stage, resource: u32, key: &'static str) -> Result<()> {
    let mut actor = Actor::fork(|line| {
        let most = procfs::status(std::process::id() as i32)?.bytes(key)? + Bytes::from_mib(300);
        sys::set_rlimit(resource, most.0)?;
        let mut held = Vec::new();
        while let Ok(mut region) = Region::anon(Bytes(HUGE as u64), Kind::Private) {
            region.write_every(PAGE, 0..HUGE / 8);
            held.push(region);
        }
        line.say(&json!({ "limit": most.0 }))?;
        line.park()
    })?;
    let most = Bytes(actor.hear_number("limit")?);
    let pid = stage.cast(actor);
    stage.target(pid);
    stage.bytes("limit", most);
    stage.verify("used", procfs::status(pid)?.bytes(key)?, most, 3)
}

/// A process without CAP_IPC_LOCK has locked all that it may.
fn memlock(stage: &mut Stage) -> Result<()> {
    let most = Bytes::from_mib(6);
    let parent = rustix::process::getpid();
    let actor = Actor::ready(|line| {
        sys::set_rlimit(libc::RLIMIT_MEMLOCK, most.0)?;
        sys::become_uid(NOBODY_ELSE)?;
        actor::die_with_parent(parent)?;
        let mut pool = Region::anon(most * 2, Kind::Private)?;
        pool.lock(0..most.0 as usize)?;
        ensure!(pool.lock(pool.all()).is_err(), "more was locked than may be");
        line.ready()?;
        line.park()
    })?;
    let pid = stage.cast(actor);
    stage.target(pid);
    ensure!(
        fs::read_to_string(format!("/proc/{pid}/limits"))?.contains("Max locked memory"),
        "no limits file"
    );
    stage.verify("locked", procfs::status(pid)?.bytes("VmLck")?, most, 1)
}
