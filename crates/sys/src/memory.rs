//! Reading another process's memory without stopping it.

use rustix::io::Errno;
use rustix::process::Pid;

/// `process_vm_readv(pid, [address, address + buf.len()))`: copies memory of thread or process `pid` into
/// `buf` and returns how many bytes came, which is fewer than asked for where the mapping ends.
///
/// Errors: ESRCH (it ended), EPERM (needs CAP_SYS_PTRACE, or the same user and no Yama restriction), EFAULT
/// (nothing is mapped at `address`). A page that is swapped out is faulted back in by reading it.
#[allow(unsafe_code)]
pub fn read_memory(pid: Pid, address: u64, buf: &mut [u8]) -> Result<usize, Errno> {
    let local = libc::iovec { iov_base: buf.as_mut_ptr().cast(), iov_len: buf.len() };
    let remote = libc::iovec { iov_base: address as usize as *mut libc::c_void, iov_len: buf.len() };
    // SAFETY: `local` covers exactly `buf`, which is borrowed mutably for the whole call. The kernel checks
    // the remote range and fails with EFAULT; it is never dereferenced here.
    let n = unsafe { libc::process_vm_readv(pid.as_raw_nonzero().get(), &local, 1, &remote, 1, 0) };
    match usize::try_from(n) {
        Ok(n) => Ok(n),
        Err(_) => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_memory_and_refuses_what_is_not_mapped() {
        let text = *b"/var/cache/x";
        let mut buf = [0; 12];
        let me = rustix::process::getpid();
        assert_eq!(read_memory(me, text.as_ptr() as u64, &mut buf), Ok(12));
        assert_eq!(buf, text);
        assert_eq!(read_memory(me, 8, &mut buf), Err(Errno::FAULT));
    }
}
