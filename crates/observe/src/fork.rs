//! What decides whether a process can fork, and what a fork would cost it: one sample of figures, unjudged.
//!
//! Costs one pass over the target's smaps (3.4-5.1 ms per GiB of 4 KiB pages) and, if a limit on its user's
//! tasks can apply, one status file for each process of the host. Nothing is stopped or changed.

use crate::cgroup::{Hierarchy, Pids};
use crate::host::{Meminfo, Sysctls};
use crate::process::detail::Charge;
use crate::process::{Area, Name, Pid, Process, Status, VmFlags};
use crate::{Bytes, Pages, ReadError, Root, Unread, scan};
use std::path::PathBuf;

/// `CAP_IPC_LOCK`, `CAP_SYS_ADMIN` and `CAP_SYS_RESOURCE` of linux/capability.h, as bits of CapEff.
const IPC_LOCK: u64 = 1 << 14;
const SYS_ADMIN: u64 = 1 << 21;
const SYS_RESOURCE: u64 = 1 << 24;

/// A count and its limit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Count {
    /// How many there are.
    pub current: u64,
    /// How many there may be; `None` is unlimited.
    pub max: Option<u64>,
}

/// A memory cgroup's figures.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryGroup {
    /// The group, from the mount's top.
    pub path: PathBuf,
    /// What is charged to it.
    pub current: Bytes,
    /// memory.max or memory.limit_in_bytes; `None` is unlimited.
    pub limit: Option<Bytes>,
    /// File pages and reclaimable slab in `current`, which give way before the limit refuses anything.
    pub droppable: Bytes,
}

/// A child that shares the target's memory by copy-on-write: forked, and no other program started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveFork {
    /// Its id.
    pub pid: Pid,
    /// Its Private_Dirty: pages that parent and child no longer share, and what the child made itself.
    pub copied: Bytes,
}

/// A mapping whose pages are the process's own: what copy-on-write is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Private {
    /// Its first address.
    pub start: u64,
    /// The address after its last.
    pub end: u64,
    /// Anonymous pages in it that are resident.
    pub resident: Bytes,
}

/// Memory that a fork copies the page tables of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Copied {
    /// Resident anonymous memory in base pages.
    pub base_pages: Bytes,
    /// Resident anonymous memory in huge pages.
    pub huge_pages: Bytes,
    /// Swapped out.
    pub swapped: Bytes,
    /// The writable mappings of it.
    pub mappings: Vec<Private>,
}

/// Everything about one process and its host that bears on fork().
#[derive(Debug, Clone, Default)]
pub struct ForkSample {
    /// The process.
    pub pid: Pid,
    /// Its name.
    pub name: Name,
    /// The kernel's version, as (6, 18).
    pub kernel: (u32, u32),
    /// /proc/meminfo.
    pub memory: Meminfo,
    /// The sysctls of vm and kernel.
    pub sysctls: Sysctls,
    /// What the kernel keeps of RAM for itself (totalreserve_pages of mm/page_alloc.c): high watermarks and
    /// the protection of low zones.
    pub reserve: Bytes,
    /// What overcommit counts of it; `None` where smaps could not be read.
    pub charge: Option<Charge>,
    /// Its address space.
    pub size: Bytes,
    /// Its private writable memory by the kernel's counters (VmData and VmStk): never less than what is
    /// charged of it.
    pub at_most: Bytes,
    /// Its resident anonymous memory by the kernel's counter: about what a fork shares, without mappings that
    /// it leaves out.
    pub rss_anon: Bytes,
    /// What a fork copies; `None` where smaps could not be read.
    pub copied: Option<Copied>,
    /// True if it has CAP_SYS_ADMIN in the initial user namespace.
    pub sys_admin: bool,
    /// True if RLIMIT_MEMLOCK does not hold for it (CAP_IPC_LOCK).
    pub may_lock: bool,
    /// Tasks of its real user against its RLIMIT_NPROC; `None` if it is exempt from that or has none.
    pub user_tasks: Option<Count>,
    /// The host's tasks against kernel.threads-max.
    pub tasks: Option<Count>,
    /// pids.max of its cgroup and of those above it.
    pub pids: Vec<(PathBuf, Pids)>,
    /// Memory cgroups, its own first.
    pub groups: Vec<MemoryGroup>,
    /// Forks of it that live now.
    pub forks: Vec<LiveFork>,
    /// What could not be read.
    pub unread: Vec<Unread>,
}

impl ForkSample {
    /// Takes the sample of `process`.
    ///
    /// Errors: it ended, or its status cannot be read. A kernel thread or a zombie, which cannot fork, is
    /// [`ReadError::Malformed`].
    pub fn read(root: &Root, process: &Process) -> Result<ForkSample, ReadError> {
        let status = process.status()?;
        let Some(vm) = status.vm else {
            let what = "it has no memory (a kernel thread, or it has ended)";
            return Err(ReadError::Malformed { path: process.dir().path("status"), what });
        };
        let mut sample = ForkSample {
            pid: process.pid(),
            name: status.name,
            kernel: kernel(root),
            memory: Meminfo::read(root)?,
            sysctls: Sysctls::read(root),
            reserve: reserve(root),
            size: vm.size,
            at_most: vm.data + vm.stack,
            rss_anon: vm.rss_anon,
            tasks: tasks(root),
            ..ForkSample::default()
        };
        let mut keep = Keep(Vec::new());
        sample.areas(process).unwrap_or_else(|e| keep.note("mappings (smaps)", &e));
        sample.rights(root, process, &status, &mut keep);
        sample.pids = keep.or_default("pids cgroups", Pids::all_of(root, process));
        sample.groups = keep.or_default("memory cgroups", groups(root, process));
        sample.forks = keep.or_default("child processes", forks(root, process));
        sample.unread = keep.0;
        Ok(sample)
    }

    fn areas(&mut self, process: &Process) -> Result<(), ReadError> {
        let (mut charge, mut copied) = (Charge::default(), Copied::default());
        process.each_area(|area| {
            let flags = area.flags.unwrap_or_default();
            if !flags.has(VmFlags::DONT_COPY) {
                charged(&mut charge, area, flags);
                copied.add(area, flags);
            }
            true
        })?;
        (self.charge, self.copied) = (Some(charge), Some(copied));
        Ok(())
    }

    /// Capabilities count in the initial user namespace only, whose inode number is fixed
    /// (PROC_USER_INIT_INO of linux/proc_ns.h).
    fn rights(&mut self, root: &Root, process: &Process, status: &Status, keep: &mut Keep) {
        let initial = match process.dir().link("ns/user") {
            Ok(namespace) => namespace == "user:[4026531837]",
            // Not readable for other users' processes; those of a container then seem to have more rights.
            Err(_) => true,
        };
        let capabilities = if initial { status.capabilities } else { 0 };
        self.sys_admin = capabilities & SYS_ADMIN != 0;
        self.may_lock = capabilities & IPC_LOCK != 0;
        let exempt = initial && status.uid.real == 0 || capabilities & (SYS_ADMIN | SYS_RESOURCE) != 0;
        let limit = match process.limits() {
            Ok(limits) => limits.processes.soft,
            Err(e) => return keep.note("RLIMIT_NPROC (limits)", &e),
        };
        if let Some(max) = limit.filter(|_| !exempt) {
            let current = tasks_of(root, status.uid.real);
            self.user_tasks = Some(Count { current, max: Some(max) });
        }
    }
}

struct Keep(Vec<Unread>);

impl Keep {
    fn note(&mut self, what: &str, error: &ReadError) {
        self.0.push(Unread::of(what, error));
    }

    fn or_default<T: Default>(&mut self, what: &str, result: Result<T, ReadError>) -> T {
        result.unwrap_or_else(|e| {
            self.note(what, &e);
            T::default()
        })
    }
}

fn charged(charge: &mut Charge, area: &Area, flags: VmFlags) {
    let size = area.mapping.size();
    if flags.has(VmFlags::ACCOUNT) {
        charge.total += size;
        if size > charge.largest {
            (charge.largest, charge.largest_start) = (size, area.mapping.start);
        }
    }
}

impl Copied {
    /// Only private pages are copied: the page tables of shared mappings and of unchanged files are built anew
    /// by faults (vma_needs_copy, mm/memory.c). A mapping that is wiped in the child is not copied either.
    fn add(&mut self, area: &Area, flags: VmFlags) {
        let (counters, mapping) = (&area.counters, &area.mapping);
        if mapping.perms.shared || flags.has(VmFlags::WIPE_ON_FORK) || flags.has(VmFlags::HUGETLB) {
            return;
        }
        self.huge_pages += counters.anon_huge_pages;
        self.base_pages += counters.anonymous - counters.anon_huge_pages;
        self.swapped += counters.swap;
        if mapping.perms.write && counters.anonymous > Bytes::ZERO {
            let (start, end) = (mapping.start, mapping.end);
            self.mappings.push(Private { start, end, resident: counters.anonymous });
        }
    }
}

/// "6.18.44-fc-v669" as (6, 18); (0, 0) where that cannot be read.
fn kernel(root: &Root) -> (u32, u32) {
    let release = root.read_line("proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split('.').map(|part| scan::number(part.as_bytes()).unwrap_or(0) as u32);
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// Tasks of the host, and how many there may be.
fn tasks(root: &Root) -> Option<Count> {
    let load = root.read_line("proc/loadavg").ok()?;
    // "0.00 0.01 0.05 2/345 6789": running and existing tasks.
    let current = scan::number(load.split('/').nth(1)?.as_bytes())?;
    let max = root.read_number("proc/sys/kernel/threads-max").ok();
    Some(Count { current, max })
}

/// Tasks of the processes whose real user is `uid`.
fn tasks_of(root: &Root, uid: u32) -> u64 {
    let mut pids = Vec::new();
    // Without a /proc to list there is nothing to compare with the limit either.
    let _ = root.each_directory("proc", |name| pids.extend(scan::number(name).filter(|_| is_number(name))));
    let of_user = |pid: u64| {
        let status = Process::open(root, u32::try_from(pid).ok()?).and_then(|p| p.status()).ok()?;
        (status.uid.real == uid).then_some(u64::from(status.threads.max(1)))
    };
    pids.into_iter().filter_map(of_user).sum()
}

fn is_number(name: &[u8]) -> bool {
    name.iter().all(u8::is_ascii_digit)
}

/// calculate_totalreserve_pages of mm/page_alloc.c: per zone its high watermark and its largest protection,
/// together at most what it manages.
fn reserve(root: &Root) -> Bytes {
    #[derive(Default)]
    struct Zone {
        managed: u64,
        high: u64,
        protection: u64,
    }
    let mut zones: Vec<Zone> = Vec::new();
    let _ = root.each_line("proc/zoneinfo", |line| {
        let mut words = scan::words(line);
        match (words.next(), zones.last_mut()) {
            (Some(b"Node"), _) => zones.push(Zone::default()),
            (Some(b"managed"), Some(zone)) => zone.managed = words.next().and_then(scan::number).unwrap_or(0),
            // Per-CPU page lists have a "high:" of their own.
            (Some(b"high"), Some(zone)) => zone.high = words.next().and_then(scan::number).unwrap_or(0),
            (Some(b"protection:"), Some(zone)) => {
                let numbers =
                    words.map(|w| scan::number(w.trim_ascii_start().strip_prefix(b"(").unwrap_or(w)));
                zone.protection = numbers.flatten().max().unwrap_or(0);
            }
            _ => {}
        }
        true
    });
    let pages = zones.iter().map(|z| z.managed.min(z.high.saturating_add(z.protection))).sum();
    Pages(pages).bytes()
}

/// The memory cgroup of `process` and those above it.
fn groups(root: &Root, process: &Process) -> Result<Vec<MemoryGroup>, ReadError> {
    let Some(hierarchy) = Hierarchy::find(root)? else { return Ok(Vec::new()) };
    let Some(path) = hierarchy.path_of(&process.membership()?) else { return Ok(Vec::new()) };
    let mut groups = Vec::new();
    for path in path.ancestors() {
        let sample = hierarchy.sample(path)?;
        let Some(current) = sample.current else { continue };
        let stat = &sample.stat;
        let droppable = [stat.inactive_file, stat.active_file, stat.slab_reclaimable];
        let droppable = droppable.into_iter().flatten().sum();
        groups.push(MemoryGroup { path: sample.path, current, limit: sample.limit, droppable });
    }
    Ok(groups)
}

/// Children that are copies of `process`: their stacks begin at the same address, which exec chooses anew.
fn forks(root: &Root, process: &Process) -> Result<Vec<LiveFork>, ReadError> {
    let parent = process.stat()?;
    let mut pids = Vec::new();
    let mut children = Vec::new();
    root.each_directory("proc", |name| children.extend(scan::number(name).filter(|_| is_number(name))))?;
    for pid in children.into_iter().filter_map(|pid| u32::try_from(pid).ok()) {
        let Ok(child) = Process::open(root, pid) else { continue };
        let Ok(stat) = child.stat() else { continue };
        let copy = stat.ppid == process.pid() && stat.start_stack == parent.start_stack;
        if !copy || stat.start_stack.is_none() {
            continue;
        }
        // A child of vfork or posix_spawn is the same memory, not a copy, until it starts its program; then
        // nothing is private to it that is not the parent's as well, so it must not be counted. It cannot be
        // told from outside but by its parent's waiting, and lives for microseconds.
        if let Ok(counters) = child.rollup() {
            pids.push(LiveFork { pid, copied: counters.private_dirty + counters.private_hugetlb });
        }
    }
    Ok(pids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process() {
        let root = Root::live().unwrap();
        let process = Process::open(&root, std::process::id()).unwrap();
        let sample = ForkSample::read(&root, &process).unwrap();
        let charge = sample.charge.unwrap();
        assert!(charge.total > Bytes::ZERO && charge.largest <= charge.total && charge.total <= sample.size);
        assert!(sample.kernel.0 >= 4 && sample.tasks.is_some() && sample.reserve > Bytes::ZERO);
        let copied = sample.copied.unwrap();
        assert!(!copied.mappings.is_empty() && copied.base_pages > Bytes::ZERO);
        let rss_anon = process.status().unwrap().vm.unwrap().rss_anon;
        let copied = copied.base_pages + copied.huge_pages;
        assert!(copied <= rss_anon + Bytes::from_mib(16), "{copied} of {rss_anon}");
        assert!(sample.forks.is_empty());
    }

    #[test]
    fn a_user_is_limited_by_all_his_threads_and_root_is_not() {
        let user = |uid: u32, threads: u32, caps: &str| {
            format!(
                "Name:\ta\nState:\tS (sleeping)\nTgid:\t7\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nVmSize:\t8 kB\n\
                 Threads:\t{threads}\nCapEff:\t{caps}\n"
            )
        };
        let sample = |uid, caps: &str| {
            let fake = ebbtide_testkit::FakeRoot::new()
                .file("proc/meminfo", "MemTotal: 1000 kB\n")
                .file("proc/7/status", user(uid, 3, caps))
                .file("proc/8/status", user(uid, 4, "0"))
                .file("proc/9/status", user(uid + 1, 5, "0"))
                .file("proc/7/limits", "Max processes             10                   20       processes\n")
                .file("proc/7/smaps", "");
            let root = Root::at(fake.path()).unwrap();
            let process = Process::open(&root, 7).unwrap();
            ForkSample::read(&root, &process).unwrap().user_tasks
        };
        assert_eq!(sample(1000, "0"), Some(Count { current: 7, max: Some(10) }));
        assert_eq!(sample(1000, "1000000"), None);
        assert_eq!(sample(1000, "200000"), None);
        assert_eq!(sample(0, "0"), None);
    }

    #[test]
    fn the_reserve_is_of_every_zone() {
        let zones = "Node 0, zone      DMA\n  pages free     3840\n        high     17\n        managed  3840\n\
                     \x20       protection: (0, 2000, 5000, 5000)\n  pagesets\n    cpu: 0\n              high:  0\n\
                     Node 0, zone   Normal\n        high     300\n        managed  90000\n        protection: (0, 0)\n";
        let fake = ebbtide_testkit::FakeRoot::new().file("proc/zoneinfo", zones);
        let root = Root::at(fake.path()).unwrap();
        assert_eq!(reserve(&root), Pages(3840 + 300).bytes());
    }
}
