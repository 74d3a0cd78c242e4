//! An allocator for tests: counts what the calling thread has allocated, and refuses when it is told to.
//!
//! Counters are the thread's own, so tests beside each other do not disturb each other; nothing here allocates.
#![allow(unsafe_code, dead_code, unreachable_pub, reason = "each test uses a part")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static LIVE: Cell<isize> = const { Cell::new(0) };
    static PEAK: Cell<isize> = const { Cell::new(0) };
    static CALLS: Cell<usize> = const { Cell::new(0) };
    /// Calls until one is refused; `usize::MAX` refuses none.
    static REFUSE_IN: Cell<usize> = const { Cell::new(usize::MAX) };
    static REFUSED: Cell<usize> = const { Cell::new(0) };
}

pub struct Counting;

/// Whether this call is the one to be refused.
fn refused() -> bool {
    CALLS.set(CALLS.get() + 1);
    let left = REFUSE_IN.get();
    if left == usize::MAX {
        return false;
    }
    REFUSE_IN.set(left.wrapping_sub(1));
    if left == 0 {
        REFUSED.set(REFUSED.get() + 1);
        REFUSE_IN.set(usize::MAX);
    }
    left == 0
}

fn grown(by: isize) {
    LIVE.set(LIVE.get() + by);
    PEAK.set(PEAK.get().max(LIVE.get()));
}

// SAFETY: all memory is System's; a refusal is a null pointer, with a block to be resized left as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if refused() {
            return std::ptr::null_mut();
        }
        grown(layout.size() as isize);
        // SAFETY: the caller's layout, as it came.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        grown(-(layout.size() as isize));
        // SAFETY: the caller's block and layout, as they came.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new: usize) -> *mut u8 {
        if refused() {
            return std::ptr::null_mut();
        }
        grown(new as isize - layout.size() as isize);
        // SAFETY: the caller's block, layout and size, as they came.
        unsafe { System.realloc(block, layout, new) }
    }
}

/// Bytes this thread has allocated and not freed.
pub fn live() -> isize {
    LIVE.get()
}

/// Calls for memory so far.
pub fn calls() -> usize {
    CALLS.get()
}

/// What `work` returns, and how far above the level before it this thread's memory rose meanwhile.
pub fn rise<T>(work: impl FnOnce() -> T) -> (T, isize) {
    let before = live();
    PEAK.set(before);
    let value = work();
    (value, PEAK.get() - before)
}

/// What `work` returns with its `n`th call for memory refused, and whether there were so many.
pub fn refusing<T>(n: usize, work: impl FnOnce() -> T) -> (T, bool) {
    REFUSED.set(0);
    REFUSE_IN.set(n);
    let value = work();
    REFUSE_IN.set(usize::MAX);
    (value, REFUSED.get() > 0)
}
