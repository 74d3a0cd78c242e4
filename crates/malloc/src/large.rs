//! Large blocks: more than half a chunk, or aligned to more than a chunk's half. Each has chunks of the range to
//! itself and is mapped to the page, so growing is `mremap`, which moves page tables and not bytes (64 to
//! 128 MB in 60 us, a copy takes 56 ms), and freeing gives everything back at once.
//!
//! A few freed blocks wait in a cache for one or two turns of the purge: a program that frees and takes the same
//! size in a loop would otherwise pay for faulting in every page each time.
//!
//! Invariants: a large block's first page has class [`LARGE`] and its mapped bytes in `record.bits`; its first
//! chunk's `held` says how many chunks are its own, mapped or not. A cached block has class [`KEPT`], which is
//! for readers from outside; nothing here asks for it.
//! Lock order: cache, then page heap.

use crate::bits::CHUNK_PAGES;
use crate::class::PAGE;
use crate::lock::Mutex;
use crate::map::{self, CHUNK, Chunk, KEPT, LARGE, Page};
use crate::pages::{TAKEN, pages};
use crate::purge;
use crate::stats::COUNT;
use crate::sys::{self, Use};
use core::sync::atomic::Ordering::Relaxed;

/// Freed blocks kept.
const SLOTS: usize = 16;
/// Bytes of freed blocks kept, together.
const CACHE_BYTES: usize = 64 << 20;
/// Turns of the purge a freed block waits.
const TURNS: u32 = 3;

#[derive(Debug, Clone, Copy)]
struct Kept {
    page: u32,
    len: usize,
    turns: u32,
}

#[derive(Debug)]
struct Cache {
    kept: [Option<Kept>; SLOTS],
    bytes: usize,
}

static CACHE: Mutex<Cache> = Mutex::new(Cache { kept: [None; SLOTS], bytes: 0 });

/// The cache's lock, for fork.
pub(crate) fn raw_lock() -> &'static crate::lock::Lock {
    CACHE.raw()
}

fn bytes(page: Page) -> usize {
    page.record().bits.load(Relaxed) as usize
}

fn chunks(len: usize) -> usize {
    len.div_ceil(CHUNK)
}

/// A block of at least `size` bytes at a multiple of `align` and whether it reads as zeros. With `fresh` it does:
/// wiping a kept block would make all of it resident, and who asks for zeros may touch little.
pub(crate) fn alloc(size: usize, align: usize, fresh: bool) -> Option<(usize, bool)> {
    if size > map::RANGE / 2 || align > map::RANGE / 4 {
        return None;
    }
    let len = size.max(1).next_multiple_of(PAGE);
    let align = align.div_ceil(CHUNK);
    if !fresh && let Some(page) = take_kept(len, align) {
        COUNT.large.add_shared(bytes(page) as u64);
        if fits(bytes(page), len) {
            page.class().store(LARGE, Relaxed);
            return Some((page.address(), false));
        }
        if let Some(addr) = resize(page, len) {
            Page::of(addr)?.class().store(LARGE, Relaxed);
            return Some((addr, false));
        }
        free(page);
    }
    let page = map_new(len, align).or_else(|| purge::everything().then(|| map_new(len, align)).flatten())?;
    COUNT.large.add_shared(bytes(page) as u64);
    page.class().store(LARGE, Relaxed);
    Some((page.address(), true))
}

/// Whether a block may serve as it is: at most a quarter would be wasted.
fn fits(have: usize, len: usize) -> bool {
    have >= len && have <= len + len / 4
}

fn map_new(len: usize, align: usize) -> Option<Page> {
    let count = chunks(len);
    let n = pages().place(count, align, len, Use::Data).ok()?;
    let page = Page::at(n * CHUNK_PAGES);
    page.record().bits.store(len as u64, Relaxed);
    Chunk::at(n).held.store(count as u32, Relaxed);
    Some(page)
}

/// The tightest kept block that may serve as it is, else the one nearest in size, to be cut or grown, which
/// moves page tables and keeps what is resident.
fn take_kept(len: usize, align: usize) -> Option<Page> {
    let mut cache = CACHE.lock();
    let cost = |k: &Kept| match fits(k.len, len) {
        true => Some((false, k.len)),
        false if align <= 1 && k.len <= len * 2 => Some((true, k.len.abs_diff(len))),
        false => None,
    };
    let aligned = |k: &Kept| (k.page as usize / CHUNK_PAGES).is_multiple_of(align.max(1));
    let best = cache
        .kept
        .iter_mut()
        .filter_map(|slot| {
            let cost = slot.as_ref().filter(|k| aligned(k)).and_then(cost)?;
            Some((cost, slot))
        })
        .min_by_key(|(cost, _)| *cost)?;
    let kept = best.1.take()?;
    cache.bytes -= kept.len;
    Some(kept.leave())
}

impl Kept {
    /// The block leaves the cache.
    fn leave(self) -> Page {
        COUNT.cached.sub_shared(self.len as u64);
        let page = Page::at(self.page as usize);
        page.class().store(0, Relaxed);
        page
    }
}

/// Frees a block; its page's class must have been [`LARGE`] and have been set to 0 by the caller.
pub(crate) fn free(page: Page) {
    let len = bytes(page);
    COUNT.large.sub_shared(len as u64);
    if len > CACHE_BYTES / 2 || !keep(page, len) {
        discard(page, len);
    }
}

fn keep(page: Page, len: usize) -> bool {
    let mut cache = CACHE.lock();
    if cache.bytes + len > CACHE_BYTES {
        return false;
    }
    let Some(slot) = cache.kept.iter_mut().find(|k| k.is_none()) else { return false };
    *slot = Some(Kept { page: page.index() as u32, len, turns: 0 });
    page.class().store(KEPT, Relaxed);
    cache.bytes += len;
    COUNT.cached.add_shared(len as u64);
    true
}

fn discard(page: Page, len: usize) {
    let n = page.index() / CHUNK_PAGES;
    let held = Chunk::at(n).held.load(Relaxed) as usize;
    // SAFETY: the block was freed and is in no cache; its chunks are still taken, so nobody maps there.
    if unsafe { sys::unmap(page.address(), len) }.is_ok() {
        let _lock = pages();
        (n..n + held).for_each(|i| TAKEN.remove(i));
    }
}

/// One turn of the purge: unmaps what has waited `turns` turns or more (0: everything). Whether there was any.
pub(crate) fn give_back(turns: u32) -> bool {
    let mut any = false;
    loop {
        let due = {
            let mut cache = CACHE.lock();
            let due =
                cache.kept.iter_mut().find(|k| k.is_some_and(|k| k.turns >= turns)).and_then(Option::take);
            due.map(|kept| {
                cache.bytes -= kept.len;
                (kept.leave(), kept.len)
            })
        };
        let Some((page, len)) = due else { return any };
        discard(page, len);
        any = true;
    }
}

/// Ages what is kept by one turn and unmaps what is due.
pub(crate) fn turn() {
    CACHE.lock().kept.iter_mut().flatten().for_each(|k| k.turns += 1);
    give_back(TURNS);
}

/// Makes a block at least `size` bytes long, or shorter, without copying: where it now begins. `None` if the
/// kernel will not; the block is then as it was.
pub(crate) fn resize(page: Page, size: usize) -> Option<usize> {
    if size > map::RANGE / 2 {
        return None;
    }
    let (old, new) = (bytes(page), size.next_multiple_of(PAGE));
    let n = page.index() / CHUNK_PAGES;
    if new > old && !reach(n, chunks(new)) {
        return relocate(page, old, new);
    }
    // SAFETY: the mapping is this block's; a part that is cut off is beyond what the program keeps.
    if unsafe { sys::remap_in_place(page.address(), old, new) }.is_err() {
        return if new > old { relocate(page, old, new) } else { None };
    }
    page.record().bits.store(new as u64, Relaxed);
    COUNT.large.add_shared(new as u64);
    COUNT.large.sub_shared(old as u64);
    Some(page.address())
}

/// Makes the block that begins at chunk `n` hold `count` chunks, if those behind it are free.
fn reach(n: usize, count: usize) -> bool {
    let held = Chunk::at(n).held.load(Relaxed) as usize;
    if count <= held {
        return true;
    }
    let _lock = pages();
    let free = n + count <= map::CHUNKS && TAKEN.next(n + held).is_none_or(|used| used >= n + count);
    if !free || map::extend(n + count).is_err() {
        return false;
    }
    (n + held..n + count).for_each(|i| TAKEN.insert(i));
    Chunk::at(n).held.store(count as u32, Relaxed);
    true
}

/// Moves a block's pages to where there is room for half as much again.
fn relocate(page: Page, old: usize, new: usize) -> Option<usize> {
    let count = chunks(new);
    let room = count + count / 2;
    let n = pages().place(room, 1, new, Use::Place).ok()?;
    let to = Page::at(n * CHUNK_PAGES);
    // SAFETY: the destination was mapped above for this, the source is the block's own mapping.
    if unsafe { sys::remap_to(page.address(), old, new, to.address()) }.is_err() {
        Chunk::at(n).held.store(room as u32, Relaxed);
        discard(to, new);
        return None;
    }
    to.record().bits.store(new as u64, Relaxed);
    Chunk::at(n).held.store(room as u32, Relaxed);
    to.class().store(LARGE, Relaxed);
    page.class().store(0, Relaxed);
    COUNT.large.add_shared(new as u64);
    COUNT.large.sub_shared(old as u64);
    let from = page.index() / CHUNK_PAGES;
    let held = Chunk::at(from).held.load(Relaxed) as usize;
    let _lock = pages();
    (from..from + held).for_each(|i| TAKEN.remove(i));
    Some(to.address())
}

/// The bytes a block can hold.
pub(crate) fn usable(page: Page) -> usize {
    bytes(page)
}
