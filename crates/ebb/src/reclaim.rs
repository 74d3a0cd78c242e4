//! `ebb reclaim`: gives back what a process, a cgroup or the host keeps, and says what came of it. This tells the
//! targets apart; one file for each goes about it, and all of them are recorded.

mod cgroup;
mod history;
mod host;
mod process;
mod recorded;
mod text;

use crate::cli::{Output, duration, size};
use crate::render::{self, Page};
use ebbtide_observe::{Bytes, Root};
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
    /// A cgroup: its directory, or its path as /proc/PID/cgroup has it
    #[arg(long, value_name = "PATH", group = "what")]
    cgroup: Option<PathBuf>,
    /// With --cgroup: so much (512M, 2G), anonymous memory too where there is swap
    #[arg(long, value_name = "N", value_parser = size, requires = "cgroup", conflicts_with_all = ["floor", "target", "host", "history"])]
    bytes: Option<Bytes>,
    /// With --cgroup: until no more than this is charged, anonymous memory too where there is swap
    #[arg(long, value_name = "N", value_parser = size, requires = "cgroup", conflicts_with_all = ["target", "host", "history"])]
    floor: Option<Bytes>,
    /// With a process: push what it has in memory out, to swap and to its files
    #[arg(long, requires = "target", conflicts_with_all = ["cgroup", "host", "history"])]
    pageout: bool,
    /// With --pageout: only mark it, as the first to go when memory gets short
    #[arg(long, requires = "pageout")]
    cold: bool,
    /// The host: one kind of memory that the kernel keeps
    #[arg(long, value_name = "WHAT", group = "what", value_enum)]
    host: Option<host::Kind>,
    /// With --host page-cache: only of this file, or of the files below this directory
    #[arg(long, value_name = "FILE|DIR", requires = "host", conflicts_with_all = ["all", "target", "cgroup", "history"])]
    path: Option<PathBuf>,
    /// With --host page-cache: all of it
    #[arg(long, requires = "host", conflicts_with_all = ["target", "cgroup", "history"])]
    all: bool,
    /// What was given back before: when, by whom, predicted and returned
    #[arg(long, group = "what", conflicts_with_all = ["dry_run", "patience"])]
    history: bool,
    /// Only say what would be done, what it would return and what it costs
    #[arg(long)]
    dry_run: bool,
    /// For how long all of a process's threads may stand still at once, where that is needed [default: 5ms]
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with_all = ["host", "cgroup", "history", "pageout"])]
    max_stop: Option<Duration>,
    /// How long to wait: for a process's threads to be at rest [default: 5s], for the kernel [default: 1m]
    #[arg(long, value_name = "TIME", value_parser = duration)]
    patience: Option<Duration>,
    /// Have a process's runtime collect garbage first: a JVM, CPython 3.14. The program stops for a full collection
    #[arg(long, conflicts_with_all = ["cgroup", "host", "history", "pageout"])]
    gc: bool,
    /// A Redis or Valkey: have it move its blocks together (activedefrag) for as long as that helps, a minute at most
    /// (--patience); a password is taken from REDISCLI_AUTH
    #[arg(long, conflicts_with_all = ["cgroup", "host", "history", "pageout"])]
    activedefrag: bool,
    /// Set its allocator so that less is kept from now on: glibc (a lower M_TRIM_THRESHOLD), jemalloc (a faster decay). It
    /// lasts until the process ends
    #[arg(long, conflicts_with_all = ["cgroup", "host", "history", "pageout"])]
    lasting: bool,
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
    let (target, report) = match (&args.target, &args.cgroup, args.host) {
        (Some(process), ..) => process::run(&root, process, args)?,
        (None, Some(path), _) => cgroup::run(&root, path, args)?,
        (None, None, Some(kind)) => host::run(&root, kind, args)?,
        (None, None, None) => anyhow::bail!(
            "reclaim what? Give a PID or a NAME, --cgroup PATH or --host WHAT ('ebb ps' lists processes)"
        ),
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
