//! Signals that come while something is done in a wait: blocked, and delivered in the wait that follows.

use core::ffi::{c_int, c_void};

/// A glibc signal set.
pub(super) type Signals = [u64; 16];

#[link(name = "c")]
unsafe extern "C" {
    fn pthread_sigmask(how: c_int, new: *const Signals, old: *mut Signals) -> c_int;
    fn sigpending(set: *mut Signals) -> c_int;
    fn sigaction(signal: c_int, new: *const c_void, old: *mut Action) -> c_int;
}

/// As much as libc's `struct sigaction` and more; the handler comes first.
type Action = [usize; 32];

const SIG_BLOCK: c_int = 0;
const SIG_SETMASK: c_int = 2;
const SIG_DFL: usize = 0;
const SIG_IGN: usize = 1;
/// libc's own, which it lets nobody block or ask about.
const LIBCS: [c_int; 2] = [32, 33];
/// SIGCHLD, SIGCONT, SIGURG and SIGWINCH: without a handler nothing happens.
const HARMLESS: [c_int; 4] = [17, 18, 23, 28];

/// Blocks all that are not ignored; which were blocked. What is ignored is dropped when it comes, but kept if it is
/// blocked, and would end the wait that follows.
pub(super) fn block() -> Signals {
    let mut set = [0; 16];
    let blocked = (1..=64).filter(|signal| !LIBCS.contains(signal) && !is_ignored(*signal));
    set[0] = blocked.fold(0, |set, signal| set | 1 << (signal - 1));
    change(SIG_BLOCK, &set)
}

/// Sets which are blocked; which were.
pub(super) fn restore(set: &Signals) -> Signals {
    change(SIG_SETMASK, set)
}

fn change(how: c_int, set: &Signals) -> Signals {
    let mut old = [0; 16];
    // SAFETY: libc reads and writes one set each.
    unsafe { pthread_sigmask(how, set, &raw mut old) };
    old
}

/// Whether one waits that this mask, as the kernel counts it, lets through.
pub(super) fn is_pending(mask: u64) -> bool {
    let mut set = [0; 16];
    // SAFETY: libc writes one set.
    unsafe { sigpending(&raw mut set) == 0 && set[0] & !mask != 0 }
}

fn is_ignored(signal: c_int) -> bool {
    let mut action: Action = [0; 32];
    // SAFETY: changes nothing, and libc writes no more than its structure.
    if unsafe { sigaction(signal, core::ptr::null(), &raw mut action) } != 0 {
        return false;
    }
    action[0] == SIG_IGN || (action[0] == SIG_DFL && HARMLESS.contains(&signal))
}
