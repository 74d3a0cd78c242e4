//! How much of a file is in the page cache: `cachestat(2)` (6.5), before it `mincore(2)` over a mapping.

use crate::call::last_error;
use rustix::fd::{AsFd, AsRawFd, BorrowedFd};
use rustix::fs::{Access, AtFlags, CWD, accessat, fstat};
use rustix::io::Errno;

/// Pages of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cached {
    /// In the page cache.
    pub pages: u64,
    /// Of those, dirty or on their way to the disk: no advice drops them. `None` where the kernel does not tell.
    pub unwritten: Option<u64>,
}

/// `struct cachestat` of linux/mman.h.
#[repr(C)]
#[derive(Default)]
struct CacheStat {
    cache: u64,
    dirty: u64,
    writeback: u64,
    evicted: u64,
    recently_evicted: u64,
}

/// Its number, the same on every architecture (since 5.1 new calls are numbered alike; libc 0.2 names it on few).
const SYS_CACHESTAT: libc::c_long = 451;

/// The pages of `file`, of which `length` bytes are looked at, that are in the page cache.
///
/// Before 6.5 a file is mapped in pieces of 1 GiB and never touched. Errors: EPERM to who may not write the file and does
/// not own it (cachestat says so itself from 6.13 on; mincore calls all pages present to them: mm/mincore.c, since 5.2);
/// those of mmap, EACCES for a file that is not open for reading.
pub fn cached(file: impl AsFd, length: u64) -> Result<Cached, Errno> {
    let file = file.as_fd();
    match cachestat(file.as_raw_fd()) {
        // A filter of a container answers EPERM for calls that it does not know.
        Err(Errno::NOSYS | Errno::PERM | Errno::OPNOTSUPP) if is_told(file)? => {
            by_mincore(file.as_raw_fd(), length)
        }
        Err(Errno::NOSYS | Errno::OPNOTSUPP) => Err(Errno::PERM),
        result => result,
    }
}

/// Whether mincore tells the truth of `file` to this process: its owner, or one that may write it.
fn is_told(file: BorrowedFd) -> Result<bool, Errno> {
    let user = rustix::process::geteuid();
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let may_write = || accessat(CWD, &path, Access::WRITE_OK, AtFlags::EACCESS).is_ok();
    Ok(fstat(file)?.st_uid == user.as_raw() || may_write())
}

fn cachestat(fd: i32) -> Result<Cached, Errno> {
    let whole = [0_u64; 2];
    let mut found = CacheStat::default();
    // SAFETY: `whole` is laid out as struct cachestat_range (two u64: offset, and length, where 0 means to the end),
    // `found` as struct cachestat; both are live for the call, which writes the latter only.
    #[allow(unsafe_code)]
    let result =
        unsafe { libc::syscall(SYS_CACHESTAT, fd, whole.as_ptr(), &raw mut found, 0 as libc::c_uint) };
    if result != 0 {
        return Err(last_error());
    }
    Ok(Cached { pages: found.cache, unwritten: Some(found.dirty.saturating_add(found.writeback)) })
}

/// As much of a file is mapped at once: its answer takes 256 KiB.
const PIECE: u64 = 1 << 30;

fn by_mincore(fd: i32, length: u64) -> Result<Cached, Errno> {
    let page = rustix::param::page_size() as u64;
    let mut pages = 0;
    let mut offset = 0;
    while offset < length {
        let piece = PIECE.min(length - offset);
        let mut present = vec![0_u8; usize::try_from(piece.div_ceil(page)).unwrap_or(0)];
        mincore(fd, offset, piece, &mut present)?;
        pages += present.iter().map(|byte| u64::from(byte & 1)).sum::<u64>();
        offset += piece;
    }
    Ok(Cached { pages, unwritten: None })
}

/// Fills `present` with a byte for every page of the `length` bytes of `fd` from `offset` on.
#[allow(unsafe_code)]
fn mincore(fd: i32, offset: u64, length: u64, present: &mut [u8]) -> Result<(), Errno> {
    let page = rustix::param::page_size() as u64;
    let (Ok(size), Ok(at)) = (usize::try_from(length), libc::off_t::try_from(offset)) else {
        return Err(Errno::OVERFLOW);
    };
    assert!(present.len() as u64 >= length.div_ceil(page), "a byte for every page");
    let shared = libc::MAP_SHARED;
    // SAFETY: a new mapping at an address of the kernel's choice, which no Rust object lies in; it is never read or
    // written here, so a file that shrinks meanwhile ends nobody.
    let map = unsafe { libc::mmap(std::ptr::null_mut(), size, libc::PROT_READ, shared, fd, at) };
    if map == libc::MAP_FAILED {
        return Err(last_error());
    }
    // SAFETY: `map` is that mapping of `size` bytes, and `present` has a byte for every page of it.
    let result = unsafe { libc::mincore(map, size, present.as_mut_ptr()) };
    let error = last_error();
    // SAFETY: the same mapping, made above and known to nobody else.
    unsafe { libc::munmap(map, size) };
    if result == 0 { Ok(()) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsRawFd;

    #[test]
    fn both_ways_see_the_pages_just_written() {
        let mut file = tempfile();
        let pages = 5;
        let length = pages * rustix::param::page_size() as u64 - 9;
        file.write_all(&vec![7; length as usize]).unwrap();
        assert_eq!(cached(&file, length).unwrap().pages, pages);
        assert_eq!(by_mincore(file.as_raw_fd(), length).unwrap(), Cached { pages, unwritten: None });
        assert_eq!(by_mincore(file.as_raw_fd(), 0).unwrap().pages, 0);
    }

    #[test]
    fn what_cannot_be_mapped_is_refused() {
        let (read, _write) = std::io::pipe().unwrap();
        assert_eq!(by_mincore(read.as_raw_fd(), 4096), Err(Errno::NODEV));
        assert_eq!(by_mincore(-1, 4096), Err(Errno::BADF));
    }

    fn tempfile() -> std::fs::File {
        let path = std::env::temp_dir().join(format!("ebbtide-cached-{}", std::process::id()));
        let mut options = std::fs::File::options();
        let file = options.read(true).write(true).create(true).truncate(true).open(&path).unwrap();
        std::fs::remove_file(path).unwrap();
        file
    }
}
