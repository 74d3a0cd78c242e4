//! `counted-twice`: pages that many processes share, counted whole in every one's resident set. Each case's
//! sum of RSS is most of the box or more; the pages are there once.

use crate::actor::Actor;
use crate::case::{Case, Need, Noise, Truth, is};
use crate::cases::shared_memory::segment;
use crate::procfs;
use crate::region::{Kind, PAGE, Region};
use crate::stage::Stage;
use anyhow::Result;
use ebbtide_observe::Bytes;

const TRUTH: Truth = is("counted-twice");
const SIZE: Bytes = Bytes::from_mib(512);

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::host("counted-twice/40x512m", "40 processes that share 512 MB", TRUTH, |s| anonymous(s, SIZE, 40)),
    Case::process("counted-twice/40x512m-one", "one of 40 processes that share 512 MB", TRUTH, |s| {
        anonymous(s, SIZE, 40)
    }),
    Case::host("counted-twice/40x512m-beside-page-cache", "the 40 beside 2 GB just read", TRUTH, |s| {
        anonymous(s, SIZE, 40)
    })
    .needs(&[Need::Disk(Bytes::ZERO)])
    .noise(&[Noise::PageCache(Bytes::from_gib(2))]),
    Case::host(
        "counted-twice/20x1g-sysv",
        "20 processes that share a System V segment of 1 GB",
        TRUTH,
        |s| sysv(s, Bytes::from_gib(1), 20),
    )
    .needs(&[Need::SysvIpc]),
    Case::process(
        "counted-twice/20x1g-sysv-one",
        "one of 20 processes that share 1 GB of System V",
        TRUTH,
        |s| sysv(s, Bytes::from_gib(1), 20),
    )
    .needs(&[Need::SysvIpc]),
    Case::host("counted-twice/30x800m-file", "30 processes that map a file of 800 MB", TRUTH, |s| {
        file(s, Bytes::from_mib(800), 30)
    })
    .needs(&[Need::Disk(Bytes::ZERO)]),
    Case::process(
        "counted-twice/30x800m-file-one",
        "one of 30 processes that map a file of 800 MB",
        TRUTH,
        |s| file(s, Bytes::from_mib(800), 30),
    )
    .needs(&[Need::Disk(Bytes::ZERO)]),
    Case::host("counted-twice/prefork", "40 forked workers that share their parent's 600 MB", TRUTH, |s| {
        prefork(s, Bytes::from_mib(600), 40)
    }),
    Case::process("counted-twice/prefork-one", "one of 40 forked workers that share 600 MB", TRUTH, |s| {
        prefork(s, Bytes::from_mib(600), 40)
    }),
];

fn anonymous(stage: &mut Stage, len: Bytes, users: u32) -> Result<()> {
    let len = stage.size(len);
    let region = Region::anon(len, Kind::Shared)?;
    sharers(stage, users, len, || {
        region.read_every(PAGE, region.all());
        Ok(())
    })
}

fn sysv(stage: &mut Stage, len: Bytes, users: u32) -> Result<()> {
    let len = stage.size(len);
    let id = segment(stage, len)?;
    sharers(stage, users, len, || {
        let region = Region::of_sysv(id, len)?;
        region.read_every(PAGE, region.all());
        std::mem::forget(region);
        Ok(())
    })
}

fn file(stage: &mut Stage, len: Bytes, users: u32) -> Result<()> {
    let len = stage.size(len);
    let (_, file) = stage.sparse_file(len)?;
    sharers(stage, users, len, || {
        let region = Region::of_file(&file, len, false)?;
        region.read_every(PAGE, region.all());
        std::mem::forget(region);
        Ok(())
    })
}

fn prefork(stage: &mut Stage, len: Bytes, users: u32) -> Result<()> {
    let len = stage.size(len);
    let mut heap = Region::anon(len, Kind::Private)?;
    heap.write_every(PAGE, heap.all());
    sharers(stage, users, len, || Ok(()))?;
    stage.hold(heap);
    Ok(())
}

/// Forks `users` processes that each `share` pages, and verifies what their sums say.
fn sharers(stage: &mut Stage, users: u32, len: Bytes, share: impl Fn() -> Result<()>) -> Result<()> {
    let mut pids = Vec::new();
    for _ in 0..users {
        let actor = Actor::ready(|line| {
            share()?;
            line.ready()?;
            line.park()
        })?;
        pids.push(stage.cast(actor));
    }
    let (mut rss, mut pss) = (Bytes::ZERO, Bytes::ZERO);
    for &pid in &pids {
        let rollup = procfs::rollup(pid)?;
        rss += rollup.bytes("Rss")?;
        pss += rollup.bytes("Pss")?;
    }
    stage.at_least("sum_rss", rss, len * u64::from(users))?;
    stage.at_most("sum_pss", pss, len + Bytes(len.0 / 5) + Bytes::from_mib(u64::from(users)))?;
    stage.figure("processes", users);
    stage.target(pids[0]);
    Ok(())
}
