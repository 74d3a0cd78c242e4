//! `ebb reclaim`: gives back what a process, a cgroup or the host keeps, and says what came of it. This tells the
//! targets apart; one file for each goes about it, and all of them are recorded.

mod history;
mod host;
mod process;
mod recorded;
mod text;

use crate::cli::{Output, duration};
use crate::render::{self, Page};
use ebbtide_observe::Root;
use ebbtide_reclaim::Report;
use ebbtide_reclaim::journal::Target;
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// `ebb reclaim`.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(crate) struct ReclaimArgs {
    /// A process: its pid, or its name if only one has it
    #[arg(value_name = "PID|NAME", group = "what")]
    target: Option<String>,
    /// The host: one kind of memory that the kernel keeps
    #[arg(long, value_name = "WHAT", group = "what", value_enum)]
    host: Option<host::Kind>,
    /// With --host page-cache: only of this file, or of the files below this directory
    #[arg(long, value_name = "FILE|DIR", requires = "host", conflicts_with_all = ["all", "target", "history"])]
    path: Option<PathBuf>,
    /// With --host page-cache: all of it
    #[arg(long, requires = "host", conflicts_with_all = ["target", "history"])]
    all: bool,
    /// What was given back before: when, by whom, predicted and returned
    #[arg(long, group = "what", conflicts_with_all = ["dry_run", "patience"])]
    history: bool,
    /// Only say what would be done, what it would return and what it costs
    #[arg(long)]
    dry_run: bool,
    /// For how long all of a process's threads may stand still at once, where that is needed [default: 5ms]
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with_all = ["host", "history"])]
    max_stop: Option<Duration>,
    /// How long to wait: for a process's threads to be at rest [default: 5s], for the kernel [default: 1m]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    patience: Option<Duration>,
    /// Have a process's runtime collect garbage first: a JVM. The program stops for a full collection
    #[arg(long, conflicts_with_all = ["host", "history"])]
    gc: bool,
    #[command(flatten)]
    output: Output,
}

/// The JSON contract (schema/reclaim.schema.json).
#[derive(Serialize)]
struct Json<'a> {
    schema_version: u32,
    target: &'a Target,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    dry_run: bool,
    #[serde(flatten)]
    report: &'a Report,
}

pub(crate) fn run(args: &ReclaimArgs) -> anyhow::Result<ExitCode> {
    let root = Root::live()?;
    if args.history {
        return history::run(args.output.json);
    }
    let (target, report) = match (&args.target, args.host) {
        (Some(process), _) => process::run(&root, process, args)?,
        (None, Some(kind)) => host::run(&root, kind, args)?,
        (None, None) => {
            anyhow::bail!("reclaim what? Give a PID or a NAME, or --host WHAT ('ebb ps' lists processes)")
        }
    };
    if args.output.json {
        let (pid, name) = (target.pid, target.pid.and(target.name.as_deref()));
        let json =
            Json { schema_version: 1, target: &target, pid, name, dry_run: args.dry_run, report: &report };
        render::print_json(&json)?;
    } else {
        render::print(&text::text(Page::of_stdout(), &target, &report))?;
    }
    Ok(ExitCode::SUCCESS)
}
