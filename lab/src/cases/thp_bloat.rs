//! `thp-bloat`: huge pages over little data. MADV_COLLAPSE stands for khugepaged, which does the same over
//! minutes.

use crate::case::{Case, Need, Noise, Truth, is};
use crate::cases::growth::until_above;
use crate::procfs;
use crate::region::{HUGE, Kind, PAGE, Region};
use crate::stage::Stage;
use anyhow::Result;
use ebbtide_observe::Bytes;

const TRUTH: Truth = is("thp-bloat").near("untouched", 10);
const NEEDS: &[Need] = &[Need::Thp];
const SIZE: Bytes = Bytes::from_mib(512);

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::process(
        "thp-bloat/refill",
        "512 MB, 32 of 33 pages given back, refilled by a collapse",
        TRUTH,
        |s| refill(s, SIZE),
    )
    .needs(NEEDS),
    Case::process("thp-bloat/refill-200m", "200 MB, 32 of 33 pages given back, refilled", TRUTH, |s| {
        refill(s, Bytes::from_mib(200))
    })
    .needs(NEEDS),
    Case::process("thp-bloat/one-byte", "one byte written in every 2 MB of 512 MB", TRUTH, |s| {
        sparse(s, SIZE, HUGE)
    })
    .needs(NEEDS),
    Case::process("thp-bloat/one-in-16", "one page in 16 of 512 MB written", TRUTH, |s| {
        sparse(s, SIZE, 16 * PAGE)
    })
    .needs(NEEDS),
    Case::process("thp-bloat/beside-data", "512 MB bloated beside 300 MB of ordinary memory", TRUTH, |s| {
        ordinary(s, Bytes::from_mib(300))?;
        sparse(s, SIZE, HUGE)
    })
    .needs(NEEDS)
    .noise(&[Noise::Small(20)]),
    Case::process(
        "thp-bloat/khugepaged",
        "an idle process whose holes khugepaged fills",
        is("thp-bloat"),
        khugepaged,
    )
    .needs(&[Need::Root, Need::Thp, Need::Vm])
    .watch(10),
];

const MADV_COLLAPSE: i32 = 25;

fn refill(stage: &mut Stage, len: Bytes) -> Result<()> {
    let len = stage.size(len);
    let mut heap = with_holes(len)?;
    heap.advise(heap.all(), MADV_COLLAPSE)?;
    let touched = Bytes((len.0 / PAGE as u64).div_ceil(33) * PAGE as u64);
    bloated(stage, heap, touched)
}

/// Huge pages of which 32 of 33 small ones were given back.
fn with_holes(len: Bytes) -> Result<Region> {
    let mut heap = Region::anon_aligned(len, HUGE, Kind::Private)?;
    heap.advise(heap.all(), libc::MADV_HUGEPAGE)?;
    heap.write_every(PAGE, heap.all());
    let pages = heap.all().step_by(PAGE).enumerate();
    for (_, at) in pages.filter(|(n, _)| n % 33 != 0) {
        heap.advise(at..at + PAGE, libc::MADV_DONTNEED)?;
    }
    Ok(heap)
}

/// khugepaged itself, faster than it is by default (4,096 pages every ten seconds): the process does nothing,
/// and grows. In the VM only: on a machine under load khugepaged has been seen to do nothing for 40 s at any
/// setting (6.18).
fn khugepaged(stage: &mut Stage) -> Result<()> {
    const DIR: &str = "/sys/kernel/mm/transparent_hugepage/khugepaged";
    stage.set(&format!("{DIR}/max_ptes_none"), "511")?;
    stage.set(&format!("{DIR}/scan_sleep_millisecs"), "100")?;
    stage.set(&format!("{DIR}/pages_to_scan"), "512")?;
    let heap = with_holes(stage.size(SIZE))?;
    stage.hold(heap);
    let huge = || procfs::rollup(std::process::id() as i32)?.bytes("AnonHugePages");
    let grown = until_above(huge()?, huge)?;
    stage.bytes("anon_huge", grown);
    Ok(())
}

fn sparse(stage: &mut Stage, len: Bytes, step: usize) -> Result<()> {
    let len = stage.size(len);
    let mut heap = Region::anon_aligned(len, HUGE, Kind::Private)?;
    heap.advise(heap.all(), libc::MADV_HUGEPAGE)?;
    heap.write_every(step, heap.all());
    let touched = Bytes(len.0 / step as u64 * PAGE as u64);
    bloated(stage, heap, touched)
}

fn ordinary(stage: &mut Stage, len: Bytes) -> Result<()> {
    let mut heap = Region::anon(stage.size(len), Kind::Private)?;
    heap.advise(heap.all(), libc::MADV_NOHUGEPAGE)?;
    heap.write_every(PAGE, heap.all());
    stage.hold(heap);
    Ok(())
}

fn bloated(stage: &mut Stage, heap: Region, touched: Bytes) -> Result<()> {
    let len = heap.len();
    stage.hold(heap);
    stage.bytes("touched", touched);
    stage.bytes("untouched", len - touched);
    let rollup = procfs::rollup(std::process::id() as i32)?;
    stage.bytes("rss", rollup.bytes("Rss")?);
    stage.verify("anon_huge", rollup.bytes("AnonHugePages")?, len, 5)
}
