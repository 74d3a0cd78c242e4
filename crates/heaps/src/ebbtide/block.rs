//! The statistics block of Ebbtide's malloc, read from another process: counters, and where the tables are.
//!
//! The layout is that of `ebbtide_malloc::Block`, version 1 (crates/malloc/src/stats.rs), which tells everything
//! else itself; a test compares the two. Invariant: a [`Block`] has numbers that make sense together, so that what
//! is computed from them neither overflows nor is out of proportion.

use crate::source::{Area, Fault, PageState};
use crate::{Reader, Residency};

/// Begins the block.
const MAGIC: &[u8; 8] = b"EBBTIDE\0";
/// The version this reads.
pub(super) const VERSION: u32 = 1;
/// The block begins at a multiple of this, and is this long.
const ALIGN: u64 = 4096;
/// Where the counters by class begin.
const CLASS: usize = 160;
/// Bytes of a class's counters.
const CLASS_BYTES: usize = 32;
/// Bytes of `Tables` before the shapes.
const TABLES_BYTES: usize = 120;
/// Bytes of a shape.
const SHAPE_BYTES: usize = 16;
/// More writable data of one file is not searched for the block.
const DATA_MOST: u64 = 64 << 20;

/// How slots lie in the spans of a class, and its counters.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Class {
    pub(super) slot_bytes: u64,
    pub(super) slots: u64,
    pub(super) pages: u64,
    pub(super) has_holes: bool,
    pub(super) slots_out: u64,
    pub(super) slots_free: u64,
}

/// The block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) range: u64,
    pub(super) mapped_pages: u64,
    pub(super) purged_pages: u64,
    pub(super) refaulted_pages: u64,
    pub(super) run_pages: u64,
    pub(super) large: u64,
    pub(super) cached: u64,
    pub(super) heaps: u64,
    pub(super) heap_bytes: u64,
    pub(super) delay_ms: u64,
    pub(super) page: u64,
    pub(super) chunk_pages: u64,
    pub(super) pages: u64,
    pub(super) class_at: u64,
    pub(super) record_at: u64,
    pub(super) record_bytes: u64,
    pub(super) wide_at: u64,
    pub(super) wide_bytes: u64,
    pub(super) chunk_at: u64,
    pub(super) chunk_bytes: u64,
    pub(super) paged: u64,
    pub(super) run_class: u32,
    pub(super) large_class: u32,
    pub(super) kept_class: u32,
    pub(super) magazine_slots: u64,
    pub(super) heap_next_at: u64,
    pub(super) heap_magazines_at: u64,
    pub(super) magazine_bytes: u64,
    pub(super) classes: Vec<Class>,
    /// `None` where the allocator is from before there were any.
    pub(super) lua: Option<Lua>,
}

/// How to read the heaps of Lua states.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lua {
    /// The first heap, 0 for none.
    pub(super) first: u64,
    /// Added to a class byte.
    pub(super) class: u8,
    pub(super) entry_bytes: u64,
    pub(super) entry_at: u64,
    pub(super) heap_bytes: u64,
    pub(super) bins_at: u64,
    pub(super) bin_bytes: u64,
}

/// What begins like a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Found {
    /// It can be read.
    Block(Box<Block>),
    /// Of a version that is not known here.
    Other(u32),
    /// Nothing was allocated yet, or its numbers make no sense.
    Nothing,
}

/// Where blocks are: pages of files' private writable data that begin with the magic. Only pages in memory are
/// looked at: the allocator writes to its block with the first allocation.
pub(super) fn find(reader: &mut Reader<'_>) -> Result<Vec<u64>, Fault> {
    let source = reader.source();
    let mut residency = Residency::new(source);
    let mut found = Vec::new();
    let data = |area: &&Area| {
        area.inode != 0
            && area.perms.read
            && area.perms.write
            && !area.perms.shared
            && area.size().0 <= DATA_MOST
    };
    for area in source.areas().iter().filter(data) {
        let mut runs = Vec::new();
        residency.each(area.range.clone(), |run, state| {
            runs.extend((state == PageState::Present).then_some(run))
        })?;
        for page in runs.into_iter().flat_map(|run| run.step_by(ALIGN as usize)) {
            match reader.array::<8>(page) {
                Ok(magic) if magic == *MAGIC => found.push(page),
                Ok(_) | Err(Fault::Unmapped(_) | Fault::Swapped(_)) => {}
                Err(fault) => return Err(fault),
            }
        }
    }
    Ok(found)
}

/// Reads the block at `at`.
pub(super) fn read(reader: &mut Reader<'_>, at: u64) -> Result<Found, Fault> {
    let bytes = reader.array::<{ ALIGN as usize }>(at)?;
    Ok(parse(&bytes))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..at + 8)?.try_into().ok().map(u64::from_le_bytes)
}

fn short(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..at + 4)?.try_into().ok().map(u32::from_le_bytes)
}

/// The block that `bytes` are.
pub(super) fn parse(bytes: &[u8]) -> Found {
    match (bytes.starts_with(MAGIC), short(bytes, 8)) {
        (true, Some(VERSION)) => {}
        (true, Some(other)) => return Found::Other(other),
        _ => return Found::Nothing,
    }
    let size = short(bytes, 12).map_or(0, |size| size as usize).min(bytes.len());
    let block = fields(&bytes[..size]).filter(Block::makes_sense);
    block.map_or(Found::Nothing, |block| Found::Block(Box::new(block)))
}

fn fields(bytes: &[u8]) -> Option<Block> {
    let count = usize::try_from(long(bytes, 152)?).ok().filter(|count| *count <= 256)?;
    let tables = CLASS + count * CLASS_BYTES;
    let long = |at: usize| long(bytes, at);
    let short = |at: usize| short(bytes, at);
    let class = |index: usize| -> Option<Class> {
        let (counters, shape) = (CLASS + index * CLASS_BYTES, tables + TABLES_BYTES + index * SHAPE_BYTES);
        Some(Class {
            slot_bytes: short(shape)?.into(),
            slots: short(shape + 4)?.into(),
            pages: short(shape + 8)?.into(),
            has_holes: short(shape + 12)? != 0,
            slots_out: long(counters + 16)?,
            slots_free: long(counters + 24)?,
        })
    };
    Some(Block {
        range: long(16)?,
        mapped_pages: long(32)?,
        purged_pages: long(48)?,
        refaulted_pages: long(56)?,
        run_pages: long(72)?,
        large: long(80)?,
        cached: long(88)?,
        heaps: long(104)?,
        heap_bytes: long(112)?,
        delay_ms: long(144)?,
        page: short(tables)?.into(),
        chunk_pages: short(tables + 4)?.into(),
        pages: long(tables + 8)?,
        class_at: long(tables + 16)?,
        record_at: long(tables + 24)?,
        record_bytes: long(tables + 32)?,
        wide_at: long(tables + 40)?,
        wide_bytes: long(tables + 48)?,
        chunk_at: long(tables + 56)?,
        chunk_bytes: long(tables + 64)?,
        paged: long(tables + 72)?,
        run_class: short(tables + 80)?,
        large_class: short(tables + 84)?,
        kept_class: short(tables + 88)?,
        magazine_slots: short(tables + 92)?.into(),
        heap_next_at: long(tables + 96)?,
        heap_magazines_at: long(tables + 104)?,
        magazine_bytes: long(tables + 112)?,
        classes: (0..count).map(class).collect::<Option<_>>()?,
        lua: lua(bytes, tables + TABLES_BYTES + count * SHAPE_BYTES),
    })
}

fn lua(bytes: &[u8], at: usize) -> Option<Lua> {
    let lua = Lua {
        first: long(bytes, at)?,
        class: u8::try_from(short(bytes, at + 8)?).ok()?,
        entry_bytes: short(bytes, at + 12)?.into(),
        entry_at: long(bytes, at + 16)?,
        heap_bytes: long(bytes, at + 24)?,
        bins_at: long(bytes, at + 32)?,
        bin_bytes: long(bytes, at + 40)?,
    };
    let entries = (32..=256).contains(&lua.entry_bytes) && lua.entry_bytes.is_multiple_of(8);
    let places = [lua.entry_at, lua.bins_at].iter().all(|at| *at < 1 << 48 && at.is_multiple_of(8));
    let bins = (16..=256).contains(&lua.bin_bytes) && lua.heap_bytes <= 1 << 24;
    (lua.class.is_power_of_two() && entries && places && bins).then_some(lua)
}

impl Block {
    /// Whether what is computed from it is within bounds.
    fn makes_sense(&self) -> bool {
        let page = self.page.is_power_of_two() && (4096..=65536).contains(&self.page);
        let chunk = self.chunk_pages > 0 && self.chunk_pages <= 4096 && self.chunk_pages.is_multiple_of(64);
        let range = self.range > 0 && self.range < 1 << 56;
        if !page || !chunk || !range || !self.range.is_multiple_of(self.page) {
            return false;
        }
        let pages = self.pages > 0 && self.pages <= 1 << 30 && self.pages.is_multiple_of(self.chunk_pages);
        let tables = [self.class_at, self.record_at, self.wide_at, self.chunk_at];
        let tables = tables.iter().all(|at| *at < 1 << 48 && at.is_multiple_of(8));
        let entries = (16..=256).contains(&self.record_bytes)
            && self.wide_bytes <= 256
            && (self.chunk_pages / 8..=4096).contains(&self.chunk_bytes)
            && [self.record_bytes, self.wide_bytes, self.chunk_bytes]
                .iter()
                .all(|bytes| bytes.is_multiple_of(8));
        let heaps = self.heap_bytes <= 1 << 24
            && self.magazine_slots <= 1 << 16
            && (8 + 8 * self.magazine_slots..=1 << 20).contains(&self.magazine_bytes)
            && self.heap_next_at < 1 << 24
            && self.heap_magazines_at < 1 << 24;
        pages && tables && entries && heaps && self.shapes_make_sense()
    }

    fn shapes_make_sense(&self) -> bool {
        let bits = 64 + 8 * self.wide_bytes;
        self.classes.iter().skip(1).all(|class| {
            let fits = class.slots * class.slot_bytes <= class.pages * self.page;
            let bounds = (1..=self.chunk_pages).contains(&class.pages) && (1..=bits).contains(&class.slots);
            fits && bounds && class.slot_bytes >= 8
        })
    }

    /// Bytes of a chunk.
    pub(super) fn chunk(&self) -> u64 {
        self.chunk_pages * self.page
    }

    /// How many chunks have tables.
    pub(super) fn chunks(&self) -> u64 {
        self.pages / self.chunk_pages
    }

    /// Where the tables are and how long each is.
    pub(super) fn tables(&self) -> [std::ops::Range<u64>; 4] {
        let table = |at: u64, bytes: u64| {
            let start = self.range + at;
            start..start + bytes
        };
        [
            table(self.class_at, self.pages),
            table(self.record_at, self.pages * self.record_bytes),
            table(self.wide_at, self.pages * self.wide_bytes),
            table(self.chunk_at, self.chunks() * self.chunk_bytes),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_malloc as malloc;
    use proptest::prelude::*;
    use std::mem::offset_of;

    #[test]
    fn the_layout_is_the_allocators() {
        assert_eq!(malloc::COUNT.version, VERSION);
        assert_eq!(offset_of!(malloc::Block, range_address), 16);
        assert_eq!(offset_of!(malloc::Block, mapped), 32);
        assert_eq!(offset_of!(malloc::Block, purged), 48);
        assert_eq!(offset_of!(malloc::Block, refaulted), 56);
        assert_eq!(offset_of!(malloc::Block, run_pages), 72);
        assert_eq!(offset_of!(malloc::Block, large), 80);
        assert_eq!(offset_of!(malloc::Block, cached), 88);
        assert_eq!(offset_of!(malloc::Block, heaps), 104);
        assert_eq!(offset_of!(malloc::Block, heap_bytes), 112);
        assert_eq!(offset_of!(malloc::Block, delay_ms), 144);
        assert_eq!(offset_of!(malloc::Block, classes), 152);
        assert_eq!(offset_of!(malloc::Block, class), CLASS);
        assert_eq!(size_of::<malloc::ClassCount>(), CLASS_BYTES);
        assert_eq!(offset_of!(malloc::ClassCount, slots_out), 16);
        assert_eq!(offset_of!(malloc::ClassCount, slots_free), 24);
        assert_eq!(offset_of!(malloc::Block, tables), CLASS + malloc::COUNT.classes as usize * CLASS_BYTES);
        assert_eq!(offset_of!(malloc::Tables, pages), 8);
        assert_eq!(offset_of!(malloc::Tables, class_at), 16);
        assert_eq!(offset_of!(malloc::Tables, chunk_bytes), 64);
        assert_eq!(offset_of!(malloc::Tables, paged), 72);
        assert_eq!(offset_of!(malloc::Tables, kept_class), 88);
        assert_eq!(offset_of!(malloc::Tables, magazine_slots), 92);
        assert_eq!(offset_of!(malloc::Tables, magazine_bytes), 112);
        assert_eq!(offset_of!(malloc::Tables, shape), TABLES_BYTES);
        assert_eq!(size_of::<malloc::Shape>(), SHAPE_BYTES);
        let lua = CLASS + malloc::COUNT.classes as usize * (CLASS_BYTES + SHAPE_BYTES) + TABLES_BYTES;
        assert_eq!(offset_of!(malloc::Block, lua), lua);
        assert_eq!(offset_of!(malloc::Block, lua_tables), lua + 8);
        assert_eq!(offset_of!(malloc::LuaTables, entry_at), 8);
        assert_eq!(offset_of!(malloc::LuaTables, bin_bytes), 32);
        assert_eq!(offset_of!(malloc::lua::Told, state), 8);
        assert_eq!(offset_of!(malloc::lua::Told, pages), 16);
        assert_eq!(offset_of!(malloc::lua::Told, meshed), 40);
        assert_eq!(offset_of!(malloc::lua::Told, frames), 48);
        assert_eq!(offset_of!(malloc::lua::Told, collected), 80);
        assert_eq!(size_of::<malloc::Block>(), ALIGN as usize);
    }

    proptest! {
        #[test]
        fn any_bytes_will_do(
            words in proptest::collection::vec(prop_oneof![0..70_u64, any::<u64>()], 511),
            version in 0..3_u32,
        ) {
            let mut bytes = MAGIC.to_vec();
            bytes.extend(version.to_le_bytes());
            bytes.extend(4096_u32.to_le_bytes());
            bytes.extend(words.into_iter().flat_map(u64::to_le_bytes));
            if let Found::Block(block) = parse(&bytes) {
                prop_assert!(block.tables().iter().all(|table| table.start <= table.end));
            }
            for len in [0, 7, 12, 100, 2000] {
                parse(&bytes[..len]);
            }
        }
    }
}
