//! One chunk of Ebbtide's malloc: which of its pages are free, and which slots, by the tables' entries for it.
//!
//! Invariants: entries are told in the order of addresses; an entry that contradicts another makes the chunk
//! [`Odd`] before anything was told.

use super::block::{Block, Class};
use std::ops::Range;

/// What a chunk's pages are, in the order of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Part {
    /// Pages nobody uses.
    Free(Range<u64>),
    /// Pages handed out as one block.
    Run(Range<u64>),
    /// A span of slots.
    Span(Span),
    /// Pages that a Lua heap keeps for later.
    Kept(Range<u64>),
    /// Pages that are being given back or cut up at this moment.
    Between(Range<u64>),
}

/// A span of slots.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    /// Its first address.
    pub(super) start: u64,
    /// Its class.
    pub(super) class: u8,
    /// A bit for each slot that is free.
    pub(super) free: Vec<u64>,
    /// It belongs to a Lua heap.
    pub(super) lua: bool,
}

impl Span {
    /// Whether slot `index` is free.
    pub(super) fn is_free(&self, index: u64) -> bool {
        self.free.get((index / 64) as usize).is_some_and(|word| word >> (index % 64) & 1 != 0)
    }
}

/// Entries that contradict each other, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Odd(pub(super) u64, pub(super) &'static str);

/// The tables' entries for a chunk.
#[derive(Debug, Default, Clone)]
pub(super) struct Entries {
    /// A byte for each page.
    pub(super) classes: Vec<u8>,
    /// Records, end to end.
    pub(super) records: Vec<u8>,
    /// Wide bits, end to end.
    pub(super) wides: Vec<u8>,
    /// The chunk's own entry.
    pub(super) chunk: Vec<u8>,
    /// Entries of Lua heaps' pages, end to end; empty where the chunk has none.
    pub(super) lua: Vec<u8>,
}

fn word(bytes: &[u8], at: u64) -> u64 {
    let at = at as usize;
    bytes.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

impl Entries {
    /// The first word of a page's record.
    pub(super) fn first_word(&self, block: &Block, page: u64) -> u64 {
        word(&self.records, page * block.record_bytes)
    }

    fn class(&self, page: u64) -> u8 {
        self.classes.get(page as usize).copied().unwrap_or(0)
    }

    fn is_free(&self, page: u64) -> bool {
        word(&self.chunk, page / 64 * 8) >> (page % 64) & 1 != 0
    }

    /// What the pages of the chunk that begins at `start` are.
    pub(super) fn parts(&self, block: &Block, start: u64) -> Result<Vec<Part>, Odd> {
        let mut parts = Vec::new();
        let mut page = 0;
        while page < block.chunk_pages {
            let (part, count) = self.part(block, start, page)?;
            let end = page + count;
            let freed = (page + 1..end).find(|other| self.is_free(*other));
            if let Some(other) = freed.filter(|_| !matches!(part, Part::Free(_))) {
                return Err(Odd(start + other * block.page, "a free page within a block"));
            }
            parts.push(part);
            page = end;
        }
        Ok(parts)
    }

    fn part(&self, block: &Block, start: u64, page: u64) -> Result<(Part, u64), Odd> {
        let at = start + page * block.page;
        let left = block.chunk_pages - page;
        let range = |count: u64| at..at + count * block.page;
        if self.is_free(page) {
            let count = (page..block.chunk_pages).take_while(|page| self.is_free(*page)).count() as u64;
            let classed = (page..page + count).find(|page| self.class(*page) != 0);
            return match classed {
                Some(page) => Err(Odd(start + page * block.page, "a free page with a class")),
                None => Ok((Part::Free(range(count)), count)),
            };
        }
        match self.class(page) {
            0 => Ok((Part::Between(range(1)), 1)),
            class if u32::from(class) == block.run_class => {
                let count = self.first_word(block, page);
                let inside =
                    (1..=left).contains(&count) && (1..count).all(|next| self.class(page + next) == 0);
                inside.then(|| (Part::Run(range(count)), count)).ok_or(Odd(at, "a run that leaves its chunk"))
            }
            class if self.is_lua(block, class) => {
                let class = class - block.lua.map_or(0, |lua| lua.class);
                if class == 0 {
                    return Ok((Part::Kept(range(1)), 1));
                }
                let free = self
                    .lua_span(block, page, class)
                    .ok_or(Odd(at, "a page of a Lua heap that is not whole"))?;
                Ok((Part::Span(Span { start: at, class, free, lua: true }), 1))
            }
            class => {
                let shape =
                    block.classes.get(usize::from(class)).ok_or(Odd(at, "a class that there is not"))?;
                let span = self.span(block, page, class, shape).filter(|_| shape.pages <= left);
                let free = span.ok_or(Odd(at, "a span that is not whole"))?;
                Ok((Part::Span(Span { start: at, class, free, lua: false }), shape.pages))
            }
        }
    }

    /// Whether a class byte is a Lua heap's.
    fn is_lua(&self, block: &Block, class: u8) -> bool {
        block.lua.is_some_and(|lua| class & !(lua.class - 1) == lua.class)
    }

    /// Whether the chunk has pages of Lua heaps that hold something.
    pub(super) fn has_lua(&self, block: &Block) -> bool {
        let empty = block.lua.map(|lua| lua.class);
        self.classes.iter().any(|class| self.is_lua(block, *class) && Some(*class) != empty)
    }

    /// The free bits of a page of a Lua heap.
    fn lua_span(&self, block: &Block, page: u64, class: u8) -> Option<Vec<u64>> {
        let (lua, shape) = (block.lua?, block.classes.get(usize::from(class))?);
        let words = shape.slots.div_ceil(64);
        let at = page * lua.entry_bytes;
        let there = shape.pages == 1 && words <= 4 && (at + 32) as usize <= self.lua.len();
        there.then(|| (0..words).map(|index| word(&self.lua, at + 8 * index)).collect())
    }

    /// The free bits of the span at `page`, if one of that class is there.
    fn span(&self, block: &Block, page: u64, class: u8, shape: &Class) -> Option<Vec<u64>> {
        /// In the second half word of a further page's record, with how many pages back its span begins.
        const TAIL: u64 = 1 << 31;
        for back in 1..shape.pages {
            let link = word(&self.records, (page + back) * block.record_bytes + 8) & 0xffff_ffff;
            if self.class(page + back) != class || link != TAIL | back {
                return None;
            }
        }
        let words = shape.slots.div_ceil(64);
        let mut free: Vec<u64> = vec![self.first_word(block, page)];
        free.extend((1..words).map(|index| word(&self.wides, page * block.wide_bytes + 8 * (index - 1))));
        let last = shape.slots - 64 * (words - 1);
        let beyond = free.last().is_some_and(|word| last < 64 && word >> last != 0);
        (!beyond).then_some(free)
    }
}
