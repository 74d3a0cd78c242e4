//! Arenas, of which slices are taken for pages: struct mi_arena_s of 3.0.1 (src/arena.c), and the table of them in
//! the static data (subproc_main in src/init.c, struct mi_subproc_s).
//!
//! Invariant: an arena is one only if the table that names it is the one that it names, and each of its 80 bitmaps
//! begins where the number of its slices says.

use super::books::{ARENA, SLICE};
use crate::reader::Reader;
use crate::source::{Fault, there};
use std::ops::Range;

/// MI_MAX_ARENAS.
const ARENAS_MOST: u64 = 160;
/// Slices of a chunk of a bitmap, and chunks of a bitmap at most: MI_BCHUNK_BITS, MI_BITMAP_MAX_CHUNK_COUNT.
const CHUNK: u64 = 512;
const CHUNKS_MOST: u64 = 512;
/// The least memory of an arena: MI_ARENA_MIN_SIZE.
pub(super) const LEAST: u64 = CHUNK * SLICE;
/// sizeof(mi_arena_t).
const BOOKS: usize = 704;
/// In words: subproc, slice_count, info_slices, slices_free; of the bitmaps behind that, `pages` is the fourth.
const TABLE: usize = 3;
const SLICES: usize = 4;
const INFO: usize = 5;
const FREE: usize = 8;
const PAGES: usize = 12;
/// Where the chunks of a bitmap are: behind its length and the map of chunks; slices_free has bins besides.
const PLAIN: u64 = 128;
const BINNED: u64 = 640;

/// An arena.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Arena {
    pub(super) base: u64,
    /// Its length in slices.
    pub(super) slices: u64,
    /// How many of them its books take.
    pub(super) info: u64,
    free: Vec<u8>,
    pages: Vec<u8>,
}

impl Arena {
    pub(super) fn range(&self) -> Range<u64> {
        self.base..self.base + self.slices * SLICE
    }

    /// The arena at `base` that the table at `table` names.
    fn read(reader: &mut Reader<'_>, base: u64, table: u64) -> Result<Option<Arena>, Fault> {
        let Some(books) = there(reader.array::<BOOKS>(base))? else { return Ok(None) };
        let words = books.as_chunks::<8>().0;
        let word = |index: usize| words.get(index).map_or(0, |word| u64::from_le_bytes(*word));
        let (slices, info) = (word(SLICES), word(INFO));
        let chunks = slices / CHUNK;
        let has_size = slices.is_multiple_of(CHUNK) && (1..=CHUNKS_MOST).contains(&chunks);
        if word(TABLE) != table || !has_size || info == 0 || info >= slices {
            return Ok(None);
        }
        let size = |index: usize| if index == FREE { BINNED } else { PLAIN } + chunks * CHUNK / 8;
        let mut at = base + BOOKS as u64;
        for index in FREE..words.len() {
            if word(index) != at {
                return Ok(None);
            }
            at += size(index);
        }
        if at > base + info * SLICE {
            return Ok(None);
        }
        let mut arena = Arena { base, slices, info, free: Vec::new(), pages: Vec::new() };
        let bits = |at: u64| at..at + chunks * CHUNK / 8;
        let free = there(reader.copy(bits(word(FREE) + BINNED), &mut arena.free))?;
        let pages = there(reader.copy(bits(word(PAGES) + PLAIN), &mut arena.pages))?;
        Ok(free.and(pages).map(|()| arena))
    }

    /// How many slices from `index` on are free.
    pub(super) fn free_from(&self, index: u64) -> u64 {
        (index..self.slices).take_while(|index| is_set(&self.free, *index)).count() as u64
    }

    /// Whether a page begins with slice `index`.
    pub(super) fn has_page(&self, index: u64) -> bool {
        is_set(&self.pages, index)
    }

    /// The slices with which pages begin.
    pub(super) fn pages(&self) -> impl Iterator<Item = u64> + '_ {
        (self.info..self.slices).filter(|index| self.has_page(*index))
    }

    /// Whether slice `index` holds books of heaps and threads: its head says so (struct mi_meta_page_s).
    pub(super) fn is_meta(&self, reader: &mut Reader<'_>, index: u64) -> Result<bool, Fault> {
        let Some(head) = there(reader.array::<32>(self.base + index * SLICE))? else { return Ok(false) };
        let [_, arena, slices, kind] = [0, 1, 2, 3].map(|index: usize| {
            head.as_chunks::<8>().0.get(index).map_or(0, |word| u64::from_le_bytes(*word))
        });
        Ok(arena == self.base && slices == (1 << 32 | index) && kind as u32 == ARENA)
    }
}

fn is_set(bits: &[u8], index: u64) -> bool {
    usize::try_from(index / 8)
        .ok()
        .and_then(|at| bits.get(at))
        .is_some_and(|byte| byte >> (index % 8) & 1 == 1)
}

/// Whether a table of arenas may begin with `count`.
pub(super) fn may_be(count: u64) -> bool {
    (1..=ARENAS_MOST).contains(&count)
}

/// The arenas that the table at `table` names, in order; none if it is no such table.
pub(super) fn of_table(reader: &mut Reader<'_>, table: u64) -> Result<Vec<Arena>, Fault> {
    let mut arenas = Vec::new();
    let Some(count) = there(reader.u64(table))?.filter(|count| may_be(*count)) else { return Ok(arenas) };
    for at in (table..=table.saturating_add(8 * count)).step_by(8).skip(1) {
        match there(reader.u64(at))? {
            // One that was given back leaves its place empty.
            Some(0) => {}
            Some(base) if base.is_multiple_of(SLICE) && base < 1 << 48 => {
                match Arena::read(&mut Reader::new(reader.source()), base, table)? {
                    Some(arena) => arenas.push(arena),
                    None => return Ok(Vec::new()),
                }
            }
            _ => return Ok(Vec::new()),
        }
    }
    arenas.sort_by_key(|arena| arena.base);
    let is_apart = arenas.windows(2).all(|pair| pair[0].range().end <= pair[1].base);
    Ok(if is_apart { arenas } else { Vec::new() })
}
