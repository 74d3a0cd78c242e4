//! `ebb reclaim PID`: what a process's allocators keep; with --pageout what it has in memory and need not.

use super::{ReclaimArgs, recorded};
use crate::{explain, heap};
use ebbtide_observe::Root;
use ebbtide_observe::process::Process;
use ebbtide_reclaim::journal::Target;
use ebbtide_reclaim::process::{Options, ReclaimError, reclaim};
use ebbtide_reclaim::{Report, pageout};

pub(super) fn run(root: &Root, target: &str, args: &ReclaimArgs) -> anyhow::Result<(Target, Report)> {
    let pid = explain::pid(root, target)?;
    let gone = |_| anyhow::anyhow!("there is no process {pid}; 'ebb ps' lists them");
    let process = Process::open(root, pid).map_err(gone)?;
    let status = process.status().map_err(gone)?;
    explain::with_memory(pid, &status)?;
    let usual = Options::default();
    let options = Options {
        dry_run: args.dry_run,
        max_stop: args.max_stop.unwrap_or(usual.max_stop),
        patience: args.patience.unwrap_or(usual.patience),
        collect: args.gc,
        defragment: args.activedefrag.then(|| args.patience.unwrap_or(recorded::PATIENCE)),
        lasting: args.lasting,
    };
    let (kind, name) = ("process".to_owned(), Some(status.name.to_string()));
    let target = Target { kind, name, pid: Some(pid), path: None };
    let report = recorded::recorded(args.dry_run, &target, || {
        if args.pageout {
            return recorded::watched(args, |terms| pageout::reclaim(root, &process, args.cold, terms));
        }
        reclaim(&process, &options).map_err(|error| match &error {
            ReclaimError::Look(look) => heap::refused::look("reclaim", pid, Some(&status), look),
            _ => anyhow::anyhow!("nothing was done to process {pid}: {error}"),
        })
    })?;
    Ok((target, report))
}
