//! The whole page cache, which is dropped only where that was asked for by name: drop_caches.

use crate::knob::{Knob, Written};
use crate::refused::{LeverError, Right};
use crate::report::{Lever, Report};
use crate::slow::Terms;
use ebbtide_observe::host::Meminfo;
use ebbtide_observe::{Bytes, Root};
use std::time::Instant;

pub(super) fn reclaim(root: &Root, terms: &mut Terms) -> Result<Report, LeverError> {
    let began = Instant::now();
    let before = Meminfo::read(root)?;
    let cost = "every file is read from disk again, by everybody; the kernel may work for seconds";
    let mut lever = Lever::planned("page-cache", "all clean page cache".to_owned(), droppable(&before), cost);
    if !terms.dry_run {
        let cached = |info: &Meminfo| info.buffers + info.cached - info.shmem;
        let returned = || Meminfo::read(root).map_or(Bytes::ZERO, |now| cached(&before) - cached(&now));
        let knob = Knob::open(root, "proc/sys/vm/drop_caches", Right::User0)?;
        let mut tick = |elapsed| (terms.watch)(elapsed, returned());
        if knob.write_apart("1", terms.patience, &mut tick)? == Written::StillAtIt {
            lever.short =
                Some("the kernel still works at it; what it has returned so far is counted".to_owned());
        }
        lever.returned = Some(returned());
    }
    let mut notes = Vec::new();
    let unwritten = before.dirty + before.writeback;
    if unwritten >= Bytes::from_mib(1) {
        notes.push(format!(
            "{unwritten} are not written to disk yet and stay: run 'sync' before, to have them too"
        ));
    }
    Ok(Report::of(vec![lever], notes, began))
}

/// File pages on the LRU lists, but those that are not written yet or mapped: drop_caches leaves both. What is mapped
/// counts shmem's mappings too, so this is rather too little.
fn droppable(info: &Meminfo) -> Bytes {
    info.active_file + info.inactive_file - info.dirty - info.writeback - info.mapped
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_testkit::FakeRoot;
    use std::time::Duration;

    #[test]
    fn what_is_mapped_or_dirty_stays() {
        let text = "MemTotal: 1000000 kB\nBuffers: 100 kB\nCached: 90000 kB\nShmem: 10 kB\nActive(file): 50000 kB\n\
            Inactive(file): 40000 kB\nDirty: 2000 kB\nWriteback: 48 kB\nMapped: 8000 kB\n";
        let fake = FakeRoot::new().file("proc/meminfo", text).file("proc/sys/vm/drop_caches", "");
        let root = Root::at(fake.path()).unwrap();
        let mut terms = Terms { dry_run: false, patience: Duration::from_secs(60), watch: &mut |_, _| {} };
        let report = reclaim(&root, &mut terms).unwrap();
        assert_eq!(report.predicted, Bytes::from_kib(90_000 - 2_048 - 8_000));
        assert_eq!(report.returned, Some(Bytes::ZERO));
        assert!(report.notes[0].contains("2.00 MiB"), "{report:?}");
        assert_eq!(std::fs::read_to_string(fake.path().join("proc/sys/vm/drop_caches")).unwrap(), "1\n");
    }
}
