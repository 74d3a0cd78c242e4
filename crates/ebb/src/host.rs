//! `ebb`: the host. Where MemTotal went, what is wrong, and what can be done.

use crate::cli::HostArgs;
use crate::report::{Report, Target};
use ebbtide_explain::{Line, ledger, rules};
use ebbtide_observe::host::HostSample;
use ebbtide_observe::process::{ProcSample, Processes};
use ebbtide_observe::{Bytes, Root};
use std::process::ExitCode;

pub(crate) fn run(args: &HostArgs) -> anyhow::Result<ExitCode> {
    report(&Root::live()?)?.print(args.output.json, args.all)
}

/// The host's report.
pub(crate) fn report(root: &Root) -> anyhow::Result<Report> {
    let processes = Processes::read(root)?;
    let sample = HostSample::read(root)?;
    let ledger = ledger::host(&sample, anon(&processes), Vec::new());
    let findings = rules::host(&rules::Host { sample: &sample, ledger: &ledger, processes: &processes.all });
    let unread = sample.unread.iter().cloned().chain(processes.unread()).collect();
    let target = Target {
        kind: "host",
        name: sample.hostname.clone(),
        kernel: Some(sample.kernel.clone()),
        total: "RAM",
        ..Target::default()
    };
    Ok(Report::new(target, ledger, findings, unread))
}

/// Who holds the anonymous memory: each process's share of it.
fn anon(processes: &Processes) -> Vec<Line> {
    let share = |p: &ProcSample| match p.counters() {
        Some(counters) => counters.pss_anon,
        None => p.status.and_then(|status| status.vm).map_or(Bytes::ZERO, |vm| vm.rss_anon),
    };
    processes.all.iter().map(|p| Line::new(format!("{} ({})", p.name(), p.pid), share(p))).collect()
}
