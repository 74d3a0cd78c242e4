//! `physical-fragmentation`: free memory of which no sixteen pages lie together. It takes the whole box, so
//! it runs in the VM only.

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

/// MADV_DONTNEED for locked memory (5.18 and later): the mapping stays whole, where unlocking page by page
/// would split it beyond vm.max_map_count.
const MADV_DONTNEED_LOCKED: i32 = 24;

/// What is left of the high orders before the comb is cut; below it the kernel's reserves begin.
const LEAST: Bytes = Bytes::from_mib(4);

/// How much is taken at a time.
const PART: Bytes = Bytes::from_mib(1);

/// Fills the box with pages that compaction may not move, and gives back all but one in `keep`.
fn comb(stage: &mut Stage, keep: usize) -> Result<()> {
    stage.set("/proc/sys/vm/compact_unevictable_allowed", "0")?;
    // Else kcompactd mends some of it while it is made.
    stage.set("/proc/sys/vm/compaction_proactiveness", "0")?;
    // khugepaged sets 3% of a small box aside (mm/khugepaged.c, set_recommended_min_free_kbytes), all of it
    // in high orders.
    stage.set("/proc/sys/vm/min_free_kbytes", "4096")?;
    let mut parts = Vec::new();
    while free_by_order()?.1 > LEAST && procfs::meminfo()?.bytes("MemAvailable")? > LEAST {
        let mut part = Region::anon(PART, Kind::Private)?;
        part.advise(part.all(), libc::MADV_NOHUGEPAGE)?;
        part.write_every(PAGE, part.all());
        part.lock(part.all())?;
        parts.push(part);
    }
    for part in &mut parts {
        for at in part.all().step_by(keep * PAGE) {
            let end = (at + keep * PAGE).min(part.all().end);
            part.advise(at + PAGE..end, MADV_DONTNEED_LOCKED)?;
        }
    }
    stage.hold(parts);
    let (low, high) = free_by_order()?;
    stage.bytes("free_low_orders", low);
    stage.at_most("free_high_orders", high, Bytes(low.0 / 64))
}

/// Free bytes below and from order 4 on, outside the DMA zone, whose 16 MB nobody else gets
/// (/proc/buddyinfo).
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
