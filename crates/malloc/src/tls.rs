//! Which heap the running thread uses: one pointer in initial-exec thread-local storage.
//!
//! `thread_local!` in a shared library calls `__tls_get_addr`, which may allocate; `#[thread_local]` is not
//! stable. A symbol defined in `.tdata` by assembly and read through its offset in the GOT is an ordinary
//! initial-exec variable: two loads, no call, valid from the first instruction of a thread. Its initial value is
//! the address of a heap without magazines ([`heap::EMPTY`](crate::heap::EMPTY)), so that the fast path needs no
//! test for a thread that has no heap yet.

use crate::heap::{EMPTY, Heap};

#[cfg(target_arch = "x86_64")]
core::arch::global_asm!(
    ".pushsection .tdata.ebbtide,\"awT\",@progbits",
    ".balign 8",
    ".hidden ebbtide_thread_heap",
    ".globl ebbtide_thread_heap",
    ".type ebbtide_thread_heap, @object",
    ".size ebbtide_thread_heap, 8",
    "ebbtide_thread_heap:",
    ".quad {empty}",
    ".popsection",
    empty = sym EMPTY,
);

#[cfg(target_arch = "aarch64")]
core::arch::global_asm!(
    ".pushsection .tdata.ebbtide,\"awT\",%progbits",
    ".balign 8",
    ".hidden ebbtide_thread_heap",
    ".globl ebbtide_thread_heap",
    ".type ebbtide_thread_heap, %object",
    ".size ebbtide_thread_heap, 8",
    "ebbtide_thread_heap:",
    ".xword {empty}",
    ".popsection",
    empty = sym EMPTY,
);

/// The running thread's heap.
#[inline(always)]
pub(crate) fn heap() -> &'static Heap {
    let heap: *const Heap;
    // SAFETY: reads the thread's own variable; the thread pointer is valid in every thread that can run this.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::asm!(
            "mov {p}, qword ptr [rip + ebbtide_thread_heap@GOTTPOFF]",
            "mov {p}, qword ptr fs:[{p}]",
            p = out(reg) heap,
            options(nostack, preserves_flags, readonly)
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        core::arch::asm!(
            "mrs {t}, tpidr_el0",
            "adrp {p}, :gottprel:ebbtide_thread_heap",
            "ldr {p}, [{p}, :gottprel_lo12:ebbtide_thread_heap]",
            "ldr {p}, [{t}, {p}]",
            t = out(reg) _,
            p = out(reg) heap,
            options(nostack, preserves_flags, readonly)
        );
    }
    // SAFETY: the variable begins as `EMPTY` and is only ever set to heaps, which live for ever.
    unsafe { &*heap }
}

/// Gives the running thread a heap.
pub(crate) fn set_heap(heap: &'static Heap) {
    let heap: *const Heap = heap;
    // SAFETY: writes the thread's own variable.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::asm!(
            "mov {t}, qword ptr [rip + ebbtide_thread_heap@GOTTPOFF]",
            "mov qword ptr fs:[{t}], {p}",
            t = out(reg) _,
            p = in(reg) heap,
            options(nostack, preserves_flags)
        );
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        core::arch::asm!(
            "mrs {t}, tpidr_el0",
            "adrp {q}, :gottprel:ebbtide_thread_heap",
            "ldr {q}, [{q}, :gottprel_lo12:ebbtide_thread_heap]",
            "str {p}, [{t}, {q}]",
            t = out(reg) _,
            q = out(reg) _,
            p = in(reg) heap,
            options(nostack, preserves_flags)
        );
    }
}
