//! Freed large blocks, which wait here for some turns of the purge: a program that frees and takes large blocks in a
//! loop would otherwise pay for faulting in every page each time.
//!
//! What is kept is an [`Extent`]: mapped pages and the chunks that belong to them. Cutting one and joining two is
//! bookkeeping, no system call: a block takes the front of a longer extent, and grows into the one behind it, with all
//! the pages that are resident there.
//!
//! Invariants:
//! - a chunk that is taken, not cut into pages and not foreign belongs to one large block or to one extent;
//! - an extent owns the chunks that *begin* in it, and perhaps more behind it. One that begins inside a chunk begins
//!   where the large block ends that owns this chunk, and is unmapped under the lock as far as that chunk goes:
//!   whoever frees the block finds the chunk without it, or takes it along;
//! - the first page of an extent that is kept has class [`KEPT`] and the bytes in `record.bits`. That is for readers
//!   from outside and for checks.
//!
//! Lock order: purge pass, cache, then page heap.

use crate::bits::CHUNK_PAGES;
use crate::class::PAGE;
use crate::lock::Mutex;
use crate::map::{KEPT, Page};
use crate::pages::{TAKEN, pages};
use crate::stats::COUNT;
use crate::{purge, sys};
use core::sync::atomic::Ordering::Relaxed;

/// Extents kept.
const SLOTS: usize = 16;
/// Bytes kept, together.
const CACHE_BYTES: usize = 64 << 20;
/// Turns of the purge an extent waits.
const TURNS: u32 = 3;

/// Mapped pages of the range, outside of chunks that are cut into pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Its first page.
    pub(crate) page: Page,
    /// Its bytes, whole pages.
    pub(crate) len: usize,
    /// How many chunks are its own, from the first that begins in it.
    pub(crate) chunks: usize,
    turns: u32,
}

impl Extent {
    pub(crate) fn new(page: Page, len: usize, chunks: usize) -> Self {
        Self { page, len, chunks, turns: 0 }
    }

    /// The number of the page behind it, which may be beyond the range.
    pub(crate) fn end(&self) -> usize {
        self.page.index() + self.len / PAGE
    }

    /// The number of the first chunk that begins in it or behind it.
    fn first_chunk(&self) -> usize {
        self.page.index().div_ceil(CHUNK_PAGES)
    }

    /// The numbers of the chunks that are its own.
    pub(crate) fn own_chunks(&self) -> core::ops::Range<usize> {
        self.first_chunk()..self.first_chunk() + self.chunks
    }

    /// Bytes before the first chunk that begins in it.
    fn head(&self) -> usize {
        ((self.first_chunk() * CHUNK_PAGES - self.page.index()) * PAGE).min(self.len)
    }

    /// Cuts it after `len` bytes. Chunks behind the end go with the rest, if there is one.
    pub(crate) fn split(self, len: usize) -> (Self, Option<Self>) {
        if len >= self.len {
            return (self, None);
        }
        let page = self.page.plus(len / PAGE);
        let front = page.index().div_ceil(CHUNK_PAGES) - self.first_chunk();
        let rest = Self { page, len: self.len - len, chunks: self.chunks - front, ..self };
        (Self { len, chunks: front, ..self }, Some(rest))
    }

    /// Unmaps it and lets go of its chunks. For an extent in no cache; one that begins inside a chunk only under the
    /// lock or by the owner of the block before it.
    ///
    /// Where the process has as many mappings as it may (vm.max_map_count) and this would be cut out of one, the
    /// kernel refuses: then what it holds is given back, and it comes back itself.
    fn unmap(self) -> Result<(), Self> {
        // SAFETY: the pages were freed and are in no cache; their chunks are still taken, so nobody maps there.
        if self.len > 0 && unsafe { sys::unmap(self.page.address(), self.len) }.is_err() {
            // SAFETY: as above.
            let _ = unsafe { sys::give_back(self.page.address(), self.len) };
            return Err(Self { turns: 0, ..self });
        }
        let _lock = pages();
        self.own_chunks().for_each(|n| TAKEN.remove(n));
        Ok(())
    }

    /// Unmaps it, sooner or later.
    pub(crate) fn discard(self) {
        if let Err(refused) = self.unmap() {
            CACHE.lock().insert(refused);
        }
    }
}

#[derive(Debug)]
struct Cache {
    kept: [Option<Extent>; SLOTS],
    bytes: usize,
}

static CACHE: Mutex<Cache> = Mutex::new(Cache { kept: [None; SLOTS], bytes: 0 });

/// The cache's lock, for fork.
pub(crate) fn raw_lock() -> &'static crate::lock::Lock {
    CACHE.raw()
}

/// An extent that begins at a multiple of `align` chunks: at least `len` bytes, the tightest there is, cut where more
/// than a quarter would be wasted; else, if alignment is none, the longest, to be grown.
pub(crate) fn take(len: usize, align: usize) -> Option<Extent> {
    let mut cache = CACHE.lock();
    let has_room = cache.kept.iter().any(Option::is_none);
    let cost = |e: &Extent| {
        let (head, len_there) = (e.head(), e.len - e.head());
        let usable = e.chunks > 0
            && (head == 0 || has_room)
            && e.first_chunk().is_multiple_of(align)
            && (len_there >= len || align == 1 && head == 0);
        usable.then(|| (len_there < len, len_there.abs_diff(len)))
    };
    let (_, extent) = cache.kept.iter().flatten().filter_map(|e| Some((cost(e)?, *e))).min_by_key(|c| c.0)?;
    cache.remove(extent);
    let body = match extent.head() {
        0 => extent,
        head => {
            let (head, body) = extent.split(head);
            cache.insert(head);
            body?
        }
    };
    if body.len <= len + len / 4 {
        return Some(body);
    }
    let (front, rest) = body.split(len);
    rest.into_iter().for_each(|rest| cache.insert(rest));
    Some(front)
}

/// What is kept from page number `at` on, up to `most` bytes of it.
pub(crate) fn take_at(at: usize, most: usize) -> Option<Extent> {
    let mut cache = CACHE.lock();
    let extent = cache.find_at(at)?;
    cache.remove(extent);
    let (front, rest) = extent.split(most);
    rest.into_iter().for_each(|rest| cache.insert(rest));
    Some(front)
}

/// Takes what nobody uses any more: keeps it, together with what is kept right behind it, or unmaps both.
pub(crate) fn give(mut extent: Extent) {
    let mut cache = CACHE.lock();
    let small = extent.len <= CACHE_BYTES / 2;
    while let Some(behind) = cache.find_at(extent.end()) {
        cache.remove(behind);
        extent.len += behind.len;
        extent.chunks += behind.chunks;
    }
    if small && cache.bytes + extent.len <= CACHE_BYTES && cache.kept.iter().any(Option::is_none) {
        cache.insert(extent);
        return;
    }
    drop(cache);
    extent.discard();
}

impl Cache {
    fn find_at(&self, page: usize) -> Option<Extent> {
        self.kept.iter().flatten().find(|e| e.page.index() == page).copied()
    }

    /// Puts an extent into a free slot. Without one its addresses are lost for good, and what it may hold.
    fn insert(&mut self, extent: Extent) {
        if let Some(slot) = self.kept.iter_mut().find(|k| k.is_none()) {
            *slot = Some(extent);
            extent.page.record().bits.store(extent.len as u64, Relaxed);
            extent.page.class().store(KEPT, Relaxed);
            self.bytes += extent.len;
            COUNT.cached.add_shared(extent.len as u64);
        }
    }

    fn remove(&mut self, extent: Extent) {
        if let Some(slot) = self.kept.iter_mut().find(|k| **k == Some(extent)) {
            *slot = None;
            extent.page.class().store(0, Relaxed);
            self.bytes -= extent.len;
            COUNT.cached.sub_shared(extent.len as u64);
        }
    }
}

/// Unmaps what has waited `turns` turns or more (0: everything). Whether there was any.
pub(crate) fn give_back(turns: u32) -> bool {
    let mut any = false;
    for slot in 0..SLOTS {
        // fork waits for it: a child begins with no extent on its way out.
        let _pass = purge::hold();
        let mut cache = CACHE.lock();
        // What is refused comes back, into this slot or one before it.
        let kept = cache.kept.get(slot).copied().flatten();
        let Some(extent) = kept.filter(|e| e.turns >= turns) else { continue };
        cache.remove(extent);
        let (head, body) = extent.split(extent.head());
        if let Err(head) = head.unmap() {
            cache.insert(head);
        }
        drop(cache);
        if let Some(body) = body {
            body.discard();
        }
        any = true;
    }
    any
}

/// One turn of the purge: ages what is kept and unmaps what is due.
pub(crate) fn turn() {
    CACHE.lock().kept.iter_mut().flatten().for_each(|e| e.turns += 1);
    give_back(TURNS);
}

/// Calls `f` with everything that is kept, under the lock: for invariant checks.
pub(crate) fn each(f: impl FnMut(Extent)) {
    CACHE.lock().kept.iter().flatten().copied().for_each(f);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::map::{self, CHUNK};

    /// Pages of the range, as far as its tables go.
    fn page(n: usize) -> Page {
        assert!(map::init().is_ok() && map::extend(8).is_ok());
        Page::at(n)
    }

    #[test]
    fn chunks_go_with_the_part_they_begin_in() {
        // Two and a half chunks mapped, and one more behind it.
        let whole = Extent::new(page(0), CHUNK * 5 / 2, 4);
        assert_eq!(whole.split(whole.len), (whole, None));
        let cut = |len| {
            let (front, rest) = whole.split(len);
            rest.map(|rest| (front.chunks, rest.chunks, rest.head(), rest.first_chunk()))
        };
        assert_eq!(cut(0), Some((0, 4, 0, 0)));
        assert_eq!(cut(PAGE), Some((1, 3, CHUNK - PAGE, 1)));
        assert_eq!(cut(CHUNK - PAGE), Some((1, 3, PAGE, 1)));
        assert_eq!(cut(CHUNK), Some((1, 3, 0, 1)));
        assert_eq!(cut(CHUNK * 2 + PAGE), Some((3, 1, CHUNK / 2 - PAGE, 3)), "the head ends with the extent");
    }

    #[test]
    fn parts_join_to_the_whole() {
        let whole = Extent::new(page(CHUNK_PAGES), CHUNK * 2 + 5 * PAGE, 3);
        for pages in 1..whole.len / PAGE {
            let (front, rest) = whole.split(pages * PAGE);
            let rest = rest.unwrap_or(Extent::new(whole.page, 0, 0));
            assert_eq!(front.end(), rest.page.index());
            assert_eq!((front.len + rest.len, front.chunks + rest.chunks), (whole.len, whole.chunks));
            assert_eq!(front.first_chunk() + front.chunks, rest.first_chunk(), "no chunk between them");
        }
    }
}
