//! `ebb explain`: one process, one cgroup or the host, with evidence; with `--for`, over time.

use crate::cli::ExplainArgs;
use crate::looks::Budget;
use crate::report::{Beside, Report, Target};
use crate::{cgroup, gather, host, watch};
use anyhow::{Context, bail};
use ebbtide_explain::{ledger, rules};
use ebbtide_heaps::Look;
use ebbtide_observe::fork::ForkSample;
use ebbtide_observe::host::HostSample;
use ebbtide_observe::process::{Detail, Process, Processes, Status};
use ebbtide_observe::shared::SharedMemory;
use ebbtide_observe::{Escaped, ReadError, Root};
use std::process::ExitCode;

pub(crate) fn run(args: &ExplainArgs) -> anyhow::Result<ExitCode> {
    let root = Root::live()?;
    let report = match (&args.target, &args.cgroup) {
        (_, Some(path)) => {
            let group = cgroup::Chosen::find(&root, path)?;
            let growth = args.time.map(|time| watch::cgroup(&group, time)).transpose()?;
            cgroup::report(&root, &group)?.with_growth(growth)
        }
        (Some(target), None) => {
            let process = Process::open(&root, pid(&root, target)?).map_err(|e| no_such(target, e))?;
            // First of all: what cannot be explained is not watched for an hour either.
            let before = self::process(&root, &process, None)?;
            match args.time {
                None => before,
                Some(time) => {
                    let watched = watch::process(&process, time, args.clear_refs)?;
                    let after = self::process(&root, &process, watched.used.as_ref());
                    let after = after.unwrap_or_else(|e| before.of_the_beginning(&e));
                    after.with_growth(Some(watched.growth))
                }
            }
        }
        (None, None) if args.host => {
            let growth = args.time.map(|time| watch::host(&root, time)).transpose()?;
            host::report(&root, Budget::default())?.with_growth(growth)
        }
        (None, None) => {
            bail!("explain what? Give a PID or a NAME, --cgroup PATH, or --host ('ebb ps' lists processes)")
        }
    };
    report.print(args.output.json, args.all)
}

/// The process that `target` means: a pid, or a name that only one process has.
pub(crate) fn pid(root: &Root, target: &str) -> anyhow::Result<u32> {
    if let Ok(pid) = target.parse() {
        return Ok(pid);
    }
    let processes = Processes::read(root)?;
    let named = processes.all.iter().filter(|p| p.name().as_bytes() == target.as_bytes());
    let named: Vec<u32> = named.map(|p| p.pid).collect();
    match named[..] {
        [pid] => Ok(pid),
        [] => bail!("no process is named '{target}'; 'ebb ps {target}' lists those whose name contains it"),
        _ => {
            let pids: Vec<String> = named.iter().take(10).map(u32::to_string).collect();
            let more = if named.len() > 10 { " ..." } else { "" };
            bail!(
                "{} processes are named '{target}': give one's pid ({}{more})",
                named.len(),
                pids.join(", ")
            )
        }
    }
}

fn no_such(target: &str, error: ReadError) -> anyhow::Error {
    match error {
        ReadError::Vanished { .. } => anyhow::anyhow!("there is no process {target}; 'ebb ps' lists them"),
        other => other.into(),
    }
}

/// An error for what has none.
pub(crate) fn with_memory(pid: u32, status: &Status) -> anyhow::Result<()> {
    if status.vm.is_none() {
        let what = if status.is_kernel_thread() { "a kernel thread" } else { "a zombie: it has ended" };
        bail!("process {pid} ({}) has no memory of its own, it is {what}", status.name);
    }
    Ok(())
}

fn process(root: &Root, process: &Process, used: Option<&rules::Used>) -> anyhow::Result<Report> {
    looked_into(root, process, used).map(|(report, _)| report)
}

/// The report of a process, and what was seen in its heaps.
pub(crate) fn looked_into(
    root: &Root,
    process: &Process,
    used: Option<&rules::Used>,
) -> anyhow::Result<(Report, Look)> {
    let pid = process.pid();
    let host = HostSample::read(root)?;
    let detail = match Detail::read(process, gather::tmpfs(&host)) {
        Ok(detail) => detail,
        Err(ReadError::Vanished { .. }) => {
            bail!("process {pid} has ended, or /proc hides it from this user (hidepid=)")
        }
        Err(error @ ReadError::Denied { .. }) => {
            return Err(error)
                .context(format!("process {pid} may not be looked into: run ebb as its owner or as root"));
        }
        Err(error) => return Err(error.into()),
    };
    with_memory(pid, &detail.status)?;
    let limit = cgroup::limit_of(root, &detail.membership);
    let processes = Processes::read(root)?;
    let fork = ForkSample::read(root, process).ok();
    let mut unread = detail.unread.clone();
    let look = gather::look(process, &mut unread);
    let findings = rules::process(&rules::Subject {
        detail: &detail,
        host: &host,
        limit,
        shared: &SharedMemory::read(root, &processes),
        may_lock: fork.as_ref().is_some_and(|fork| fork.may_lock),
        fork: fork.as_ref(),
        cow: &gather::cow_pairs(root, &processes, Some(pid)),
        jvm: process.jvm().ok().flatten().as_ref(),
        heaps: &look.heaps,
        used,
    });
    let name = Escaped(detail.status.name.as_bytes()).to_string();
    let target = Target { kind: "process", name, pid: Some(pid), total: "resident", ..Target::default() };
    let mut report = Report::new(target, ledger::process(&detail), findings, unread);
    let beside = ledger::Beside::of(&detail);
    report.beside = Beside(vec![
        ("pss", beside.pss_bytes, "each page divided by the processes that map it"),
        ("uss", beside.uss_bytes, "what ending the process would free"),
        ("swap", beside.swap_bytes, "swapped out"),
        ("hugetlb", beside.hugetlb_bytes, "hugetlb pages, in no RSS"),
        ("page_tables", beside.page_tables_bytes, "kernel memory, in no RSS"),
        ("virtual", beside.virtual_bytes, "address space, not memory"),
    ]);
    Ok((report, look))
}
