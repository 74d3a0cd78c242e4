//! Starts the purge thread: a bare kernel thread that libc does not know.
//!
//! A debt can arise anywhere, also where libc frees with its own locks held (`__nptl_free_stacks` holds the lock
//! that `pthread_create` takes: a deadlock, seen with glibc 2.36 under a thousand threads), and libc ends a
//! process when its last thread ends, for which a thread it counts would never let it. So: clone(2), a stack of
//! our own, all signals blocked.
//!
//! The thread keeps the thread pointer of whoever started it and must never touch thread-local storage; it calls
//! nothing of libc but memset and memcpy, which do not. It would also keep its credentials when the program drops
//! its own, since libc changes them in the threads it knows: the keeper looks at every turn and ends if the
//! process's have changed.

use crate::sys;
use core::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst,
};

/// Bytes of the stack: the deepest path needs some 6 KiB.
const STACK: usize = 64 * 1024;
/// CLONE_VM | FS | FILES | SIGHAND | THREAD | SYSVSEM | CHILD_CLEARTID
const FLAGS: usize = 0x100 | 0x200 | 0x400 | 0x800 | 0x1_0000 | 0x4_0000 | 0x20_0000;

/// 1 before the thread starts and [`STARTED`] once it has, until the kernel clears it when the thread is gone from its
/// stack.
static ALIVE: AtomicU32 = AtomicU32::new(0);
const STARTED: u32 = 2;
/// How often one was started.
static STARTS: AtomicU32 = AtomicU32::new(0);
/// The last one is about to end, or has: it is counted among the threads a moment longer than it is alive.
static ENDING: AtomicBool = AtomicBool::new(false);
/// Milliseconds after which the kernel, which has refused a thread, is asked again: every debt would ask.
const REFUSED_MS: u64 = 100;
/// When that is over.
static REFUSED_UNTIL: AtomicU64 = AtomicU64::new(0);
/// The stack, mapped once.
static STACK_AT: AtomicUsize = AtomicUsize::new(0);

/// Starts a thread that runs `entry`; false if there is none to be had, or the last one has not quite gone. Only
/// one caller at a time.
pub(crate) fn start(entry: extern "C" fn()) -> bool {
    if ALIVE.load(SeqCst) != 0 || sys::now_ms() < REFUSED_UNTIL.load(Relaxed) {
        return false;
    }
    let mut stack = STACK_AT.load(Relaxed);
    if stack == 0 {
        let Ok(at) = sys::map_anywhere(STACK) else { return false };
        sys::name_mapping(at, STACK, c"ebbtide stack");
        STACK_AT.store(at, Relaxed);
        stack = at;
    }
    ENDING.store(false, SeqCst);
    STARTS.fetch_add(1, SeqCst);
    ALIVE.store(1, SeqCst);
    let mask = sys::block_signals();
    // SAFETY: the stack is STACK bytes that no thread uses: the last one's end cleared ALIVE. ALIVE is a static.
    let started = unsafe { clone(entry, stack + STACK, ALIVE.as_ptr()) };
    sys::restore_signals(mask);
    if started {
        // Unless it is gone already.
        let _ = ALIVE.compare_exchange(1, STARTED, SeqCst, Relaxed);
    } else {
        ALIVE.store(0, SeqCst);
        REFUSED_UNTIL.store(sys::now_ms() + REFUSED_MS, Relaxed);
    }
    started
}

/// Which thread there is, by number: the same answer twice says that there was one all the while.
pub(crate) fn running() -> Option<u32> {
    let number = STARTS.load(SeqCst);
    (ALIVE.load(SeqCst) == STARTED).then_some(number)
}

/// Says that the thread ends now.
pub(crate) fn end() {
    ENDING.store(true, SeqCst);
}

/// Waits until the last thread that was about to end is counted no more, by `is_counted`, for ten milliseconds at most.
pub(crate) fn await_end(is_counted: impl Fn() -> bool) {
    for _ in 0..10 {
        if !ENDING.load(SeqCst) || !is_counted() {
            break;
        }
        sys::futex_wait(&ALIVE, 0, Some(1));
    }
    ENDING.store(false, SeqCst);
}

/// In a forked child: there is no thread, and its stack is free.
pub(crate) fn forked() {
    REFUSED_UNTIL.store(0, Relaxed);
    ALIVE.store(0, SeqCst);
    ENDING.store(false, SeqCst);
}

/// `clone(FLAGS, stack, ctid)`: a thread that runs `entry` and then ends, the kernel clearing `ctid`.
///
/// # Safety
/// `top` must be the 16-aligned upper end of a stack nobody uses, `ctid` valid for ever; `entry` must not use
/// thread-local storage nor unwind.
#[cfg(target_arch = "x86_64")]
unsafe fn clone(entry: extern "C" fn(), top: usize, ctid: *mut u32) -> bool {
    let ret: isize;
    // SAFETY: the parent comes back from the call with all but rax, rcx, r11 as they were; the child never
    // leaves the block.
    unsafe {
        core::arch::asm!(
            "syscall",
            "test rax, rax",
            "jne 2f",
            "xor ebp, ebp",
            "call r9",
            "xor edi, edi",
            "mov eax, 60",
            "syscall",
            "ud2",
            "2:",
            inlateout("rax") 56_isize => ret,
            in("rdi") FLAGS,
            in("rsi") top,
            in("rdx") 0,
            in("r10") ctid,
            in("r8") 0,
            in("r9") entry,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    ret > 0
}

/// As on x86_64.
///
/// # Safety
/// As on x86_64.
#[cfg(target_arch = "aarch64")]
unsafe fn clone(entry: extern "C" fn(), top: usize, ctid: *mut u32) -> bool {
    let ret: isize;
    // SAFETY: as on x86_64; the kernel keeps every register but x0.
    unsafe {
        core::arch::asm!(
            "svc 0",
            "cbnz x0, 2f",
            "mov x29, xzr",
            "blr x5",
            "mov x0, xzr",
            "mov x8, #93",
            "svc 0",
            "brk #1",
            "2:",
            inlateout("x0") FLAGS as isize => ret,
            in("x1") top,
            in("x2") 0,
            in("x3") 0,
            in("x4") ctid,
            in("x5") entry,
            in("x8") 220,
        );
    }
    ret > 0
}
