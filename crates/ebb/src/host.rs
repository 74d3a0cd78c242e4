//! `ebb`: the host. Where MemTotal went, what is wrong, and what can be done.

use crate::cli::HostArgs;
use crate::gather;
use crate::looks::{Budget, Looks};
use crate::report::{Heaps, Report, Target};
use ebbtide_explain::{Line, ledger, rules};
use ebbtide_observe::host::HostSample;
use ebbtide_observe::process::{ProcSample, Processes};
use ebbtide_observe::shared::{SharedKind, SharedMemory};
use ebbtide_observe::{Bytes, Root};
use std::process::ExitCode;

pub(crate) fn run(args: &HostArgs) -> anyhow::Result<ExitCode> {
    report(&Root::live()?, args.budget)?.print(args.output.json, args.all)
}

/// The host's report.
pub(crate) fn report(root: &Root, budget: Budget) -> anyhow::Result<Report> {
    let (processes, (sample, cgroups)) =
        Processes::read_beside(root, || (HostSample::read(root), gather::cgroups(root)))?;
    let sample = sample?;
    let shared = gather::shared(root, &sample, &processes);
    let ledger = ledger::host(&sample, anon(&processes), shmem(&sample, &shared));
    let with_memory: Vec<&ProcSample> = processes.all.iter().filter(|p| p.rss() > Bytes::ZERO).collect();
    let looks = Looks::into(root, &with_memory, budget);
    let findings = rules::host(&rules::Host {
        sample: &sample,
        ledger: &ledger,
        processes: &processes.all,
        shared: &shared,
        deleted_mapped: &gather::deleted_mapped(root, &processes, &gather::tmpfs(&sample)),
        cgroups,
        orphan_maps: &gather::orphan_maps(root, &sample, &processes),
        large_forks: &gather::large_forks(root, &sample, &processes),
        cow: &gather::cow_pairs(root, &processes, None),
        caps: &gather::heap_caps(root, &processes),
        inside: looks.seen(),
    });
    let unread = [sample.unread.clone(), processes.unread(), shared.unread.clone(), looks.unread()].concat();
    let target = Target {
        kind: "host",
        name: sample.hostname.clone(),
        kernel: Some(sample.kernel.clone()),
        total: "RAM",
        ..Target::default()
    };
    let mut report = Report::new(target, ledger, findings, unread);
    report.heaps = budget.is_some().then(|| Heaps::of(&looks));
    Ok(report)
}

/// What shmem consists of: file systems in RAM, memfds, System V segments.
fn shmem(sample: &HostSample, shared: &SharedMemory) -> Vec<Line> {
    let file_systems = sample.ram_fs.iter().map(|fs| Line::new(format!("{} {}", fs.kind, fs.path), fs.used));
    let memfds = shared.files.iter().filter(|file| file.kind == SharedKind::Memfd && !file.hugetlb);
    let memfds = Line::new("memfds", memfds.map(|file| file.used).sum());
    let segments = shared.segments.iter().filter(|segment| !segment.hugetlb);
    let segments = Line::new("System V segments", segments.map(|segment| segment.rss).sum());
    file_systems.chain([memfds, segments]).collect()
}

/// Who holds the anonymous memory: each process's share of it.
fn anon(processes: &Processes) -> Vec<Line> {
    let share = |p: &ProcSample| match p.counters() {
        Some(counters) => counters.pss_anon,
        None => p.status.and_then(|status| status.vm).map_or(Bytes::ZERO, |vm| vm.rss_anon),
    };
    processes.all.iter().map(|p| Line::new(format!("{} ({})", p.name(), p.pid), share(p))).collect()
}
