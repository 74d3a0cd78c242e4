//! Dentries and inodes that nobody uses: by the shrinkers of each file system where debugfs has them (6.0,
//! CONFIG_SHRINKER_DEBUG), else by drop_caches, which asks every shrinker of the kernel.
//!
//! Sources: mm/shrinker_debug.c, fs/drop_caches.c, fs/super.c (6.18).

use crate::knob::{Knob, Written};
use crate::refused::{LeverError, Right};
use crate::report::{Lever, Report};
use crate::slow::{RCU, Terms, settled};
use ebbtide_observe::host::{DentryState, Meminfo, Slabs};
use ebbtide_observe::{Bytes, ReadError, Root, page_size, scan};
use rustix::io::Errno;
use std::time::Instant;

const SHRINKERS: &str = "sys/kernel/debug/shrinker";
const DROP_CACHES: &str = "proc/sys/vm/drop_caches";

/// A slab goes back with its last object only: measured 0.97 to 1.0 of the objects' share on 6.18.
const RETURNED: f64 = 0.97;

/// Passes over all shrinkers: the first only takes the mark of recent use off many (DCACHE_REFERENCED), and a directory
/// is droppable once what was in it is gone.
const PASSES: u32 = 8;

/// Objects that a shrinker is asked to look at at once: some 50 ms of work at most.
const BATCH: u64 = 65_536;

pub(super) fn reclaim(root: &Root, terms: &mut Terms) -> Result<Report, LeverError> {
    let began = Instant::now();
    let predicted = predicted(root)?;
    let shrinkers = shrinkers(root);
    let (on, cost) = match shrinkers.is_empty() {
        false => (
            format!("dentries and inodes, file systems: {}", shrinkers.len()),
            "names and attributes are looked up from disk again",
        ),
        true => (
            "dentries and inodes (drop_caches, as this kernel shows no shrinkers in debugfs)".to_owned(),
            "names and attributes are looked up from disk again; every other cache with a shrinker is dropped too, the \
             page cache of unused inodes with it, and the kernel may work for seconds (for ever where ZFS is in trouble)",
        ),
    };
    let mut lever = Lever::planned("dentries", on, predicted, cost);
    if !terms.dry_run {
        let before = reclaimable(root)?;
        if shrinkers.is_empty() {
            let knob = Knob::open(root, DROP_CACHES, Right::User0)?;
            let mut tick = |elapsed| (terms.watch)(elapsed, before - reclaimable(root).unwrap_or(before));
            if knob.write_apart("2", terms.patience, &mut tick)? == Written::StillAtIt {
                lever.short =
                    Some("the kernel still works at it; what it has returned so far is counted".to_owned());
            }
        } else {
            lever.short = shrink(root, &shrinkers, began, before, terms)?;
        }
        let after = settled(RCU, || reclaimable(root).unwrap_or(before));
        lever.returned = Some(before - after);
    }
    Ok(Report::of(vec![lever], Vec::new(), began))
}

/// What dropping returns: of the slabs of dentries and of names that are long (kmalloc-rcl), the share of dentries that
/// nobody uses; of those of inodes, all but those that are kept.
///
/// An inode is kept by a dentry in use (measured on 6.18: 2,921 such dentries beforehand, 2,879 inodes left of 82,187)
/// or by its page cache ([`with_cache`]). The kernel's own count of unused inodes is 0 while dentries hold them.
fn predicted(root: &Root) -> Result<Bytes, ReadError> {
    let state = DentryState::read(root)?;
    let unused = state.unused as f64 / state.dentries.max(1) as f64;
    let Ok(slabs) = Slabs::read(root) else {
        // Not root: by the size of a dentry, 21 to a page on 6.1 and 6.18; their inodes are not known.
        return Ok(Bytes(4096 / 21) * state.unused);
    };
    let inodes = root.read_number("proc/sys/fs/inode-nr").unwrap_or(0);
    let in_use = state.dentries.saturating_sub(state.unused);
    let kept = in_use.max(with_cache(&Meminfo::read(root)?, &slabs));
    let unused_inodes = inodes.saturating_sub(kept) as f64 / inodes.max(1) as f64;
    let (mut by_dentry, mut by_inode) = (Bytes::ZERO, Bytes::ZERO);
    for cache in &slabs.caches {
        if cache.name == "dentry" || cache.name.starts_with("kmalloc-rcl-") {
            by_dentry += cache.bytes;
        } else if cache.holds_inodes() && cache.is_reclaimable() {
            by_inode += cache.bytes;
        }
    }
    Ok((by_dentry.scaled(unused) + by_inode.scaled(unused_inodes)).scaled(RETURNED))
}

/// How many inodes have page cache, which keeps them (mapping_shrinkable in include/linux/pagemap.h, since 5.16; counted
/// by nobody). A file's pages hang in nodes of 64: one node at least for a file of more than one page, so those beyond
/// what full nodes would be tell how many files there are. Nodes of other trees, and of pages long gone, make it rather
/// too many (6.18, beside builds: 77,000 for 55,000, and the whole prediction off by 3%).
fn with_cache(info: &Meminfo, slabs: &Slabs) -> u64 {
    let pages = (info.cached - info.shmem).0 / page_size().0;
    let nodes = slabs.get("radix_tree_node").map_or(0, |cache| cache.active);
    nodes.saturating_sub(pages / 64).min(pages)
}

fn reclaimable(root: &Root) -> Result<Bytes, ReadError> {
    Ok(Meminfo::read(root)?.s_reclaimable)
}

/// The directories of file systems' shrinkers: sb-ext4-12.
fn shrinkers(root: &Root) -> Vec<String> {
    let mut names = root.list(SHRINKERS).unwrap_or_default();
    names.retain(|name| name.starts_with("sb-"));
    names.sort();
    names
}

/// Asks every shrinker for all it counts, pass by pass, until a pass finds next to nothing. Says why it ended early.
fn shrink(
    root: &Root,
    shrinkers: &[String],
    began: Instant,
    before: Bytes,
    terms: &mut Terms,
) -> Result<Option<String>, LeverError> {
    let mut last = u64::MAX;
    for _ in 0..PASSES {
        let mut found = 0;
        for name in shrinkers {
            // A file system that was unmounted meanwhile has no shrinker.
            let Ok(counts) = counts(root, name) else { continue };
            let mut knob = match Knob::open(root, &format!("{SHRINKERS}/{name}/scan"), Right::DacOverride) {
                Err(LeverError::Refused(refusal)) if refusal.errno == Errno::NOENT => continue,
                knob => knob?,
            };
            for count in counts {
                found += count.objects;
                if !count.ask(&mut knob, || began.elapsed() <= terms.patience) {
                    return Ok(Some("it took longer than the time given for it (--patience)".to_owned()));
                }
            }
            (terms.watch)(began.elapsed(), before - reclaimable(root)?);
        }
        // What is in use by then is counted again and again.
        if found == 0 || found >= last {
            break;
        }
        last = found;
    }
    Ok(None)
}

/// So many objects of a cgroup on a NUMA node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Count {
    cgroup: u64,
    node: u32,
    objects: u64,
}

impl Count {
    /// Asks the shrinker of `knob` for all of them, batch by batch while there is `time`; false where there is none.
    fn ask(self, knob: &mut Knob, time: impl Fn() -> bool) -> bool {
        let mut left = self.objects;
        while left > 0 {
            if !time() {
                return false;
            }
            let batch = left.min(BATCH);
            left -= batch;
            // EINVAL, ENOENT: the cgroup has been removed since it was counted.
            if knob.write(&format!("{} {} {batch}\n", self.cgroup, self.node)).is_err() {
                break;
            }
        }
        true
    }
}

/// The lines of a shrinker's `count`: a cgroup's inode (0 without them), then a number for each node.
fn counts(root: &Root, name: &str) -> Result<Vec<Count>, ReadError> {
    let mut all = Vec::new();
    root.each_line(&format!("{SHRINKERS}/{name}/count"), |line| {
        let mut words = scan::words(line).map_while(scan::number);
        if let Some(cgroup) = words.next() {
            let nodes = (0..).zip(words).filter(|&(_, objects)| objects > 0);
            all.extend(nodes.map(|(node, objects)| Count { cgroup, node, objects }));
        }
        true
    })?;
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_testkit::FakeRoot;
    use std::time::Duration;

    fn fake() -> FakeRoot {
        FakeRoot::new()
            .file("proc/meminfo", "MemTotal: 1000000 kB\nSReclaimable: 200000 kB\n")
            .file("proc/sys/fs/dentry-state", "1000 900 45 0 500 0\n")
            .file("proc/sys/fs/inode-nr", "400 0\n")
            .file(
                "proc/slabinfo",
                "dentry 1 1 192 21 1 : tunables 0 0 0 : slabdata 0 25600 0\n\
                 ext4_inode_cache 1 1 1128 29 8 : tunables 0 0 0 : slabdata 0 1600 0\n\
                 radix_tree_node 250 260 584 28 4 : tunables 0 0 0 : slabdata 0 9 0\n\
                 task_struct 1 1 6000 5 8 : tunables 0 0 0 : slabdata 0 9999 0\n",
            )
            .file("proc/sys/vm/drop_caches", "")
    }

    fn run(fake: &FakeRoot, dry_run: bool) -> Report {
        let root = Root::at(fake.path()).unwrap();
        let mut terms = Terms { dry_run, patience: Duration::from_secs(60), watch: &mut |_, _| {} };
        reclaim(&root, &mut terms).unwrap()
    }

    #[test]
    fn what_is_unused_is_predicted() {
        let fake = fake();
        let report = run(&fake, true);
        // 100 MiB of dentries, 9 in 10 unused; 50 MiB of inodes, 100 of 400 held by dentries in use.
        assert_eq!(report.predicted, (Bytes::from_mib(90) + Bytes::from_kib(75 << 9)).scaled(RETURNED));
        assert_eq!(report.returned, None);
        assert_eq!(std::fs::read_to_string(fake.path().join("proc/sys/vm/drop_caches")).unwrap(), "");
    }

    #[test]
    fn inodes_with_page_cache_stay() {
        let cached = page_size() * 6400;
        let info = format!("MemTotal: 1000000 kB\nCached: {} kB\n", cached.0 >> 10);
        let fake = fake().file("proc/meminfo", info);
        // 250 nodes, where 100 would hold all pages: 150 of 400 files have some.
        let report = run(&fake, true);
        assert_eq!(
            report.predicted,
            (Bytes::from_mib(90) + Bytes::from_mib(50).scaled(0.625)).scaled(RETURNED)
        );
    }

    #[test]
    fn without_shrinkers_all_of_them_are_asked() {
        let fake = fake();
        let report = run(&fake, false);
        assert_eq!(report.returned, Some(Bytes::ZERO), "nothing happens to a fake machine");
        assert!(report.levers[0].fell_short());
        assert_eq!(std::fs::read_to_string(fake.path().join("proc/sys/vm/drop_caches")).unwrap(), "2\n");
    }

    #[test]
    fn shrinkers_are_asked_for_what_they_count_until_it_is_no_less() {
        let count = format!("1 {} 7\nnonsense\n99 0 0\n", BATCH + 5);
        let fake = fake()
            .file("sys/kernel/debug/shrinker/sb-ext4-3/count", count)
            .file("sys/kernel/debug/shrinker/sb-ext4-3/scan", "")
            .file("sys/kernel/debug/shrinker/mm-zspool/scan", "untouched");
        let report = run(&fake, false);
        assert!(report.levers[0].on.contains("file systems: 1"), "{report:?}");
        let written = |path| std::fs::read_to_string(fake.path().join(path)).unwrap();
        let pass = format!("1 0 {BATCH}\n1 0 5\n1 1 7\n");
        // A second pass that counts no less is the last; each opens the file anew, and a fake one is overwritten.
        assert_eq!(written("sys/kernel/debug/shrinker/sb-ext4-3/scan"), pass);
        assert_eq!(written("sys/kernel/debug/shrinker/mm-zspool/scan"), "untouched");
        assert_eq!(written("proc/sys/vm/drop_caches"), "");
    }
}
