//! /proc/PID/fdinfo/N: memory that hangs on a descriptor and is in no mapping: BPF maps and GPU buffers.
//!
//! Sources: bpf_map_show_fdinfo (kernel/bpf/syscall.c), Documentation/gpu/drm-usage-stats.rst. A GPU client's
//! buffers are written for each of its descriptors: count them once per (device, client).

use super::{Name, Process};
use crate::{Bytes, ReadError, scan};
use serde::Serialize;

/// The most memory regions kept of one GPU client.
const MAX_REGIONS: usize = 16;

/// A BPF map behind a descriptor.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct BpfMap {
    /// The map, whoever holds it.
    pub id: u64,
    /// BPF_MAP_TYPE_*.
    pub kind: u32,
    /// Entries it may hold.
    pub max_entries: u64,
    /// What it takes: since 5.11 an estimate at full load (charged to its cgroup where that is on).
    pub memlock: Bytes,
}

/// One memory region of a GPU client.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DrmRegion {
    /// "system", "gtt", "vram0" ...
    pub name: Name,
    /// Allocated (drm-total-).
    pub total: Bytes,
    /// Of it, where other clients have it too.
    pub shared: Bytes,
    /// Of it, backed by memory now; older drivers' drm-memory- means this.
    pub resident: Bytes,
    /// Of `resident`, what the kernel may take.
    pub purgeable: Bytes,
}

/// A GPU client behind a descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Drm {
    /// The driver.
    pub driver: Name,
    /// The PCI device, where there is one.
    pub device: Name,
    /// The client, unique per device.
    pub client: u64,
    /// Its memory.
    pub regions: Vec<DrmRegion>,
}

/// A fdinfo file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct FdInfo {
    /// The file position.
    pub pos: u64,
    /// open(2)'s flags.
    pub flags: u32,
    /// The inode (5.14).
    pub inode: Option<u64>,
    /// Whether and which BPF map it is.
    pub bpf_map: Option<BpfMap>,
    /// Whether and which GPU client it is.
    pub drm: Option<Drm>,
}

impl FdInfo {
    /// What `text` says; unknown lines are skipped.
    pub fn parse(text: &[u8]) -> FdInfo {
        let mut info = FdInfo::default();
        for line in scan::lines(text) {
            let Some((key, value)) = scan::key_value(line, b':') else { continue };
            match key.strip_prefix(b"drm-") {
                Some(key) => info.drm.get_or_insert_default().set(key, value),
                None => info.set(key, value),
            }
        }
        info
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        let number = scan::number(value).unwrap_or_default();
        match key {
            b"pos" => self.pos = number,
            b"flags" => self.flags = octal(value),
            b"ino" => self.inode = Some(number),
            // A BPF program has a memlock line too; map_type comes first in a map's.
            b"map_type" => {
                let kind = u32::try_from(number).unwrap_or_default();
                self.bpf_map = Some(BpfMap { kind, ..BpfMap::default() });
            }
            _ => {
                let Some(map) = &mut self.bpf_map else { return };
                match key {
                    b"max_entries" => map.max_entries = number,
                    b"memlock" => map.memlock = Bytes(number),
                    b"map_id" => map.id = number,
                    _ => {}
                }
            }
        }
    }
}

impl Drm {
    /// Takes a line, its key without "drm-".
    fn set(&mut self, key: &[u8], value: &[u8]) {
        match key {
            b"driver" => self.driver = Name::new(value),
            b"pdev" => self.device = Name::new(value),
            b"client-id" => self.client = scan::number(value).unwrap_or_default(),
            _ => {
                let Some((what, region)) = scan::key_value(key, b'-') else { return };
                let bytes = with_unit(value);
                match what {
                    b"total" => self.region(region, |r| r.total = bytes),
                    b"shared" => self.region(region, |r| r.shared = bytes),
                    b"resident" | b"memory" => self.region(region, |r| r.resident = bytes),
                    b"purgeable" => self.region(region, |r| r.purgeable = bytes),
                    _ => {}
                }
            }
        }
    }

    fn region(&mut self, name: &[u8], set: impl FnOnce(&mut DrmRegion)) {
        let name = Name::new(name);
        let at = self.regions.iter().position(|region| region.name == name);
        match at {
            Some(at) => set(&mut self.regions[at]),
            None if self.regions.len() < MAX_REGIONS => {
                let mut region = DrmRegion { name, ..DrmRegion::default() };
                set(&mut region);
                self.regions.push(region);
            }
            None => {}
        }
    }
}

/// "12", "12 KiB" or "12 MiB".
fn with_unit(value: &[u8]) -> Bytes {
    let number = scan::number(value).unwrap_or_default();
    match scan::words(value).nth(1) {
        Some(b"KiB") => Bytes::from_kib(number),
        Some(b"MiB") => Bytes::from_mib(number),
        _ => Bytes(number),
    }
}

fn octal(digits: &[u8]) -> u32 {
    let digits = digits.iter().take_while(|b| (b'0'..=b'7').contains(b));
    digits.fold(0u32, |value, b| value.wrapping_mul(8).wrapping_add(u32::from(b - b'0')))
}

impl Process {
    /// `fdinfo/FD`.
    pub fn fdinfo(&self, fd: u32) -> Result<FdInfo, ReadError> {
        Ok(FdInfo::parse(&self.text(&format!("fdinfo/{fd}"))?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_bpf_map() {
        let info = FdInfo::parse(
            b"pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1058\nmap_type:\t1\nkey_size:\t4\nvalue_size:\t8\n\
              max_entries:\t1000\nmap_flags:\t0x0\nmap_extra:\t0x0\nmemlock:\t86200\nmap_id:\t77\nfrozen:\t0\n",
        );
        let map = BpfMap { id: 77, kind: 1, max_entries: 1000, memlock: Bytes(86_200) };
        assert_eq!((info.bpf_map, info.flags, info.inode), (Some(map), 0o2000002, Some(1058)));
        assert_eq!(info.drm, None);
    }

    #[test]
    fn a_bpf_program_is_no_map() {
        let info = FdInfo::parse(b"pos:\t0\nprog_type:\t5\nprog_jited:\t1\nmemlock:\t4096\nprog_id:\t3\n");
        assert_eq!(info.bpf_map, None);
    }

    #[test]
    fn a_gpu_client() {
        let info = FdInfo::parse(
            b"pos:\t0\ndrm-driver:\tamdgpu\ndrm-client-id:\t12\ndrm-pdev:\t0000:03:00.0\n\
              drm-total-vram:\t16 MiB\ndrm-resident-vram: 2048 KiB\ndrm-memory-gtt: 4096\ndrm-engine-gfx: 1 ns\n",
        );
        let drm = info.drm.unwrap();
        assert_eq!(
            (drm.driver.as_bytes(), drm.device.as_bytes(), drm.client),
            (&b"amdgpu"[..], &b"0000:03:00.0"[..], 12)
        );
        assert_eq!(drm.regions.len(), 2);
        assert_eq!((drm.regions[0].total, drm.regions[0].resident), (Bytes(16 << 20), Bytes(2 << 20)));
        assert_eq!(drm.regions[1].resident, Bytes(4096));
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            FdInfo::parse(&text);
        }

        #[test]
        fn regions_are_bounded(names in proptest::collection::vec("[a-z]{1,5}", 0..60)) {
            let text: String = names.iter().map(|name| format!("drm-total-{name}: 1 KiB\n")).collect();
            let regions = FdInfo::parse(text.as_bytes()).drm.map_or(0, |drm| drm.regions.len());
            prop_assert!(regions <= MAX_REGIONS);
        }
    }
}
