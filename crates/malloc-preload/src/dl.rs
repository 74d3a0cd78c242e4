//! What names mean to the dynamic linker.

use core::ffi::{CStr, c_char, c_void};
use core::sync::atomic::{AtomicUsize, Ordering::Relaxed};

#[link(name = "c")]
unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
}

pub(crate) const RTLD_DEFAULT: *mut c_void = core::ptr::null_mut();
pub(crate) const RTLD_NEXT: *mut c_void = core::ptr::without_provenance_mut(usize::MAX);

/// Looks for a name by a handle of dlopen or one of the two above; null if it is not there.
pub(crate) fn look(handle: *mut c_void, name: &CStr) -> *mut c_void {
    // SAFETY: the handle is as said, and the name NUL-terminated.
    unsafe { dlsym(handle, name.as_ptr()) }
}

/// libc's function, found once; 0 cannot be, as this library is linked with libc.
pub(crate) fn real(slot: &AtomicUsize, name: &CStr) -> usize {
    let known = slot.load(Relaxed);
    if known != 0 {
        return known;
    }
    let found = look(RTLD_NEXT, name) as usize;
    slot.store(found, Relaxed);
    found
}
