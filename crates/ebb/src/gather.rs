//! What the rules look at beyond one reading of everything: closer looks at the few processes that a cheap figure
//! makes suspicious. Every loop here is bounded, so that a report costs little more than its readings.

use ebbtide_explain::rules::{Cgroups, CowPair, caps};
use ebbtide_heaps::Look;
use ebbtide_observe::cgroup::{Hierarchy, Version};
use ebbtide_observe::fork::ForkSample;
use ebbtide_observe::host::HostSample;
use ebbtide_observe::host::bpf::BpfObject;
use ebbtide_observe::process::{Device, Name, ProcSample, Process, Processes, Target, cow};
use ebbtide_observe::shared::SharedMemory;
use ebbtide_observe::{Bytes, Root, Unread};
use std::collections::HashSet;

/// Closer looks of one kind in one report.
const LOOKS: usize = 32;

/// Less than this is not worth a closer look.
const FLOOR: Bytes = Bytes::from_mib(16);

/// The devices of file systems in RAM.
pub(crate) fn tmpfs(sample: &HostSample) -> Vec<Device> {
    let device = |text: &str| {
        let (major, minor) = text.split_once(':')?;
        Some(Device { major: major.parse().ok()?, minor: minor.parse().ok()? })
    };
    sample.ram_fs.iter().filter_map(|fs| device(&fs.device)).collect()
}

/// Who maps tmpfs files that were deleted, each with its share (PSS) of them.
pub(crate) fn deleted_mapped(
    root: &Root,
    processes: &Processes,
    tmpfs: &[Device],
) -> Vec<(u32, Name, Bytes)> {
    let suspects = largest(processes, |p| p.counters().map_or(Bytes::ZERO, |c| c.pss_shmem), FLOOR);
    let deleted = |p: &ProcSample| {
        let mut sum = Bytes::ZERO;
        let process = Process::open(root, p.pid).ok()?;
        process
            .each_area(|area| {
                let mapping = &area.mapping;
                let on_tmpfs = tmpfs.contains(&mapping.dev) || mapping.path.starts_with(b"/dev/shm/");
                if on_tmpfs && mapping.deleted().is_some() {
                    sum += area.counters.pss;
                }
                true
            })
            .ok()?;
        (sum > Bytes::ZERO).then(|| (p.pid, *p.name(), sum))
    };
    suspects.into_iter().filter_map(deleted).collect()
}

/// Shared memory by its objects, looked for only where shmem is not explained by what processes map: it costs half
/// of what reading all rollups does.
pub(crate) fn shared(root: &Root, sample: &HostSample, processes: &Processes) -> SharedMemory {
    if sample.meminfo.shmem - SharedMemory::mapped(&processes.all) < FLOOR {
        return SharedMemory::default();
    }
    SharedMemory::read(root, processes)
}

/// What is inside the heaps of `process`; empty, and said in `unread`, where nobody may look.
pub(crate) fn look(process: &Process, unread: &mut Vec<Unread>) -> Look {
    let look = Look::into(process, false).unwrap_or_else(|error| {
        unread.push(Unread { what: format!("the heaps of pid {}", process.pid()), why: error.to_string() });
        Look::default()
    });
    unread.extend(look.unread());
    look
}

/// Living and dying cgroups of the memory controller.
pub(crate) fn cgroups(root: &Root) -> Cgroups {
    let Ok(Some(hierarchy)) = Hierarchy::find(root) else { return Cgroups::default() };
    let Ok(tree) = hierarchy.tree() else { return Cgroups::default() };
    let source = match hierarchy.version() {
        Version::V1 => "/proc/cgroups beside the directories",
        Version::V2 => "cgroup.stat",
    };
    Cgroups { dying: hierarchy.dying(root, &tree), living: tree.nodes.len() as u64, source }
}

/// BPF maps that no process has open. Descriptors are looked through only where maps take much.
pub(crate) fn orphan_maps(root: &Root, sample: &HostSample, processes: &Processes) -> Vec<BpfObject> {
    let mut maps: Vec<BpfObject> = sample.bpf.clone();
    if maps.iter().map(|map| map.bytes).sum::<Bytes>() < FLOOR {
        return Vec::new();
    }
    let mut held: HashSet<u64> = HashSet::new();
    for process in processes.all.iter().filter_map(|p| Process::open(root, p.pid).ok()) {
        let mut fds = Vec::new();
        // Without the right to look, its maps count as held by nobody; root has it.
        let _ = process.each_fd(|fd, target| {
            if target == Target::AnonInode(b"bpf-map") {
                fds.push(fd);
            }
            fds.len() < 4096
        });
        held.extend(fds.into_iter().filter_map(|fd| Some(process.fdinfo(fd).ok()?.bpf_map?.id)));
    }
    maps.retain(|map| !held.contains(&u64::from(map.id)));
    maps
}

/// Processes whose private memory alone exceeds RAM and swap: the kernel may refuse to fork them.
pub(crate) fn large_forks(root: &Root, sample: &HostSample, processes: &Processes) -> Vec<ForkSample> {
    let strict = sample.sysctls.get("vm/overcommit_memory") == Some(2);
    let box_size = sample.meminfo.mem_total + sample.meminfo.swap_total;
    let floor = if strict { sample.meminfo.commit_limit - sample.meminfo.committed_as } else { box_size };
    let private = |p: &ProcSample| p.status.and_then(|s| s.vm).map_or(Bytes::ZERO, |vm| vm.data + vm.stack);
    let suspects = largest(processes, private, floor.max(FLOOR));
    suspects.iter().filter_map(|p| ForkSample::read(root, &Process::open(root, p.pid).ok()?).ok()).collect()
}

/// Parents and children that share memory by copy-on-write; only those of `pid`, if one is given.
pub(crate) fn cow_pairs(root: &Root, processes: &Processes, pid: Option<u32>) -> Vec<CowPair> {
    let private = |p: &ProcSample| p.counters().map_or(Bytes::ZERO, |c| c.private_dirty);
    let mut pairs = Vec::new();
    for child in largest(processes, private, FLOOR) {
        let Some(parent) = processes.get(child.stat.ppid) else { continue };
        let asked = pid.is_none_or(|pid| pid == child.pid || pid == parent.pid);
        if !asked || parent.rss() < FLOOR {
            continue;
        }
        pairs.extend(pair(root, parent, child));
    }
    pairs
}

fn pair(root: &Root, parent: &ProcSample, child: &ProcSample) -> Option<CowPair> {
    let [of_parent, of_child] = [parent, child].map(|p| Process::open(root, p.pid).ok());
    let (of_parent, of_child) = (of_parent?, of_child?);
    // Another program shares nothing, wherever its mappings happen to lie.
    let same_program = of_parent.exe().ok()? == of_child.exe().ok()?;
    let same_layout = of_parent.stat().ok()?.start_stack == of_child.stat().ok()?.start_stack;
    if !same_program || !same_layout {
        return None;
    }
    let copied = cow::copied(&of_parent, &of_child).ok()?;
    Some(CowPair {
        parent: (parent.pid, *parent.name()),
        child: (child.pid, *child.name()),
        copied,
        child_rss: child.rss(),
    })
}

/// What heaps may grow to by their own settings.
pub(crate) fn heap_caps(root: &Root, processes: &Processes) -> Vec<(u32, caps::Cap)> {
    let managed =
        |p: &&ProcSample| matches!(p.name().as_bytes(), b"java" | b"node" | b"nodejs" | b"MainThread");
    let of = |p: &ProcSample| {
        let cmdline = Process::open(root, p.pid).and_then(|process| process.cmdline()).unwrap_or_default();
        caps::caps(&cmdline).into_iter().map(|cap| (p.pid, cap)).collect::<Vec<_>>()
    };
    processes.all.iter().filter(managed).take(4096).flat_map(of).collect()
}

/// The processes with the most of something, at least `floor`.
fn largest(processes: &Processes, of: impl Fn(&ProcSample) -> Bytes, floor: Bytes) -> Vec<&ProcSample> {
    let mut found: Vec<&ProcSample> = processes.all.iter().filter(|p| of(p) >= floor).collect();
    found.sort_by_key(|p| std::cmp::Reverse(of(p)));
    found.truncate(LOOKS);
    found
}
