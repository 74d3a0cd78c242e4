//! `ebb reclaim PID`: gives back what a process's allocators keep, and says what came of it.

use crate::cli::{Output, duration};
use crate::escape::escape;
use crate::render::{self, Page};
use crate::{explain, heap};
use ebbtide_observe::process::{Name, Process};
use ebbtide_observe::{Bytes, Root};
use ebbtide_reclaim::process::{Options, ReclaimError, reclaim};
use ebbtide_reclaim::{Lever, Report};
use serde::Serialize;
use std::fmt::Write;
use std::process::ExitCode;
use std::time::Duration;

/// `ebb reclaim`.
#[derive(Debug, clap::Args)]
pub(crate) struct ReclaimArgs {
    /// A process: its pid, or its name if only one has it
    #[arg(value_name = "PID|NAME")]
    target: String,
    /// Only say what would be done, what it would return and what it costs
    #[arg(long)]
    dry_run: bool,
    /// For how long all threads may stand still at once, where that is needed
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5ms")]
    max_stop: Duration,
    /// How long to wait for a moment in which its threads are at rest
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "5s")]
    patience: Duration,
    /// Have its runtime collect garbage first: a JVM. The program stops for a full collection
    #[arg(long)]
    gc: bool,
    #[command(flatten)]
    output: Output,
}

/// The JSON contract (schema/reclaim.schema.json).
#[derive(Serialize)]
struct Json<'a> {
    schema_version: u32,
    pid: u32,
    name: Name,
    dry_run: bool,
    #[serde(flatten)]
    report: &'a Report,
}

pub(crate) fn run(args: &ReclaimArgs) -> anyhow::Result<ExitCode> {
    let root = Root::live()?;
    let pid = explain::pid(&root, &args.target)?;
    let gone = |_| anyhow::anyhow!("there is no process {pid}; 'ebb ps' lists them");
    let process = Process::open(&root, pid).map_err(gone)?;
    let status = process.status().map_err(gone)?;
    explain::with_memory(pid, &status)?;
    let options =
        Options { dry_run: args.dry_run, max_stop: args.max_stop, patience: args.patience, collect: args.gc };
    let report = reclaim(&process, &options).map_err(|error| match &error {
        ReclaimError::Look(look) => heap::refused::look("reclaim", pid, Some(&status), look),
        _ => anyhow::anyhow!("nothing was done to process {pid}: {error}"),
    })?;
    if args.output.json {
        let name = status.name;
        render::print_json(&Json { schema_version: 1, pid, name, dry_run: args.dry_run, report: &report })?;
    } else {
        render::print(&text(Page::of_stdout(), pid, &status.name, &report))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn text(page: Page, pid: u32, name: &Name, report: &Report) -> String {
    let mut out = String::new();
    let name = escape(&name.to_string()).into_owned();
    let mut line = |indent, text: String| render::wrap(&mut out, page, indent, indent + 2, &text);
    let Report { predicted, returned, longest_stop, elapsed, .. } = report;
    line(
        0,
        match returned {
            Some(returned) => format!(
                "{name} (pid {pid}): {returned} of {predicted} came back in {}; no thread was held up longer than {}.",
                time(*elapsed),
                time(*longest_stop)
            ),
            None if *predicted == Bytes::ZERO => format!("{name} (pid {pid}): nothing to give back."),
            None => format!("{name} (pid {pid}): {predicted} would come back."),
        },
    );
    for lever in &report.levers {
        line(2, said(lever));
    }
    for note in &report.notes {
        line(2, note.clone());
    }
    out
}

fn said(lever: &Lever) -> String {
    let Lever { id, on, predicted, returned, cost, longest_stop, stops, short } = lever;
    let mut text = match returned {
        None => format!("{id}: {predicted} of {on}; {cost}"),
        Some(returned) => {
            let times = if *stops == 1 { "once".to_owned() } else { format!("{stops} times") };
            format!(
                "{id}: {returned} of {predicted} of {on}, stopped {times}, {} at most",
                time(*longest_stop)
            )
        }
    };
    if let Some(why) = short {
        let _ = write!(text, "; not to the end: {why}");
    } else if lever.fell_short() {
        text.push_str("; less than half of what was predicted: it works, and has taken new memory or used these pages again");
    }
    text
}

fn time(time: Duration) -> String {
    match time.as_secs_f64() {
        seconds if seconds >= 1.0 => format!("{seconds:.1} s"),
        seconds if seconds >= 0.01 => format!("{:.0} ms", seconds * 1e3),
        seconds => format!("{:.1} ms", seconds * 1e3),
    }
}
