//! One cgroup: finding it by what people type, and its report.

use crate::report::{Beside, Report, Target};
use anyhow::{Context, bail};
use ebbtide_explain::ledger;
use ebbtide_explain::rules::{self, caps};
use ebbtide_observe::cgroup::{CgroupSample, Hierarchy, Node};
use ebbtide_observe::host::HostSample;
use ebbtide_observe::process::Process;
use ebbtide_observe::process::membership::Membership;
use ebbtide_observe::{Bytes, Root};
use std::path::{Path, PathBuf};

/// Processes looked at in one group; a larger one is sampled from the first of them.
const PROCESSES: usize = 4096;

/// A cgroup with its hierarchy.
pub(crate) struct Chosen {
    pub(crate) hierarchy: Hierarchy,
    pub(crate) path: PathBuf,
}

impl Chosen {
    /// The group at `path`: as it lies in the file system, or as /proc/PID/cgroup names it.
    pub(crate) fn find(root: &Root, path: &Path) -> anyhow::Result<Chosen> {
        let Some(hierarchy) = Hierarchy::find(root)? else {
            bail!("no memory controller of cgroups is mounted here, neither v1 nor v2")
        };
        let mount = hierarchy.mount_point();
        let path = match path.strip_prefix(&mount) {
            Ok(inside) => Path::new("/").join(inside),
            Err(_) => path.to_owned(),
        };
        let group = Chosen { hierarchy, path };
        group.sample().with_context(|| {
            format!(
                "there is no cgroup '{}' under {}; 'systemd-cgls' or 'find' list them",
                group.path.display(),
                mount.display()
            )
        })?;
        Ok(group)
    }

    pub(crate) fn sample(&self) -> anyhow::Result<CgroupSample> {
        Ok(self.hierarchy.sample(&self.path)?)
    }

    /// The groups below it.
    fn below(&self) -> Vec<Node> {
        let mut nodes = self.hierarchy.tree().map(|tree| tree.nodes).unwrap_or_default();
        nodes.retain(|node| node.path != self.path && node.path.starts_with(&self.path));
        nodes
    }

    /// The processes in the group and in those `below` it.
    fn processes(&self, below: &[Node]) -> Vec<u32> {
        let groups = std::iter::once(&self.path).chain(below.iter().map(|node| &node.path));
        groups.flat_map(|path| self.hierarchy.procs(path).unwrap_or_default()).collect()
    }
}

/// The tightest memory limit of the group at `path` and of those above it.
fn limit(hierarchy: &Hierarchy, path: &Path) -> Option<Bytes> {
    path.ancestors().filter_map(|group| hierarchy.sample(group).ok()?.limit).min()
}

/// The tightest memory limit that holds for a process.
pub(crate) fn limit_of(root: &Root, membership: &Membership) -> Option<Bytes> {
    let hierarchy = Hierarchy::find(root).ok()??;
    limit(&hierarchy, &hierarchy.path_of(membership)?)
}

pub(crate) fn report(root: &Root, group: &Chosen) -> anyhow::Result<Report> {
    let sample = group.sample()?;
    let host = HostSample::read(root)?;
    let below = group.below();
    let pids = group.processes(&below);
    let (mut mapped_shmem, mut found) = (Bytes::ZERO, Vec::new());
    for process in pids.iter().take(PROCESSES).filter_map(|&pid| Process::open(root, pid).ok()) {
        let vm = process.status().ok().and_then(|status| status.vm).unwrap_or_default();
        mapped_shmem += vm.rss_shmem;
        let cmdline = process.cmdline().unwrap_or_default();
        found.extend(caps::caps(&cmdline).into_iter().map(|cap| (process.pid(), cap)));
    }
    let limit = limit(&group.hierarchy, &group.path);
    let children = below.iter().filter(|node| node.path.parent() == Some(&group.path));
    let children = children.filter_map(|node| node.current).sum();
    let findings = rules::cgroup(&rules::Group {
        sample: &sample,
        host: &host,
        processes: pids.len() as u64,
        mapped_shmem,
        caps: &found,
        children,
        limit,
    });
    let target = Target::cgroup(group.path.to_string_lossy().into_owned());
    let mut report = Report::new(target, ledger::cgroup(&sample), findings, sample.unread.clone());
    report.beside = Beside(vec![
        (
            "working_set",
            sample.working_set().unwrap_or_default(),
            "charged less inactive file pages: what Kubernetes looks at; active file pages are in it",
        ),
        ("limit", limit.unwrap_or_default(), "the tightest of its own and those above it"),
        ("peak", sample.peak.unwrap_or_default(), "the most that was charged"),
        ("swap", sample.swap.unwrap_or_default(), "swapped out"),
        ("tcp_buffers", sample.kmem_tcp.unwrap_or_default(), "socket buffers, counted apart in v1"),
    ]);
    Ok(report)
}
