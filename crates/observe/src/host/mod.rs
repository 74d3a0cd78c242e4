//! The whole machine: every file that tells of memory and belongs to no single process or cgroup.
//!
//! [`HostSample`] is one look at all of them. Only /proc/meminfo is indispensable; every other file that cannot
//! be read leaves its field empty and a line in `unread`.

pub mod bpf;
mod keyed;
mod knobs;
mod meminfo;
pub mod mounts;
mod slab;
mod sockets;
mod vmalloc;
mod vmstat;
mod zone;

pub use knobs::{Arc, DentryState, HugeAndMerged, HugePool, Messages, Pressure, Stall, Swap, Sysctls, Zram};
pub use meminfo::Meminfo;
pub use mounts::RamFs;
pub use slab::{SlabCache, Slabs};
pub use sockets::{Sockstat, UnixSockets};
pub use vmalloc::Vmalloc;
pub use vmstat::Vmstat;
pub use zone::{PageTypes, Zone, Zones};

use crate::{Bytes, ReadError, Root, Unread};
use std::collections::BTreeSet;

/// One look at the machine.
#[derive(Debug, Clone, Default)]
pub struct HostSample {
    /// "6.1.0-13-amd64", from /proc/sys/kernel/osrelease.
    pub kernel: String,
    /// The machine's own name.
    pub hostname: String,
    /// Processors online.
    pub cpus: u64,
    /// /proc/meminfo.
    pub meminfo: Meminfo,
    /// /proc/vmstat.
    pub vmstat: Vmstat,
    /// /proc/slabinfo; `None` without the right to read it.
    pub slabs: Option<Slabs>,
    /// /proc/zoneinfo with /proc/buddyinfo.
    pub zones: Zones,
    /// /proc/vmallocinfo; `None` without the right to read it, or where vmalloc holds too little to ask who has it.
    pub vmalloc: Option<Vmalloc>,
    /// /proc/sys/fs/dentry-state.
    pub dentries: DentryState,
    /// /proc/sys/vm and a few more.
    pub sysctls: Sysctls,
    /// /proc/swaps.
    pub swaps: Vec<Swap>,
    /// /proc/pressure/memory; `None` where the kernel runs without PSI.
    pub pressure: Option<Pressure>,
    /// File systems in RAM, of this mount namespace.
    pub ram_fs: Vec<RamFs>,
    /// /proc/net/sockstat.
    pub sockstat: Sockstat,
    /// AF_UNIX sockets of this network namespace (only on a live machine).
    pub unix_sockets: UnixSockets,
    /// The ZFS cache; `None` where ZFS is not loaded.
    pub arc: Option<Arc>,
    /// zram devices.
    pub zram: Vec<Zram>,
    /// Maps and programs of BPF (only on a live machine); empty without the right to list them.
    pub bpf: Vec<bpf::BpfObject>,
    /// System V message queues.
    pub messages: Messages,
    /// hugetlb pools.
    pub huge_pools: Vec<HugePool>,
    /// Transparent huge pages and KSM.
    pub huge: HugeAndMerged,
    /// What is missing, and why.
    pub unread: Vec<Unread>,
}

impl HostSample {
    /// Looks at everything once. An error only where /proc/meminfo cannot be read.
    pub fn read(root: &Root) -> Result<HostSample, ReadError> {
        let meminfo = Meminfo::read(root)?;
        let mut unread = Vec::new();
        let mut keep = Keep { unread: &mut unread };
        let sample = HostSample {
            meminfo,
            zones: keep.or_default("zones (/proc/zoneinfo)", Zones::read(root)),
            vmstat: keep.or_default("/proc/vmstat", Vmstat::read(root)),
            kernel: root.read_line("proc/sys/kernel/osrelease").unwrap_or_default(),
            hostname: root.read_line("proc/sys/kernel/hostname").unwrap_or_default(),
            cpus: online_cpus(root),
            slabs: keep.some("slab by cache (/proc/slabinfo)", Slabs::read(root)),
            vmalloc: (meminfo.vmalloc_used - meminfo.kernel_stack >= ask_vmalloc(meminfo.mem_total))
                .then(|| keep.some("vmalloc by caller (/proc/vmallocinfo)", Vmalloc::read(root)))
                .flatten(),
            dentries: keep.or_default("/proc/sys/fs/dentry-state", DentryState::read(root)),
            sysctls: Sysctls::read(root),
            swaps: Swap::read(root).unwrap_or_default(),
            pressure: Pressure::read(root, "proc/pressure/memory").ok(),
            ram_fs: keep.or_default(
                "file systems in RAM (/proc/self/mountinfo)",
                mounts::ram_file_systems(root, "proc/self/mountinfo", None, &mut BTreeSet::new()),
            ),
            sockstat: keep.or_default("/proc/net/sockstat", Sockstat::read(root)),
            unix_sockets: if root.is_live() {
                keep.or_default("AF_UNIX sockets (sock_diag)", UnixSockets::read())
            } else {
                UnixSockets::default()
            },
            arc: keep.or_default("ZFS cache (arcstats)", Arc::read(root)),
            zram: Zram::read(root),
            bpf: if root.is_live() { bpf::read(root).unwrap_or_default() } else { Vec::new() },
            messages: Messages::read(root),
            huge_pools: HugePool::read(root),
            huge: HugeAndMerged::read(root),
            unread: Vec::new(),
        };
        Ok(HostSample { unread, ..sample })
    }
}

/// From how much on it is worth asking who took vmalloc's memory: the kernel writes a line for every thread's stack.
fn ask_vmalloc(mem_total: Bytes) -> Bytes {
    Bytes(mem_total.0 / 256)
}

/// Turns what cannot be read into an entry of `unread`.
struct Keep<'a> {
    unread: &'a mut Vec<Unread>,
}

impl Keep<'_> {
    fn some<T>(&mut self, what: &str, read: Result<T, ReadError>) -> Option<T> {
        read.inspect_err(|e| self.unread.push(Unread::of(what, e))).ok()
    }

    fn or_default<T: Default>(&mut self, what: &str, read: Result<T, ReadError>) -> T {
        self.some(what, read).unwrap_or_default()
    }
}

/// Counts /sys/devices/system/cpu/online ("0-3,8"); at least 1.
fn online_cpus(root: &Root) -> u64 {
    let list = root.read_line("sys/devices/system/cpu/online").unwrap_or_default();
    let count = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last) = (crate::scan::number(first.as_bytes())?, crate::scan::number(last.as_bytes())?);
        last.checked_sub(first).map(|n| n.saturating_add(1))
    };
    list.split(',').filter_map(count).fold(0, u64::saturating_add).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine() {
        let sample = HostSample::read(&Root::live().unwrap()).unwrap();
        assert!(sample.cpus >= 1 && !sample.kernel.is_empty() && !sample.zones.zones.is_empty());
        assert!(sample.dentries.dentries > 0);
    }

    #[test]
    fn a_root_with_only_meminfo_is_enough() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("proc")).unwrap();
        std::fs::write(dir.path().join("proc/meminfo"), "MemTotal: 1000 kB\n").unwrap();
        let sample = HostSample::read(&Root::at(dir.path()).unwrap()).unwrap();
        assert_eq!(sample.cpus, 1);
        assert!(sample.unread.iter().any(|u| u.what.contains("slabinfo")));
        std::fs::write(dir.path().join("proc/meminfo"), "nonsense").unwrap();
        assert!(HostSample::read(&Root::at(dir.path()).unwrap()).is_err());
    }
}
