//! Letting a stopped thread run on to the end of its next system call of a certain kind: one that never waits, as an event
//! loop under load, is never found at rest, and stands at the end of epoll_wait(2) a moment later.
//!
//! Invariants: nobody waits for it longer than was said: a thread that does not come there runs on, because to stop it again
//! takes until it gets a processor (up to 0.5 s on a busy machine, measured), while others stand still; signals that come are
//! handed on; a result that has the kernel make the call again is no end of it.

use super::{FreezeError, PAUSE, ptrace};
use crate::borrow::requests::{Registers, registers, wait};
use rustix::io::Errno;
use std::time::{Duration, Instant};

/// What a system call returns that the kernel makes again: ERESTARTSYS to ERESTART_RESTARTBLOCK (linux/errno.h).
const RESTARTED: std::ops::RangeInclusive<i64> = -516..=-512;
/// A stop at a system call, with PTRACE_O_TRACESYSGOOD.
const AT_CALL: libc::c_int = libc::SIGTRAP | 0x80;

/// Lets `tid` run until it has come to the end of a system call whose number is `meant`. [`FreezeError::Stuck`] where it
/// has not within `limit`.
pub(super) fn run_to_call(tid: u32, limit: Duration, meant: &[u32]) -> Result<(), FreezeError> {
    let deadline = Instant::now() + limit;
    let is_meant =
        |call: &Registers| u32::try_from(call.orig_rax).is_ok_and(|number| meant.contains(&number));
    ptrace(libc::PTRACE_SETOPTIONS, tid, libc::PTRACE_O_TRACESYSGOOD).map_err(FreezeError::Os)?;
    // Between its beginning and its end.
    let (mut is_in_call, mut signal) = (false, 0);
    loop {
        go_on(tid, signal)?;
        signal = 0;
        let status = next(tid, deadline)?;
        match (libc::WSTOPSIG(status), status >> 16) {
            (AT_CALL, _) => {
                let call = registers(tid).map_err(FreezeError::Os)?;
                let is_over = is_in_call && !RESTARTED.contains(&(call.rax as i64));
                if is_over && is_meant(&call) {
                    return Ok(());
                }
                is_in_call = !is_in_call;
            }
            // The process is stopped by SIGSTOP, and shall stay so.
            (libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU, libc::PTRACE_EVENT_STOP) => {
                return Err(FreezeError::Stuck(tid));
            }
            (_, libc::PTRACE_EVENT_STOP) => {}
            (other, _) => signal = other,
        }
    }
}

/// `PTRACE_SYSCALL`.
fn go_on(tid: u32, signal: libc::c_int) -> Result<(), FreezeError> {
    ptrace(libc::PTRACE_SYSCALL, tid, signal).map_err(gone)
}

/// The next stop, which must come before the deadline.
fn next(tid: u32, deadline: Instant) -> Result<libc::c_int, FreezeError> {
    loop {
        match wait(tid).map_err(gone)? {
            Some(status) if libc::WIFSTOPPED(status) => return Ok(status),
            Some(_) => return Err(FreezeError::Ended),
            None if Instant::now() >= deadline => return Err(FreezeError::Stuck(tid)),
            None => std::thread::sleep(PAUSE),
        }
    }
}

fn gone(errno: Errno) -> FreezeError {
    if errno == Errno::SRCH { FreezeError::Ended } else { FreezeError::Os(errno) }
}
