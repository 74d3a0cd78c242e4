//! What fork() costs on this machine: measured on a scratch process, not taken from a table.
//!
//! Copying page tables takes from 0.4 to 400 ms per GiB, depending on the size of pages, on caches, and on
//! whether a hypervisor shadows them, so only this host can tell. Invariants: the caller's memory stays as it
//! is (a scratch child maps, measures and exits); after a fork only system calls are made, so that it may be
//! called while other threads hold locks; the child ends with its parent.

use crate::call::last_error;
use rustix::fd::{AsRawFd, OwnedFd};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use std::time::Duration;

/// How often each fork is repeated.
const TIMES: usize = 5;

/// What one kind of page cost to copy the tables of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ForkTimes {
    /// A fork of a process without the mapping: the shortest.
    pub empty: Duration,
    /// With the mapping touched from end to end: the shortest, as its pages lie side by side in RAM and the
    /// kernel's records of them in cache.
    pub shortest: Duration,
    /// With the mapping touched in random order, as in a process that has run for long: the longest.
    pub longest: Duration,
}

/// Forks a scratch process that maps `len` bytes (rounded down to a power of two, so that an odd step comes by
/// all pages) of anonymous memory, writes to every page, and measures its
/// own forks; with `huge` it asks for huge pages (MADV_HUGEPAGE), which the kernel may refuse to give.
///
/// `len` bytes are in use meanwhile, twice one after the other; it takes about 1 ms per MiB. Errors: those of
/// fork(2), pipe(2) and mmap(2) (ENOMEM); EIO if the scratch process was killed.
pub fn measure(len: usize, huge: bool) -> Result<ForkTimes, Errno> {
    let len = 1usize << len.max(1 << 20).ilog2();
    let (read_end, write_end) = pipe_with(PipeFlags::CLOEXEC)?;
    let child = in_child(|| scratch(len, huge, &write_end))?;
    drop(write_end);
    let mut report = [0u8; 8 * 3];
    let mut filled = 0;
    while filled < report.len() {
        match rustix::io::read(&read_end, &mut report[filled..]) {
            Ok(0) => break,
            Ok(n) => filled += n,
            Err(Errno::INTR) => {}
            Err(e) => {
                reap(child);
                return Err(e);
            }
        }
    }
    reap(child);
    if filled < report.len() {
        return Err(Errno::IO);
    }
    let number = |at: usize| u64::from_ne_bytes(std::array::from_fn(|i| report[8 * at + i]));
    match number(0) {
        u64::MAX => Err(Errno::from_raw_os_error(number(1) as i32)),
        empty => Ok(ForkTimes {
            empty: Duration::from_nanos(empty),
            shortest: Duration::from_nanos(number(1)),
            longest: Duration::from_nanos(number(2)),
        }),
    }
}

/// `fork()`: runs `body` in a child, which then exits, and returns the child's id to the parent.
///
/// `body` must make system calls only: of other threads the child has no copy, but of their locks it has.
#[allow(unsafe_code)]
fn in_child(body: impl FnOnce()) -> Result<libc::pid_t, Errno> {
    // SAFETY: the child calls `body`, which keeps to what is allowed between fork and exit in a process that
    // had threads (see above), and leaves by _exit, which runs no handler of the parent's.
    match unsafe { libc::fork() } {
        -1 => Err(last_error()),
        0 => {
            body();
            // SAFETY: it does not return.
            unsafe { libc::_exit(0) }
        }
        child => Ok(child),
    }
}

#[allow(unsafe_code)]
fn reap(child: libc::pid_t) {
    let mut status = 0;
    // SAFETY: `status` is live and writable; `child` is a child of this process that nobody else waits for.
    while unsafe { libc::waitpid(child, &mut status, 0) } < 0 && last_error() == Errno::INTR {}
}

/// The scratch process: measures, and writes three numbers of nanoseconds, or u64::MAX and an errno.
#[allow(unsafe_code)]
fn scratch(len: usize, huge: bool, out: &OwnedFd) {
    // SAFETY: it takes plain numbers only. A killed ebb must not leave this process behind.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    let measured = (|| {
        let empty = forks()?.0;
        let shortest = with_mapping(len, huge, 1)?.0;
        // A step that is odd, and about 0.618 of the number of pages, comes by all pages far from one another.
        let longest = with_mapping(len, huge, ((len / PAGE) * 618 / 1000) | 1)?.1;
        Ok([empty, shortest, longest])
    })();
    let numbers = measured.unwrap_or_else(|e: Errno| [u64::MAX, e.raw_os_error() as u64, 0]);
    for number in numbers {
        let bytes = number.to_ne_bytes();
        // SAFETY: `bytes` is live for the call, and 24 bytes fit into any pipe.
        unsafe { libc::write(out.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    }
}

/// The smallest page of any architecture: touching more often than needed does no harm.
const PAGE: usize = 4096;

/// The shortest and the longest fork with `len` bytes mapped whose pages were touched `step` pages apart.
#[allow(unsafe_code)]
fn with_mapping(len: usize, huge: bool, step: usize) -> Result<(u64, u64), Errno> {
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    // SAFETY: a new mapping at a place that the kernel chooses touches no other memory.
    let start = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
    if start == libc::MAP_FAILED {
        return Err(last_error());
    }
    let advice = if huge { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
    // SAFETY: the range is exactly the mapping made above. Without THP in the kernel it fails, which only
    // means base pages.
    unsafe { libc::madvise(start, len, advice) };
    let pages = len / PAGE;
    let mut page = 0;
    for _ in 0..pages {
        // SAFETY: `page` is below `pages`, so the byte is inside the mapping, which is writable and used by
        // nothing else.
        unsafe { start.cast::<u8>().add(page * PAGE).write_volatile(1) };
        page = (page + step) % pages;
    }
    let times = forks();
    // SAFETY: the range is exactly the mapping made above, and nothing points into it any more.
    unsafe { libc::munmap(start, len) };
    times
}

/// The shortest and the longest of some forks, in nanoseconds of the parent's time.
#[allow(unsafe_code)]
fn forks() -> Result<(u64, u64), Errno> {
    let (mut shortest, mut longest) = (u64::MAX, 0);
    for _ in 0..TIMES {
        let before = now();
        let child = in_child(|| {})?;
        let took = now().saturating_sub(before);
        reap(child);
        shortest = shortest.min(took);
        longest = longest.max(took);
    }
    Ok((shortest, longest))
}

fn now() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scratch_process_measures_and_is_gone() {
        for huge in [false, true] {
            let times = measure(16 << 20, huge).unwrap();
            assert!(times.empty > Duration::ZERO && times.shortest <= times.longest.max(times.shortest));
        }
        // No child is left, neither running nor as a zombie.
        assert!(matches!(
            rustix::process::wait(rustix::process::WaitOptions::NOHANG),
            Err(Errno::CHILD) | Ok(None)
        ));
    }

    #[test]
    fn what_cannot_be_mapped_is_an_error() {
        assert_eq!(measure(usize::MAX / 2, false), Err(Errno::NOMEM));
    }
}
