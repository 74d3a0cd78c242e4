//! Settings of reclaim: when it starts, what it takes, how much may wait to be written.

use super::{Advice, Facts, Host};
use ebbtide_explain::Cause;
use ebbtide_observe::Bytes;

/// Tasks that wait for memory for more than this percentage of a minute are slowed down noticeably.
const STALLED: f64 = 1.0;

/// With more than this share of RAM available, waiting for memory is a matter of when reclaim starts.
const TO_SPARE: f64 = 0.2;

/// So much of what was reclaimed, since boot, was reclaimed by those who needed it: kswapd came late.
const BY_THEMSELVES: f64 = 0.1;

pub(super) fn watermarks(facts: &Facts) -> Vec<Advice> {
    let (mem, vmstat) = (&facts.sample.meminfo, &facts.sample.vmstat);
    let Some(stall) = facts.sample.pressure.map(|pressure| pressure.some.avg60) else { return Vec::new() };
    let all = vmstat.pgsteal_direct.saturating_add(vmstat.pgsteal_kswapd);
    let direct = vmstat.pgsteal_direct as f64 / all.max(1) as f64;
    let Some(present @ ..500) = facts.number("vm.watermark_scale_factor") else { return Vec::new() };
    if stall < STALLED || mem.mem_available.share_of(mem.mem_total) < TO_SPARE || direct < BY_THEMSELVES {
        return Vec::new();
    }
    let why = format!(
        "tasks waited for memory for {stall:.1}% of the last minute with {} of {} available, and {:.0}% of all reclaim \
         since boot was done by those who needed memory, not by kswapd",
        mem.mem_available,
        mem.mem_total,
        direct * 100.0
    );
    facts.change("vm.watermark_scale_factor", (present * 2).clamp(50, 500), None, why).into_iter().collect()
}

pub(super) fn swappiness(facts: &Facts) -> Vec<Advice> {
    let (mem, swaps) = (&facts.sample.meminfo, &facts.sample.swaps);
    let idle = mem.swap_free.share_of(mem.swap_total) > 0.5;
    let short = mem.mem_available.share_of(mem.mem_total) < 0.1;
    if swaps.is_empty() || !idle || !short || facts.number("vm.swappiness") != Some(0) {
        return Vec::new();
    }
    let in_ram = swaps.iter().all(|swap| swap.path.starts_with("/dev/zram"));
    let why = format!(
        "only {} of {} is available, and {} of {} swap is not used: 0 keeps the kernel from swapping until file pages are \
         nearly gone",
        mem.mem_available, mem.mem_total, mem.swap_free, mem.swap_total
    );
    facts.change("vm.swappiness", if in_ram { 100 } else { 60 }, None, why).into_iter().collect()
}

/// Less than this is written in a second or two.
const UNWRITTEN: Bytes = Bytes::from_gib(1);

pub(super) fn writeback(facts: &Facts) -> Vec<Advice> {
    let mem = &facts.sample.meminfo;
    let unwritten = mem.dirty + mem.writeback;
    let chosen = facts.number("vm.dirty_bytes") != Some(0);
    if chosen || unwritten < UNWRITTEN || unwritten.share_of(mem.mem_total) < 0.05 {
        return Vec::new();
    }
    let why = format!(
        "{unwritten} of file pages wait to be written ({} dirty, {} on the way): whoever calls fsync waits for them, and \
         reclaim cannot take them",
        mem.dirty, mem.writeback
    );
    let back = facts.change("vm.dirty_background_bytes", Bytes::from_mib(256).0, None, &why);
    back.into_iter().chain(facts.change("vm.dirty_bytes", Bytes::from_gib(1).0, None, &why)).collect()
}

/// Dentries and inodes that somebody told the kernel to keep.
pub(super) fn dentries(facts: &Facts) -> Option<Advice> {
    let finding = facts.found(Cause::SlabReclaimable)?;
    let fair = Host::read(facts.root).ok()?.fair_cache_pressure();
    let low = facts.number("vm.vfs_cache_pressure").is_some_and(|pressure| pressure < fair);
    low.then(|| facts.change("vm.vfs_cache_pressure", fair, Some(Cause::SlabReclaimable), &finding.summary))?
}
