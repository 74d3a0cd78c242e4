//! Statistics, readable from outside the process without stopping it.
//!
//! [`Block`] is a static under the symbol `ebbtide_stats` (dynamic in the preload library, local in a Rust
//! program). A reader finds it by that symbol, or by its magic at the beginning of a page-aligned address of the
//! library's data, checks `magic`, `version` and `size`, and reads the rest with `process_vm_readv`. Every field
//! is a naturally aligned integer written whole, so each is right by itself; fields of one moment may differ by
//! what happened between two reads. New fields are added at the end and `size` grows; a change of meaning
//! changes `version`.
//!
//! [`Tables`] says where the tables are from which every block's state can be read, and how to read them.

use crate::bits::CHUNK_PAGES;
use crate::class::{self, CLASSES, Class, PAGE};
use crate::{heap, lua, map};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};

/// A number that others may read.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// Adds where all writers hold one lock, which saves the locked instruction.
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.get() + n, Relaxed);
    }

    /// Subtracts, as [`Counter::add`].
    pub(crate) fn sub(&self, n: u64) {
        self.0.store(self.get().wrapping_sub(n), Relaxed);
    }

    /// Makes it `n` if it is less, as [`Counter::add`].
    pub(crate) fn raise(&self, n: u64) {
        self.set(self.get().max(n));
    }

    /// Adds where writers share no lock.
    pub(crate) fn add_shared(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// Subtracts where writers share no lock.
    pub(crate) fn sub_shared(&self, n: u64) {
        self.0.fetch_sub(n, Relaxed);
    }
}

/// A size class as others see it.
#[derive(Debug)]
#[repr(C)]
pub struct ClassCount {
    /// Bytes in a slot.
    pub slot_bytes: Counter,
    /// Pages in all its spans.
    pub pages: Counter,
    /// Slots handed out: to the program, and to magazines (see [`Block::magazines`]).
    pub slots_out: Counter,
    /// Slots free in its spans.
    pub slots_free: Counter,
}

/// How slots of a class lie in its spans.
#[derive(Debug)]
#[repr(C)]
pub struct Shape {
    /// Bytes in a slot.
    pub slot_bytes: u32,
    /// Slots in a span.
    pub slots: u32,
    /// Pages in a span.
    pub pages: u32,
    /// 1 if pages that hold nothing are given back also while the rest of the span is used.
    pub has_holes: u32,
}

/// How to read the tables from outside.
///
/// The range's pages are counted from [`Block::range_address`], [`Tables::page_bytes`] each; a chunk is
/// [`Tables::chunk_pages`] of them. The tables lie at the offsets `*_at` from the same address and have an entry for
/// each of the first [`Tables::pages`] pages (the last one: for each chunk).
///
/// A chunk whose bit in the set [`Tables::paged`] is set is mapped as a whole. Each of its pages has its bit in the
/// chunk's first bitmap set, and is free; or else belongs to what begins at it or before it: by its class byte, a
/// span (a class number; a span's further pages have the same class, and in the second half word of their record
/// bit 31 and how many pages back it begins), or a run ([`Tables::run_class`] at its first page, pages in its
/// record's first word, the further pages 0). A page with neither is being given back or made this moment.
///
/// Any other chunk may be the first of a large block: its first page's class is [`Tables::large_class`], or
/// [`Tables::kept_class`] once it is freed and not unmapped yet; bytes in its record's first word. They are mapped
/// from the chunk's beginning. Where a large block ends inside a chunk and the page behind it has
/// [`Tables::kept_class`], more memory that was freed and not unmapped yet begins there, with its bytes in that page's
/// record.
///
/// A span's free slots have their bits set: the first 64 in the first word of its first page's record, the further
/// ones in that page's entry of the wide table. A slot whose bit is not set is in the program's hands, unless a
/// magazine holds its address. All thread heaps are a list from [`Block::heaps`] on, linked at
/// [`Tables::heap_next_at`]; a magazine is a count (32 bits), a limit (32 bits) and, from its eighth byte on, as
/// many addresses.
#[derive(Debug)]
#[repr(C)]
pub struct Tables {
    /// Bytes in a page.
    pub page_bytes: u32,
    /// Pages in a chunk.
    pub chunk_pages: u32,
    /// Pages that the tables have entries for; the tables are mapped that far.
    pub pages: Counter,
    /// Where the class bytes are, from the range's address.
    pub class_at: u64,
    /// Where the records are.
    pub record_at: u64,
    /// Bytes of a record.
    pub record_bytes: u64,
    /// Where the wide bits are.
    pub wide_at: u64,
    /// Bytes of an entry of these.
    pub wide_bytes: u64,
    /// Where the chunks' entries are.
    pub chunk_at: u64,
    /// Bytes of one.
    pub chunk_bytes: u64,
    /// Address of the bit set of chunks cut into pages; 0 before the first allocation.
    pub paged: Counter,
    /// The class byte of a run's first page.
    pub run_class: u32,
    /// The class byte of a large block's first page.
    pub large_class: u32,
    /// The class byte of a freed large block's first page.
    pub kept_class: u32,
    /// Pointers in a magazine, at most.
    pub magazine_slots: u32,
    /// Where in a thread heap the next one's address is.
    pub heap_next_at: u64,
    /// Where in a thread heap the magazines are, one for each class.
    pub heap_magazines_at: u64,
    /// Bytes of a magazine.
    pub magazine_bytes: u64,
    /// The classes' shapes, class 0 empty.
    pub shape: [Shape; CLASSES],
}

const fn shapes() -> [Shape; CLASSES] {
    let mut all = [const { Shape { slot_bytes: 0, slots: 0, pages: 0, has_holes: 0 } }; CLASSES];
    let classes = class::classes();
    let mut i = 1;
    while i < CLASSES {
        let class = &classes[i];
        all[i] = Shape {
            slot_bytes: class.size,
            slots: class.slots,
            pages: class.pages,
            has_holes: class.has_holes() as u32,
        };
        i += 1;
    }
    all
}

/// The block. All sizes in the units their names say.
#[derive(Debug)]
#[repr(C, align(4096))]
pub struct Block {
    /// `EBBTIDE` and a zero byte.
    pub magic: [u8; 8],
    /// 1.
    pub version: u32,
    /// Bytes of this block.
    pub size: u32,
    /// Where the range of all memory handed out begins; 0 before the first allocation.
    pub range_address: Counter,
    /// Bytes of the range; the tables lie behind it, see [`Tables`].
    pub range_bytes: Counter,
    /// Pages mapped for slots and runs.
    pub mapped: Counter,
    /// Free pages that may be resident: what a purge would give back.
    pub dirty: Counter,
    /// Pages given back, ever.
    pub purged: Counter,
    /// Of these, pages used again later.
    pub refaulted: Counter,
    /// Pages taken for spans and runs, ever.
    pub taken: Counter,
    /// Pages in runs handed to the program.
    pub run_pages: Counter,
    /// Bytes of large blocks handed to the program.
    pub large: Counter,
    /// Bytes of large blocks, or of parts of them, that were freed and wait to be unmapped.
    pub cached: Counter,
    /// Pages inside partly used spans that were given back.
    pub holes: Counter,
    /// Address of the first thread heap (see [`Tables`]), 0 if none.
    pub heaps: Counter,
    /// Bytes of one thread heap.
    pub heap_bytes: Counter,
    /// Turns of the purge, ever.
    pub turns: Counter,
    /// The purge thread's id, 0 while there is none.
    pub keeper: AtomicU32,
    /// 1 while the purge thread sleeps because nothing is left to give back.
    pub asleep: AtomicU32,
    /// Write a number other than [`Block::answered`] here from outside to ask for a full purge; the purge thread
    /// looks at every turn.
    pub asked: AtomicU32,
    /// The last request carried out.
    pub answered: AtomicU32,
    /// Milliseconds a free page waits before it is given back, as adapted.
    pub delay_ms: Counter,
    /// How many classes follow.
    pub classes: u64,
    /// The size classes, class 0 empty.
    pub class: [ClassCount; CLASSES],
    /// How to read the tables.
    pub tables: Tables,
    /// Address of the first Lua heap, 0 if none.
    pub lua: Counter,
    /// How to read these.
    pub lua_tables: LuaTables,
}

/// How to read Lua heaps from outside.
///
/// Such a heap is a [`Told`](crate::lua::Told), and bins behind it. A page that belongs to one has
/// [`LuaTables::class`] added to its class byte, or, if it is empty and kept for later, that alone; and an entry in a
/// table of its own, mapped for chunks that have or had such pages: 32 bytes of the bits of free slots. A bin has in its
/// first words the bits of slots that are free, too, in the hand of the heap, and the address of the slot of the lowest
/// bit. A page that shares its frame with others is mapped from a file in memory.
#[derive(Debug)]
#[repr(C)]
pub struct LuaTables {
    /// Added to a class byte.
    pub class: u32,
    /// Bytes of an entry.
    pub entry_bytes: u32,
    /// Where the entries are, from the range's address.
    pub entry_at: u64,
    /// Bytes of a heap.
    pub heap_bytes: u64,
    /// Where in a heap the bins are, one for each class.
    pub bins_at: u64,
    /// Bytes of a bin.
    pub bin_bytes: u64,
}

/// The process's statistics.
#[unsafe(export_name = "ebbtide_stats")]
pub static COUNT: Block = Block {
    magic: *b"EBBTIDE\0",
    version: 1,
    size: size_of::<Block>() as u32,
    range_address: Counter::new(),
    range_bytes: Counter::new(),
    mapped: Counter::new(),
    dirty: Counter::new(),
    purged: Counter::new(),
    refaulted: Counter::new(),
    taken: Counter::new(),
    run_pages: Counter::new(),
    large: Counter::new(),
    cached: Counter::new(),
    holes: Counter::new(),
    heaps: Counter::new(),
    heap_bytes: Counter::new(),
    turns: Counter::new(),
    keeper: AtomicU32::new(0),
    asleep: AtomicU32::new(0),
    asked: AtomicU32::new(0),
    answered: AtomicU32::new(0),
    delay_ms: Counter::new(),
    classes: CLASSES as u64,
    class: [const {
        ClassCount {
            slot_bytes: Counter::new(),
            pages: Counter::new(),
            slots_out: Counter::new(),
            slots_free: Counter::new(),
        }
    }; CLASSES],
    tables: Tables {
        page_bytes: PAGE as u32,
        chunk_pages: CHUNK_PAGES as u32,
        pages: Counter::new(),
        class_at: map::CLASS_AT as u64,
        record_at: map::RECORD_AT as u64,
        record_bytes: size_of::<map::Record>() as u64,
        wide_at: map::WIDE_AT as u64,
        wide_bytes: size_of::<map::Wide>() as u64,
        chunk_at: map::CHUNK_AT as u64,
        chunk_bytes: size_of::<map::Chunk>() as u64,
        paged: Counter::new(),
        run_class: map::RUN as u32,
        large_class: map::LARGE as u32,
        kept_class: map::KEPT as u32,
        magazine_slots: heap::MAGAZINE_SLOTS,
        heap_next_at: heap::NEXT_AT as u64,
        heap_magazines_at: heap::MAGAZINES_AT as u64,
        magazine_bytes: size_of::<heap::Magazine>() as u64,
        shape: shapes(),
    },
    lua: Counter::new(),
    lua_tables: LuaTables {
        class: lua::LUA as u32,
        entry_bytes: size_of::<lua::Entry>() as u32,
        entry_at: lua::ENTRY_AT as u64,
        heap_bytes: size_of::<lua::Heap>() as u64,
        bins_at: lua::BINS_AT as u64,
        bin_bytes: size_of::<lua::Bin>() as u64,
    },
};

impl Block {
    pub(crate) fn class(&self, class: u8) -> &ClassCount {
        self.class.get(class as usize).unwrap_or(&self.class[0])
    }

    /// Slots that lie in threads' magazines: handed out, but free.
    pub fn magazines(&self, class: u8) -> u64 {
        crate::heap::cached(class)
    }

    /// Bytes in the program's hands, slots and pages in full.
    pub fn live_bytes(&self) -> u64 {
        let slots: u64 = (1..CLASSES as u8)
            .map(|c| {
                let out = self.class(c).slots_out.get().saturating_sub(self.magazines(c));
                out * u64::from(Class::of(c).size)
            })
            .sum();
        slots + self.run_pages.get() * PAGE as u64 + self.large.get()
    }

    /// Bytes of mapped pages, large blocks included, tables not.
    pub fn mapped_bytes(&self) -> u64 {
        self.mapped.get() * PAGE as u64 + self.large.get() + self.cached.get()
    }
}
