//! What is kept of each page of a Lua heap: one cache line, in a table beside the others of `map`.
//!
//! Invariants: a page whose class byte has [`LUA`] set has its entry mapped; the entry is touched by the page's owner
//! alone. `count` is the number of bits set in `free`. A slot whose bit is set is free and in no one's hands; the bits
//! of a word that its owner allocates from are in the owner's [`Bin`](super::heap::Bin) and not here.

use crate::bits::{CHUNK_PAGES, mask};
use crate::chunkset::ChunkSet;
use crate::class::Class;
use crate::lock::Mutex;
use crate::map::{self, Page};
use crate::pages::paged;
use crate::sys::{self, Errno, Use};
use core::cell::Cell;
use core::sync::atomic::Ordering::Relaxed;

/// Added to a class byte: the page belongs to a Lua heap.
pub(crate) const LUA: u8 = 0x40;

/// Where the table begins, from the range's address: behind the chunks' table.
pub(crate) const ENTRY_AT: usize = map::CHUNK_AT + map::CHUNKS * size_of::<map::Chunk>();
/// Bytes of the entries of a chunk's pages.
const PER_CHUNK: usize = CHUNK_PAGES * size_of::<Entry>();

/// The owner allocates from it.
pub(crate) const CURRENT: u8 = 1;
/// It is in the list of its bucket.
pub(crate) const LISTED: u8 = 2;
/// It shares a frame with others, or did before a fork: it is in the list of the meshed.
pub(crate) const MESHED: u8 = 4;
/// It is mapped from a file, shared or not.
pub(crate) const ALIASED: u8 = 8;
/// Of a meshed page: when the others were parted for a fork, the kernel refused it.
pub(crate) const STUCK: u8 = 16;

/// A page of a Lua heap.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Entry {
    /// Bits of the free slots.
    pub(crate) free: [Cell<u64>; 4],
    /// The next page of its list, plus one.
    pub(crate) next: Cell<u32>,
    /// The one before it, plus one.
    pub(crate) prev: Cell<u32>,
    /// Free slots.
    pub(crate) count: Cell<u16>,
    /// At this many free slots something is to be done: see [`Entry::set_due`].
    pub(crate) due: Cell<u16>,
    /// The epoch in which a slot was last freed or taken.
    pub(crate) touched: Cell<u16>,
    pub(crate) flags: Cell<u8>,
    /// The bucket whose list it is in.
    pub(crate) bucket: Cell<u8>,
    /// The number of its owner.
    pub(crate) owner: Cell<u32>,
    /// Of a meshed page: which frame it shares.
    pub(crate) frame: Cell<u16>,
}

/// Chunks whose entries are mapped; they stay so.
static MAPPED: Mutex<ChunkSet> = Mutex::new(ChunkSet::new());

/// The lock, for fork.
pub(crate) fn raw_lock() -> &'static crate::lock::Lock {
    MAPPED.raw()
}

/// Makes sure that a page has an entry.
pub(crate) fn ensure(page: Page) -> Result<(), Errno> {
    let chunk = page.index() / CHUNK_PAGES;
    let mapped = MAPPED.lock();
    if !mapped.contains(chunk) {
        let at = map::base() + ENTRY_AT + chunk * PER_CHUNK;
        sys::map_at(at, PER_CHUNK, Use::Table)?;
        sys::no_huge_pages(at, PER_CHUNK);
        sys::name_mapping(at, PER_CHUNK, c"ebbtide tables");
        mapped.insert(chunk);
    }
    Ok(())
}

/// Gives back the entries of a chunk that was unmapped, if it has any; called under the page heap's lock.
pub(crate) fn forget(chunk: usize) {
    // Whoever holds the other lock waits for none.
    let mapped = MAPPED.lock();
    if mapped.contains(chunk) {
        // SAFETY: entries of pages nobody uses.
        let _ = unsafe { sys::give_back(map::base() + ENTRY_AT + chunk * PER_CHUNK, PER_CHUNK) };
    }
}

/// The pages of a heap that hold something, from page number `from` on, and their classes.
pub(crate) fn pages_of(owner: u32, from: usize) -> impl Iterator<Item = (Page, u8)> {
    all(from).filter_map(move |page| page.class_for(owner).map(|class| (page, class)))
}

/// Those of one class. Others cost next to nothing, as their entries are not looked at.
pub(crate) fn pages_in(owner: u32, class: u8, from: usize) -> impl Iterator<Item = Page> {
    let is_in = move |page: &Page| {
        page.class().load(Relaxed) == class.wrapping_add(LUA) && page.entry().owner.get() == owner
    };
    all(from).filter(is_in)
}

/// The pages that have entries.
fn all(from: usize) -> impl Iterator<Item = Page> {
    let numbers = move |chunk| from.max(chunk * CHUNK_PAGES)..(chunk + 1) * CHUNK_PAGES;
    paged(from / CHUNK_PAGES).flat_map(numbers).map(Page::at)
}

impl Page {
    /// The entry of a page that [`ensure`] was called for.
    #[inline]
    pub(crate) fn entry(self) -> &'static Entry {
        let at = map::base() + ENTRY_AT + self.index() * size_of::<Entry>();
        // SAFETY: mapped for ever, by the caller's word; tables begin at page boundaries, so it is aligned; all zeros
        // is an entry.
        unsafe { &*core::ptr::with_exposed_provenance(at) }
    }

    /// Its class, if it is a page of this heap and holds something.
    pub(crate) fn class_for(self, owner: u32) -> Option<u8> {
        let class = self.class().load(Relaxed).wrapping_sub(LUA);
        let is_its = (1..LUA).contains(&class) && self.entry().owner.get() == owner;
        is_its.then_some(class)
    }
}

impl Entry {
    /// A new page of `owner`: all its slots are free.
    pub(crate) fn begin(&self, class: &Class, owner: u32) {
        for (i, word) in self.free.iter().enumerate() {
            word.set(mask(0, (class.slots as usize).saturating_sub(i * 64)));
        }
        self.next.set(0);
        self.prev.set(0);
        self.count.set(class.slots as u16);
        self.flags.set(self.flags.get() & ALIASED);
        self.owner.set(owner);
    }

    #[inline]
    pub(crate) fn is(&self, flag: u8) -> bool {
        self.flags.get() & flag != 0
    }

    #[inline]
    pub(crate) fn set(&self, flag: u8, on: bool) {
        self.flags.set(if on { self.flags.get() | flag } else { self.flags.get() & !flag });
    }

    /// Sets when the next free is to be looked at: the first of a full page, one that leads to another bucket, the
    /// last; of a page in use or meshed the last only.
    pub(crate) fn set_due(&self, class: &Class) {
        let count = u32::from(self.count.get());
        let due = if self.is(CURRENT) {
            u32::from(u16::MAX)
        } else if self.is(MESHED) {
            class.slots
        } else if count == 0 {
            1
        } else {
            (count + 1..class.slots).find(|&n| class.bucket(n) != class.bucket(count)).unwrap_or(class.slots)
        };
        self.due.set(due as u16);
    }

    /// Takes the first word that has free slots: its number and bits.
    #[inline]
    pub(crate) fn take_word(&self) -> Option<(usize, u64)> {
        if self.count.get() == 0 {
            return None;
        }
        let (i, word) = self.free.iter().enumerate().find(|(_, word)| word.get() != 0)?;
        let bits = word.replace(0);
        self.count.set(self.count.get() - bits.count_ones() as u16);
        Some((i, bits))
    }

    /// Bits of the slots that are not free, for a page that nobody allocates from.
    pub(crate) fn live(&self, class: &Class) -> [u64; 4] {
        let mut live = [0; 4];
        for (i, (live, free)) in live.iter_mut().zip(&self.free).enumerate() {
            *live = !free.get() & mask(0, (class.slots as usize).saturating_sub(i * 64));
        }
        live
    }
}

/// The numbers of the slots whose bits are set.
pub(crate) fn slots(live: [u64; 4]) -> impl Iterator<Item = u32> {
    live.into_iter().enumerate().flat_map(|(i, mut rest)| {
        core::iter::from_fn(move || {
            let slot = (rest != 0).then(|| i as u32 * 64 + rest.trailing_zeros())?;
            rest &= rest - 1;
            Some(slot)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::class::CLASSES;

    #[test]
    fn one_line_for_each_page() {
        assert_eq!(size_of::<Entry>(), 64);
        assert_eq!(PER_CHUNK % crate::class::PAGE, 0);
        assert!(CLASSES <= LUA as usize);
    }

    #[test]
    fn slots_of_bits() {
        let live = [1 << 3 | 1 << 63, 0, 1, 1 << 5];
        assert!(slots(live).eq([3, 63, 128, 197]));
    }
}
