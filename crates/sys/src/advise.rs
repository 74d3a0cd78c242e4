//! Telling the kernel what another process's pages are good for: `process_madvise(2)` (5.10).

pub use crate::call::MAX_RANGES;
use crate::call::{last_error, vectors};
use rustix::fd::{AsFd, AsRawFd};
use rustix::io::Errno;
use std::ops::Range;

/// What is said about pages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advice {
    /// MADV_COLD: not used soon; the first to go when memory gets short.
    Cold,
    /// MADV_PAGEOUT: write them out, or drop them where they are clean file pages, now.
    PageOut,
}

/// `process_madvise(pidfd, ranges, advice)`: advises the first [`MAX_RANGES`] of `ranges`, which begin and end at
/// pages, and returns how many bytes that reached: fewer than asked where a later range failed.
///
/// Errors: EPERM (no CAP_SYS_NICE, or the process may not be read: CAP_SYS_PTRACE), ESRCH (it ended), EINVAL (locked,
/// hugetlb or device pages come first), ENOMEM (nothing is mapped there first), ENOSYS before 5.10. Source:
/// mm/madvise.c (6.18).
pub fn advise(pidfd: impl AsFd, ranges: &[Range<u64>], advice: Advice) -> Result<u64, Errno> {
    let vectors = vectors(ranges);
    let advice = match advice {
        Advice::Cold => libc::MADV_COLD,
        Advice::PageOut => libc::MADV_PAGEOUT,
    };
    let fd = pidfd.as_fd().as_raw_fd();
    // SAFETY: `vectors` is live and has as many elements as are named; their addresses are the other process's: the
    // kernel checks them and nothing here dereferences them. Neither advice changes what a page holds.
    #[allow(unsafe_code)]
    let reached = unsafe {
        libc::syscall(
            libc::SYS_process_madvise,
            fd,
            vectors.as_ptr(),
            vectors.len(),
            advice,
            0 as libc::c_uint,
        )
    };
    u64::try_from(reached).map_err(|_| last_error())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pagemap::tests::Pages;
    use rustix::process::{PidfdFlags, getpid, pidfd_open};

    #[test]
    fn what_pages_hold_stays_as_it_is() {
        let pages = Pages::new(3);
        pages.fill(0..3, 7);
        let Ok(own) = pidfd_open(getpid(), PidfdFlags::empty()) else { return };
        let range = pages.address(0)..pages.address(2);
        for advice in [Advice::Cold, Advice::PageOut] {
            match advise(&own, std::slice::from_ref(&range), advice) {
                Ok(reached) => assert_eq!(reached, 2 * pages.size() as u64),
                Err(errno) => assert!(matches!(errno, Errno::PERM | Errno::NOSYS), "{errno}"),
            }
            let mut held = [0; 8];
            assert_eq!(crate::remote::read(getpid(), pages.address(1), &mut held), Ok(8));
            assert_eq!(held, [7; 8]);
        }
        let nowhere = 8..9;
        assert!(advise(&own, &[nowhere], Advice::Cold).is_err(), "no page begins there");
    }
}
