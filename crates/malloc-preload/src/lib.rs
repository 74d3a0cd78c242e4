//! The C interface of the breathing allocator: load it with `LD_PRELOAD`, and every malloc of the program and
//! its libraries comes here. Nothing else is in this crate: each function checks its arguments as C and POSIX
//! say, sets `errno` where they say, and calls `ebbtide_malloc`.
//!
//! Sources: C17 7.22.3, C23 7.24.3 (free_sized, free_aligned_sized), POSIX posix_memalign, glibc 2.36 malloc.h
//! for the rest. `errno` is ENOMEM wherever null means failure, and untouched otherwise; `free` keeps it.
//!
//! Release builds abort on panic, and then this crate is `no_std`: the library holds no unwinder and no std. Test
//! builds always unwind (cargo ignores the setting there), which needs std; nothing else differs.
#![cfg_attr(panic = "abort", no_std)]
#![allow(unsafe_code)]

pub mod deepbind;
mod dl;
pub mod info;
mod lua;
mod text;

/// A panic here is a defect of the allocator: it says where, without allocating, and ends the process.
#[cfg(panic = "abort")]
#[panic_handler]
fn panic(panic: &core::panic::PanicInfo) -> ! {
    let file = panic.location().map_or("?", |at| at.file());
    heap::panicked(file, panic.location().map_or(0, |at| at.line()))
}

use core::ffi::{c_int, c_void};
use ebbtide_malloc as heap;

const EINVAL: c_int = 22;
const ENOMEM: c_int = 12;
const PAGE: u64 = 4096;

unsafe extern "C" {
    fn __errno_location() -> *mut c_int;
}

/// Of the running thread.
fn errno() -> c_int {
    // SAFETY: libc's.
    unsafe { *__errno_location() }
}

#[cold]
fn fail(errno: c_int) -> *mut c_void {
    // SAFETY: libc's errno of the running thread.
    unsafe { *__errno_location() = errno };
    core::ptr::null_mut()
}

#[inline(always)]
fn or_errno(at: *mut u8) -> *mut c_void {
    if at.is_null() { fail(ENOMEM) } else { at.cast() }
}

/// Requests above this cannot be met, and rounding them up could overflow: PTRDIFF_MAX, as glibc.
#[inline(always)]
fn absurd(size: usize) -> bool {
    size > isize::MAX as usize - (1 << 22)
}

/// C: memory for an object of `size` bytes, aligned for any type.
#[unsafe(no_mangle)]
pub extern "C" fn malloc(size: usize) -> *mut c_void {
    match heap::quick(size) {
        Some(at) => at.as_ptr().cast(),
        None => malloc_slowly(size),
    }
}

#[cold]
#[inline(never)]
fn malloc_slowly(size: usize) -> *mut c_void {
    if absurd(size) {
        return fail(ENOMEM);
    }
    or_errno(heap::malloc(size))
}

/// C: gives memory back.
///
/// # Safety
/// `at` is null or from this interface, and not freed yet.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(at: *mut c_void) {
    // SAFETY: the caller's.
    unsafe { heap::free(at.cast()) }
}

/// C23: gives memory back whose size the caller knows.
///
/// # Safety
/// As for [`free`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_sized(at: *mut c_void, _size: usize) {
    // SAFETY: the caller's.
    unsafe { heap::free(at.cast()) }
}

/// C23: gives memory back whose alignment and size the caller knows.
///
/// # Safety
/// As for [`free`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_aligned_sized(at: *mut c_void, _align: usize, _size: usize) {
    // SAFETY: the caller's.
    unsafe { heap::free(at.cast()) }
}

/// C: zeroed memory for `count` objects of `size` bytes.
#[unsafe(no_mangle)]
pub extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        Some(size) if !absurd(size) => or_errno(heap::zeroed(16, size)),
        _ => fail(ENOMEM),
    }
}

/// C: makes an object larger or smaller. As in glibc, size 0 frees and returns null.
///
/// # Safety
/// As for [`free`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(at: *mut c_void, size: usize) -> *mut c_void {
    if at.is_null() {
        return malloc(size);
    }
    if size == 0 {
        // SAFETY: the caller's.
        unsafe { heap::free(at.cast()) };
        return core::ptr::null_mut();
    }
    if absurd(size) {
        return fail(ENOMEM);
    }
    // SAFETY: the caller's; not null.
    or_errno(unsafe { heap::realloc(at.cast(), 16, size) })
}

/// BSD, glibc: [`realloc`] for an array, with overflow checked.
///
/// # Safety
/// As for [`free`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn reallocarray(at: *mut c_void, count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: the caller's.
        Some(size) => unsafe { realloc(at, size) },
        None => fail(ENOMEM),
    }
}

/// `size` bytes aligned to `align`, which must be a power of two.
fn aligned(align: usize, size: usize) -> *mut c_void {
    if !align.is_power_of_two() {
        return fail(EINVAL);
    }
    if absurd(size) || absurd(align) {
        return fail(ENOMEM);
    }
    or_errno(heap::aligned(align.max(16), size))
}

/// C: aligned memory. As glibc, any size will do.
#[unsafe(no_mangle)]
pub extern "C" fn aligned_alloc(align: usize, size: usize) -> *mut c_void {
    aligned(align, size)
}

/// SunOS, glibc: aligned memory; an alignment that is no power of two is rounded up to one.
#[unsafe(no_mangle)]
pub extern "C" fn memalign(align: usize, size: usize) -> *mut c_void {
    match align.checked_next_power_of_two() {
        Some(align) => aligned(align, size),
        None => fail(EINVAL),
    }
}

/// POSIX: aligned memory; the answer is an error number, and `errno` stays.
///
/// # Safety
/// `out` must be valid for writing a pointer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(out: *mut *mut c_void, align: usize, size: usize) -> c_int {
    if !align.is_power_of_two() || !align.is_multiple_of(size_of::<*mut c_void>()) {
        return EINVAL;
    }
    if absurd(size) || absurd(align) {
        return ENOMEM;
    }
    let at = heap::aligned(align.max(16), size);
    if at.is_null() {
        return ENOMEM;
    }
    // SAFETY: the caller's.
    unsafe { *out = at.cast() };
    0
}

/// BSD: memory aligned to a page.
#[unsafe(no_mangle)]
pub extern "C" fn valloc(size: usize) -> *mut c_void {
    aligned(PAGE as usize, size)
}

/// SunOS: whole pages.
#[unsafe(no_mangle)]
pub extern "C" fn pvalloc(size: usize) -> *mut c_void {
    if absurd(size) {
        return fail(ENOMEM);
    }
    aligned(PAGE as usize, size.next_multiple_of(PAGE as usize))
}

/// glibc: how many bytes of the block may be used.
///
/// # Safety
/// As for [`free`], but the block stays.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_usable_size(at: *mut c_void) -> usize {
    // SAFETY: the caller's.
    unsafe { heap::usable_size(at.cast()) }
}
