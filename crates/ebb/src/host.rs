//! `ebb`: the host. Where MemTotal went, what is wrong, and what can be done.

use crate::cli::HostArgs;
use crate::render::{self, HEADING, Page};
use ebbtide_explain::{Finding, Ledger, ledger, rules};
use ebbtide_observe::host::HostSample;
use ebbtide_observe::{Root, Unread};
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
    let sample = HostSample::read(&root)?;
    let ledger = ledger::host(&sample, Vec::new(), Vec::new());
    let findings = rules::host(&rules::Host { sample: &sample, ledger: &ledger });
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
