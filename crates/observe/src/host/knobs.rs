//! Small files of one idea each: sysctls of vm and fs, dentry-state, swaps, pressure, huge pages, KSM, zram,
//! the ZFS cache. A knob this kernel lacks is `None`.

use crate::{Bytes, Pages, ReadError, Root, scan};
use serde::Serialize;
use std::collections::BTreeMap;

/// System V message queues of the reader's IPC namespace (/proc/sysvipc/msg): kernel memory that outlives whoever
/// sent it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Messages {
    /// Queues.
    pub queues: u64,
    /// Messages that wait in them.
    pub messages: u64,
    /// Bytes of those, without the kernel's headers.
    pub bytes: Bytes,
}

impl Messages {
    /// Parses /proc/sysvipc/msg: key, id, permissions, bytes, messages ...
    pub fn parse(text: &[u8]) -> Messages {
        let mut all = Messages::default();
        for line in scan::lines(text).skip(1) {
            let mut words = scan::words(line).skip(3).map(scan::number);
            if let (Some(Some(bytes)), Some(Some(messages))) = (words.next(), words.next()) {
                all.queues += 1;
                all.messages = all.messages.saturating_add(messages);
                all.bytes += Bytes(bytes);
            }
        }
        all
    }

    /// Reads /proc/sysvipc/msg; none where the kernel has no System V IPC.
    pub fn read(root: &Root) -> Messages {
        let mut buf = Vec::new();
        root.read("proc/sysvipc/msg", &mut buf).map(Messages::parse).unwrap_or_default()
    }
}

/// /proc/sys/fs/dentry-state (fs/dcache.c).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct DentryState {
    /// Dentries allocated.
    pub dentries: u64,
    /// Of those, unused: on the LRU list, droppable.
    pub unused: u64,
    /// Of those, negative: names that do not exist (5.0 and later; `None` where the kernel says 0 always).
    pub negative: u64,
}

impl DentryState {
    /// Reads /proc/sys/fs/dentry-state.
    pub fn read(root: &Root) -> Result<DentryState, ReadError> {
        let mut buf = Vec::new();
        let text = root.read("proc/sys/fs/dentry-state", &mut buf)?;
        let mut words = scan::words(text.trim_ascii()).map(|w| scan::number(w).unwrap_or(0));
        let mut next = || words.next().unwrap_or(0);
        let (dentries, unused, _, _, negative) = (next(), next(), next(), next(), next());
        Ok(DentryState { dentries, unused, negative })
    }
}

/// The numbers under /proc/sys/vm and a few beside them, by their name ("vm/overcommit_memory").
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sysctls(BTreeMap<&'static str, u64>);

/// What [`Sysctls::read`] reads, all numbers.
const SYSCTLS: [&str; 22] = [
    "vm/overcommit_memory",
    "vm/overcommit_ratio",
    "vm/overcommit_kbytes",
    "vm/admin_reserve_kbytes",
    "vm/user_reserve_kbytes",
    "vm/min_free_kbytes",
    "vm/watermark_scale_factor",
    "vm/swappiness",
    "vm/vfs_cache_pressure",
    "vm/max_map_count",
    "vm/nr_hugepages",
    "vm/nr_overcommit_hugepages",
    "vm/compaction_proactiveness",
    "vm/extfrag_threshold",
    "vm/dirty_ratio",
    "vm/dirty_background_ratio",
    "vm/zone_reclaim_mode",
    "vm/panic_on_oom",
    "vm/oom_kill_allocating_task",
    "kernel/threads-max",
    "kernel/pid_max",
    "fs/nr_open",
];

impl Sysctls {
    /// Reads every one this kernel has.
    pub fn read(root: &Root) -> Sysctls {
        let value = |name: &'static str| Some((name, root.read_number(&format!("proc/sys/{name}")).ok()?));
        Sysctls(SYSCTLS.into_iter().filter_map(value).collect())
    }

    /// The value of `name`, as in "vm/overcommit_memory".
    pub fn get(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }
}

/// One line of /proc/swaps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Swap {
    /// The device or file.
    pub path: String,
    /// "partition" or "file".
    pub kind: String,
    /// Its size.
    pub size: Bytes,
    /// What of it is taken.
    pub used: Bytes,
}

impl Swap {
    /// Parses /proc/swaps.
    pub fn parse(text: &[u8]) -> Vec<Swap> {
        let line = |line| {
            let mut words = scan::words(line);
            let (path, kind) = (words.next()?, words.next()?);
            let (size, used) = (scan::kib(words.next()?)?, scan::kib(words.next()?)?);
            let kind = String::from_utf8_lossy(kind).into_owned();
            Some(Swap { path: super::mounts::unescape(path), kind, size, used })
        };
        scan::lines(text).skip(1).filter_map(line).collect()
    }

    /// Reads /proc/swaps.
    pub fn read(root: &Root) -> Result<Vec<Swap>, ReadError> {
        let mut buf = Vec::new();
        Ok(Swap::parse(root.read("proc/swaps", &mut buf)?))
    }
}

/// One line of a pressure file (kernel/sched/psi.c): the share of time tasks stalled for memory.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Percent of the last 10 s.
    pub avg10: f64,
    /// Percent of the last 60 s.
    pub avg60: f64,
    /// Microseconds since boot.
    pub total_us: u64,
}

/// A pressure file: `some` when a task stalls, `full` when all do.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// At least one task stalled.
    pub some: Stall,
    /// All tasks stalled.
    pub full: Stall,
}

impl Pressure {
    /// Parses a pressure file.
    pub fn parse(text: &[u8]) -> Pressure {
        let mut out = Pressure::default();
        for line in scan::lines(text) {
            let mut words = scan::words(line);
            let stall = match words.next() {
                Some(b"some") => &mut out.some,
                Some(b"full") => &mut out.full,
                _ => continue,
            };
            for (key, value) in words.filter_map(|word| scan::key_value(word, b'=')) {
                let percent = || std::str::from_utf8(value).ok().and_then(|v| v.parse().ok()).unwrap_or(0.0);
                match key {
                    b"avg10" => stall.avg10 = percent(),
                    b"avg60" => stall.avg60 = percent(),
                    b"total" => stall.total_us = scan::number(value).unwrap_or(0),
                    _ => {}
                }
            }
        }
        out
    }

    /// Reads the pressure file at `path`; an error also where the kernel runs without PSI.
    pub fn read(root: &Root, path: &str) -> Result<Pressure, ReadError> {
        let mut buf = Vec::new();
        Ok(Pressure::parse(root.read(path, &mut buf)?))
    }
}

/// One size of hugetlb pages, /sys/kernel/mm/hugepages/hugepages-*kB (all NUMA nodes).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HugePool {
    /// The size of a page.
    pub page: Bytes,
    /// Pages in the pool.
    pub total: u64,
    /// Pages nobody uses, the reserved ones included.
    pub free: u64,
    /// Pages promised to a mapping that has not touched them.
    pub reserved: u64,
    /// Pages above nr_hugepages, given back when freed.
    pub surplus: u64,
}

impl HugePool {
    /// Reads every pool of this machine, the largest page first.
    pub fn read(root: &Root) -> Vec<HugePool> {
        const DIR: &str = "sys/kernel/mm/hugepages";
        let pool = |name: &String| {
            let page = Bytes::from_kib(scan::number(name.strip_prefix("hugepages-")?.as_bytes())?);
            let read = |file| root.read_number(&format!("{DIR}/{name}/{file}")).unwrap_or(0);
            let (total, free) = (read("nr_hugepages"), read("free_hugepages"));
            Some(HugePool {
                page,
                total,
                free,
                reserved: read("resv_hugepages"),
                surplus: read("surplus_hugepages"),
            })
        };
        let mut pools: Vec<HugePool> = root.list(DIR).unwrap_or_default().iter().filter_map(pool).collect();
        pools.sort_by_key(|pool| std::cmp::Reverse(pool.page));
        pools
    }

    /// RAM that is reserved for the pool and promised to nobody.
    pub fn idle(&self) -> Bytes {
        self.page * self.free.saturating_sub(self.reserved)
    }
}

/// Transparent huge pages and same-page merging: /sys/kernel/mm/transparent_hugepage and ksm.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HugeAndMerged {
    /// The chosen word of `enabled`: "always", "madvise" or "never"; empty where there is no THP.
    pub thp_enabled: String,
    /// The chosen word of `defrag`.
    pub thp_defrag: String,
    /// khugepaged fills huge pages of which so many of 512 pages were never touched.
    pub max_ptes_none: Option<u64>,
    /// KSM: pages that remain after merging.
    pub ksm_shared: Pages,
    /// KSM: pages saved by merging.
    pub ksm_sharing: Pages,
}

impl HugeAndMerged {
    /// Reads what this kernel has of it.
    pub fn read(root: &Root) -> HugeAndMerged {
        const THP: &str = "sys/kernel/mm/transparent_hugepage";
        let chosen = |file| {
            let line = root.read_line(&format!("{THP}/{file}")).unwrap_or_default();
            let word = line.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
            word.map_or(String::new(), |(word, _)| word.to_owned())
        };
        let ksm = |file| Pages(root.read_number(&format!("sys/kernel/mm/ksm/{file}")).unwrap_or(0));
        HugeAndMerged {
            thp_enabled: chosen("enabled"),
            thp_defrag: chosen("defrag"),
            max_ptes_none: root.read_number(&format!("{THP}/khugepaged/max_ptes_none")).ok(),
            ksm_shared: ksm("pages_shared"),
            ksm_sharing: ksm("pages_sharing"),
        }
    }
}

/// /sys/block/zramN/mm_stat (drivers/block/zram/zram_drv.c).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zram {
    /// "zram0".
    pub name: String,
    /// What was written to it, uncompressed.
    pub original: Bytes,
    /// The same compressed.
    pub compressed: Bytes,
    /// RAM it takes, fragmentation and metadata included.
    pub used: Bytes,
    /// The most it ever took.
    pub peak: Bytes,
}

impl Zram {
    /// Reads every zram device.
    pub fn read(root: &Root) -> Vec<Zram> {
        let mut names = root.list("sys/block").unwrap_or_default();
        names.retain(|name| name.starts_with("zram"));
        names.sort();
        let device = |name: String| {
            let line = root.read_line(&format!("sys/block/{name}/mm_stat")).ok()?;
            let values: Vec<Bytes> =
                scan::words(line.as_bytes()).map_while(scan::number).map(Bytes).collect();
            let [original, compressed, used, _limit, peak, ..] = values[..] else { return None };
            Some(Zram { name, original, compressed, used, peak })
        };
        names.into_iter().filter_map(device).collect()
    }
}

/// Parses "name type data" lines of a kstat file (/proc/spl/kstat/zfs/arcstats): (size, c_max).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Arc {
    /// What the ZFS adaptive replacement cache takes.
    pub size: Bytes,
    /// What it may grow to.
    pub c_max: Bytes,
    /// What it will not go below.
    pub c_min: Bytes,
    /// What it could drop now: evictable data and metadata, recently and frequently used.
    pub evictable: Bytes,
}

impl Arc {
    /// Parses arcstats.
    pub fn parse(text: &[u8]) -> Arc {
        let mut arc = Arc::default();
        for line in scan::lines(text) {
            let mut words = scan::words(line);
            let (Some(name), Some(_), Some(value)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            let Some(value) = scan::number(value).map(Bytes) else { continue };
            match name {
                b"size" => arc.size = value,
                b"c_max" => arc.c_max = value,
                b"c_min" => arc.c_min = value,
                b"mru_evictable_data" | b"mru_evictable_metadata" => arc.evictable += value,
                b"mfu_evictable_data" | b"mfu_evictable_metadata" => arc.evictable += value,
                _ => {}
            }
        }
        arc
    }

    /// Reads /proc/spl/kstat/zfs/arcstats; `None` where ZFS is not loaded.
    pub fn read(root: &Root) -> Result<Option<Arc>, ReadError> {
        let mut buf = Vec::new();
        match root.read("proc/spl/kstat/zfs/arcstats", &mut buf) {
            Ok(text) => Ok(Some(Arc::parse(text))),
            Err(ReadError::Missing { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn pressure() {
        let p = Pressure::parse(b"some avg10=1.53 avg60=0.87 avg300=0.00 total=123\nfull avg10=0.10 avg60=0.00 avg300=0.00 total=9\n");
        assert_eq!((p.some.avg10, p.some.total_us, p.full.avg10), (1.53, 123, 0.10));
    }

    #[test]
    fn messages() {
        let text = b"       key      msqid perms      cbytes       qnum lspid\n 0 0 600 16384 2 1\n 0 1 600 100 1 1\nx\n";
        assert_eq!(Messages::parse(text), Messages { queues: 2, messages: 3, bytes: Bytes(16484) });
    }

    #[test]
    fn swaps() {
        let s =
            Swap::parse(b"Filename Type Size Used Priority\n/dev/zram0 partition 1048572 2048 100\nbroken\n");
        assert_eq!(s.len(), 1);
        assert_eq!((s[0].size, s[0].used), (Bytes::from_kib(1_048_572), Bytes::from_mib(2)));
    }

    #[test]
    fn arcstats() {
        let arc = Arc::parse(b"13 1 0x01 123 1 1 1\nname type data\nsize 4 1000\nc_max 4 5000\nmru_evictable_data 4 300\nmfu_evictable_metadata 4 50\n");
        assert_eq!((arc.size, arc.c_max, arc.evictable), (Bytes(1000), Bytes(5000), Bytes(350)));
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            let _ = (Pressure::parse(&text), Swap::parse(&text), Arc::parse(&text), Messages::parse(&text));
        }
    }
}
