//! Where the locks get atomics, sleeping and barriers from. `tests/model.rs` compiles `lock` and `asym` against
//! another module of this name, on shuttle's model of threads.

pub(crate) use core::sync::atomic::{AtomicU32, Ordering};

/// One turn of a spin loop.
#[inline]
pub(crate) fn spin() {
    core::hint::spin_loop();
}

/// Sleeps while the word has this value; may return early.
pub(crate) fn wait(word: &AtomicU32, value: u32) {
    crate::sys::futex_wait(word, value, None);
}

/// Wakes one sleeper.
pub(crate) fn wake_one(word: &AtomicU32) {
    crate::sys::futex_wake(word, 1);
}

/// Wakes all sleepers.
pub(crate) fn wake_all(word: &AtomicU32) {
    crate::sys::futex_wake(word, i32::MAX as u32);
}

/// A full barrier on every running thread of the process; false where the kernel cannot.
pub(crate) fn barrier_everywhere() -> bool {
    crate::sys::barrier_everywhere()
}

/// Keeps the compiler from moving memory accesses across; the processor may (see `asym`).
#[inline(always)]
pub(crate) fn light_barrier() {
    core::sync::atomic::compiler_fence(Ordering::SeqCst);
}
