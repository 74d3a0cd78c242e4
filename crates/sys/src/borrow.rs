//! Having a stopped thread of another process call a function, as if a signal handler had come: on x86_64.
//!
//! The call stands on a net. Before a register is touched, a signal frame is written below the thread's stack, as the
//! kernel would (arch/x86/kernel/signal_64.c): what the thread was doing, its floating-point state, its signal mask.
//! The function returns to the C library's own `__restore_rt`, whose rt_sigreturn takes all that back. So whatever
//! becomes of the tracer, killed between any two of its steps, the thread finishes the call and goes on by itself, its
//! system call restarted or ended with EINTR as by any handler. A tracer that lives catches that rt_sigreturn before
//! it happens and puts the thread back exactly, so that the kernel restarts its system call with what was left of
//! its time-out.
//!
//! Invariants: at every step the thread could be let go; no code is written into the target; 128 bytes below its
//! stack pointer are left alone (the x86_64 ABI's red zone); signals wait until the call has ended.
//!
//! Not for threads with a shadow stack (CET), which the return would break: [`BorrowError::ShadowStack`]. Which thread
//! may be borrowed, and what it may call, is for the caller to know: one that holds a lock that the function
//! takes waits for itself.

#[cfg(not(target_arch = "x86_64"))]
mod elsewhere;
#[cfg(target_arch = "x86_64")]
mod frame;
#[cfg(target_arch = "x86_64")]
pub(crate) mod requests;
#[cfg(target_arch = "x86_64")]
mod thread;

#[cfg(not(target_arch = "x86_64"))]
pub use elsewhere::Borrowed;
#[cfg(target_arch = "x86_64")]
pub use thread::Borrowed;

use rustix::io::Errno;
use std::fmt;

/// Why a thread was not borrowed, or a call did not end. It runs on as it was, or finishes the call by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BorrowError {
    /// ESRCH: the thread ended, or executed another program.
    Ended,
    /// It has a shadow stack.
    ShadowStack,
    /// It is in 32-bit code.
    Narrow,
    /// This is another processor than x86_64.
    Unsupported,
    /// Its stack has no room for the frame.
    NoRoom,
    /// Its seccomp filter cannot be suspended.
    Filtered,
    /// The call takes longer than was allowed; it goes on, and the thread takes itself back.
    Late,
    /// A signal came meanwhile, and it is at its handler: no further call can be made.
    Signalled,
    /// The function ran into a fault, of this signal; the thread was put back all the same.
    Faulted(i32),
    /// Anything else.
    Os(Errno),
}

impl fmt::Display for BorrowError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BorrowError::Ended => f.write_str("the thread ended"),
            BorrowError::ShadowStack => {
                f.write_str("the thread has a shadow stack, which a call would break")
            }
            BorrowError::Narrow => f.write_str("the thread runs 32-bit code"),
            BorrowError::Unsupported => f.write_str("calls inside other processes are known for x86_64 only"),
            BorrowError::Filtered => {
                f.write_str("its seccomp filter cannot be suspended: that takes CAP_SYS_ADMIN")
            }
            BorrowError::NoRoom => f.write_str("the thread's stack has no room for a call"),
            BorrowError::Late => f.write_str("the call takes too long and goes on by itself"),
            BorrowError::Signalled => f.write_str("a signal came to the thread meanwhile"),
            BorrowError::Faulted(signal) => write!(f, "the call ended in signal {signal}"),
            BorrowError::Os(errno) => write!(f, "ptrace: {errno}"),
        }
    }
}

impl std::error::Error for BorrowError {}

impl From<Errno> for BorrowError {
    fn from(errno: Errno) -> BorrowError {
        if errno == Errno::SRCH { BorrowError::Ended } else { BorrowError::Os(errno) }
    }
}
