//! The memory for jemalloc's own books: blocks of whole huge pages, each beginning with its size, the next block of the
//! same arena, and an extent that tells what of it is not used yet (base.c, 5.2 and 5.3).
//!
//! Blocks are not in the tree of extents. They are reached from the pointers in the program's data (to arenas), and
//! from whatever else is known to lie in one. Invariant: a block is one only if its extent ends where it does.

use super::layout::{END, EXTENT_BYTES};
use crate::reader::Reader;
use crate::source::{Area, Fault, covered, there};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

/// Blocks begin at multiples of this, and have a multiple of it.
const HUGE: u64 = 2 << 20;
/// Bytes of a block's header.
const HEADER: u64 = 16 + EXTENT_BYTES as u64;
/// Where the first block of an arena has its `base_t`, which begins with the arena's number: cache lines.
const BASE: u64 = HEADER.next_multiple_of(64);
/// The words of a `base_t` before its heaps, among which is the pointer to its newest block: at most 64, with every
/// configuration's mutex.
const BASE_WORDS: u64 = 64;
/// How far below an address its block's beginning is looked for: 2 GiB.
const STEPS_MOST: u64 = 1024;
/// Blocks that are kept.
const BLOCKS_MOST: usize = 1 << 16;

/// A block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) start: u64,
    pub(super) size: u64,
    /// The next older one; 0 for the last.
    next: u64,
    /// Where what is not used yet begins.
    pub(super) unused: u64,
    /// Whose it is.
    pub(super) arena: Option<u32>,
}

impl Block {
    pub(super) fn range(&self) -> Range<u64> {
        self.start..self.start + self.size
    }
}

/// All blocks that were found.
#[derive(Debug, Default)]
pub(super) struct Bases {
    blocks: BTreeMap<u64, Block>,
    /// Multiples of [`HUGE`] in which no block lies that begins at most as many of them below.
    strange: BTreeMap<u64, u64>,
}

impl Bases {
    /// The blocks, in the order of addresses.
    pub(super) fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.blocks.values()
    }

    /// The oldest block of each arena that is known, with the arena's number.
    pub(super) fn arenas(&self) -> impl Iterator<Item = (u32, &Block)> {
        self.blocks().filter(|block| block.next == 0).filter_map(|block| Some((block.arena?, block)))
    }

    /// Where an arena's `base_t` is.
    pub(super) fn address(block: &Block) -> u64 {
        block.start + BASE
    }

    /// The block whose used part `address` lies in.
    pub(super) fn at(&self, address: u64) -> Option<&Block> {
        let (_, block) = self.blocks.range(..=address).next_back()?;
        (block.start + HEADER..block.unused).contains(&address).then_some(block)
    }

    /// Takes in the block in whose first [`HUGE`] bytes `address` lies, if there is one, and those that it leads to.
    pub(super) fn reach(&mut self, reader: &mut Reader<'_>, address: u64) -> Result<(), Fault> {
        self.search(reader, address, 1)
    }

    /// As [`Bases::reach`], for an address anywhere in a block.
    pub(super) fn reach_below(&mut self, reader: &mut Reader<'_>, address: u64) -> Result<(), Fault> {
        self.search(reader, address, STEPS_MOST)
    }

    fn search(&mut self, reader: &mut Reader<'_>, address: u64, steps: u64) -> Result<(), Fault> {
        let home = address - address % HUGE;
        let below = self.blocks.range(..=address).next_back();
        let is_known = below.is_some_and(|(_, block)| block.range().contains(&address));
        let was_tried = self.strange.get(&home).is_some_and(|tried| *tried >= steps);
        if is_known || was_tried || self.blocks.len().max(self.strange.len()) >= BLOCKS_MOST {
            return Ok(());
        }
        for step in 0..steps {
            let Some(start) = home.checked_sub(step * HUGE).filter(|start| *start > 0) else { break };
            if !covered(reader.source(), start..start + HUGE, Area::is_private_anon) {
                break;
            }
            if let Some(block) = read(reader, start)?.filter(|block| block.range().contains(&address)) {
                return self.chain(reader, block);
            }
        }
        self.strange.insert(home, steps);
        Ok(())
    }

    /// Takes in `block`, those older than it, and, by the arena's own pointer, those newer.
    fn chain(&mut self, reader: &mut Reader<'_>, block: Block) -> Result<(), Fault> {
        let mut chain = follow(reader, block)?;
        let oldest = chain.last().copied().unwrap_or(block);
        let arena = if oldest.next == 0 { arena_of(reader, &oldest)? } else { None };
        if arena.is_some() {
            for word in 0..BASE_WORDS {
                let newest = reader.u64(oldest.start + BASE + 8 * word).unwrap_or(0);
                if newest == 0 || !newest.is_multiple_of(HUGE) || newest == oldest.start {
                    continue;
                }
                let Some(newest) = read(reader, newest)? else { continue };
                let all = follow(reader, newest)?;
                if all.last() == Some(&oldest) && all.len() > chain.len() {
                    chain = all;
                }
            }
        }
        for block in chain {
            self.blocks.insert(block.start, Block { arena, ..block });
        }
        Ok(())
    }
}

/// `block` and those older than it, until one is none or was there before.
fn follow(reader: &mut Reader<'_>, block: Block) -> Result<Vec<Block>, Fault> {
    let (mut chain, mut seen) = (vec![block], BTreeSet::from([block.start]));
    let mut next = block.next;
    while next != 0 && chain.len() < BLOCKS_MOST && seen.insert(next) {
        let Some(older) = read(reader, next)? else { break };
        next = older.next;
        chain.push(older);
    }
    Ok(chain)
}

/// The number of the arena whose first block `block` is.
fn arena_of(reader: &mut Reader<'_>, block: &Block) -> Result<Option<u32>, Fault> {
    Ok(there(reader.u32(block.start + BASE))?.filter(|number| *number < 0xfff))
}

/// The block that begins at `start`, if one does.
fn read(reader: &mut Reader<'_>, start: u64) -> Result<Option<Block>, Fault> {
    if !start.is_multiple_of(HUGE) || start >= END {
        return Ok(None);
    }
    let bytes = match reader.array::<48>(start) {
        Ok(bytes) => bytes,
        Err(Fault::Unmapped(_) | Fault::Swapped(_)) => return Ok(None),
        Err(fault) => return Err(fault),
    };
    let word = |index: usize| bytes.as_chunks::<8>().0.get(index).map_or(0, |word| u64::from_le_bytes(*word));
    // size, next, and of the extent: bits, address, size.
    let (size, next, unused, rest) = (word(0), word(1), word(3), word(4));
    let sized = size > 0 && size.is_multiple_of(HUGE) && size <= END - start;
    let ends = sized && (start + HEADER..=start + size).contains(&unused) && rest == start + size - unused;
    let linked = next.is_multiple_of(HUGE) && next < END;
    let there = ends && linked && covered(reader.source(), start..start + size, Area::is_private_anon);
    Ok(there.then_some(Block { start, size, next, unused, arena: None }))
}
