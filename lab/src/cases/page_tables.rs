//! `page-tables`: the tables themselves, kept by sparse touches after the pages are gone.
//!
//! Pages are given back one by one: since 6.14 (PT_RECLAIM) a whole-range MADV_DONTNEED frees its empty
//! tables, one of a single page does not.

use crate::actor::Actor;
use crate::case::{Case, Need, Noise, Truth, is};
use crate::procfs;
use crate::region::{HUGE, Kind, PAGE, Region};
use crate::stage::Stage;
use anyhow::Result;
use ebbtide_observe::Bytes;

const TRUTH: Truth = is("page-tables").near("page_tables", 10);
const SIZE: Bytes = Bytes::from_gib(64);

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::process("page-tables/64g", "one page in every 2 MB of 64 GB touched and given back", TRUTH, |s| {
        alone(s, SIZE, true)
    }),
    Case::host("page-tables/64g-host", "the host with 128 MB of page tables of one process", TRUTH, |s| {
        alone(s, SIZE, true)
    }),
    Case::process(
        "page-tables/128g",
        "one page in every 2 MB of 128 GB touched and given back",
        TRUTH,
        |s| alone(s, Bytes::from_gib(128), true),
    ),
    Case::process("page-tables/64g-kept", "one page in every 2 MB of 64 GB touched and kept", TRUTH, |s| {
        alone(s, SIZE, false)
    }),
    Case::host(
        "page-tables/64g-host-beside-page-cache",
        "the page tables beside 2 GB just read",
        TRUTH,
        |s| alone(s, SIZE, true),
    )
    .needs(&[Need::Disk(Bytes::ZERO)])
    .noise(&[Noise::PageCache(Bytes::from_gib(2))]),
    Case::host("page-tables/spread", "32 processes with 8 MB of empty page tables each", TRUTH, |s| {
        spread(s, 32, Bytes::from_gib(4))
    }),
];

/// Touches one page in every 2 MB of `len`: one 4 KiB page table each.
fn touch(len: Bytes, give_back: bool) -> Result<Region> {
    let mut sparse = Region::anon(len, Kind::NoReserve)?;
    sparse.advise(sparse.all(), libc::MADV_NOHUGEPAGE)?;
    for at in sparse.all().step_by(HUGE) {
        sparse.write(at, 1);
        if give_back {
            sparse.advise(at..at + PAGE, libc::MADV_DONTNEED)?;
        }
    }
    Ok(sparse)
}

fn tables(len: Bytes) -> Bytes {
    Bytes(len.0 / HUGE as u64 * PAGE as u64)
}

fn alone(stage: &mut Stage, len: Bytes, give_back: bool) -> Result<()> {
    let sparse = touch(len, give_back)?;
    stage.hold(sparse);
    let pid = std::process::id() as i32;
    stage.bytes("rss", procfs::status(pid)?.bytes("VmRSS")?);
    stage.bytes("host_page_tables", procfs::meminfo()?.bytes("PageTables")?);
    stage.verify("page_tables", procfs::status(pid)?.bytes("VmPTE")?, tables(len), 5)
}

/// The truth is what the processes' own books say: the host's count also moves with whoever else ends or starts.
fn spread(stage: &mut Stage, processes: u32, len: Bytes) -> Result<()> {
    let mut made = Bytes::ZERO;
    for _ in 0..processes {
        let actor = Actor::ready(|line| {
            let _sparse = touch(len, true)?;
            line.ready()?;
            line.park()
        })?;
        made += procfs::status(stage.cast(actor))?.bytes("VmPTE")?;
    }
    stage.verify("page_tables", made, tables(len) * u64::from(processes), 10)
}
