//! Maps of BPF: kernel memory that may outlive who made it (pinned in bpffs, or held by an attached program). Needs
//! CAP_SYS_ADMIN.
//!
//! The figure is the kernel's own, "memlock:" of a descriptor's fdinfo (kernel/bpf/syscall.c); before 5.11 it is
//! what was charged to RLIMIT_MEMLOCK, since then what the map would use when full or, from 6.4, what it uses.

use crate::{Bytes, ReadError, Root, scan};
use ebbtide_sys::bpf::{BpfKind, next_id, open_id};
use rustix::fd::AsRawFd;

/// One map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BpfObject {
    /// Its id.
    pub id: u32,
    /// What it takes.
    pub bytes: Bytes,
}

/// As many objects are looked at; a busy host has a few thousand.
const OBJECTS: usize = 16 << 10;

/// Every map of the kernel; none where they may not be enumerated.
pub fn read(root: &Root) -> Result<Vec<BpfObject>, ReadError> {
    let mut found = Vec::new();
    let mut id = 0;
    while found.len() < OBJECTS {
        match next_id(BpfKind::Map, id) {
            Ok(Some(next)) => id = next,
            Ok(None) => break,
            Err(errno) => return Err(ReadError::new("bpf(2)", errno)),
        }
        // One that is gone by now takes nothing.
        let Ok(fd) = open_id(BpfKind::Map, id) else { continue };
        let mut buf = Vec::new();
        let path = format!("proc/self/fdinfo/{}", fd.as_raw_fd());
        let bytes = root.read(&path, &mut buf).map(memlock).unwrap_or_default();
        found.push(BpfObject { id, bytes });
    }
    Ok(found)
}

/// "memlock:" of an fdinfo.
pub fn memlock(fdinfo: &[u8]) -> Bytes {
    let value = scan::lines(fdinfo).filter_map(|line| scan::key_value(line, b':'));
    value.filter(|(key, _)| *key == b"memlock").find_map(|(_, v)| scan::number(v)).map_or(Bytes::ZERO, Bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memlock_of_a_map() {
        assert_eq!(memlock(b"pos:\t0\nmap_type:\t2\nmemlock:\t1048576\nmap_id:\t7\n"), Bytes::from_mib(1));
        assert_eq!(memlock(b"pos:\t0\n"), Bytes::ZERO);
    }

    #[test]
    fn this_machines_objects() {
        match read(&Root::live().unwrap()) {
            Ok(objects) => assert!(objects.iter().all(|o| o.id > 0)),
            Err(e) => println!("skipped: {e}"),
        }
    }
}
