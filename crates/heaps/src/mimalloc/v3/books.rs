//! A page's books at its head: struct mi_page_s of 3.0.1 (include/mimalloc/types.h), LP64.
//!
//! Invariant: a page is one only if its memory id names the place where it was read, and its blocks begin and are as
//! many as follows from their size (mi_arenas_page_alloc_fresh in src/arena.c).

use crate::mimalloc::pages::Page;
use crate::reader::Reader;
use crate::source::{Area, Fault, covered, there};
use std::ops::Range;

/// MI_ARENA_SLICE_SIZE.
pub(super) const SLICE: u64 = 64 << 10;
/// sizeof(mi_page_t), and its room at the head of a page.
const HEADER: usize = 120;
pub(super) const HEADER_ROOM: u64 = 128;
/// Blocks of these sizes begin at their multiples: MI_PAGE_MAX_START_BLOCK_ALIGN2.
const ALIGNED_MOST: u64 = 1024;
/// enum mi_memkind_e: from MI_MEM_OS to MI_MEM_OS_REMAP, and MI_MEM_ARENA.
const OS: std::ops::RangeInclusive<u32> = 4..=6;
pub(super) const ARENA: u32 = 7;

/// A page, and how many blocks it has room for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Books {
    pub(super) page: Page,
    pub(super) reserved: u16,
}

/// What a page's header says, and where its memory is from.
struct Header {
    books: Books,
    place: [u64; 2],
    kind: u32,
}

impl Books {
    /// The page in slice `index` of the arena at `arena`, if there is one.
    pub(super) fn in_arena(reader: &mut Reader<'_>, arena: u64, index: u64) -> Result<Option<Books>, Fault> {
        let at = arena + index * SLICE;
        let Some(Header { mut books, place, kind }) = Header::read(reader, at)? else { return Ok(None) };
        let [owner, slices] = place;
        let (first, count) = (slices & u64::from(u32::MAX), slices >> 32);
        books.page.range = at..at + count * SLICE;
        let has_place = kind == ARENA && owner == arena && first == index;
        Ok((has_place && books.is_sound(at) && books.is_full()).then_some(books))
    }

    /// The page at `at`, if it has memory from the system for itself.
    pub(super) fn alone(reader: &mut Reader<'_>, at: u64) -> Result<Option<Books>, Fault> {
        let Some(Header { mut books, place, kind }) = Header::read(reader, at)? else { return Ok(None) };
        let [base, size] = place;
        let range = base..base.saturating_add(size);
        books.page.range = range.clone();
        let has_place = OS.contains(&kind) && range.contains(&at) && base.is_multiple_of(4096);
        let is_own = has_place && covered(reader.source(), range, Area::is_private_anon);
        Ok((is_own && books.is_sound(at)).then_some(books))
    }

    /// Whether it has one block and no more.
    pub(super) fn is_single(&self) -> bool {
        self.reserved == 1
    }

    /// Its one block.
    pub(super) fn block(&self) -> Range<u64> {
        self.page.first..self.page.first + self.page.block
    }

    /// Whether the parts agree, for a head at `at`.
    fn is_sound(&self, at: u64) -> bool {
        let Books { page, reserved } = self;
        let is_aligned = page.block.is_power_of_two() && page.block <= ALIGNED_MOST;
        let begins = if is_aligned { page.block.max(HEADER_ROOM) } else { HEADER_ROOM };
        // A block with an alignment of more than a slice is alone.
        let is_behind = page.first == at + begins || (page.first == at + SLICE && self.is_single());
        let left = page.range.end.saturating_sub(page.first);
        is_behind
            && page.block >= 8
            && page.block.is_multiple_of(8)
            && *reserved >= 1
            && u64::from(*reserved) <= left / page.block
            && page.capacity <= *reserved
            && page.used <= u32::from(page.capacity)
    }

    /// Whether there is room for no more blocks than are said.
    fn is_full(&self) -> bool {
        (self.page.range.end - self.page.first) / self.page.block == u64::from(self.reserved)
    }
}

impl Header {
    /// The header at `at`; its range is not known yet.
    fn read(reader: &mut Reader<'_>, at: u64) -> Result<Option<Header>, Fault> {
        let Some(header) = there(reader.array::<HEADER>(at))? else { return Ok(None) };
        let words = header.as_chunks::<8>().0;
        let word = |index: usize| words.get(index).map_or(0, |word| u64::from_le_bytes(*word));
        let page = Page {
            range: at..at,
            first: word(6),
            block: word(5),
            capacity: (word(2) >> 16) as u16,
            used: u32::from(word(2) as u16),
            free: word(1),
            local_free: word(3),
            // The last bit says that the page has an owner.
            thread_free: word(4) & !1,
        };
        let books = Books { page, reserved: (word(2) >> 32) as u16 };
        Ok(Some(Header { books, place: [word(12), word(13)], kind: word(14) as u32 }))
    }
}
