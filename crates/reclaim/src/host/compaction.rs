//! Compaction: movable pages moved together, so that free ones are in blocks as large as a huge page. It frees nothing:
//! what it makes is counted in blocks.

use crate::knob::{Knob, Written};
use crate::refused::{LeverError, Right};
use crate::report::{Blocks, Lever, Report};
use crate::slow::Terms;
use ebbtide_observe::host::{Meminfo, PageTypes, Zones};
use ebbtide_observe::{Bytes, ReadError, Root, page_size};
use std::time::Instant;

pub(super) fn reclaim(root: &Root, terms: &mut Terms) -> Result<Report, LeverError> {
    let began = Instant::now();
    let huge = Meminfo::read(root)?.huge_page_size;
    let order = order(huge);
    let before = free_blocks(root, order)?;
    let predicted = splinters(root, order)? >> order;
    let on = format!("free memory, to blocks of {}", page_size() * (1 << order));
    let cost = "takes kernel time, and programs wait for the pages that are moved; frees nothing";
    let mut lever = Lever::planned("compaction", on, Bytes::ZERO, cost);
    let mut blocks = Blocks { predicted, made: None };
    if !terms.dry_run {
        let knob = Knob::open(root, "proc/sys/vm/compact_memory", Right::User0)?;
        let mut tick = |elapsed| (terms.watch)(elapsed, Bytes::ZERO);
        if knob.write_apart("1", terms.patience, &mut tick)? == Written::StillAtIt {
            lever.short = Some("the kernel still works at it; the blocks made so far are counted".to_owned());
        }
        blocks.made = Some(free_blocks(root, order)?.saturating_sub(before));
        lever.returned = Some(Bytes::ZERO);
    }
    lever.blocks = Some(blocks);
    Ok(Report::of(vec![lever], Vec::new(), began))
}

/// The order of a huge page: 9 on x86_64. Where there are none, as large as those.
fn order(huge: Bytes) -> usize {
    match huge.0 / page_size().0 {
        0 | 1 => 9,
        pages => pages.ilog2() as usize,
    }
}

/// Free blocks of that order; larger ones count as several.
fn free_blocks(root: &Root, order: usize) -> Result<u64, ReadError> {
    let zones = Zones::read(root)?.zones;
    Ok(zones.iter().map(|zone| zone.free_at_or_above(order).0 >> order).sum())
}

/// Free pages in smaller blocks that can become larger ones: those among movable pages. Around a page that cannot be
/// moved nothing is made, so where the kinds are not known (not root) all is counted, and it is rather too many.
fn splinters(root: &Root, order: usize) -> Result<u64, ReadError> {
    let pages = |by_order: &[u64]| -> u64 {
        let small = by_order.iter().take(order).enumerate();
        small.map(|(order, &blocks)| blocks.saturating_mul(1 << order)).fold(0, u64::saturating_add)
    };
    match PageTypes::read(root) {
        Ok(types) => {
            let movable = types.types.iter().filter(|(name, _)| matches!(name.as_str(), "Movable" | "CMA"));
            Ok(movable.map(|(_, by_order)| pages(by_order)).sum())
        }
        Err(_) => Ok(Zones::read(root)?.zones.iter().map(|zone| pages(&zone.free_blocks)).sum()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_testkit::FakeRoot;
    use std::time::Duration;

    #[test]
    fn blocks_are_predicted_from_movable_splinters() {
        let fake = FakeRoot::new()
            .file("proc/meminfo", "MemTotal: 1000000 kB\nHugepagesize: 2048 kB\n")
            .file("proc/zoneinfo", "Node 0, zone   Normal\n  pages free     511\n")
            .file("proc/buddyinfo", "Node 0, zone Normal 4096 0 0 0 0 0 0 0 0 3 1\n")
            .file(
                "proc/pagetypeinfo",
                "Node    0, zone   Normal, type    Unmovable   2048 0 0 0 0 0 0 0 0 1 0\n\
                 Node    0, zone   Normal, type    Movable     2048 0 0 0 0 0 0 0 2 2 1\n",
            )
            .file("proc/sys/vm/compact_memory", "");
        let root = Root::at(fake.path()).unwrap();
        let mut terms = Terms { dry_run: false, patience: Duration::from_secs(60), watch: &mut |_, _| {} };
        let report = reclaim(&root, &mut terms).unwrap();
        // 2048 single pages and two of half a block.
        assert_eq!(report.levers[0].blocks, Some(Blocks { predicted: 5, made: Some(0) }));
        assert!(report.levers[0].fell_short());
        assert_eq!((report.predicted, report.returned), (Bytes::ZERO, Some(Bytes::ZERO)));
        assert_eq!(std::fs::read_to_string(fake.path().join("proc/sys/vm/compact_memory")).unwrap(), "1\n");
    }

    #[test]
    fn orders() {
        assert_eq!(
            (order(Bytes::from_mib(2)), order(Bytes::ZERO)),
            ((Bytes::from_mib(2).0 / page_size().0).ilog2() as usize, 9)
        );
    }
}
