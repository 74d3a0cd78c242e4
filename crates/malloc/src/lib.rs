#![cfg_attr(not(test), no_std)]
#![allow(unsafe_code)]
#![doc = include_str!("../README.md")]
// Unsafe is allowed here because memory itself is made here: addresses become references in `map`, `heap` and
// `tls`, and the kernel is called in `sys`. Everything else is written against those.

mod asym;
mod bins;
mod bits;
mod check;
mod chunkset;
mod class;
mod fork;
mod front;
mod heap;
mod host;
mod keeper;
mod kept;
mod large;
mod lock;
pub mod lua;
mod map;
mod pace;
mod pages;
mod pressure;
mod purge;
mod spawn;
mod stats;
mod sync;
mod sys;
mod tls;

pub use front::{aligned, free, malloc, malloc8, quick, realloc, usable_size, zeroed};
pub use host::is_set;
pub use stats::{Block, COUNT, ClassCount, Counter, LuaTables, Shape, Tables};

use core::alloc::{GlobalAlloc, Layout};

/// Gives back everything that can be given back, from all threads' magazines down to free chunks of address
/// space; whether there was anything.
pub fn trim() -> bool {
    purge::everything()
}

/// Checks every invariant that can be seen under the locks and aborts the process if one does not hold.
pub fn verify() {
    check::walk();
}

/// For a panic handler: says in which file and line the allocator is defective, and aborts.
#[cold]
pub fn panicked(file: &str, line: u32) -> ! {
    sys::write(2, b"ebbtide: panic in ");
    sys::write(2, file.as_bytes());
    check::die(" at line", Some(line as usize))
}

/// The allocator for `#[global_allocator]`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Ebbtide;

// SAFETY: blocks come from `front`, which hands none out twice, honours size and alignment (every class a
// multiple of its alignment, runs and large blocks aligned on request) and never unwinds.
unsafe impl GlobalAlloc for Ebbtide {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if layout.align() <= 8 { malloc8(layout.size()) } else { aligned(layout.align(), layout.size()) }
    }

    #[inline]
    unsafe fn dealloc(&self, at: *mut u8, _: Layout) {
        // SAFETY: the caller's block, by the trait's contract.
        unsafe { free(at) }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        zeroed(layout.align(), layout.size())
    }

    #[inline]
    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's block, by the trait's contract.
        unsafe { realloc(at, layout.align(), size) }
    }
}

/// Run by the loader before `main`: until then no thread is started.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

extern "C" fn constructor() {
    let number = |name| {
        let value = host::env(name)?;
        value.iter().try_fold(0_u64, |n, d| {
            let digit = d.checked_sub(b'0').filter(|d| *d < 10)?;
            n.checked_mul(10)?.checked_add(u64::from(digit))
        })
    };
    fork::register();
    check::set_level(number(c"EBBTIDE_MALLOC_CHECK").unwrap_or(0).min(3) as u32);
    keeper::allow(!is_set(c"EBBTIDE_MALLOC_THREAD", c"off"), number(c"EBBTIDE_MALLOC_DELAY_MS"));
}
