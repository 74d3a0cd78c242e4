//! A set of chunk addresses, kept as bits: 1 MiB of heap with a member costs 8 KiB.
//!
//! Invariant: memory stays within [`MARKS_MOST`] whatever the target claims.

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
    blocks: HashMap<u64, Box<[u64; WORDS]>>,
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
        let full = self.blocks.len() >= MARKS_MOST;
        let block = match self.blocks.get_mut(&(address / BLOCK)) {
            Some(block) => block,
            None if full => return Marked::Full,
            None => self.blocks.entry(address / BLOCK).or_insert_with(|| Box::new([0; WORDS])),
        };
        let (word, bit) = place(address);
        let before = block[word];
        block[word] |= bit;
        if before & bit == 0 { Marked::New } else { Marked::Already }
    }

    /// Whether `address` is marked.
    pub(super) fn has(&self, address: u64) -> bool {
        let (word, bit) = place(address);
        self.blocks.get(&(address / BLOCK)).is_some_and(|block| block[word] & bit != 0)
    }

    /// Whether something may be marked in `range`: asks for whole blocks.
    pub(super) fn any(&self, range: Range<u64>) -> bool {
        !self.blocks.is_empty()
            && (range.start / BLOCK..range.end.div_ceil(BLOCK)).any(|block| self.blocks.contains_key(&block))
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
        assert!(!marks.any(0..u64::MAX));
        assert_eq!(marks.mark(0x7f00_0010), Marked::New);
        assert_eq!(marks.mark(0x7f00_0010), Marked::Already);
        assert!(marks.has(0x7f00_0010) && !marks.has(0x7f00_0020));
        assert!(marks.any(0x7f00_0000..0x7f00_0001) && !marks.any(0x7e00_0000..0x7f00_0000));
    }
}
