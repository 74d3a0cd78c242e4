//! Being asked to stop: SIGINT, SIGTERM and SIGHUP as a file descriptor that can be polled.
//!
//! A command that measures for some seconds and then undoes what it set up cannot let a signal end it in
//! between, and a handler could do nothing but set a flag. So the three signals are blocked and read from a
//! signalfd. Invariant: dropping [`Interrupts`] restores the calling thread's signal mask; signals that were
//! read are gone, others then act as they would have.

use crate::call::last_error;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use rustix::io::Errno;

/// The signals that ask this process to stop, held back and readable.
#[derive(Debug)]
pub struct Interrupts {
    fd: OwnedFd,
    before: libc::sigset_t,
}

impl Interrupts {
    /// `signalfd({SIGINT, SIGTERM, SIGHUP})`: blocks the three in the calling thread and makes them readable.
    ///
    /// Call it before other threads start: a thread that does not block them would still be ended by one.
    /// Errors: those of signalfd(2), in practice EMFILE.
    #[allow(unsafe_code)]
    pub fn catch() -> Result<Interrupts, Errno> {
        // SAFETY: sigset_t is plain memory for which all-zero bytes are a valid value, and sigemptyset
        // initialises it before it is used.
        let (mut set, mut before): (libc::sigset_t, libc::sigset_t) = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to live sigset_t values of this frame, and the signal numbers are valid.
        let failed = unsafe {
            libc::sigemptyset(&mut set);
            libc::sigaddset(&mut set, libc::SIGINT);
            libc::sigaddset(&mut set, libc::SIGTERM);
            libc::sigaddset(&mut set, libc::SIGHUP);
            libc::pthread_sigmask(libc::SIG_BLOCK, &set, &mut before)
        };
        if failed != 0 {
            return Err(Errno::from_raw_os_error(failed));
        }
        // SAFETY: `set` is initialised; -1 asks for a new descriptor.
        let fd = unsafe { libc::signalfd(-1, &set, libc::SFD_NONBLOCK | libc::SFD_CLOEXEC) };
        if fd < 0 {
            let error = last_error();
            restore(&before);
            return Err(error);
        }
        // SAFETY: signalfd just returned this descriptor, and nothing else owns it.
        Ok(Interrupts { fd: unsafe { OwnedFd::from_raw_fd(fd) }, before })
    }

    /// Waits until one of the signals came (true) or `timeout` has passed (false). A signal is taken: the
    /// next call waits for another one.
    pub fn wait(&self, timeout: std::time::Duration) -> bool {
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
        matches!(poll(&mut fds, Some(&timeout)), Ok(n) if n > 0) && self.take()
    }

    /// Takes one pending signal; false if there is none.
    pub fn take(&self) -> bool {
        let mut info = [0u8; size_of::<libc::signalfd_siginfo>()];
        matches!(rustix::io::read(&self.fd, &mut info), Ok(n) if n > 0)
    }
}

impl AsFd for Interrupts {
    /// For polling together with other descriptors; readable once a signal is pending.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Interrupts {
    fn drop(&mut self) {
        restore(&self.before);
    }
}

#[allow(unsafe_code)]
fn restore(mask: &libc::sigset_t) {
    // SAFETY: `mask` was filled in by pthread_sigmask; a null third argument asks for nothing back.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, mask, std::ptr::null_mut()) };
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_signal_is_read_instead_of_ending_the_process() {
        let interrupts = Interrupts::catch().unwrap();
        assert!(!interrupts.wait(Duration::ZERO));
        send_to_this_thread(libc::SIGINT);
        assert!(interrupts.wait(Duration::from_secs(10)));
        assert!(!interrupts.take());
    }

    #[allow(unsafe_code)]
    fn send_to_this_thread(signal: i32) {
        // SAFETY: pthread_self is the calling thread, which is alive.
        unsafe { libc::pthread_kill(libc::pthread_self(), signal) };
    }
}
