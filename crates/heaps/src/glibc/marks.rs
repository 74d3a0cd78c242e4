//! A set of chunk addresses, kept as bits: 1 MiB of heap with a member costs 8 KiB.
//!
//! Invariant: memory stays within [`MARKS_MOST`] whatever the target claims.

use std::cell::Cell;
use std::collections::HashMap;
use std::ops::Range;

/// Heap that one block of bits covers.
const BLOCK: u64 = 1 << 20;
/// One bit for each 16 bytes.
const WORDS: usize = (BLOCK / 16 / 64) as usize;
/// 4 GiB of heap: 32 MiB of bits.
const MARKS_MOST: usize = 4096;

/// Addresses, multiples of 16.
#[derive(Debug, Default)]
pub(super) struct Marks {
    blocks: Vec<Box<[u64; WORDS]>>,
    /// Which of them has which block of addresses.
    places: HashMap<u64, usize>,
    /// The last answer of `places`: neighbours are asked for one after the other.
    last: Cell<(u64, Option<usize>)>,
}

/// What came of marking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Marked {
    New,
    Already,
    /// No room.
    Full,
}

impl Marks {
    /// Marks `address`.
    pub(super) fn mark(&mut self, address: u64) -> Marked {
        let block = match self.block(address) {
            Some(block) => block,
            None if self.blocks.len() >= MARKS_MOST => return Marked::Full,
            None => {
                self.blocks.push(Box::new([0; WORDS]));
                self.places.insert(address / BLOCK, self.blocks.len() - 1);
                self.last.set((address / BLOCK, Some(self.blocks.len() - 1)));
                self.blocks.len() - 1
            }
        };
        let block = &mut self.blocks[block];
        let (word, bit) = place(address);
        let before = block[word];
        block[word] |= bit;
        if before & bit == 0 { Marked::New } else { Marked::Already }
    }

    /// Whether `address` is marked.
    pub(super) fn has(&self, address: u64) -> bool {
        let (word, bit) = place(address);
        self.block(address).is_some_and(|block| self.blocks[block][word] & bit != 0)
    }

    fn block(&self, address: u64) -> Option<usize> {
        let block = address / BLOCK;
        let (last, place) = self.last.get();
        if last == block && !self.blocks.is_empty() {
            return place;
        }
        let place = self.places.get(&block).copied();
        self.last.set((block, place));
        place
    }

    /// Whether something may be marked in `range`: asks for whole blocks.
    pub(super) fn any(&self, range: Range<u64>) -> bool {
        !self.blocks.is_empty()
            && (range.start / BLOCK..range.end.div_ceil(BLOCK)).any(|block| self.places.contains_key(&block))
    }
}

fn place(address: u64) -> (usize, u64) {
    let index = address % BLOCK / 16;
    ((index / 64) as usize, 1 << (index % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_marked_is_there() {
        let mut marks = Marks::default();
        assert!(!marks.any(0..u64::MAX) && !marks.has(0));
        assert_eq!(marks.mark(0x10), Marked::New);
        assert!(marks.has(0x10) && !marks.has(BLOCK + 0x10));
        assert_eq!(marks.mark(0x7f00_0010), Marked::New);
        assert_eq!(marks.mark(0x7f00_0010), Marked::Already);
        assert!(marks.has(0x7f00_0010) && !marks.has(0x7f00_0020));
        assert!(marks.any(0x7f00_0000..0x7f00_0001) && !marks.any(0x7e00_0000..0x7f00_0000));
    }
}
