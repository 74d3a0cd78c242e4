//! `ebb tune` and `ebb tune --list`: what to change on this host, and what there is to change.

use super::{TuneArgs, overdue};
use crate::escape::escape;
use crate::looks::Budget;
use crate::render::{self, CAUSE, COMMAND, FAINT, GOOD, Page};
use crate::{explain, host};
use ebbtide_explain::{Cause, Finding};
use ebbtide_observe::host::HostSample;
use ebbtide_observe::process::{Name, ProcSample, Process, Processes};
use ebbtide_observe::{Bytes, Root, Unread};
use ebbtide_reclaim::tune::{Advised, Facts, SETTINGS, Setting, Store, advise};
use serde::Serialize;
use std::process::ExitCode;

/// Processes that are looked at for huge pages that hold nothing: sampling one takes some milliseconds.
const BLOATED: usize = 3;

/// Processes whose mappings are counted: the largest address spaces have the most.
const MAPPINGS: usize = 16;

/// Less in huge pages is no reason to change them for everybody.
const HUGE: Bytes = Bytes::from_mib(64);

#[derive(Serialize)]
struct Json<'a> {
    schema_version: u32,
    kind: &'static str,
    #[serde(flatten)]
    advised: &'a Advised,
    pending: Vec<&'a str>,
    unread: &'a [Unread],
}

pub(super) fn run(args: &TuneArgs, root: &Root, store: &Store) -> anyhow::Result<ExitCode> {
    let report = host::report(root, Budget::NONE)?;
    let (sample, processes) = (HostSample::read(root)?, Processes::read(root)?);
    let advised = advise(&Facts {
        root,
        sample: &sample,
        findings: &report.findings,
        bloated: &bloated(root, &processes),
        mappings: &mappings(root, &processes),
    });
    let pending = store.pending().records;
    if args.output.json {
        let pending = pending.iter().flat_map(|record| &record.changes).map(|change| change.setting.as_str());
        let (kind, pending) = ("advice", pending.collect());
        render::print_json(&Json {
            schema_version: 1,
            kind,
            advised: &advised,
            pending,
            unread: &report.unread,
        })?;
        return Ok(ExitCode::SUCCESS);
    }
    let page = Page::of_stdout();
    let mut out = text(page, &advised);
    for change in pending.iter().flat_map(|record| &record.changes) {
        let line = format!(
            "Changed by ebb: {} ({} -> {}); to set it back: ebb tune --undo",
            change.setting, change.before, change.set
        );
        render::wrap(&mut out, page, 0, 2, &escape(&line));
    }
    if let Some(line) = overdue(root, store) {
        render::wrap(&mut out, page, 0, 2, &line);
    }
    render::unread(&mut out, page, &report.unread);
    render::print(&out)?;
    Ok(ExitCode::SUCCESS)
}

/// The processes with the most in huge pages, of which most holds nothing.
fn bloated(root: &Root, processes: &Processes) -> Vec<(u32, Name, Finding)> {
    let huge = |p: &ProcSample| p.counters().map_or(Bytes::ZERO, |counters| counters.anon_huge_pages);
    let mut suspects: Vec<&ProcSample> = processes.all.iter().filter(|p| huge(p) >= HUGE).collect();
    suspects.sort_by_key(|p| std::cmp::Reverse(huge(p)));
    let finding = |p: &&ProcSample| {
        let process = Process::open(root, p.pid).ok()?;
        let (report, _) = explain::looked_into(root, &process, None).ok()?;
        let finding = report.findings.into_iter().find(|finding| finding.cause == Cause::ThpBloat)?;
        Some((p.pid, *p.name(), finding))
    };
    suspects.iter().take(BLOATED).filter_map(finding).collect()
}

/// How many mappings the processes with the most memory have.
fn mappings(root: &Root, processes: &Processes) -> Vec<(u32, Name, u64)> {
    let mut largest: Vec<&ProcSample> = processes.all.iter().filter(|p| p.rss() > Bytes::ZERO).collect();
    largest.sort_by_key(|p| std::cmp::Reverse(p.stat.vsize));
    let count = |p: &&ProcSample| {
        let count = Process::open(root, p.pid).and_then(|process| process.mapping_count()).ok()?;
        Some((p.pid, *p.name(), count))
    };
    largest.iter().take(MAPPINGS).filter_map(count).collect()
}

fn text(page: Page, advised: &Advised) -> String {
    let mut out = String::new();
    if advised.advice.is_empty() {
        out.push_str(&format!(
            "{GOOD}Nothing to change{GOOD:#}: nothing was found here that a setting of the kernel helps.\n"
        ));
    }
    for advice in &advised.advice {
        let cause = advice.cause.map(|cause| format!("  {FAINT}({cause}){FAINT:#}")).unwrap_or_default();
        out.push_str(&format!(
            "{CAUSE}{}{CAUSE:#}  {} -> {}{cause}\n",
            advice.setting,
            escape(&advice.present),
            advice.proposed
        ));
        let label = |text: &str| format!("{FAINT}{text}{FAINT:#}");
        render::labelled(&mut out, page, 2, 7, label("why"), &escape(&advice.why));
        render::labelled(&mut out, page, 2, 7, label("danger"), advice.danger);
        out.push_str(&format!("  {COMMAND}{}{COMMAND:#}\n\n", escape(&advice.command)));
    }
    for note in &advised.notes {
        render::wrap(&mut out, page, 0, 2, &escape(note));
    }
    out
}

#[derive(Serialize)]
struct Listed {
    setting: &'static str,
    path: String,
    present: Option<String>,
    takes: String,
    does: &'static str,
    danger: &'static str,
    source: &'static str,
}

#[derive(Serialize)]
struct JsonList {
    schema_version: u32,
    kind: &'static str,
    settings: Vec<Listed>,
}

pub(super) fn list(args: &TuneArgs, root: &Root) -> anyhow::Result<ExitCode> {
    let listed = |setting: &Setting| Listed {
        setting: setting.name,
        path: format!("/{}", setting.path),
        present: setting.read(root).ok(),
        takes: setting.takes(),
        does: setting.does,
        danger: setting.danger,
        source: setting.source,
    };
    let settings: Vec<Listed> = SETTINGS.iter().map(listed).collect();
    if args.output.json {
        render::print_json(&JsonList { schema_version: 1, kind: "list", settings })?;
        return Ok(ExitCode::SUCCESS);
    }
    let page = Page::of_stdout();
    let mut out = String::new();
    for one in &settings {
        let present = one.present.as_deref().unwrap_or("not there on this kernel");
        out.push_str(&format!("{CAUSE}{}{CAUSE:#}  {}\n", one.setting, escape(present)));
        render::wrap(&mut out, page, 2, 2, one.does);
        for (label, text) in [("takes", one.takes.as_str()), ("danger", one.danger), ("source", one.source)] {
            render::labelled(&mut out, page, 2, 7, format!("{FAINT}{label}{FAINT:#}"), text);
        }
    }
    render::print(&out)?;
    Ok(ExitCode::SUCCESS)
}
