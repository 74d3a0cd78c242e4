//! obmalloc's radix tree of arenas (3.10 and later): the second way to them, independent of the array.
//!
//! A leaf's entry stands for 1 MiB of addresses: `tail_hi` says where in it an arena begins (-1: at its start),
//! `tail_lo` how far one from below reaches into it. The bits of an address that the levels take depend on the
//! build: all 64 or the lower 48. Invariant: at most so many nodes are read as 512 GiB of arenas need.

use super::books::{Books, ROOT_AT, Words};
use super::layout::{Arena, word};
use crate::reader::Reader;
use crate::source::{Fault, there};
use std::ops::Range;

/// Nodes of the middle level that are read, at most.
const MIDDLES_MOST: usize = 16;
/// Leaves that are read, at most.
const LEAVES_MOST: usize = 512;
/// Bits of an address within a leaf's entry: an arena's.
const ENTRY_BITS: u32 = 20;

/// How many bits of an address each level takes.
#[derive(Debug, Clone, Copy)]
struct Levels {
    inner: u32,
    leaf: u32,
}

/// IGNORE_BITS of 0 and of 16.
const BUILDS: [Levels; 2] = [Levels { inner: 15, leaf: 14 }, Levels { inner: 10, leaf: 8 }];

impl Levels {
    fn leaf_index(self, address: u64) -> u64 {
        address >> ENTRY_BITS & ((1 << self.leaf) - 1)
    }

    fn middle_index(self, address: u64) -> u64 {
        address >> (ENTRY_BITS + self.leaf) & ((1 << self.inner) - 1)
    }

    fn top_index(self, address: u64) -> u64 {
        address >> (ENTRY_BITS + self.leaf + self.inner) & ((1 << self.inner) - 1)
    }

    /// Bytes of the root and of a middle node.
    fn inner_bytes(self) -> u64 {
        8 << self.inner
    }
}

/// The addresses of all arenas the tree knows, in order; `None` if no tree is found that knows `arena`. Where
/// the books are one structure its root is in it; else it is a static in `data`.
pub(super) fn arenas(
    reader: &mut Reader<'_>,
    books: &Books,
    data: &[Words],
    arena: &Arena,
) -> Result<Option<Vec<u64>>, Fault> {
    for levels in BUILDS {
        if books.is_one {
            let root = books.used + ROOT_AT;
            let slot = root + 8 * levels.top_index(arena.address);
            let middle = there(reader.u64(slot))?.unwrap_or(0);
            if knows(reader, levels, middle, arena.address)? {
                return collect(reader, levels, root).map(Some);
            }
            continue;
        }
        // A node of 256 KiB is a mapping of its own to glibc: to ask these first spares a thousand reads elsewhere.
        let own_mapping = |middle: u64| middle & 0xfff == 0x10;
        let all = || data.iter().flat_map(Words::each);
        let likely = all().filter(|&(_, middle)| own_mapping(middle));
        for (slot, middle) in likely.chain(all().filter(|&(_, middle)| !own_mapping(middle))) {
            let root = slot.wrapping_sub(8 * levels.top_index(arena.address));
            let inside = data.iter().any(|words| words.start <= root && root <= slot);
            if inside && knows(reader, levels, middle, arena.address)? {
                return collect(reader, levels, root).map(Some);
            }
        }
    }
    Ok(None)
}

/// Whether the node at `middle` leads to an entry that says that an arena begins at `address`.
fn knows(reader: &mut Reader<'_>, levels: Levels, middle: u64, address: u64) -> Result<bool, Fault> {
    let is_node = |source: &dyn crate::source::MemorySource, at: u64| {
        at != 0 && at.is_multiple_of(16) && source.area_at(at).is_some_and(|area| area.is_private_anon())
    };
    if !is_node(reader.source(), middle) {
        return Ok(false);
    }
    let leaf = there(reader.u64(middle.saturating_add(8 * levels.middle_index(address))))?.unwrap_or(0);
    if !is_node(reader.source(), leaf) {
        return Ok(false);
    }
    let entry = there(reader.u32(leaf.saturating_add(8 * levels.leaf_index(address))))?.unwrap_or(0);
    Ok(begin(entry) == Some(address & ((1 << ENTRY_BITS) - 1)))
}

/// Where in its MiB an arena begins, by `tail_hi`.
fn begin(tail_hi: u32) -> Option<u64> {
    match tail_hi {
        0 => None,
        u32::MAX => Some(0),
        tail => Some(u64::from(tail)),
    }
}

fn collect(reader: &mut Reader<'_>, levels: Levels, root: u64) -> Result<Vec<u64>, Fault> {
    let mut found = Vec::new();
    let mut leaves = 0;
    for (top, middle) in nodes(reader, root..root + levels.inner_bytes())?.into_iter().take(MIDDLES_MOST) {
        let inner = middle..middle.saturating_add(levels.inner_bytes());
        for (mid, leaf) in nodes(reader, inner)? {
            if leaves == LEAVES_MOST {
                return Ok(found);
            }
            leaves += 1;
            let base = (top << levels.inner | mid) << levels.leaf;
            let entries = nodes(reader, leaf..leaf.saturating_add(8 << levels.leaf))?;
            let begins = entries
                .into_iter()
                .filter_map(|(index, entry)| Some(((base | index) << ENTRY_BITS) + begin(entry as u32)?));
            found.extend(begins);
        }
    }
    Ok(found)
}

/// The words of a node that are not 0, with their indices; none where it cannot be read.
fn nodes(reader: &mut Reader<'_>, range: Range<u64>) -> Result<Vec<(u64, u64)>, Fault> {
    let mut bytes = Vec::new();
    let read = there(reader.copy(range, &mut bytes))?;
    let count = if read.is_some() { bytes.len() / 8 } else { 0 };
    let words = (0..count).map(|index| (index as u64, word(&bytes, 8 * index)));
    Ok(words.filter(|(_, word)| *word != 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_taken_apart_and_put_together() {
        let address = 0x7f12_3456_7000_u64;
        for levels in BUILDS {
            let (top, mid, leaf) =
                (levels.top_index(address), levels.middle_index(address), levels.leaf_index(address));
            let base = ((top << levels.inner | mid) << levels.leaf | leaf) << ENTRY_BITS;
            assert_eq!(base, address & !0xf_ffff);
        }
        assert_eq!(begin(0), None);
        assert_eq!(begin(u32::MAX), Some(0));
        assert_eq!(begin(0x7000), Some(0x7000));
    }
}
