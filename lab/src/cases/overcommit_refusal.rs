//! `overcommit-refusal`: a fork that the kernel refuses by its overcommit rule, with memory to spare, and its
//! innocent neighbours that fork well. Every truth is a real fork()'s.

use crate::actor::Actor;
use crate::case::{Case, INNOCENT, Need, Truth, is};
use crate::procfs;
use crate::region::{Kind, PAGE, Region};
use crate::stage::Stage;
use crate::sys;
use anyhow::{Context, Result, ensure};
use ebbtide_observe::Bytes;
use serde_json::json;
use std::fs;

const TRUTH: Truth = is("overcommit-refusal");
const NEEDS: &[Need] = &[Need::Overcommit0];
const STRICT: &[Need] = &[Need::Root, Need::Vm, Need::Overcommit0];

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::fork("overcommit-refusal/fork-one-vma", "one mapping of 1.7 times the box", TRUTH, |s| {
        let mapping = one_large(s)?;
        refused(s, mapping)
    })
    .needs(NEEDS),
    Case::process(
        "overcommit-refusal/explain-one-vma",
        "one mapping of 1.7 times the box: forks fail",
        TRUTH,
        |s| {
            let mapping = one_large(s)?;
            refused(s, mapping)
        },
    )
    .needs(NEEDS),
    Case::fork(
        "overcommit-refusal/fork-wipeonfork",
        "the same mapping with MADV_WIPEONFORK, no cure",
        TRUTH,
        |s| {
            let mut mapping = one_large(s)?;
            mapping.advise(mapping.all(), libc::MADV_WIPEONFORK)?;
            refused(s, mapping)
        },
    )
    .needs(NEEDS),
    Case::fork(
        "overcommit-refusal/strict-fork",
        "mode 2: a fork that the commit limit refuses",
        TRUTH,
        |s| strict(s, Bytes::from_mib(120)),
    )
    .needs(STRICT),
    Case::process("overcommit-refusal/strict-explain", "mode 2: a process whose forks fail", TRUTH, |s| {
        strict(s, Bytes::from_mib(120))
    })
    .needs(STRICT),
    Case::host(
        "overcommit-refusal/strict-host",
        "mode 2: Committed_AS at its limit, memory free",
        TRUTH,
        |s| {
            let idle = Region::anon(Bytes(s.machine.total.0 / 2), Kind::Private)?;
            s.hold(idle);
            strict(s, Bytes::from_mib(64))
        },
    )
    .needs(STRICT),
    Case::fork("innocent/fork-dontfork", "the same mapping with MADV_DONTFORK", INNOCENT, |s| {
        let mut mapping = one_large(s)?;
        mapping.advise(mapping.all(), libc::MADV_DONTFORK)?;
        allowed(s, mapping)
    })
    .needs(NEEDS),
    Case::fork(
        "innocent/fork-two-vmas",
        "two mappings with a gap, together 1.7 times the box",
        INNOCENT,
        |s| {
            let size = large(s)?;
            let apart = (Region::anon(Bytes(size.0 / 2), Kind::Private)?, guarded(Bytes(size.0 / 2))?);
            allowed(s, apart)
        },
    )
    .needs(NEEDS),
    Case::fork("innocent/fork-noreserve", "a MAP_NORESERVE mapping of 1.7 times the box", INNOCENT, |s| {
        let mapping = Region::anon(large(s)?, Kind::NoReserve)?;
        allowed(s, mapping)
    })
    .needs(NEEDS),
    Case::fork("innocent/fork-plain", "a process of 600 MB", INNOCENT, |s| {
        let mut heap = Region::anon(s.size(Bytes::from_mib(600)), Kind::Private)?;
        heap.write_every(PAGE, heap.all());
        allowed(s, heap)
    })
    .needs(NEEDS),
];

/// 1.7 times what mode 0 allows one request (MemTotal and swap; mm/util.c, __vm_enough_memory).
fn large(stage: &mut Stage) -> Result<Bytes> {
    let meminfo = procfs::meminfo()?;
    let bound = meminfo.bytes("MemTotal")? + meminfo.bytes("SwapTotal")?;
    stage.bytes("bound", bound);
    Ok(Bytes(bound.scaled(1.7).0 >> 21 << 21))
}

/// One mapping grown in two steps: each passes mmap's own check, the fork then meets them as one.
fn one_large(stage: &mut Stage) -> Result<Region> {
    let size = large(stage)?;
    let mut whole = Region::anon(size, Kind::Unused)?;
    whole.open_in_halves()?;
    Ok(whole)
}

/// A mapping with an inaccessible page in front, so that no neighbour is joined to it.
fn guarded(len: Bytes) -> Result<Region> {
    let mut region = Region::anon(len, Kind::Private)?;
    region.forbid(0..PAGE)?;
    region.forbid(region.all().end - PAGE..region.all().end)?;
    Ok(region)
}

fn refused(stage: &mut Stage, mapping: Region) -> Result<()> {
    stage.bytes("charge", mapping.len());
    stage.hold(mapping);
    let error = sys::try_fork().err().and_then(|e| e.raw_os_error());
    ensure!(error == Some(libc::ENOMEM), "fork() gave {error:?}, not ENOMEM: no such incident here");
    Ok(())
}

fn allowed(stage: &mut Stage, mapping: impl Sized + 'static) -> Result<()> {
    stage.hold(mapping);
    sys::try_fork().map_err(|e| anyhow::anyhow!("fork() failed: {e}: no such case here"))
}

/// Overcommit mode 2 with `room` left under the commit limit, and a process that would need twice as much to
/// fork, none of which it has ever touched.
fn strict(stage: &mut Stage, room: Bytes) -> Result<()> {
    let charge = Bytes(room.0 * 2);
    let mut actor = Actor::fork(|line| {
        let _reserve = Region::anon(charge, Kind::Private)?;
        line.ready()?;
        line.hear()?;
        let errno = sys::try_fork().err().and_then(|e| e.raw_os_error());
        line.say(&json!({ "errno": errno }))?;
        line.park()
    })?;
    actor.hear()?;
    commit_limit(stage, room)?;
    actor.go()?;
    let errno = actor.hear_number("errno").context("fork() worked: no such incident here")?;
    ensure!(errno == libc::ENOMEM as u64, "fork() gave {errno}, not ENOMEM");
    let pid = stage.cast(actor);
    stage.target(pid);
    let meminfo = procfs::meminfo()?;
    stage.bytes("committed", meminfo.bytes("Committed_AS")?);
    stage.bytes("commit_limit", meminfo.bytes("CommitLimit")?);
    stage.at_least("available", meminfo.bytes("MemAvailable")?, charge)
}

/// Mode 2 with `room` between Committed_AS and CommitLimit. Outside mode 2 Committed_AS is approximate
/// (mm/util.c, mm_compute_batch), so it is read only once the mode is on, under a limit that refuses nothing.
fn commit_limit(stage: &mut Stage, room: Bytes) -> Result<()> {
    const LIMIT: &str = "/proc/sys/vm/overcommit_kbytes";
    let total = procfs::meminfo()?.bytes("MemTotal")?;
    // Writing overcommit_kbytes zeroes the ratio; this one is here to come back last.
    let ratio = procfs::number("/proc/sys/vm/overcommit_ratio")?;
    stage.set("/proc/sys/vm/overcommit_ratio", &ratio.to_string())?;
    stage.set(LIMIT, &(total.0 >> 9).to_string())?;
    stage.set("/proc/sys/vm/overcommit_memory", "2")?;
    let meminfo = procfs::meminfo()?;
    let limit = meminfo.bytes("Committed_AS")? + room - meminfo.bytes("SwapTotal")?;
    Ok(fs::write(LIMIT, (limit.0 >> 10).to_string())?)
}
