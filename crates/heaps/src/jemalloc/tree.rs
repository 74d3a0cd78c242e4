//! The tree that leads from each page to its extent: inner nodes of pointers, leaves of entries.
//!
//! Its shape is fixed when jemalloc is built, by how many bits the addresses of the building machine had (rtree.h): with
//! 48 a root and leaves of packed words; with 57, as Debian 13's, three levels, and entries of a pointer and a word
//! apart. Invariant: no two nodes that are walked are in the same place, so a walk ends whatever is in memory.

use super::layout::{END, Layout, PAGE};
use crate::reader::Reader;
use crate::residency::Residency;
use crate::source::{Area, Fault, MemorySource, PageState, covered};
use std::collections::{BTreeMap, HashSet};

/// How the bits of an address divide.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Shape {
    /// 48 bits of address.
    Narrow,
    /// 57.
    Wide,
}

/// A tree.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tree {
    pub(super) layout: Layout,
    pub(super) shape: Shape,
    pub(super) root: u64,
}

impl Shape {
    pub(super) const ALL: [Shape; 2] = [Shape::Narrow, Shape::Wide];

    /// Pointers in an inner node, and entries in a leaf.
    pub(super) fn fanout(self) -> u64 {
        match self {
            Shape::Narrow => 1 << 18,
            Shape::Wide => 1 << 15,
        }
    }

    /// Bytes of an inner node.
    pub(super) fn node(self) -> u64 {
        8 * self.fanout()
    }

    /// Bytes of an entry.
    pub(super) fn entry(self) -> u64 {
        match self {
            Shape::Narrow => 8,
            Shape::Wide => 16,
        }
    }

    /// Bytes of a leaf.
    pub(super) fn leaf(self) -> u64 {
        self.entry() * self.fanout()
    }

    /// Addresses that a leaf covers.
    pub(super) fn leaf_covers(self) -> u64 {
        PAGE * self.fanout()
    }

    /// Addresses that a pointer in the root covers.
    pub(super) fn root_covers(self) -> u64 {
        match self {
            Shape::Narrow => self.leaf_covers(),
            Shape::Wide => self.leaf_covers() * self.fanout(),
        }
    }

    /// The entry `bytes`, packed as narrow trees have it.
    pub(super) fn packed(self, layout: Layout, bytes: &[u8]) -> u64 {
        let word = |at: usize| {
            bytes.get(at..).and_then(|bytes| bytes.first_chunk()).map_or(0, |word| u64::from_le_bytes(*word))
        };
        let book = word(0);
        match (self, layout) {
            (Shape::Narrow, _) => book,
            // Size class, and whether it is a slab, in words apart.
            (Shape::Wide, Layout::Old) => book << 16 >> 16 & !1 | word(8) >> 32 & 1 | (word(8) & 0xff) << 48,
            (Shape::Wide, Layout::New) => {
                book << 16 >> 16 & !127 | word(8) & 31 | (word(8) >> 5 & 0xff) << 48
            }
        }
    }
}

impl Tree {
    /// The entry at `at`.
    pub(super) fn read(&self, reader: &mut Reader<'_>, at: u64) -> Result<u64, Fault> {
        let bytes = reader.bytes(at, self.shape.entry() as usize)?;
        Ok(self.shape.packed(self.layout, bytes))
    }

    /// Its leaves, by number.
    pub(super) fn leaves(&self, source: &dyn MemorySource) -> Result<BTreeMap<u64, u64>, Fault> {
        let mut taken = HashSet::new();
        let mut leaves = BTreeMap::new();
        let shape = self.shape;
        match shape {
            Shape::Narrow => children(source, shape, self.root, shape.leaf(), &mut |number, leaf| {
                if taken.insert(leaf) {
                    leaves.insert(number, leaf);
                }
            })?,
            Shape::Wide => {
                let mut nodes = Vec::new();
                children(source, shape, self.root, shape.node(), &mut |number, node| {
                    if taken.insert(node) {
                        nodes.push((number, node));
                    }
                })?;
                for (above, node) in nodes {
                    children(source, shape, node, shape.leaf(), &mut |number, leaf| {
                        if taken.insert(leaf) {
                            leaves.insert(above * shape.fanout() + number, leaf);
                        }
                    })?;
                }
            }
        }
        leaves.retain(|number, _| *number < END / shape.leaf_covers());
        Ok(leaves)
    }
}

/// Calls `each` with the children, of `size` bytes each, of the inner node at `node`, and their numbers.
pub(super) fn children(
    source: &dyn MemorySource,
    shape: Shape,
    node: u64,
    size: u64,
    each: &mut dyn FnMut(u64, u64),
) -> Result<(), Fault> {
    let (mut runs, mut reader) = (Vec::new(), Reader::new(source));
    Residency::new(source).each(node..node + shape.node(), |run, state| {
        if state == PageState::Present {
            runs.push(run);
        }
    })?;
    for at in runs.into_iter().flat_map(|run| run.step_by(8)) {
        let child = match reader.u64(at) {
            Ok(child) => child,
            Err(Fault::Unmapped(_) | Fault::Swapped(_)) => continue,
            Err(fault) => return Err(fault),
        };
        let fits = child != 0 && child.is_multiple_of(64) && child < END;
        if fits && covered(source, child..child + size, Area::is_private_anon) {
            each((at - node) / 8, child);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_are_those_of_rtree_h() {
        assert_eq!((Shape::Narrow.node(), Shape::Narrow.leaf()), (2 << 20, 2 << 20));
        assert_eq!((Shape::Narrow.leaf_covers(), Shape::Narrow.root_covers()), (1 << 30, 1 << 30));
        assert_eq!((Shape::Wide.node(), Shape::Wide.leaf()), (256 << 10, 512 << 10));
        assert_eq!((Shape::Wide.leaf_covers(), Shape::Wide.root_covers()), (128 << 20, 1 << 42));
    }

    #[test]
    fn wide_entries_pack_as_narrow_ones() {
        let wide = |book: u64, rest: u64| [book.to_le_bytes(), rest.to_le_bytes()].concat();
        let dirty_slab = Shape::Wide.packed(Layout::New, &wide(0x7f12_3456_7880, 28 << 5 | 1 << 2 | 3));
        assert_eq!(dirty_slab, 28 << 48 | 0x7f12_3456_7880 | 1 << 2 | 3);
        let slab = Shape::Wide.packed(Layout::Old, &wide(0x7f12_3456_7880, 1 << 32 | 28));
        assert_eq!(slab, 28 << 48 | 0x7f12_3456_7880 | 1);
        assert_eq!(Shape::Wide.packed(Layout::New, &[1, 2, 3]), 0);
    }
}
