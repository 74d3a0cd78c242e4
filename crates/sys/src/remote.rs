//! Reading another process's memory without stopping it: `process_vm_readv(2)`.
//!
//! What is read is what was there at some moment of the call, page by page; a process that runs may change
//! one part while another is copied. A page that is swapped out is faulted back in: ask [`crate::pagemap`]
//! first.

pub use crate::call::MAX_RANGES;
use crate::call::{last_error, vectors};
use rustix::io::Errno;
use rustix::process::Pid;
use std::fmt;
use std::ops::Range;

/// Why nothing could be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RemoteError {
    /// ESRCH: the process ended.
    Ended,
    /// EPERM: another user's, not dumpable, or Yama forbids it; CAP_SYS_PTRACE helps.
    Denied,
    /// EFAULT: nothing readable is mapped at the first address.
    Unmapped,
    /// Anything else: ENOSYS where a sandbox forbids the call, ENOMEM.
    Os(Errno),
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RemoteError::Ended => f.write_str("the process ended"),
            RemoteError::Denied => f.write_str("its memory may not be read"),
            RemoteError::Unmapped => f.write_str("nothing readable is mapped there"),
            RemoteError::Os(errno) => errno.fmt(f),
        }
    }
}

impl std::error::Error for RemoteError {}

impl From<Errno> for RemoteError {
    fn from(errno: Errno) -> RemoteError {
        match errno {
            Errno::SRCH => RemoteError::Ended,
            Errno::PERM | Errno::ACCESS => RemoteError::Denied,
            Errno::FAULT => RemoteError::Unmapped,
            errno => RemoteError::Os(errno),
        }
    }
}

impl From<RemoteError> for Errno {
    fn from(error: RemoteError) -> Errno {
        match error {
            RemoteError::Ended => Errno::SRCH,
            RemoteError::Denied => Errno::PERM,
            RemoteError::Unmapped => Errno::FAULT,
            RemoteError::Os(errno) => errno,
        }
    }
}

/// `process_vm_writev(pid, address, bytes)`: writes all of `bytes` into memory of process `pid`.
///
/// Errors: [`RemoteError::Unmapped`] where not all of it may be written.
pub fn write(pid: Pid, address: u64, bytes: &[u8]) -> Result<(), RemoteError> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let remote = libc::iovec { iov_base: address as *mut libc::c_void, iov_len: bytes.len() };
    // SAFETY: the call reads `iov_len` bytes at the local `iov_base`, which are those of `bytes`; the remote range is
    // the other process's.
    #[allow(unsafe_code)]
    let written = unsafe { libc::process_vm_writev(pid.as_raw_nonzero().get(), &local, 1, &remote, 1, 0) };
    match usize::try_from(written) {
        Ok(n) if n == bytes.len() => Ok(()),
        Ok(_) => Err(RemoteError::Unmapped),
        Err(_) => Err(last_error().into()),
    }
}

/// `process_vm_readv(pid, [address, address + buf.len()))`: copies memory of process or thread `pid` into
/// `buf` and returns how many bytes came: all, or those before the first page that cannot be read.
pub fn read(pid: Pid, address: u64, buf: &mut [u8]) -> Result<usize, RemoteError> {
    let mut filled = 0;
    while filled < buf.len() {
        let at = address.saturating_add(filled as u64);
        let range = at..at.saturating_add((buf.len() - filled) as u64);
        match read_ranges(pid, &[range], &mut buf[filled..]) {
            Ok(0) => break,
            // One call copies at most 2 GiB.
            Ok(n) => filled += n,
            Err(_) if filled > 0 => break,
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// `process_vm_readv(pid, ranges)`: copies the first [`MAX_RANGES`] of `ranges`, one after the other, into
/// `buf` and returns how many bytes came: all, what `buf` has room for, or those before the first page that
/// cannot be read.
pub fn read_ranges(pid: Pid, ranges: &[Range<u64>], buf: &mut [u8]) -> Result<usize, RemoteError> {
    let remote = vectors(ranges);
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let pid = pid.as_raw_nonzero().get();
    // SAFETY: `local` covers exactly `buf`, which is borrowed mutably for the whole call, so only its bytes are
    // written, all of which any value is valid for. `remote` has as many elements as are named; their
    // addresses are the other process's: the kernel checks them and nothing here dereferences them.
    #[allow(unsafe_code)]
    let n =
        unsafe { libc::process_vm_readv(pid, &local, 1, remote.as_ptr(), remote.len() as libc::c_ulong, 0) };
    usize::try_from(n).map_err(|_| last_error().into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pagemap::tests::Pages;
    use rustix::process::getpid;

    #[test]
    fn reads_up_to_what_is_not_readable() {
        let pages = Pages::new(3);
        pages.fill(0..2, 7);
        pages.forbid(2..3);
        let mut buf = vec![0; 3 * pages.size()];
        assert_eq!(read(getpid(), pages.address(0), &mut buf), Ok(2 * pages.size()));
        assert!(buf[..2 * pages.size()].iter().all(|&byte| byte == 7));
        assert_eq!(read(getpid(), pages.address(1) + 9, &mut buf[..16]), Ok(16));
        assert_eq!(read(getpid(), pages.address(2), &mut buf), Err(RemoteError::Unmapped));
        assert_eq!(read(getpid(), 8, &mut buf), Err(RemoteError::Unmapped));
        assert_eq!(read(getpid(), pages.address(0), &mut []), Ok(0));
    }

    #[test]
    fn many_ranges_at_once() {
        let pages = Pages::new(4);
        pages.fill(0..2, 1);
        pages.fill(2..4, 2);
        let at = |page, len| pages.address(page)..pages.address(page) + len;
        let mut buf = [0; 8];
        assert_eq!(read_ranges(getpid(), &[at(3, 2), at(0, 3), at(2, 1)], &mut buf), Ok(6));
        assert_eq!(buf, [2, 2, 1, 1, 1, 2, 0, 0]);
        let many = vec![at(0, 1); MAX_RANGES + 1];
        assert_eq!(read_ranges(getpid(), &many, &mut [0; 2 * MAX_RANGES]), Ok(MAX_RANGES));
        assert_eq!(read_ranges(getpid(), &[], &mut buf), Ok(0));
    }

    #[test]
    fn an_ended_process() {
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        let pid = Pid::from_child(&ended);
        assert_eq!(read(pid, 4096, &mut [0; 8]), Err(RemoteError::Ended));
    }
}
