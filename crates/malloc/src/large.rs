//! Large blocks: more than half a chunk, or aligned to more than a chunk's half. Each has chunks of the range to
//! itself and is mapped to the page, so growing is `mremap`, which moves page tables and not bytes (64 to
//! 128 MB in 60 us, a copy takes 56 ms). What is freed waits a little in `kept`.
//!
//! Invariants: a large block's first page has class [`LARGE`] and its mapped bytes in `record.bits`; its first
//! chunk's `held` says how many chunks are its own, mapped or not. Both are its owner's to change.

use crate::bits::CHUNK_PAGES;
use crate::class::PAGE;
use crate::kept::{self, Extent};
use crate::map::{self, CHUNK, Chunk, LARGE, Page};
use crate::pages::{TAKEN, pages};
use crate::purge;
use crate::stats::COUNT;
use crate::sys::{self, Use};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The bytes a block can hold.
pub(crate) fn bytes(page: Page) -> usize {
    page.record().bits.load(Relaxed) as usize
}

fn set_bytes(page: Page, len: usize) {
    COUNT.large.add_shared(len as u64);
    COUNT.large.sub_shared(bytes(page) as u64);
    page.record().bits.store(len as u64, Relaxed);
}

fn held(page: Page) -> &'static AtomicU32 {
    &Chunk::at(page.index() / CHUNK_PAGES).held
}

fn chunks(len: usize) -> usize {
    len.div_ceil(CHUNK)
}

/// Makes mapped pages a block.
fn begin(extent: Extent) -> Page {
    held(extent.page).store(extent.chunks as u32, Relaxed);
    extent.page.record().bits.store(extent.len as u64, Relaxed);
    COUNT.large.add_shared(extent.len as u64);
    extent.page.class().store(LARGE, Relaxed);
    extent.page
}

/// Ends a block, whose first page's class is somebody else's to change.
fn end(page: Page) -> Extent {
    COUNT.large.sub_shared(bytes(page) as u64);
    Extent::new(page, bytes(page), held(page).load(Relaxed) as usize)
}

/// A block of at least `size` bytes at a multiple of `align` and whether it reads as zeros. With `fresh` it does:
/// wiping what was kept would make all of it resident, and who asks for zeros may touch little.
pub(crate) fn alloc(size: usize, align: usize, fresh: bool) -> Option<(usize, bool)> {
    if size > map::RANGE / 2 || align > map::RANGE / 4 {
        return None;
    }
    let (len, align) = (size.max(1).next_multiple_of(PAGE), align.div_ceil(CHUNK));
    if !fresh && let Some(extent) = kept::take(len, align) {
        let page = begin(extent);
        if extent.len >= len {
            return Some((page.address(), false));
        }
        if let Some(addr) = resize(page, len) {
            return Some((addr, false));
        }
        page.class().store(0, Relaxed);
        free(page);
    }
    let extent =
        map_new(len, align).or_else(|| purge::everything().then(|| map_new(len, align)).flatten())?;
    Some((begin(extent).address(), true))
}

fn map_new(len: usize, align: usize) -> Option<Extent> {
    let n = pages().place(chunks(len), align, len, Use::Data).ok()?;
    Some(Extent::new(Page::at(n * CHUNK_PAGES), len, chunks(len)))
}

/// Frees a block; its page's class must have been [`LARGE`] and have been set to 0 by the caller.
pub(crate) fn free(page: Page) {
    kept::give(end(page));
}

/// Makes a block at least `size` bytes long, or shorter, without copying: where it now begins. `None` if the
/// kernel will not; the block is then as long as it was, or longer.
pub(crate) fn resize(page: Page, size: usize) -> Option<usize> {
    if size > map::RANGE / 2 {
        return None;
    }
    let len = size.next_multiple_of(PAGE);
    if len < bytes(page) {
        shrink(page, len);
    } else if !grow(page, len) {
        return relocate(page, len);
    }
    Some(page.address())
}

fn shrink(page: Page, len: usize) {
    let whole = Extent::new(page, bytes(page), held(page).load(Relaxed) as usize);
    if let (front, Some(rest)) = whole.split(len) {
        held(page).store(front.chunks as u32, Relaxed);
        set_bytes(page, len);
        kept::give(rest);
    }
}

/// Makes a block `len` bytes long where it is, by what is kept behind it and by what is free there; whether that
/// was enough. It may have become longer if not.
fn grow(page: Page, len: usize) -> bool {
    while bytes(page) < len {
        let have = bytes(page);
        let own = held(page).load(Relaxed) as usize;
        if let Some(behind) = kept::take_at(page.index() + have / PAGE, len - have) {
            held(page).store((own + behind.chunks) as u32, Relaxed);
            set_bytes(page, have + behind.len);
            continue;
        }
        // Where something is kept behind the own chunks, no more can be had, but they may be filled up to it.
        let reached = len <= own * CHUNK || reach(page, chunks(len));
        let to = if reached { len } else { own * CHUNK };
        if to == have || !extend(page, to) {
            return false;
        }
    }
    true
}

/// Makes a block hold `count` chunks, if those behind it are free.
fn reach(page: Page, count: usize) -> bool {
    let (n, own) = (page.index() / CHUNK_PAGES, held(page).load(Relaxed) as usize);
    let _lock = pages();
    let free = n + count <= map::CHUNKS && TAKEN.next(n + own).is_none_or(|used| used >= n + count);
    if !free || map::extend(n + count).is_err() {
        return false;
    }
    (n + own..n + count).for_each(|i| TAKEN.insert(i));
    held(page).store(count as u32, Relaxed);
    true
}

/// Maps what follows a block, up to `len` bytes of it, within its own chunks.
fn extend(page: Page, len: usize) -> bool {
    let have = bytes(page);
    // The last page's mapping is made longer: a block may lie in several, which cannot be resized together.
    let last = page.address() + have - PAGE;
    // SAFETY: the page is this block's; without leave to move, nothing is mapped over.
    let done = unsafe { sys::remap_in_place(last, PAGE, PAGE + len - have) }.is_ok();
    if done {
        set_bytes(page, len);
    }
    done
}

/// Moves a block's pages to where there is room for half as much again.
fn relocate(page: Page, len: usize) -> Option<usize> {
    let room = chunks(len) + chunks(len) / 2;
    let n = pages().place(room, 1, len, Use::Place).ok()?;
    let to = Extent::new(Page::at(n * CHUNK_PAGES), len, room);
    // SAFETY: the destination was mapped above for this, the source is the block's own mapping.
    if unsafe { sys::remap_to(page.address(), bytes(page), len, to.page.address()) }.is_err() {
        to.discard();
        return None;
    }
    page.class().store(0, Relaxed);
    let left = end(page);
    begin(to);
    let _lock = pages();
    let from = page.index() / CHUNK_PAGES;
    (from..from + left.chunks).for_each(|i| TAKEN.remove(i));
    Some(to.page.address())
}
