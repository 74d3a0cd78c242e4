//! Look-ups by directory, in bounded space.
//!
//! A cache that spreads its files over 65,536 directories would fill any table of directories, and each of
//! them alone would mean nothing. So a table that grows too large is folded: its smallest and deepest entries
//! are added to their parent directory, again and again, until it is small. What is left are the directories
//! that matter and, marked as "and below", the ones above many that do not alone. Invariants: no look-up is
//! lost by folding, and a table holds at most twice [`Directories::KEPT`] entries.

use super::names::Names;
use std::collections::HashMap;
use std::ops::AddAssign;
use std::sync::Arc;

/// How many look-ups there were.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Counts {
    /// Those that found nothing (ENOENT): each of a new name makes a negative dentry.
    pub(super) failed: u64,
    /// All.
    pub(super) lookups: u64,
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.failed = self.failed.saturating_add(other.failed);
        self.lookups = self.lookups.saturating_add(other.lookups);
    }
}

/// How much a directory counts for: its different names, then its look-ups.
pub(super) type Size = (u64, Counts);

/// Look-ups in one directory.
#[derive(Debug, Clone, Default)]
pub(super) struct Directory {
    pub(super) counts: Counts,
    /// The names that were not found there.
    pub(super) missing: Names,
    /// The names that were found.
    pub(super) found: Names,
    /// True if directories below it are counted in.
    pub(super) below: bool,
}

impl Directory {
    fn merge(&mut self, other: &Directory) {
        self.counts += other.counts;
        self.missing.merge(&other.missing);
        self.found.merge(&other.found);
    }

    /// What it counts for: different names before look-ups, as those are what makes dentries.
    pub(super) fn size(&self) -> Size {
        let (missing, found) = self.names();
        ((missing + found) as u64, self.counts)
    }

    /// About how many different names were not found, and how many were: the names that were read stand for
    /// those that were not.
    pub(super) fn names(&self) -> (f64, f64) {
        let found = self.counts.lookups.saturating_sub(self.counts.failed);
        (
            self.missing.share_different() * self.counts.failed as f64,
            self.found.share_different() * found as f64,
        )
    }
}

/// Look-ups by directory.
#[derive(Debug, Clone, Default)]
pub(super) struct Directories {
    entries: HashMap<Arc<[u8]>, Directory>,
}

impl Directories {
    /// What folding leaves of a table that became twice as large.
    const KEPT: usize = 64;

    /// Notes `counts` of one look-up in `directory`, and its name if that was read.
    pub(super) fn add(&mut self, directory: &Arc<[u8]>, counts: Counts, name: Option<u64>) {
        let entry = match self.entries.get_mut(directory) {
            Some(entry) => entry,
            None => {
                if self.entries.len() >= 2 * Self::KEPT {
                    self.fold(Self::KEPT);
                }
                self.entries.entry(directory.clone()).or_default()
            }
        };
        entry.counts += counts;
        if let Some(name) = name {
            let names = if counts.failed > 0 { &mut entry.missing } else { &mut entry.found };
            names.add(name);
        }
    }

    /// Adds all of `other`.
    pub(super) fn merge(&mut self, other: &Directories) {
        for (directory, theirs) in &other.entries {
            let mine = self.entries.entry(directory.clone()).or_default();
            mine.merge(theirs);
            mine.below |= theirs.below;
        }
        if self.entries.len() > 2 * Self::KEPT {
            self.fold(Self::KEPT);
        }
    }

    /// Multiplies the counts of failed look-ups and of the others: what is known stands for what is not.
    pub(super) fn scale(&mut self, failed: f64, found: f64) {
        for Directory { counts, .. } in self.entries.values_mut() {
            let others = counts.lookups.saturating_sub(counts.failed) as f64 * found;
            counts.failed = (counts.failed as f64 * failed).round() as u64;
            counts.lookups = counts.failed.saturating_add(others.round() as u64);
        }
    }

    /// Every directory, in no order.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<[u8]>, &Directory)> {
        self.entries.iter()
    }

    /// The deepest directory that has at least `share` of everything in it and below, with its exact share; the
    /// largest of several that are as deep.
    pub(super) fn home(&self, share: f64) -> Option<(&[u8], f64)> {
        let mut below: HashMap<&[u8], u64> = HashMap::new();
        let mut total = 0;
        for (path, directory) in &self.entries {
            let size = directory.size().0.max(1);
            total += size;
            let mut at: &[u8] = path;
            loop {
                *below.entry(at).or_default() += size;
                if at == ROOT {
                    break;
                }
                at = parent(at);
            }
        }
        let enough = below.into_iter().filter(|&(_, size)| size as f64 >= share * total as f64);
        let (path, size) = enough.max_by_key(|&(path, size)| (depth(path), size))?;
        Some((path, size as f64 / total as f64))
    }

    /// Adds the smallest directories to the ones above them until at most `keep` are left. Directories as
    /// small as the smallest one to go are folded together with it, so fewer may be left.
    pub(super) fn fold(&mut self, keep: usize) {
        let keep = keep.max(1);
        while self.entries.len() > keep {
            // The root has none above it, but takes one of the places.
            let places = keep - usize::from(self.entries.contains_key(ROOT));
            let below_root = self.entries.iter().filter(|(path, _)| &***path != ROOT);
            let mut sizes: Vec<_> = below_root.map(|(path, d)| (d.size(), path.clone())).collect();
            let (_, &mut (least, _), _) = sizes.select_nth_unstable_by(places, |a, b| b.0.cmp(&a.0));
            sizes.retain(|(size, _)| *size <= least);
            let deepest = sizes.iter().map(|(_, path)| depth(path)).max();
            for (_, path) in sizes.iter().filter(|(_, path)| Some(depth(path)) == deepest) {
                let Some(directory) = self.entries.remove(path) else { continue };
                let parent = self.entries.entry(parent(path).into()).or_default();
                parent.merge(&directory);
                parent.below = true;
            }
        }
    }
}

const ROOT: &[u8] = b"/";

/// How many names a path has; the root's none.
fn depth(path: &[u8]) -> usize {
    if path == ROOT { 0 } else { path.iter().filter(|&&b| b == b'/').count() }
}

fn parent(path: &[u8]) -> &[u8] {
    match path.iter().rposition(|&b| b == b'/') {
        Some(at) if at > 0 => &path[..at],
        _ => ROOT,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn table(entries: impl IntoIterator<Item = (String, u64)>) -> Directories {
        let mut table = Directories::default();
        for (path, failed) in entries {
            let counts = Counts { failed, lookups: failed };
            table.add(&path.into_bytes().into(), counts, None);
        }
        table
    }

    fn sorted(table: &Directories) -> Vec<(String, u64, bool)> {
        let one = |(path, d): (&Arc<[u8]>, &Directory)| {
            (String::from_utf8_lossy(path).into_owned(), d.counts.lookups, d.below)
        };
        let mut all: Vec<_> = table.iter().map(one).collect();
        all.sort();
        all
    }

    #[test]
    fn a_spread_cache_folds_into_its_directory() {
        let spread = (0..4096).map(|n| (format!("/var/cache/x/{:02x}/{:02x}", n / 256, n % 256), 1));
        let mut table = table(spread.chain([("/etc".to_owned(), 500)]));
        assert!(table.iter().count() <= 2 * Directories::KEPT);
        table.fold(8);
        assert_eq!(
            sorted(&table),
            [("/etc".to_owned(), 500, false), ("/var/cache/x".to_owned(), 4096, true)]
        );
    }

    #[test]
    fn large_ones_stay_as_they_are() {
        let mut table = table([("/a/b", 9), ("/a/c", 8), ("/a/d/e", 1)].map(|(p, n)| (p.to_owned(), n)));
        table.fold(3);
        assert_eq!(table.iter().count(), 3);
        table.fold(2);
        assert!(sorted(&table).contains(&("/a/b".to_owned(), 9, false)));
    }

    #[test]
    fn the_directory_of_most_names() {
        let mut table = table([]);
        for (path, names) in [("/a/b/c", 40), ("/a/b/d", 40), ("/e", 15)] {
            for name in 0..names {
                let hash = super::super::names::hash(path.as_bytes(), &[name]);
                table.add(&path.as_bytes().into(), Counts { failed: 1, lookups: 1 }, Some(hash));
            }
        }
        let home = |share| table.home(share).map(|(path, _)| std::str::from_utf8(path).unwrap());
        assert_eq!(home(0.3).map(|path| &path[..5]), Some("/a/b/"));
        assert_eq!(home(0.66), Some("/a/b"));
        assert_eq!(home(0.99), Some("/"));
        assert_eq!(Directories::default().home(0.5), None);
    }

    proptest! {
        #[test]
        fn folding_ends_and_loses_nothing(
            entries in proptest::collection::vec(("(/[ab]{1,2}){1,4}", 0u64..5), 0..300),
            keep in 0usize..20,
        ) {
            let total: u64 = entries.iter().map(|(_, n)| n).sum();
            let mut table = table(entries);
            table.fold(keep);
            prop_assert!(table.iter().count() <= keep.max(1));
            prop_assert_eq!(table.iter().map(|(_, d)| d.counts.lookups).sum::<u64>(), total);
        }
    }
}
