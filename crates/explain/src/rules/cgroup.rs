//! The rules about one cgroup: what is charged to it that is nobody's live memory.

use super::{caps, worth};
use crate::{Cause, Finding, count};
use ebbtide_observe::Bytes;
use ebbtide_observe::cgroup::{CgroupSample, Version};
use ebbtide_observe::host::HostSample;

/// What the rules about a cgroup look at.
#[derive(Debug)]
pub struct Group<'a> {
    /// The group, with everything below it.
    pub sample: &'a CgroupSample,
    /// The machine's own files.
    pub host: &'a HostSample,
    /// Processes in it and below.
    pub processes: u64,
    /// shmem that those processes map (RssShmem), each page as often as it is mapped.
    pub mapped_shmem: Bytes,
    /// What its processes' heaps may grow to, by their own settings: (pid, setting).
    pub caps: &'a [(u32, caps::Cap)],
    /// What is charged to its direct children.
    pub children: Bytes,
    /// The tightest limit among it and its ancestors; `None` where none has one.
    pub limit: Option<Bytes>,
}

impl Group<'_> {
    fn current(&self) -> Bytes {
        self.sample.current.unwrap_or_default()
    }

    /// Somebody asked about this one, so a smaller part of the machine matters; and a share of its limit.
    fn worth(&self) -> Bytes {
        let of_limit = self.limit.map_or(Bytes(u64::MAX), |limit| limit.scaled(0.05));
        worth(self.host.meminfo.mem_total).min(of_limit).max(Bytes::from_mib(16))
    }

    /// Whether `bytes` is a good part of what is charged.
    fn is_much(&self, bytes: Bytes) -> bool {
        bytes >= self.worth() && bytes.share_of(self.current()) >= 0.25
    }

    fn file(&self, name: &str) -> String {
        format!("{}/{name}", self.sample.path.display())
    }
}

/// Findings about one cgroup, the answer first.
pub fn cgroup(group: &Group) -> Vec<Finding> {
    let rules: [fn(&Group) -> Option<Finding>; 8] =
        [limits_exceed_box, threads_at_limit, gone_children, shmem, kernel, slab, sockets, page_cache];
    super::ordered(rules.iter().filter_map(|rule| rule(group)).collect())
}

/// Memory charged to children that were removed: v1 says what is the group's own, v2 how many are dying; in a v2
/// group with neither processes nor children all of it must be theirs.
fn gone_children(group: &Group) -> Option<Finding> {
    let sample = group.sample;
    let (bytes, source, says) = match (sample.own, sample.dying) {
        (Some(own), _) => {
            let bytes = group.current() - own - group.children - sample.kmem.unwrap_or_default();
            let says = format!(
                "{} charged, {own} of it to the group itself, {} to its children",
                group.current(),
                group.children
            );
            (bytes, "memory.stat", says)
        }
        (None, Some(dying)) if dying > 0 && group.processes == 0 && group.children == Bytes::ZERO => {
            (group.current(), "cgroup.stat", format!("nr_dying_descendants {}", count(dying)))
        }
        _ => return None,
    };
    if !group.is_much(bytes) {
        return None;
    }
    let summary = format!(
        "{bytes} of what is charged belongs to children that were removed: their pages outlive them and stay charged to \
         this group until they are reclaimed."
    );
    Some(
        Finding::new(Cause::OutlivingCharge, bytes, 0.9, summary)
            .evidence(group.file(source), says)
            .evidence(group.file("cgroup.procs"), format!("{} processes", count(group.processes)))
            .not(Cause::Leak, "no process of the group holds it")
            .not(
                Cause::PageCache,
                "it is charged to groups that are gone, not to a living one's working set",
            ),
    )
}

/// The working set counts file pages in use; when they are most of it, the group needs less than it seems.
const MOSTLY_FILE: f64 = 0.5;

fn page_cache(group: &Group) -> Option<Finding> {
    let stat = &group.sample.stat;
    let working_set = group.sample.working_set()?;
    let active = stat.active_file?;
    let inactive = stat.inactive_file.unwrap_or_default();
    let in_working_set = group.is_much(active) && active.share_of(working_set) >= MOSTLY_FILE;
    let near_limit = group.limit.is_some_and(|limit| group.current().share_of(limit) >= 0.9);
    let fills = near_limit && (active + inactive).share_of(group.current()) >= MOSTLY_FILE;
    if !in_working_set && !fills {
        return None;
    }
    let bytes = active + inactive;
    let dirty = stat.file_dirty.unwrap_or_default() + stat.file_writeback.unwrap_or_default();
    let summary = format!(
        "{bytes} of what is charged is page cache, {active} of it counted in the working set ({working_set}) because \
         it was used twice. The kernel drops it before it kills anything; what the group needs is its anonymous memory, {}.",
        stat.anon.unwrap_or_default()
    );
    let clean = bytes - dirty;
    Some(
        Finding::new(Cause::PageCache, bytes, 0.93, summary)
            .evidence(group.file("memory.stat"), format!("active_file {active}, inactive_file {inactive}, anon {}", stat.anon.unwrap_or_default()))
            .evidence(group.file("memory.current"), format!("{}, limit {}", group.current(), shown(group.limit)))
            .not(Cause::Leak, "file pages: the group's programs read or wrote files, and the kernel keeps them while there is room")
            .lever("reclaim-cache", reclaim(group, clean), clean, "files are read from disk again"),
    )
}

/// The command that takes `bytes` from the group. Version 1 cannot be told how much: there it takes all it can.
fn reclaim(group: &Group, bytes: Bytes) -> String {
    let path = group.sample.path.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@".contains(c);
    let path = match path.chars().all(plain) {
        true => path.into_owned(),
        false => format!("'{}'", path.replace('\'', r"'\''")),
    };
    match group.sample.version {
        Version::V1 => format!("ebb reclaim --cgroup {path}"),
        Version::V2 => format!("ebb reclaim --cgroup {path} --bytes {}", bytes.0),
    }
}

fn shmem(group: &Group) -> Option<Finding> {
    let bytes = group.sample.stat.shmem?;
    let unmapped = bytes - group.mapped_shmem;
    if !group.is_much(unmapped) {
        return None;
    }
    let summary = format!(
        "{bytes} of what is charged is shared memory or files in a tmpfs, and its {} processes map {}. It stays charged \
         until it is deleted, whoever wrote it.",
        count(group.processes),
        group.mapped_shmem.min(bytes)
    );
    Some(
        Finding::new(Cause::SharedMemory, unmapped, 0.9, summary)
            .evidence(group.file("memory.stat"), format!("shmem {bytes}"))
            .evidence("/proc/*/status", format!("RssShmem of its processes {}", group.mapped_shmem))
            .not(Cause::Leak, "it is files or segments, with names and sizes; no process's heap holds it")
            .not(Cause::PageCache, "tmpfs has no disk behind it: the kernel cannot drop these pages")
            .lever(
                "find-files",
                "df -h -t tmpfs; ipcs -m; ebb explain --host",
                Bytes::ZERO,
                "names tmpfs mounts, segments and memfds with their holders",
            ),
    )
}

/// Kernel memory of a group other than slab: what outlives its processes, BPF maps above all.
fn kernel(group: &Group) -> Option<Finding> {
    let stat = &group.sample.stat;
    let kernel = group.sample.kernel()?;
    let of_processes: Bytes =
        [reclaimable_slab(group), stat.kernel_stack, stat.page_tables].into_iter().flatten().sum();
    let other = kernel - of_processes;
    // v1 says only the sum; a group without a process owes none of it to one.
    let decided = stat.kernel_stack.is_some() || group.processes == 0;
    if !decided || !group.is_much(other) || other.share_of(group.current()) < 0.5 {
        return None;
    }
    let maps: Bytes = group.host.bpf.iter().map(|object| object.bytes).sum();
    let bpf = maps.share_of(other) >= 0.5;
    let held = if bpf { "BPF maps" } else { "kernel objects" };
    let who = if group.processes == 0 {
        "It has no process any more".to_owned()
    } else {
        format!(
            "Its {} processes hold {} of anonymous memory",
            count(group.processes),
            stat.anon.unwrap_or_default()
        )
    };
    let summary = format!(
        "{other} of what is charged is kernel memory: {held} made from this group stay charged to it, even after their \
         maker is gone. {who}."
    );
    let mut finding = Finding::new(Cause::OutlivingCharge, other, if bpf { 0.9 } else { 0.7 }, summary)
        .evidence(
            group.file("memory.stat"),
            format!(
                "kernel {kernel}, slab {}, vmalloc {}, percpu {}",
                stat.slab_reclaimable.unwrap_or_default() + stat.slab_unreclaimable.unwrap_or_default(),
                stat.vmalloc.unwrap_or_default(),
                stat.percpu.unwrap_or_default()
            ),
        );
    if maps > Bytes::ZERO {
        finding = finding.evidence("bpf(2)", format!("all BPF maps of this kernel: {maps}"));
    }
    Some(finding.not(Cause::Leak, "no process of the group holds it: it is not in any RSS").lever(
        "find-pins",
        "bpftool map; ls -lR /sys/fs/bpf",
        Bytes::ZERO,
        "unpinning a map that a program still uses breaks that program",
    ))
}

fn slab(group: &Group) -> Option<Finding> {
    let bytes = reclaimable_slab(group)?;
    if !group.is_much(bytes) {
        return None;
    }
    let summary = format!(
        "{bytes} of what is charged is kernel caches of dentries and inodes that this group's programs made; its own \
         memory is {}. The kernel drops them when the group needs room.",
        group.sample.stat.anon.unwrap_or_default()
    );
    Some(
        Finding::new(Cause::SlabReclaimable, bytes, 0.93, summary)
            .evidence(slab_source(group), format!("{bytes} of {}", group.current()))
            .not(Cause::Leak, "no process holds it: it is the kernel's cache, charged to whoever filled it")
            .lever(
                "find-producer",
                "ebb dentries --who 5s",
                Bytes::ZERO,
                "names the programs whose look-ups make them",
            )
            .lever(
                "reclaim-slab",
                reclaim(group, bytes),
                bytes.scaled(0.8),
                "page cache of the group goes first",
            ),
    )
}

/// v1 has only the sum of a group's kernel memory. Where the rest of the host's kernel memory together is too
/// little to hold half of it, the larger part can only be reclaimable slab.
fn reclaimable_slab(group: &Group) -> Option<Bytes> {
    if group.sample.stat.slab_reclaimable.is_some() {
        return group.sample.stat.slab_reclaimable;
    }
    let (kmem, mem) = (group.sample.kmem?, &group.host.meminfo);
    let elsewhere = mem.s_unreclaim + mem.page_tables + mem.kernel_stack + mem.percpu + mem.vmalloc_used;
    let certain = (kmem - elsewhere).min(mem.s_reclaimable);
    (certain.share_of(kmem) >= 0.5).then_some(certain)
}

fn slab_source(group: &Group) -> String {
    if group.sample.stat.slab_reclaimable.is_some() {
        group.file("memory.stat slab_reclaimable")
    } else {
        group.file("memory.kmem.usage_in_bytes, less all other kernel memory of the host")
    }
}

fn sockets(group: &Group) -> Option<Finding> {
    let bytes = group.sample.sockets()?;
    if !group.is_much(bytes) {
        return None;
    }
    let summary = format!(
        "{bytes} of what is charged is data waiting in the group's sockets, written and not read yet."
    );
    Some(
        Finding::new(Cause::KernelPages, bytes, 0.9, summary)
            .evidence(group.file("memory.stat"), format!("sock {bytes}"))
            .not(Cause::Leak, "it goes when the sockets are read or closed")
            .lever("find-readers", "ss -ntmp", Bytes::ZERO, "shows which sockets hold unread data"),
    )
}

fn threads_at_limit(group: &Group) -> Option<Finding> {
    let pids = group.sample.pids?;
    let max = pids.max?;
    if pids.current * 100 < max * 95 {
        return None;
    }
    let summary = format!(
        "{} of {} threads that pids.max allows are there: fork and clone fail with EAGAIN, which programs report as lack \
         of memory.",
        count(pids.current),
        count(max)
    );
    Some(
        Finding::new(Cause::OtherLimit, Bytes::ZERO, 0.95, summary)
            .evidence(
                group.file("pids.max"),
                format!("pids.current {}, pids.max {}", count(pids.current), count(max)),
            )
            .not(Cause::OvercommitRefusal, "the count of threads is at its limit, not memory")
            .lever("raise", "echo NUMBER > pids.max (systemd: TasksMax=)", Bytes::ZERO, ""),
    )
}

fn limits_exceed_box(group: &Group) -> Option<Finding> {
    caps::exceed(group.caps, group.limit?, &format!("{} and its ancestors", group.sample.path.display()))
}

fn shown(limit: Option<Bytes>) -> String {
    limit.map_or("none".to_owned(), |limit| limit.to_string())
}
