//! What only libc can do: learn that a thread ends or the process forks, start a thread that libc knows (one
//! that it does not know would keep its credentials through setuid), and read the environment. None of it is
//! called with a lock of the allocator held, and none of it on the way of an ordinary allocation.

use core::ffi::{CStr, c_char, c_int, c_uint, c_void};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed, Ordering::SeqCst};

type Routine = extern "C" fn(*mut c_void) -> *mut c_void;

/// Large enough for pthread_attr_t (56 bytes on x86_64, 64 on aarch64) and sigset_t (128).
#[repr(C, align(16))]
struct Opaque([u64; 16]);

#[link(name = "c")]
unsafe extern "C" {
    fn pthread_key_create(key: *mut c_uint, destructor: extern "C" fn(*mut c_void)) -> c_int;
    fn pthread_setspecific(key: c_uint, value: *const c_void) -> c_int;
    fn pthread_atfork(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) -> c_int;
    fn pthread_attr_init(attr: *mut Opaque) -> c_int;
    fn pthread_attr_setstacksize(attr: *mut Opaque, size: usize) -> c_int;
    fn pthread_attr_setdetachstate(attr: *mut Opaque, state: c_int) -> c_int;
    fn pthread_attr_destroy(attr: *mut Opaque) -> c_int;
    fn pthread_create(thread: *mut usize, attr: *const Opaque, start: Routine, arg: *mut c_void) -> c_int;
    fn pthread_sigmask(how: c_int, set: *const Opaque, old: *mut Opaque) -> c_int;
    fn sigfillset(set: *mut Opaque) -> c_int;
    fn secure_getenv(name: *const c_char) -> *const c_char;
}

/// Stack of the purge thread; glibc puts static TLS there too, so some programs need more (see `start_thread`).
const STACK: usize = 128 * 1024;
const PTHREAD_CREATE_DETACHED: c_int = 1;
const SIG_SETMASK: c_int = 2;

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

/// Starts a detached thread with all signals blocked; false if there is none to be had.
pub(crate) fn start_thread(start: Routine) -> bool {
    let mut all = Opaque([0; 16]);
    let mut old = Opaque([0; 16]);
    let mut attr = Opaque([0; 16]);
    // SAFETY: the sets and attributes are large enough for libc's types and initialised by it before use; the
    // mask is restored below, so the calling thread only defers its signals.
    unsafe {
        sigfillset(&mut all);
        pthread_sigmask(SIG_SETMASK, &all, &mut old);
        pthread_attr_init(&mut attr);
        pthread_attr_setdetachstate(&mut attr, PTHREAD_CREATE_DETACHED);
        let mut thread = 0;
        let mut made = false;
        for size in [STACK, 8 * STACK, 64 * STACK] {
            pthread_attr_setstacksize(&mut attr, size);
            made = pthread_create(&mut thread, &attr, start, core::ptr::null_mut()) == 0;
            if made {
                break;
            }
        }
        pthread_attr_destroy(&mut attr);
        pthread_sigmask(SIG_SETMASK, &old, core::ptr::null_mut());
        made
    }
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
