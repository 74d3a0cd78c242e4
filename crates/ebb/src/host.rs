//! `ebb`: the host. Where MemTotal went, what is wrong, and what can be done.

use crate::cli::HostArgs;
use crate::render::{self, HEADING, Page};
use ebbtide_explain::{Finding, Ledger, Line, ledger, rules};
use ebbtide_observe::host::HostSample;
use ebbtide_observe::process::{ProcSample, Processes};
use ebbtide_observe::{Bytes, Root, Unread};
use serde::Serialize;
use std::process::ExitCode;

/// The JSON contract of the host report.
#[derive(Serialize)]
struct Json<'a> {
    schema_version: u32,
    target: Target<'a>,
    ledger: &'a Ledger,
    findings: &'a [Finding],
    unread: &'a [Unread],
}

#[derive(Serialize)]
struct Target<'a> {
    kind: &'static str,
    name: &'a str,
    kernel: &'a str,
}

pub(crate) fn run(args: &HostArgs) -> anyhow::Result<ExitCode> {
    let root = Root::live()?;
    let processes = Processes::read(&root)?;
    let mut sample = HostSample::read(&root)?;
    sample.unread.extend(processes.unread());
    let ledger = ledger::host(&sample, anon(&processes), Vec::new());
    let findings = rules::host(&rules::Host { sample: &sample, ledger: &ledger, processes: &processes.all });
    if args.output.json {
        let target = Target { kind: "host", name: &sample.hostname, kernel: &sample.kernel };
        render::print_json(&Json {
            schema_version: 1,
            target,
            ledger: &ledger,
            findings: &findings,
            unread: &sample.unread,
        })?;
    } else {
        render::print(&text(args, Page::of_stdout(), &sample, &ledger, &findings))?;
    }
    Ok(if findings.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(1) })
}

/// Who holds the anonymous memory: each process's share of it.
fn anon(processes: &Processes) -> Vec<Line> {
    let share = |p: &ProcSample| match p.counters() {
        Some(counters) => counters.pss_anon,
        None => p.status.and_then(|status| status.vm).map_or(Bytes::ZERO, |vm| vm.rss_anon),
    };
    processes.all.iter().map(|p| Line::new(format!("{} ({})", p.name(), p.pid), share(p))).collect()
}

fn text(args: &HostArgs, page: Page, sample: &HostSample, ledger: &Ledger, findings: &[Finding]) -> String {
    let mut out = format!(
        "{HEADING}{}{HEADING:#}  {} RAM, Linux {}\n\n",
        crate::escape::escape(&sample.hostname),
        sample.meminfo.mem_total,
        crate::escape::escape(&sample.kernel)
    );
    render::ledger(&mut out, page, ledger, args.all);
    render::findings(&mut out, page, findings, args.all);
    render::unread(&mut out, page, &sample.unread);
    out
}
