//! `bpf(2)`: the maps and programs that exist, whoever made them and whether anybody still holds them.
//!
//! Only the calls that enumerate (linux/bpf.h). What an object takes in memory is in the fdinfo of a descriptor
//! to it ("memlock:"), which is a file and so not this module's business.

use crate::call::last_error;
use rustix::fd::{FromRawFd, OwnedFd};
use rustix::io::Errno;

/// What can be enumerated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BpfKind {
    /// BPF_PROG_GET_NEXT_ID and BPF_PROG_GET_FD_BY_ID.
    Program,
    /// BPF_MAP_GET_NEXT_ID and BPF_MAP_GET_FD_BY_ID.
    Map,
}

impl BpfKind {
    const fn next_id(self) -> libc::c_int {
        match self {
            BpfKind::Program => 11,
            BpfKind::Map => 12,
        }
    }

    const fn fd_by_id(self) -> libc::c_int {
        match self {
            BpfKind::Program => 13,
            BpfKind::Map => 14,
        }
    }
}

/// The part of `union bpf_attr` that these commands read and write: id, next id, open flags.
#[repr(C)]
#[derive(Default)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// `bpf(BPF_*_GET_NEXT_ID)`: the lowest id above `after`; `None` after the last one.
///
/// Needs CAP_SYS_ADMIN (EPERM); ENOSYS on kernels without BPF.
pub fn next_id(kind: BpfKind, after: u32) -> Result<Option<u32>, Errno> {
    let mut attr = IdAttr { id: after, ..IdAttr::default() };
    match bpf(kind.next_id(), &mut attr) {
        Ok(_) => Ok(Some(attr.next_id)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno),
    }
}

/// `bpf(BPF_*_GET_FD_BY_ID)`: a descriptor to the object, close-on-exec (as the kernel always makes it).
///
/// ENOENT where it is gone; EPERM without CAP_SYS_ADMIN. The object lives at least as long as the descriptor.
pub fn open_id(kind: BpfKind, id: u32) -> Result<OwnedFd, Errno> {
    let mut attr = IdAttr { id, ..IdAttr::default() };
    let fd = bpf(kind.fd_by_id(), &mut attr)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows its number.
    #[allow(unsafe_code)]
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    Ok(fd)
}

fn bpf(command: libc::c_int, attr: &mut IdAttr) -> Result<i32, Errno> {
    let attr: *mut IdAttr = attr;
    // SAFETY: `attr` points to memory of the size given with it, valid for reading and writing during the call;
    // these commands neither keep the pointer nor follow any pointer within.
    #[allow(unsafe_code)]
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attr, size_of::<IdAttr>()) };
    if result >= 0 {
        return Ok(result as i32);
    }
    Err(last_error())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_ascend_and_open() {
        let mut last = 0;
        loop {
            match next_id(BpfKind::Map, last) {
                Ok(Some(id)) => {
                    assert!(id > last);
                    last = id;
                    match open_id(BpfKind::Map, id) {
                        Ok(_) | Err(Errno::NOENT) => {}
                        Err(errno) => panic!("map {id}: {errno}"),
                    }
                }
                Ok(None) => break,
                Err(Errno::PERM | Errno::NOSYS) => {
                    println!("skipped: bpf(2) is not allowed here");
                    break;
                }
                Err(errno) => panic!("{errno}"),
            }
        }
        assert!(open_id(BpfKind::Map, u32::MAX).is_err());
    }
}
