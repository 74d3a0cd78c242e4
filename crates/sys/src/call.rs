//! What the raw calls of this crate have in common: how they fail, and how they are told of another process's memory.

use rustix::io::Errno;
use std::ops::Range;

/// The most ranges that one call takes (UIO_MAXIOV).
pub const MAX_RANGES: usize = 1024;

/// Why the call just made by this thread failed.
pub(crate) fn last_error() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}

/// The first [`MAX_RANGES`] of `ranges`, for the kernel. They are addresses of another process: nothing here follows
/// them.
pub(crate) fn vectors(ranges: &[Range<u64>]) -> Vec<libc::iovec> {
    let vector = |range: &Range<u64>| libc::iovec {
        iov_base: range.start as usize as *mut libc::c_void,
        iov_len: range.end.saturating_sub(range.start) as usize,
    };
    ranges.iter().take(MAX_RANGES).map(vector).collect()
}
