//! The map of pages, by address: a root, and leaves for 512 MiB each (src/page-map.c of 3.0.1, two levels).
//!
//! It keeps entries of pages that are gone, so an entry proves nothing of what it leads to; but that it has each page
//! of an arena at its place proves the map.

use super::books::SLICE;
use crate::reader::Reader;
use crate::residency::Residency;
use crate::source::{Area, Fault, covered, there};
use std::ops::Range;

/// MI_PAGE_MAP_SUB_COUNT.
const LEAF: u64 = 1 << 13;
/// Entries of a root: for addresses of 39 to 48 bits.
const ROOT: Range<u64> = 1 << 10..(1 << 19) + 1;
/// What the system gives at least.
const UNIT: u64 = 4096;

/// The map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Map {
    root: u64,
    entries: u64,
}

impl Map {
    /// The map at `root`, which has `page`.
    pub(super) fn read(reader: &mut Reader<'_>, root: u64, page: u64) -> Result<Option<Map>, Fault> {
        if root == 0 || !root.is_multiple_of(UNIT) {
            return Ok(None);
        }
        // The leaf of the lowest addresses lies behind the root.
        let Some(first) = there(reader.u64(root))? else { return Ok(None) };
        let entries = first.wrapping_sub(root) / 8;
        let map = Map { root, entries };
        let is_map = ROOT.contains(&entries)
            && entries.is_power_of_two()
            && covered(reader.source(), map.range(), Area::is_private_anon)
            && map.has(reader, page)?;
        Ok(is_map.then_some(map))
    }

    /// Whether it has `page` where it must be.
    fn has(&self, reader: &mut Reader<'_>, page: u64) -> Result<bool, Fault> {
        let slice = page / SLICE;
        if slice / LEAF >= self.entries {
            return Ok(false);
        }
        let Some(leaf) = there(reader.u64(self.root + 8 * (slice / LEAF)))?.filter(|leaf| *leaf != 0) else {
            return Ok(false);
        };
        Ok(there(reader.u64(leaf.saturating_add(8 * (slice % LEAF))))? == Some(page))
    }

    /// Its root.
    pub(super) fn range(&self) -> Range<u64> {
        self.root..self.root + 8 * self.entries + UNIT
    }

    /// The leaves, each with the addresses that it is for, in the order of these.
    pub(super) fn leaves(&self, reader: &mut Reader<'_>) -> Result<Vec<(u64, Range<u64>)>, Fault> {
        let mut leaves = Vec::new();
        let (mut runs, source) = (Vec::new(), reader.source());
        Residency::new(source).each(self.root..self.root + 8 * self.entries, |run, _| runs.push(run))?;
        for at in runs.into_iter().flat_map(|run| run.step_by(8)).skip_while(|at| *at == self.root) {
            let Some(leaf) = there(reader.u64(at))?.filter(|leaf| *leaf != 0) else { continue };
            let range = leaf..leaf.saturating_add(8 * LEAF);
            if leaf.is_multiple_of(UNIT) && covered(source, range.clone(), Area::is_private_anon) {
                leaves.push(((at - self.root) / 8 * LEAF * SLICE, range));
            }
        }
        Ok(leaves)
    }

    /// The entries of `leaf`, for addresses from `first` on, that say that a page begins there.
    pub(super) fn pages(reader: &mut Reader<'_>, first: u64, leaf: &Range<u64>) -> Result<Vec<u64>, Fault> {
        let (mut pages, mut runs) = (Vec::new(), Vec::new());
        Residency::new(reader.source()).each(leaf.clone(), |run, _| runs.push(run))?;
        for at in runs.into_iter().flat_map(|run| run.step_by(8)) {
            let page = first + (at - leaf.start) / 8 * SLICE;
            if there(reader.u64(at))? == Some(page) {
                pages.push(page);
            }
        }
        Ok(pages)
    }
}
