//! The machine a case runs on: how large it is, what it has, and what a case may do to it.

use crate::case::Need;
use crate::{cgroup, procfs};
use anyhow::{Context, Result};
use ebbtide_observe::Bytes;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// Boxes of this size and above get every case at its nominal size; smaller ones scaled.
const FULL_SIZE: Bytes = Bytes::from_gib(16);

/// The machine.
#[derive(Debug, Clone)]
pub struct Machine {
    /// MemTotal, or what `--box` says it is to be taken for.
    pub total: Bytes,
    /// Whether cases may bring it into a bad state (`--where vm`).
    pub vm: bool,
}

impl Machine {
    /// This machine; `total` overrides its MemTotal for scaling.
    pub fn here(vm: bool, total: Option<Bytes>) -> Result<Machine> {
        let real = procfs::meminfo()?.bytes("MemTotal")?;
        Ok(Machine { total: total.unwrap_or(real), vm })
    }

    /// `nominal` on a machine of 16 GiB or more; at most a quarter of a smaller one, so that an incident and
    /// its noise fit side by side and stay a large share of the box. A whole number of 2 MiB pages.
    pub fn size(&self, nominal: Bytes) -> Bytes {
        let most = if self.total >= FULL_SIZE { nominal } else { nominal.min(Bytes(self.total.0 / 4)) };
        Bytes(most.0 >> 21 << 21)
    }

    /// `nominal` things on a machine of 16 GiB or more; fewer, in proportion to MemTotal over 4 GiB, on a
    /// machine smaller than that.
    pub fn count(&self, nominal: u32) -> u32 {
        let share = self.total.share_of(Bytes::from_gib(4)).min(1.0);
        (f64::from(nominal) * share) as u32
    }

    /// Why `need` is not met; `None` where it is.
    pub fn missing(&self, need: Need) -> Option<String> {
        let unless = |met: bool, why: &str| (!met).then(|| why.to_owned());
        let exists = |path: &str| Path::new(path).exists();
        match need {
            Need::Root => unless(rustix::process::geteuid().is_root(), "needs root"),
            Need::MemoryCgroup => unless(cgroup::memory().is_some(), "needs a memory controller"),
            Need::CgroupV2 => {
                let v2 = cgroup::memory().is_some_and(|h| h.version == cgroup::Version::V2);
                unless(v2, "needs the memory controller on cgroup v2")
            }
            Need::PidsCgroup => unless(cgroup::pids().is_some(), "needs a pids controller"),
            Need::Swap => {
                let swap = procfs::meminfo().and_then(|m| m.bytes("SwapTotal")).unwrap_or_default();
                unless(swap > Bytes::ZERO, "needs swap")
            }
            Need::Vm => unless(self.vm, "only in a VM (--where vm)"),
            Need::HugePages => unless(exists("/sys/kernel/mm/hugepages/hugepages-2048kB"), "needs hugetlb"),
            Need::Thp => unless(thp_by_madvise(), "needs transparent huge pages"),
            Need::Java => unless(in_path("java") && in_path("javac"), "needs java and javac"),
            Need::Node => unless(in_path("node"), "needs node"),
            Need::Program(name) => (!in_path(name)).then(|| format!("needs {name}")),
            Need::Zram => unless(exists("/sys/class/zram-control"), "needs zram"),
            Need::Overcommit0 => {
                let mode = procfs::number("/proc/sys/vm/overcommit_memory");
                unless(matches!(mode, Ok(0)), "needs vm.overcommit_memory = 0")
            }
            Need::Bpf => unless(exists("/sys/fs/bpf"), "needs the bpf file system"),
            Need::SysvIpc => unless(exists("/proc/sysvipc/shm"), "needs System V IPC"),
            Need::Disk(room) => self.disk(room).err().map(|e| e.to_string()),
            Need::MemoryAtLeast(bytes) => {
                let have = procfs::meminfo().and_then(|m| m.bytes("MemAvailable")).unwrap_or_default();
                (have < bytes).then(|| format!("needs {bytes} of memory, {have} available"))
            }
            Need::Glibc => unless(cfg!(target_env = "gnu"), "needs glibc"),
            Need::Module => unless(module().is_some(), "needs a leaking kernel module ($EBBTIDE_LAB_MODULE)"),
        }
    }

    /// A directory with `room` whose files live in the page cache and not, as a tmpfs's, in shared memory:
    /// $EBBTIDE_LAB_DISK, the temporary directory, or /var/tmp.
    pub fn disk(&self, room: Bytes) -> Result<PathBuf> {
        let candidates = [
            std::env::var_os("EBBTIDE_LAB_DISK").map(PathBuf::from),
            Some(std::env::temp_dir()),
            Some(PathBuf::from("/var/tmp")),
        ];
        candidates
            .into_iter()
            .flatten()
            .find(|dir| is_disk(dir, room))
            .with_context(|| format!("needs a directory on a disk with {room} ($EBBTIDE_LAB_DISK)"))
    }
}

/// The module of [`Need::Module`].
pub fn module() -> Option<PathBuf> {
    std::env::var_os("EBBTIDE_LAB_MODULE").map(PathBuf::from).filter(|path| path.is_file())
}

fn is_disk(dir: &Path, room: Bytes) -> bool {
    // linux/magic.h: TMPFS_MAGIC and RAMFS_MAGIC. Pages of both are the file, not a cache of it.
    const MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];
    rustix::fs::statfs(dir).is_ok_and(|fs| {
        let free = fs.f_bavail.saturating_mul(u64::try_from(fs.f_bsize).unwrap_or(0));
        !MEMORY.contains(&fs.f_type) && free >= room.0
    })
}

fn thp_by_madvise() -> bool {
    fs::read_to_string("/sys/kernel/mm/transparent_hugepage/enabled").is_ok_and(|s| !s.contains("[never]"))
}

/// Whether $PATH has an executable `name`.
fn in_path(name: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| {
        fs::metadata(dir.join(name))
            .is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_boxes_get_a_quarter() {
        let small = Machine { total: Bytes::from_gib(1), vm: true };
        assert_eq!(small.size(Bytes::from_gib(1)), Bytes::from_mib(256));
        assert_eq!(small.size(Bytes::from_mib(100)), Bytes::from_mib(100));
        assert_eq!(small.count(40), 10);
        let large = Machine { total: Bytes::from_gib(24), vm: false };
        assert_eq!(large.size(Bytes::from_gib(1)), Bytes::from_gib(1));
        assert_eq!(large.count(40), 40);
    }
}
