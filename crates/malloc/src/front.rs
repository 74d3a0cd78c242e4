//! The front: one allocation's way in. Small requests end in a thread's magazine; what is here beside that is
//! choosing the layer.
//!
//! | size | layer |
//! |---|---|
//! | up to 64 KiB, aligned to a page at most | a slot: magazine, bin, page heap |
//! | up to 1 MiB, aligned to 1 MiB at most | a run of pages: page heap |
//! | above | a large block: chunks of its own |

use crate::bits::CHUNK_PAGES;
use crate::class::{self, CLASSES, Class, PAGE, SLOT_MAX, TABLE_MAX};
use crate::heap::{self, Pushed};
use crate::lua::LUA;
use crate::map::{KEPT, LARGE, Page, RUN};
use crate::pages::pages;
use crate::stats::COUNT;
use crate::{check, keeper, large, purge, tls};
use core::num::NonZeroUsize;
use core::ptr::NonNull;
use core::sync::atomic::Ordering::Relaxed;

/// Bytes of the longest run.
const RUN_MAX: usize = CHUNK_PAGES / 2 * PAGE;

fn pointer(addr: usize) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(addr)
}

/// The way of nearly all requests: a small slot out of the thread's magazine, aligned to 16; `None` if it takes
/// more than that, and then [`malloc`] will do.
#[inline(always)]
pub fn quick(size: usize) -> Option<NonNull<u8>> {
    if size <= TABLE_MAX { pop(tls::heap(), class::small(size)) } else { None }
}

/// `size` bytes aligned to 16; null if memory ran out.
#[inline(always)]
pub fn malloc(size: usize) -> *mut u8 {
    if size <= TABLE_MAX { slot(class::small(size)) } else { malloc_big(size) }
}

/// `size` bytes aligned to 8, for callers that know they need no more; null if memory ran out.
#[inline(always)]
pub fn malloc8(size: usize) -> *mut u8 {
    if size <= TABLE_MAX { slot(class::small_by_eight(size)) } else { malloc_big(size) }
}

#[inline(never)]
fn malloc_big(size: usize) -> *mut u8 {
    if size <= SLOT_MAX { slot(class::medium(size)) } else { pointer(take_pages(size, 16, false).0) }
}

#[inline(always)]
fn pop(heap: &'static heap::Heap, class: u8) -> Option<NonNull<u8>> {
    if !heap.asym.enter() {
        return None;
    }
    let slot = heap.magazine(class).pop()?;
    heap.asym.leave();
    Some(NonNull::with_exposed_provenance(slot))
}

#[inline(always)]
fn slot(class: u8) -> *mut u8 {
    let heap = tls::heap();
    match pop(heap, class) {
        Some(slot) => slot.as_ptr(),
        None => slot_slowly(heap, class),
    }
}

#[cold]
#[inline(never)]
fn slot_slowly(heap: &'static heap::Heap, class: u8) -> *mut u8 {
    let slot = heap::pop_slowly(heap, class).or_else(|| {
        // Out of memory: what others hold back may be enough.
        purge::everything();
        heap::pop_slowly(tls::heap(), class)
    });
    keeper::poke();
    pointer(slot.map_or(0, NonZeroUsize::get))
}

/// `size` bytes aligned to `align`, a power of two; null if memory ran out.
#[inline]
pub fn aligned(align: usize, size: usize) -> *mut u8 {
    match class::any(size, align) {
        0 => pointer(take_pages(size, align, false).0),
        class => slot(class),
    }
}

/// As [`aligned`], all zeros.
pub fn zeroed(align: usize, size: usize) -> *mut u8 {
    let class = class::any(size, align);
    let (at, zero) = if class == 0 {
        let (addr, zero) = take_pages(size, align, true);
        (pointer(addr), zero)
    } else {
        (slot(class), false)
    };
    if !zero && !at.is_null() {
        // SAFETY: the block was just taken and has at least `size` bytes.
        unsafe { at.write_bytes(0, size) };
    }
    at
}

/// A run or a large block and whether it reads as zeros (a large one does if `fresh`); address 0 if memory ran out.
#[cold]
#[inline(never)]
fn take_pages(size: usize, align: usize, fresh: bool) -> (usize, bool) {
    let got = if size <= RUN_MAX && align <= RUN_MAX {
        take_run(size, align)
    } else {
        large::alloc(size, align, fresh)
    };
    keeper::poke();
    got.unwrap_or((0, false))
}

fn take_run(size: usize, align: usize) -> Option<(usize, bool)> {
    let (count, align) = (size.div_ceil(PAGE).max(1), align.div_ceil(PAGE));
    let run = || {
        let mut heap = pages();
        let run = heap.run(count, align)?;
        COUNT.run_pages.add(count as u64);
        run.page.record().bits.store(count as u64, Relaxed);
        run.page.class().store(RUN, Relaxed);
        Some((run.page.address(), run.zero))
    };
    run().or_else(|| purge::everything().then(run).flatten())
}

/// Frees a block; null is none. Aborts the process if it is no block.
///
/// # Safety
/// `at` must be null or a block of this allocator that nobody uses any more.
#[inline(always)]
pub unsafe fn free(at: *mut u8) {
    let addr = at.expose_provenance();
    if let Some(page) = Page::of(addr) {
        let class = page.class().load(Relaxed);
        if class.wrapping_sub(1) < CLASSES as u8 - 1 {
            let heap = tls::heap();
            if heap.asym.enter() {
                let pushed = heap.magazine(class).push(addr);
                if pushed == Pushed::Done {
                    heap.asym.leave();
                    return;
                }
                if pushed == Pushed::Twice {
                    check::double_free(addr);
                }
            }
            return free_slot_slowly(heap, class, addr);
        }
    }
    free_pages(addr);
}

#[cold]
#[inline(never)]
fn free_slot_slowly(heap: &'static heap::Heap, class: u8, addr: usize) {
    heap::push_slowly(heap, class, addr);
    keeper::poke();
}

#[cold]
#[inline(never)]
fn free_pages(addr: usize) {
    if addr == 0 {
        return;
    }
    let Some(page) = Page::of(addr).filter(|p| p.address() == addr) else { check::invalid_free(addr) };
    // The swap lets one of two threads that free the same block win, and the other be told.
    match page.class().swap(0, Relaxed) {
        RUN => {
            let count = page.record().bits.load(Relaxed) as usize;
            check::fill(addr, count * PAGE);
            let mut heap = pages();
            COUNT.run_pages.sub(count as u64);
            heap.give(page, count, false);
        }
        LARGE => large::free(page),
        _ => check::invalid_free(addr),
    }
    keeper::poke();
}

/// How many bytes a block can hold; 0 for null. Aborts the process if it is no block.
///
/// # Safety
/// As for [`free`], but the block stays in use.
#[inline]
pub unsafe fn usable_size(at: *const u8) -> usize {
    let addr = at.expose_provenance();
    if addr == 0 {
        return 0;
    }
    let Some(page) = Page::of(addr) else {
        check::die("asked for its size, but no block begins there", Some(addr))
    };
    match page.class().load(Relaxed) {
        RUN => page.record().bits.load(Relaxed) as usize * PAGE,
        LARGE => large::bytes(page),
        0 | KEPT | LUA.. => check::die("asked for its size, but no block begins there", Some(addr)),
        class => Class::of(class).size as usize,
    }
}

/// Makes a block `size` bytes long, keeping what fits of its contents; it may move. Null if memory ran out: the
/// block is then as it was. Not for null blocks.
///
/// # Safety
/// As for [`free`]; if the result is not null, only it may be used from then on.
#[inline]
pub unsafe fn realloc(at: *mut u8, align: usize, size: usize) -> *mut u8 {
    // SAFETY: the caller's.
    let usable = unsafe { usable_size(at) };
    // In place while the block is big enough and not more than twice too big; small slots always. Pages that are an
    // eighth of it at least go all the same: whoever shrinks a buffer is told that it has given them back.
    let stays = size <= usable && (size >= usable / 2 || usable <= 64);
    if stays && (usable <= SLOT_MAX || usable - size < usable / 8) {
        return at;
    }
    if usable > SLOT_MAX
        && let Some(at) = resize_pages(at, align, usable, size)
    {
        keeper::poke();
        return at;
    }
    if stays {
        return at;
    }
    let new = aligned(align, size);
    if new.is_null() {
        // A smaller block may stay where it is.
        return if size <= usable { at } else { new };
    }
    // SAFETY: both blocks have at least as many bytes as are copied and are not the same; the old one is the
    // caller's to give up.
    unsafe {
        core::ptr::copy_nonoverlapping(at, new, size.min(usable));
        free(at);
    }
    new
}

/// A run or large block made longer or shorter without copying, if that can be done.
fn resize_pages(at: *mut u8, align: usize, usable: usize, size: usize) -> Option<*mut u8> {
    let page = Page::of(at.expose_provenance())?;
    match page.class().load(Relaxed) {
        LARGE if size > RUN_MAX && align <= crate::map::CHUNK => large::resize(page, size).map(pointer),
        RUN if size > SLOT_MAX && size <= RUN_MAX => {
            let (old, new) = (usable / PAGE, size.div_ceil(PAGE));
            let mut heap = pages();
            if new > old && !heap.extend(page, old, new) {
                return None;
            }
            if new < old {
                check::fill(page.plus(new).address(), (old - new) * PAGE);
                heap.give(page.plus(new), old - new, false);
            }
            COUNT.run_pages.add(new as u64);
            COUNT.run_pages.sub(old as u64);
            page.record().bits.store(new as u64, Relaxed);
            Some(at)
        }
        _ => None,
    }
}
