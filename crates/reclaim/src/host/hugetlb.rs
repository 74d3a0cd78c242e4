//! Huge pages of the hugetlb pools that are free and promised to nobody.
//!
//! Only the pages that were made by hand (nr_hugepages without the surplus) are let go of: surplus ones go by
//! themselves. Source: mm/hugetlb.c (6.18): it never takes a page that is in use or reserved, whatever is written.

use crate::knob::Knob;
use crate::refused::{LeverError, Right};
use crate::report::{Lever, Report};
use crate::slow::Terms;
use ebbtide_observe::host::HugePool;
use ebbtide_observe::{Bytes, Root};
use std::time::Instant;

pub(super) fn reclaim(root: &Root, terms: &mut Terms) -> Result<Report, LeverError> {
    let began = Instant::now();
    let pools = HugePool::read(root);
    let mut levers = Vec::new();
    for pool in pools.iter().filter(|pool| pool.idle() > Bytes::ZERO) {
        levers.push(shrink(root, pool, terms.dry_run)?);
    }
    let mut notes = Vec::new();
    if pools.is_empty() {
        notes.push("this kernel has no hugetlb pools".to_owned());
    } else if levers.is_empty() {
        notes.push("no huge page is both free and promised to nobody".to_owned());
    }
    Ok(Report::of(levers, notes, began))
}

fn shrink(root: &Root, pool: &HugePool, dry_run: bool) -> Result<Lever, LeverError> {
    let (by_hand, idle) = (pool.total.saturating_sub(pool.surplus), pool.free.saturating_sub(pool.reserved));
    let file = format!("sys/kernel/mm/hugepages/hugepages-{}kB/nr_hugepages", pool.page.0 >> 10);
    let on = format!("free huge pages of {}", pool.page);
    let cost = "a program that starts later and wants them may not get them; memory may be in too many splinters to \
        make them again";
    let mut lever = Lever::planned("hugetlb", on, pool.idle().min(pool.page * by_hand), cost);
    lever.undo = Some(format!("echo {by_hand} > /{file}"));
    if !dry_run {
        Knob::open(root, &file, Right::DacOverride)?.write(&format!("{}\n", by_hand.saturating_sub(idle)))?;
        let now = HugePool::read(root).into_iter().find(|other| other.page == pool.page);
        let left = now.map_or(0, |now| now.total);
        lever.returned = Some(pool.page * pool.total.saturating_sub(left));
    }
    Ok(lever)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_testkit::FakeRoot;
    use std::time::Duration;

    fn pool(fake: FakeRoot, kib: u64, [total, free, reserved, surplus]: [u64; 4]) -> FakeRoot {
        let dir = format!("sys/kernel/mm/hugepages/hugepages-{kib}kB");
        let files = [("nr_hugepages", total), ("free_hugepages", free), ("resv_hugepages", reserved)];
        let files = files.into_iter().chain([("surplus_hugepages", surplus)]);
        files.fold(fake, |fake, (name, n)| fake.file(format!("{dir}/{name}"), format!("{n}\n")))
    }

    #[test]
    fn free_pages_that_nobody_reserved() {
        let fake = pool(pool(FakeRoot::new(), 2048, [110, 60, 20, 10]), 1 << 20, [1, 0, 0, 0]);
        let root = Root::at(fake.path()).unwrap();
        let file = fake.path().join("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
        for dry_run in [true, false] {
            let mut terms = Terms { dry_run, patience: Duration::from_secs(1), watch: &mut |_, _| {} };
            let report = reclaim(&root, &mut terms).unwrap();
            let [lever] = &report.levers[..] else { panic!("{report:?}") };
            assert_eq!(report.predicted, Bytes::from_mib(80));
            let undo = "echo 100 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages";
            assert_eq!(lever.undo.as_deref(), Some(undo));
            assert_eq!(lever.returned, (!dry_run).then_some(Bytes::from_mib(2 * 50)));
            let total = std::fs::read_to_string(&file).unwrap();
            assert_eq!(total.trim(), if dry_run { "110" } else { "60" });
        }
    }

    #[test]
    fn nothing_idle_is_said() {
        let fake = pool(FakeRoot::new(), 2048, [10, 5, 5, 0]);
        let mut terms = Terms { dry_run: false, patience: Duration::from_secs(1), watch: &mut |_, _| {} };
        let report = reclaim(&Root::at(fake.path()).unwrap(), &mut terms).unwrap();
        assert!(report.levers.is_empty() && report.returned.is_none() && report.notes.len() == 1);
    }
}
