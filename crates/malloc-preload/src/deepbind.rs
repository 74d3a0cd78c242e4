//! `dlopen` without RTLD_DEEPBIND.
//!
//! A library opened with RTLD_DEEPBIND looks for `free` in its own dependencies first and finds libc's, while the
//! program's blocks come from here: libc's free of a foreign block is a crash. PHP opens its extensions that way
//! (`DL_LOAD` in Zend/zend_portability.h), so under jemalloc 5.3, mimalloc 2.0.9 or gperftools 2.10 preloaded,
//! `php -r 1` dies on Debian 12. Here the flag is taken away; symbols are then bound as for every other library.
//!
//! dlopen searches the run path of its caller, which it knows by its return address, so this must be a jump and
//! not a call.

use core::ffi::{c_char, c_int, c_void};
use core::sync::atomic::AtomicUsize;

static REAL: AtomicUsize = AtomicUsize::new(0);

extern "C" fn find() -> usize {
    crate::dl::real(&REAL, c"dlopen")
}

/// POSIX, with RTLD_DEEPBIND (8) taken out of `flags`.
///
/// # Safety
/// As libc's.
#[cfg(target_arch = "x86_64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlopen(_path: *const c_char, _flags: c_int) -> *mut c_void {
    core::arch::naked_asm!(
        "and esi, -9",
        "mov rax, qword ptr [rip + {real}]",
        "test rax, rax",
        "jne 2f",
        "push rdi",
        "push rsi",
        "sub rsp, 8",
        "call {find}",
        "add rsp, 8",
        "pop rsi",
        "pop rdi",
        "2: jmp rax",
        real = sym REAL,
        find = sym find,
    )
}

/// As on x86_64.
///
/// # Safety
/// As libc's.
#[cfg(target_arch = "aarch64")]
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub unsafe extern "C" fn dlopen(_path: *const c_char, _flags: c_int) -> *mut c_void {
    core::arch::naked_asm!(
        "and w1, w1, #-9",
        "adrp x16, {real}",
        "ldr x16, [x16, :lo12:{real}]",
        "cbnz x16, 2f",
        "stp x0, x1, [sp, #-32]!",
        "str x30, [sp, #16]",
        "bl {find}",
        "mov x16, x0",
        "ldr x30, [sp, #16]",
        "ldp x0, x1, [sp], #32",
        "2: br x16",
        real = sym REAL,
        find = sym find,
    )
}
