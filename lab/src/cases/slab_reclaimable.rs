//! `slab-reclaimable`: dentries and inodes that look-ups left behind.
//!
//! A tmpfs keeps no negative dentries (simple_dentry_operations deletes them), so the names are looked up on
//! a disk's file system.

use crate::actor::Actor;
use crate::case::{Case, Need, Noise, Truth, is};
use crate::cgroup;
use crate::procfs;
use crate::stage::Stage;
use anyhow::{Context, Result, ensure};
use ebbtide_observe::Bytes;
use std::fs;
use std::path::Path;

const TRUTH: Truth = is("slab-reclaimable").near("slab_growth", 10);
const NEGATIVE: Truth = TRUTH.says(&["negative"]);
const NEEDS: &[Need] = &[Need::Root, Need::Disk(Bytes::from_mib(1))];
const CGROUP: &[Need] = &[Need::Root, Need::MemoryCgroup, Need::Disk(Bytes::from_mib(1))];

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::host("slab-reclaimable/600k", "600,000 stats of missing names", NEGATIVE, |s| {
        missing(s, 600_000, 1, SHORT)
    })
    .needs(NEEDS),
    Case::host("slab-reclaimable/400k", "400,000 stats of missing names", NEGATIVE, |s| {
        missing(s, 400_000, 1, SHORT)
    })
    .needs(NEEDS),
    Case::host(
        "slab-reclaimable/long-names",
        "300,000 stats of missing names of 100 letters",
        NEGATIVE,
        |s| missing(s, 300_000, 1, LONG),
    )
    .needs(NEEDS),
    Case::host(
        "slab-reclaimable/many-directories",
        "600,000 missing names in 2,000 directories",
        NEGATIVE,
        |s| missing(s, 600_000, 2_000, SHORT),
    )
    .needs(NEEDS),
    Case::host(
        "slab-reclaimable/beside-page-cache",
        "600,000 missing names beside 2 GB just read",
        NEGATIVE,
        |s| missing(s, 600_000, 1, SHORT),
    )
    .needs(NEEDS)
    .noise(&[Noise::PageCache(Bytes::from_gib(2))]),
    Case::host(
        "slab-reclaimable/beside-work",
        "600,000 missing names beside a busy process and 60 small ones",
        NEGATIVE,
        |s| missing(s, 600_000, 1, SHORT),
    )
    .needs(NEEDS)
    .noise(&[Noise::Busy, Noise::Small(60)]),
    Case::cgroup(
        "slab-reclaimable/inodes",
        "a cgroup full of the inodes of 300,000 files",
        is("slab-reclaimable"),
        |s| {
            let dir = s.disk_dir(Bytes::ZERO)?;
            let free = rustix::fs::statvfs(&dir)?.f_favail;
            let count = u64::from(s.machine.count(300_000)).min(free / 2);
            s.figure("files", count);
            in_cgroup(s, Bytes(count * 600), Bytes(count * 2_400), move || {
                (0..count).try_for_each(|n| Ok(fs::File::create(dir.join(n.to_string())).map(drop)?))
            })
        },
    )
    .needs(CGROUP),
    Case::cgroup(
        "slab-reclaimable/cgroup",
        "a cgroup full of 1,000,000 missing names",
        is("slab-reclaimable"),
        |s| {
            let count = s.machine.count(1_000_000);
            let dir = s.disk_dir(Bytes::ZERO)?;
            fs::create_dir(dir.join("0"))?;
            in_cgroup(s, Bytes(u64::from(count) * 150), Bytes(u64::from(count) * 300), move || {
                look_up(&dir, count, 1, SHORT)
            })
        },
    )
    .needs(CGROUP),
];

/// Below the 40 bytes (32 before 6.x) that a dentry holds itself.
const SHORT: usize = 8;
/// Above them: the name has an allocation of its own.
const LONG: usize = 100;

/// Looks `count` names up that are in none of `directories` directories. 600,000 short ones are 110 MB.
fn missing(stage: &mut Stage, count: u32, directories: u32, letters: usize) -> Result<()> {
    let count = stage.machine.count(count);
    let dir = stage.disk_dir(Bytes::ZERO)?;
    for n in 0..directories {
        fs::create_dir(dir.join(n.to_string()))?;
    }
    let (slab, negative) = (procfs::reclaimable_objects()?, procfs::negative_dentries()?);
    look_up(&dir, count, directories, letters)?;
    grown(stage, slab, Bytes(u64::from(count) * 150))?;
    let negative = procfs::negative_dentries()?.saturating_sub(negative);
    stage.figure("negative_dentries", negative);
    ensure!(negative >= u64::from(count) * 9 / 10, "{count} look-ups left {negative} negative dentries");
    Ok(())
}

fn look_up(dir: &Path, count: u32, directories: u32, letters: usize) -> Result<()> {
    for n in 0..count {
        let path = dir.join((n % directories).to_string()).join(format!("{n:0letters$}"));
        ensure!(fs::symlink_metadata(&path).is_err(), "{} exists", path.display());
    }
    Ok(())
}

fn grown(stage: &mut Stage, before: Bytes, least: Bytes) -> Result<()> {
    stage.bytes("sreclaimable", procfs::meminfo()?.bytes("SReclaimable")?);
    stage.at_least("slab_growth", procfs::reclaimable_objects()? - before, least)
}

/// A process works in a cgroup, which is charged at least `least` of kernel memory for it, most of its limit; its
/// own resident set is next to none.
fn in_cgroup(stage: &mut Stage, least: Bytes, limit: Bytes, work: impl FnOnce() -> Result<()>) -> Result<()> {
    let memory = cgroup::memory().context("no memory controller")?;
    let group = memory.create(&mut stage.journal, "slab")?;
    group.limit(limit)?;
    let actor = Actor::ready(|line| {
        group.enter()?;
        work()?;
        line.ready()?;
        line.park()
    })?;
    stage.cast(actor);
    stage.bytes("limit", limit);
    stage.bytes("usage", group.usage()?);
    stage.at_least("kernel", group.kernel()?, least)?;
    stage.target_group(&group);
    Ok(())
}
