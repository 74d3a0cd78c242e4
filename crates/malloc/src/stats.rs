//! Statistics, readable from outside the process without stopping it.
//!
//! [`Block`] is a static under the symbol `ebbtide_stats` (dynamic in the preload library, local in a Rust
//! program). A reader finds it by that symbol, or by its magic at the beginning of a page-aligned address of the
//! library's data, checks `magic`, `version` and `size`, and reads the rest with `process_vm_readv`. Every field
//! is a naturally aligned integer written whole, so each is right by itself; fields of one moment may differ by
//! what happened between two reads. New fields are added at the end and `size` grows; a change of meaning
//! changes `version`.

use crate::class::{CLASSES, Class};
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
    /// Bytes of the range; the tables lie behind it (layout in `map`).
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
    /// Bytes of freed large blocks that wait to be unmapped.
    pub cached: Counter,
    /// Pages inside partly used spans that were given back.
    pub holes: Counter,
    /// Address of the first thread heap (layout in `heap`), 0 if none.
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
        slots + self.run_pages.get() * crate::class::PAGE as u64 + self.large.get()
    }

    /// Bytes of mapped pages, large blocks included, tables not.
    pub fn mapped_bytes(&self) -> u64 {
        self.mapped.get() * crate::class::PAGE as u64 + self.large.get() + self.cached.get()
    }
}
