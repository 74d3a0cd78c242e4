//! `epoll_wait` and `epoll_pwait`, by which event loops wait. When nothing comes for a moment, what can only be done
//! while the VM stands still is done, a slice at a time, and between any two it is asked whether something has come.
//!
//! What the program sees is what it asked for: the same events, the same time-out, errno of the last real call.

use super::collect;
use super::signals::Signals;
use crate::dl::real;
use core::ffi::{c_int, c_void};
use core::sync::atomic::AtomicUsize;

type Wait = unsafe extern "C" fn(c_int, *mut c_void, c_int, c_int) -> c_int;
type Pwait = unsafe extern "C" fn(c_int, *mut c_void, c_int, c_int, *const Signals) -> c_int;

static WAIT: AtomicUsize = AtomicUsize::new(0);
static PWAIT: AtomicUsize = AtomicUsize::new(0);

/// libc's epoll_pwait.
///
/// # Safety
/// As libc's.
unsafe fn pwait(
    epoll: c_int,
    events: *mut c_void,
    most: c_int,
    timeout: c_int,
    mask: *const Signals,
) -> c_int {
    let at = real(&PWAIT, c"epoll_pwait");
    // SAFETY: the address of libc's function of this type.
    let wait = unsafe { core::mem::transmute::<usize, Pwait>(at) };
    // SAFETY: the caller's.
    unsafe { wait(epoll, events, most, timeout, mask) }
}

/// Linux: waits for events.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn epoll_wait(
    epoll: c_int,
    events: *mut c_void,
    most: c_int,
    timeout: c_int,
) -> c_int {
    let at = real(&WAIT, c"epoll_wait");
    // SAFETY: the address of libc's function of this type.
    let wait = unsafe { core::mem::transmute::<usize, Wait>(at) };
    // SAFETY: the caller's arguments.
    let wait = |timeout, before: Option<&Signals>| unsafe {
        match before {
            None => wait(epoll, events, most, timeout),
            Some(before) => pwait(epoll, events, most, timeout, before),
        }
    };
    if timeout == 0 { wait(0, None) } else { collect::while_waiting(timeout, None, wait) }
}

/// Linux: waits for events, with other signals blocked meanwhile.
///
/// # Safety
/// As libc's.
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn epoll_pwait(
    epoll: c_int,
    events: *mut c_void,
    most: c_int,
    timeout: c_int,
    mask: *const Signals,
) -> c_int {
    // SAFETY: the caller's arguments.
    let wait = |timeout, before: Option<&Signals>| unsafe {
        let own = before.filter(|_| mask.is_null()).map_or(mask, core::ptr::from_ref);
        pwait(epoll, events, most, timeout, own)
    };
    // SAFETY: the kernel reads as much of the caller's mask, so it must be there; libc's set may be longer.
    let blocked = || (!mask.is_null()).then(|| unsafe { mask.cast::<u64>().read_unaligned() });
    if timeout == 0 { wait(0, None) } else { collect::while_waiting(timeout, blocked(), wait) }
}
