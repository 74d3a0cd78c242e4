//! `stacks-and-locked`: stacks made resident before they are used, and memory that mlock made so.

use crate::case::{Case, Need, Truth, is};
use crate::procfs;
use crate::region::{Kind, PAGE, Region};
use crate::stage::Stage;
use crate::sys;
use anyhow::{Context, Result};
use ebbtide_observe::Bytes;
use rustix::mm::MlockAllFlags;
use std::hint::black_box;
use std::sync::mpsc;
use std::thread;

const TRUTH: Truth = is("stacks-and-locked").near("stacks", 10);
/// RLIMIT_MEMLOCK keeps everybody else at a few MB.
const ROOT: &[Need] = &[Need::Root];
const MIB: usize = 1 << 20;

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::process("stacks-and-locked/16x8m-mlocked", "16 prefaulted stacks of 8 MB, mlocked", TRUTH, |s| {
        prefaulted(s, 16, 8, true)
    })
    .needs(ROOT),
    Case::process(
        "stacks-and-locked/16x8m-mcl-future",
        "16 threads of 8 MB under MCL_FUTURE",
        TRUTH,
        mcl_future,
    )
    .needs(ROOT),
    Case::process(
        "stacks-and-locked/64x4m-prefaulted",
        "64 prefaulted stacks of 4 MB, not locked",
        TRUTH,
        |s| prefaulted(s, 64, 4, false),
    ),
    Case::process("stacks-and-locked/200x2m-prefaulted", "200 prefaulted stacks of 2 MB", TRUTH, |s| {
        prefaulted(s, 200, 2, false)
    }),
    Case::process(
        "stacks-and-locked/mlocked-reservation",
        "400 MB locked, of which 4 MB were ever written",
        is("stacks-and-locked").near("locked", 10),
        mlocked,
    )
    .needs(ROOT),
];

/// Touches `mib` of this thread's stack, less 32 KiB, page by page from the top down.
#[inline(never)]
fn prefault(mib: usize) {
    #[inline(never)]
    fn page(lowest: usize) {
        let mut own = [0u8; PAGE];
        black_box(&mut own)[0] = 1;
        if own.as_ptr() as usize > lowest {
            page(lowest);
        }
        black_box(&own);
    }
    let top = 0u8;
    page(&raw const top as usize - (mib * MIB - 32 * 1024));
}

/// Starts `count` threads of `mib` each that call `first` and then wait for ever.
pub(super) fn threads(count: usize, mib: usize, first: fn(usize)) -> Result<()> {
    let (ready, all) = mpsc::channel();
    for _ in 0..count {
        let ready = ready.clone();
        thread::Builder::new().stack_size(mib * MIB).spawn(move || {
            first(mib);
            if ready.send(()).is_ok() {
                sys::park()
            }
        })?;
    }
    all.iter().take(count).count();
    Ok(())
}

fn prefaulted(stage: &mut Stage, count: usize, mib: usize, lock: bool) -> Result<()> {
    threads(count, mib, prefault)?;
    if lock {
        rustix::mm::mlockall(MlockAllFlags::CURRENT).context("mlockall")?;
        locked(stage)?;
    }
    resident(stage, count, mib)
}

fn mcl_future(stage: &mut Stage) -> Result<()> {
    rustix::mm::mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE).context("mlockall")?;
    threads(16, 8, |_| {})?;
    locked(stage)?;
    resident(stage, 16, 8)
}

fn mlocked(stage: &mut Stage) -> Result<()> {
    let len = stage.size(Bytes::from_mib(400));
    let mut pool = Region::anon(len, Kind::Private)?;
    pool.write_every(PAGE, 0..4 * MIB);
    pool.lock(pool.all())?;
    stage.hold(pool);
    stage.verify("locked", procfs::status(own())?.bytes("VmLck")?, len, 5)
}

fn own() -> i32 {
    std::process::id() as i32
}

fn locked(stage: &mut Stage) -> Result<()> {
    stage.bytes("locked", procfs::status(own())?.bytes("VmLck")?);
    Ok(())
}

/// Verifies that the stacks are what is resident.
fn resident(stage: &mut Stage, count: usize, mib: usize) -> Result<()> {
    let stacks = Bytes::from_mib((count * mib) as u64);
    stage.bytes("stacks", stacks);
    stage.figure("threads", procfs::status(own())?.number("Threads")?);
    stage.verify("rss_anon", procfs::status(own())?.bytes("RssAnon")?, stacks, 12)
}
