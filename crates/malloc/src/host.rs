//! What only libc can do: learn that a thread ends or the process forks, and read the environment. None of it is
//! called with a lock of the allocator held, and none of it on the way of an ordinary allocation.

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed, Ordering::SeqCst};

#[link(name = "c")]
unsafe extern "C" {
    fn pthread_key_create(key: *mut c_uint, destructor: extern "C" fn(*mut c_void)) -> c_int;
    fn pthread_setspecific(key: c_uint, value: *const c_void) -> c_int;
    fn pthread_atfork(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) -> c_int;
    fn secure_getenv(name: *const c_char) -> *const c_char;
}

/// The key whose destructor tells that a thread ends, plus one; 0 not made, `u32::MAX` being made.
static KEY: AtomicU32 = AtomicU32::new(0);

/// Arranges for [`crate::heap::end_thread`] to be called when the running thread ends. `mark` must not be 0.
pub(crate) fn on_thread_end(mark: usize) {
    if KEY.load(Relaxed) == 0 && KEY.compare_exchange(0, u32::MAX, SeqCst, Relaxed).is_ok() {
        let mut key = 0;
        // SAFETY: libc fills in the key; the destructor lives as long as the program.
        let made = unsafe { pthread_key_create(&mut key, ended) } == 0;
        KEY.store(if made { key + 1 } else { 0 }, SeqCst);
        crate::fork::register();
    }
    let key = KEY.load(Relaxed);
    if key != 0 && key != u32::MAX {
        // SAFETY: the key was made above or by another thread; the value is only a mark. May allocate.
        unsafe { pthread_setspecific(key - 1, core::ptr::without_provenance(mark)) };
    }
}

/// Called by libc when a thread ends. Other destructors may still free and allocate: the first three rounds (of
/// four, PTHREAD_DESTRUCTOR_ITERATIONS) only ask for another round.
extern "C" fn ended(mark: *mut c_void) {
    let round = mark as usize & 7;
    let key = KEY.load(Relaxed);
    if round < 2 && key != 0 && key != u32::MAX {
        // SAFETY: as in `on_thread_end`.
        if unsafe { pthread_setspecific(key - 1, core::ptr::without_provenance(mark as usize + 1)) } == 0 {
            return;
        }
    }
    crate::heap::end_thread();
}

/// Has libc call these around every fork.
pub(crate) fn around_fork(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    // SAFETY: functions that live as long as the program.
    unsafe { pthread_atfork(prepare, parent, child) };
}

/// Whether an environment variable has this value; never in a program that runs with more rights than its caller. To be
/// asked in a constructor, before the program can change its environment.
pub fn is_set(name: &CStr, value: &CStr) -> bool {
    env(name) == Some(value.to_bytes())
}

/// An environment variable, unless the program runs with more rights than its caller.
pub(crate) fn env(name: &CStr) -> Option<&'static [u8]> {
    // SAFETY: the name is NUL-terminated; what comes back is a NUL-terminated string of the environment, which
    // is read at once, in the constructor, before the program can change it.
    unsafe {
        let value = secure_getenv(name.as_ptr());
        (!value.is_null()).then(|| CStr::from_ptr(value).to_bytes())
    }
}
