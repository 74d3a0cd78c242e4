//! `physical-fragmentation`: free memory of which no sixteen pages lie together. It takes the whole box, so it
//! runs in the VM only.

use crate::case::{Case, Need, Noise, Truth, is};
use crate::procfs;
use crate::region::{Kind, PAGE, Region};
use crate::stage::Stage;
use anyhow::{Context, Result};
use ebbtide_observe::Bytes;
use std::fs;

const TRUTH: Truth = is("physical-fragmentation");
const NEEDS: &[Need] = &[Need::Root, Need::Vm];

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::host(
        "physical-fragmentation/every-other",
        "every second page free, the others locked",
        TRUTH,
        |s| comb(s, 2),
    )
    .needs(NEEDS),
    Case::host(
        "physical-fragmentation/one-in-8",
        "seven of eight pages free, the eighth locked",
        TRUTH,
        |s| comb(s, 8),
    )
    .needs(NEEDS)
    .noise(&[Noise::Small(10)]),
];

/// Fills the box with pages that compaction may not move, and gives back all but one in `keep`.
fn comb(stage: &mut Stage, keep: usize) -> Result<()> {
    stage.set("/proc/sys/vm/compact_unevictable_allowed", "0")?;
    let available = procfs::meminfo()?.bytes("MemAvailable")?;
    let len = Bytes(available.scaled(0.9).0 >> 12 << 12);
    let mut filler = Region::anon(len, Kind::Private)?;
    filler.advise(filler.all(), libc::MADV_NOHUGEPAGE)?;
    filler.write_every(PAGE, filler.all());
    for at in filler.all().step_by(keep * PAGE) {
        filler.lock(at..at + PAGE)?;
        let end = (at + keep * PAGE).min(filler.all().end);
        filler.advise(at + PAGE..end, libc::MADV_DONTNEED)?;
    }
    stage.hold(filler);
    let (low, high) = free_by_order()?;
    stage.bytes("free_low_orders", low);
    stage.at_most("free_high_orders", high, Bytes(low.0 / 10))
}

/// Free bytes below and from order 4 on, outside the DMA zone, whose 16 MB nobody else gets (/proc/buddyinfo).
fn free_by_order() -> Result<(Bytes, Bytes)> {
    let (mut low, mut high) = (0, 0);
    let text = fs::read_to_string("/proc/buddyinfo")?;
    for line in text.lines().filter(|line| !line.contains(" DMA ")) {
        let (_, counts) = line.split_once("zone").context("no zone in buddyinfo")?;
        for (order, count) in counts.split_whitespace().skip(1).enumerate() {
            let bytes = count.parse::<u64>()? * PAGE as u64 * (1 << order);
            *if order < 4 { &mut low } else { &mut high } += bytes;
        }
    }
    Ok((Bytes(low), Bytes(high)))
}
