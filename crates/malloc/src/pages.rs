//! The page heap: gives out spans and runs of pages, takes them back, and knows which of its free pages are
//! resident.
//!
//! Placement: a free page that is resident comes before one that would have to be faulted in, the lowest address
//! before higher ones; so pages that were given back stay so until nothing else is left, and the pages that a
//! busy program uses again and again are the low ones.
//!
//! Invariants, under the lock: `fresh` and `stale` are disjoint parts of `free`; `purged` is a part of `free`
//! disjoint from both; a chunk is in `AVAILABLE` if it has a free page and in `DIRTY` if it has a dirty one; a
//! chunk in neither `PAGED` nor a large block's reach, and not foreign, is not in `TAKEN`.

use crate::bits::{Bits, CHUNK_PAGES};
use crate::chunkset::ChunkSet;
use crate::lock::{Guard, Mutex};
use crate::map::{self, CHUNK, Chunk, Page};
use crate::stats::COUNT;
use crate::sys::{self, Errno, Use};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Chunks that are in use, for pages or large blocks, or occupied by somebody else's mapping.
pub(crate) static TAKEN: ChunkSet = ChunkSet::new();
/// Chunks cut into pages.
pub(crate) static PAGED: ChunkSet = ChunkSet::new();
static AVAILABLE: ChunkSet = ChunkSet::new();
static DIRTY: ChunkSet = ChunkSet::new();

/// How many chunks with resident free pages are searched for a resident run before any free run will do.
const DIRTY_TRIES: usize = 4;
/// How many places occupied by others are passed over before giving up.
const FOREIGN_TRIES: usize = 64;

static HEAP: Mutex<PageHeap> = Mutex::new(PageHeap(()));

/// The page heap; reached only under its lock.
#[derive(Debug)]
pub(crate) struct PageHeap(());

/// Locks the page heap.
pub(crate) fn pages() -> Guard<'static, PageHeap> {
    HEAP.lock()
}

/// The lock itself, for fork.
pub(crate) fn raw_lock() -> &'static crate::lock::Lock {
    HEAP.raw()
}

/// The chunks cut into pages, from `from` on; the lock is held for each step only.
pub(crate) fn paged(from: usize) -> impl Iterator<Item = usize> {
    let mut at = from;
    core::iter::from_fn(move || {
        let _lock = pages();
        let n = PAGED.next(at).filter(|n| (n + 1) * CHUNK_PAGES <= map::limit())?;
        at = n + 1;
        Some(n)
    })
}

/// A run of pages and whether it is known to read as zeros.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    /// The first page.
    pub(crate) page: Page,
    /// All its bytes are zero.
    pub(crate) zero: bool,
}

fn add(counter: &AtomicU32, n: u32) {
    counter.store(counter.load(Relaxed) + n, Relaxed);
}

fn sub(counter: &AtomicU32, n: u32) {
    counter.store(counter.load(Relaxed) - n, Relaxed);
}

impl PageHeap {
    /// Takes spans of `pages` pages each; how many went into `out`. Fewer than asked only if memory ran out.
    pub(crate) fn spans(&mut self, pages: usize, out: &mut [u32]) -> usize {
        let mut got = 0;
        while got < out.len() {
            let Some(rest) = out.get_mut(got..) else { break };
            let n = if pages == 1 {
                self.singles(rest)
            } else if let (Some(run), Some(slot)) = (self.run(pages, 1), rest.first_mut()) {
                *slot = run.page.index() as u32;
                1
            } else {
                0
            };
            if n == 0 {
                break;
            }
            got += n;
        }
        got
    }

    /// Takes single pages out of one chunk: resident ones first, the lowest first.
    fn singles(&mut self, out: &mut [u32]) -> usize {
        let Some(n) = DIRTY.first().or_else(|| AVAILABLE.first()).or_else(|| self.grow().ok()) else {
            return 0;
        };
        let chunk = Chunk::at(n);
        let dirty = chunk.ndirty.load(Relaxed) > 0;
        let mut got = 0;
        for w in 0..CHUNK_PAGES / 64 {
            let mut set = chunk.free.word(w);
            if dirty {
                set &= chunk.fresh.word(w) | chunk.stale.word(w);
            }
            while set != 0 && got < out.len() {
                let first = set.trailing_zeros() as usize;
                let run = ((set >> first).trailing_ones() as usize).min(out.len() - got);
                self.take(n, w * 64 + first, run);
                for (i, slot) in out.iter_mut().skip(got).take(run).enumerate() {
                    *slot = (n * CHUNK_PAGES + w * 64 + first + i) as u32;
                }
                got += run;
                set &= !(if run == 64 { u64::MAX } else { ((1 << run) - 1) << first });
            }
        }
        got
    }

    /// Takes a run of `count` pages (up to a chunk) whose first is a multiple of `align` pages.
    pub(crate) fn run(&mut self, count: usize, align: usize) -> Option<Run> {
        let found = self.find_dirty(count, align).or_else(|| self.find_free(count, align));
        let (n, first) = match found {
            Some(found) => found,
            None => (self.grow().ok()?, 0),
        };
        let zero = self.take(n, first, count);
        Some(Run { page: Page::at(n * CHUNK_PAGES + first), zero })
    }

    fn find_dirty(&self, count: usize, align: usize) -> Option<(usize, usize)> {
        let mut at = DIRTY.first()?;
        for _ in 0..DIRTY_TRIES {
            let chunk = Chunk::at(at);
            if chunk.ndirty.load(Relaxed) as usize >= count {
                let dirty = Bits::default();
                (0..CHUNK_PAGES / 64)
                    .for_each(|w| dirty.set_word(w, chunk.fresh.word(w) | chunk.stale.word(w)));
                if let Ok(first) = dirty.find(count, align) {
                    return Some((at, first));
                }
            }
            at = DIRTY.next(at + 1)?;
        }
        None
    }

    fn find_free(&self, count: usize, align: usize) -> Option<(usize, usize)> {
        let mut at = AVAILABLE.first()?;
        loop {
            let chunk = Chunk::at(at);
            if chunk.longest.load(Relaxed) as usize >= count {
                match chunk.free.find(count, align) {
                    Ok(first) => return Some((at, first)),
                    Err(longest) if align == 1 => chunk.longest.store(longest as u32, Relaxed),
                    Err(_) => {}
                }
            }
            at = AVAILABLE.next(at + 1)?;
        }
    }

    /// Marks free pages as used; whether all of them read as zeros.
    fn take(&mut self, n: usize, first: usize, count: usize) -> bool {
        let chunk = Chunk::at(n);
        chunk.free.clear(first, count);
        sub(&chunk.nfree, count as u32);
        if chunk.nfree.load(Relaxed) == 0 {
            AVAILABLE.remove(n);
        }
        let refaults = chunk.purged.clear(first, count);
        COUNT.refaulted.add(u64::from(refaults));
        COUNT.taken.add(count as u64);
        self.forget_dirty(n, first, count) == 0
    }

    fn forget_dirty(&mut self, n: usize, first: usize, count: usize) -> u32 {
        let chunk = Chunk::at(n);
        if chunk.ndirty.load(Relaxed) == 0 {
            return 0;
        }
        let dirty = chunk.fresh.clear(first, count) + chunk.stale.clear(first, count);
        sub(&chunk.ndirty, dirty);
        if chunk.ndirty.load(Relaxed) == 0 {
            DIRTY.remove(n);
        }
        COUNT.dirty.sub(u64::from(dirty));
        dirty
    }

    /// Takes pages back. They may hold anything, so they are dirty until purged; `old` ones at the next turn.
    pub(crate) fn give(&mut self, page: Page, count: usize, old: bool) {
        let (n, first) = (page.index() / CHUNK_PAGES, page.index() % CHUNK_PAGES);
        let chunk = Chunk::at(n);
        if old { &chunk.stale } else { &chunk.fresh }.set(first, count);
        add(&chunk.ndirty, count as u32);
        DIRTY.insert(n);
        COUNT.dirty.add(count as u64);
        self.set_free(n, first, count);
    }

    fn set_free(&mut self, n: usize, first: usize, count: usize) {
        let chunk = Chunk::at(n);
        chunk.free.set(first, count);
        add(&chunk.nfree, count as u32);
        chunk.longest.store(chunk.nfree.load(Relaxed), Relaxed);
        AVAILABLE.insert(n);
    }

    /// Makes a run of `old` pages at `page` one of `new` pages, if the pages behind it are free.
    pub(crate) fn extend(&mut self, page: Page, old: usize, new: usize) -> bool {
        let (n, first) = (page.index() / CHUNK_PAGES, page.index() % CHUNK_PAGES);
        if first + new > CHUNK_PAGES || Chunk::at(n).free.run_from(first + old) < new - old {
            return false;
        }
        self.take(n, first + old, new - old);
        true
    }

    /// Gets a chunk from the kernel and cuts it into pages.
    fn grow(&mut self) -> Result<usize, Errno> {
        let n = self.place(1, 1, CHUNK, Use::Data)?;
        let at = map::base() + n * CHUNK;
        sys::no_huge_pages(at, CHUNK);
        sys::name_mapping(at, CHUNK, c"ebbtide heap");
        PAGED.insert(n);
        COUNT.mapped.add(CHUNK_PAGES as u64);
        self.set_free(n, 0, CHUNK_PAGES);
        Ok(n)
    }

    /// Finds `count` chunks nobody uses, takes them, and maps the first `len` bytes there.
    pub(crate) fn place(
        &mut self,
        count: usize,
        align: usize,
        len: usize,
        purpose: Use,
    ) -> Result<usize, Errno> {
        map::init()?;
        for _ in 0..FOREIGN_TRIES {
            let n = TAKEN.gap(count, align).ok_or(Errno(12))?;
            map::extend(n + count)?;
            match sys::map_at(map::base() + n * CHUNK, len, purpose) {
                Ok(()) => {
                    (n..n + count).for_each(|i| TAKEN.insert(i));
                    return Ok(n);
                }
                // Somebody else's mapping: pass over its first chunk for good.
                Err(Errno(17)) => TAKEN.insert(self.foreign(n, count)),
                Err(e) => return Err(e),
            }
        }
        Err(Errno(12))
    }

    /// The first of these chunks that something foreign occupies.
    fn foreign(&self, n: usize, count: usize) -> usize {
        let free = |i: usize| {
            let at = map::base() + i * CHUNK;
            let free = sys::map_at(at, CHUNK, Use::Place).is_ok();
            if free {
                // SAFETY: mapped on the line above, used by nobody.
                let _ = unsafe { sys::unmap(at, CHUNK) };
            }
            free
        };
        (n..n + count).find(|&i| !free(i)).unwrap_or(n)
    }

    /// Ages the resident free pages: what was fresh becomes stale.
    pub(crate) fn age(&mut self) {
        let mut at = DIRTY.first();
        while let Some(n) = at {
            let chunk = Chunk::at(n);
            for w in 0..CHUNK_PAGES / 64 {
                chunk.stale.set_word(w, chunk.stale.word(w) | chunk.fresh.word(w));
                chunk.fresh.set_word(w, 0);
            }
            at = DIRTY.next(n + 1);
        }
    }

    /// Claims runs of resident free pages for giving back, the highest chunk below `end` first: nobody else can
    /// take them until [`PageHeap::purged`]. Fills `claims` and says how many and below which chunk to go on;
    /// leaves at least `keep` resident pages.
    pub(crate) fn claim(
        &mut self,
        all: bool,
        keep: u64,
        end: usize,
        claims: &mut [(u32, u32)],
    ) -> (usize, usize) {
        let (mut got, mut end) = (0, end);
        while got < claims.len() && COUNT.dirty.get() > keep {
            let Some(n) = DIRTY.last_before(end) else { return (got, 0) };
            let surplus = (COUNT.dirty.get() - keep) as usize;
            match self.claim_in(n, all, surplus) {
                Some(claim) => {
                    if let Some(slot) = claims.get_mut(got) {
                        *slot = claim;
                    }
                    got += 1;
                }
                None => end = n,
            }
        }
        (got, end)
    }

    /// Claims the first run of one chunk. Free pages that are not resident are no end of a run: giving them back
    /// again costs less than another call.
    fn claim_in(&mut self, n: usize, all: bool, surplus: usize) -> Option<(u32, u32)> {
        let chunk = Chunk::at(n);
        let wanted = Bits::default();
        for w in 0..CHUNK_PAGES / 64 {
            wanted.set_word(w, chunk.stale.word(w) | if all { chunk.fresh.word(w) } else { 0 });
        }
        let first = wanted.next(0)?;
        let (mut end, mut count) = (first, 0);
        loop {
            let run = wanted.run_from(end).min(surplus - count);
            chunk.purged.set(end, run);
            (end, count) = (end + run, count + run);
            let Some(next) = wanted.next(end).filter(|_| count < surplus) else { break };
            let clean = chunk.free.run_from(end) >= next - end
                && chunk.fresh.count(end, next - end) + chunk.stale.count(end, next - end) == 0;
            if !clean {
                break;
            }
            end = next;
        }
        let length = end - first;
        chunk.free.clear(first, length);
        sub(&chunk.nfree, length as u32);
        if chunk.nfree.load(Relaxed) == 0 {
            AVAILABLE.remove(n);
        }
        self.forget_dirty(n, first, length);
        COUNT.purged.add(count as u64);
        Some(((n * CHUNK_PAGES + first) as u32, length as u32))
    }

    /// Ends a claim: the pages are free again and read as zeros.
    pub(crate) fn purged(&mut self, claim: (u32, u32)) {
        let page = claim.0 as usize;
        self.set_free(page / CHUNK_PAGES, page % CHUNK_PAGES, claim.1 as usize);
    }

    /// Ends a claim that the kernel refused: the pages are free and as dirty as before.
    pub(crate) fn unpurged(&mut self, claim: (u32, u32)) {
        let (page, count) = (Page::at(claim.0 as usize), claim.1 as usize);
        let (n, first) = (page.index() / CHUNK_PAGES, page.index() % CHUNK_PAGES);
        Chunk::at(n).purged.clear(first, count);
        self.give(page, count, false);
    }

    /// Unmaps one chunk that is wholly free and holds nothing resident; false when there is none.
    pub(crate) fn shrink(&mut self, end: usize) -> Option<usize> {
        let mut end = end;
        while let Some(n) = AVAILABLE.last_before(end) {
            let chunk = Chunk::at(n);
            if chunk.nfree.load(Relaxed) as usize == CHUNK_PAGES && chunk.ndirty.load(Relaxed) == 0 {
                // SAFETY: no page of the chunk is used, and under the lock none can be taken.
                if unsafe { sys::unmap(map::base() + n * CHUNK, CHUNK) }.is_ok() {
                    self.forget_chunk(n);
                    map::forget(n);
                    return Some(n);
                }
            }
            end = n;
        }
        None
    }

    fn forget_chunk(&mut self, n: usize) {
        let chunk = Chunk::at(n);
        chunk.free.clear(0, CHUNK_PAGES);
        chunk.purged.clear(0, CHUNK_PAGES);
        chunk.nfree.store(0, Relaxed);
        chunk.longest.store(0, Relaxed);
        AVAILABLE.remove(n);
        PAGED.remove(n);
        TAKEN.remove(n);
        COUNT.mapped.sub(CHUNK_PAGES as u64);
    }
}
