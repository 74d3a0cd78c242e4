//! `ebb tune`: settings of the kernel and of allocators. Advises from what is found, checks what is written down,
//! changes with a way back.

mod advice;
mod change;
mod check;
mod guardian;

use crate::cli::{Output, duration};
use crate::escape::escape;
use ebbtide_observe::Root;
use ebbtide_reclaim::state;
use ebbtide_reclaim::tune::{Boot, Store, boottime};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// `ebb tune`.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Without arguments it advises from what it finds on this host, and changes nothing. With \
    SETTING=VALUE it says what the change would do here; --apply does it, until the next restart or --undo.\n\n\
    The undo record is on the disk before anything is changed: in /var/lib/ebbtide/undo, or in undo of the directory \
    that EBB_STATE names. With --for a guardian, a process in a session of its own, sets back when the time is up, also \
    when ebb is killed, and at once when it is told to end. If it is killed too, every later run of ebb says so, and \
    'ebb tune --undo' sets back; that needs no disk space. A restart of the machine undoes all but what --persist wrote."
)]
pub(crate) struct TuneArgs {
    /// Settings to change, as 'ebb tune --list' names them
    #[arg(value_name = "SETTING=VALUE")]
    assignments: Vec<String>,
    /// Change them; without it only what would happen is said
    #[arg(long, requires = "assignments")]
    apply: bool,
    /// Set them back after so long (30s, 1h), or at Ctrl-C
    #[arg(long = "for", value_name = "TIME", value_parser = duration, requires = "apply")]
    time: Option<Duration>,
    /// Do not wait for that: the guardian does (else a terminal that closes counts as Ctrl-C)
    #[arg(long, requires = "time")]
    detach: bool,
    /// Keep them over a restart: a line in /etc/sysctl.d/60-ebbtide.conf (/etc/tmpfiles.d for files of /sys)
    #[arg(long, requires = "apply", conflicts_with = "time")]
    persist: bool,
    /// Set back everything that ebb has changed
    #[arg(long, conflicts_with_all = ["assignments", "list", "check"])]
    undo: bool,
    /// With --apply: also what would do harm; with --undo: also what somebody else has changed since
    #[arg(long)]
    force: bool,
    /// Every setting that ebb knows: its value, what it really does, its danger
    #[arg(long, conflicts_with_all = ["assignments", "check"])]
    list: bool,
    /// What the lines of sysctl files, or the variables of a process, really do here; without a name the files
    /// that are read at boot
    #[arg(long, value_name = "FILE|PID", num_args = 0.., conflicts_with = "assignments")]
    check: Option<Vec<String>>,
    #[command(flatten)]
    output: Output,
    /// The root of the machine
    #[arg(long, hide = true)]
    root: Option<PathBuf>,
    /// The record to guard: what ebb starts for --for
    #[arg(long, hide = true)]
    guard: Option<String>,
}

pub(crate) fn run(args: &TuneArgs) -> anyhow::Result<ExitCode> {
    let root = match &args.root {
        None => Root::live()?,
        Some(dir) => Root::at(std::path::absolute(dir)?)?,
    };
    let store = store(&root);
    if let Some(id) = &args.guard {
        return guardian::guard(&root, &store, id);
    }
    if args.undo {
        return change::undo(args, &root, &store);
    }
    if let Some(what) = &args.check {
        return check::run(args, &root, what);
    }
    if args.list {
        return advice::list(args, &root);
    }
    if args.assignments.is_empty() {
        return advice::run(args, &root, &store);
    }
    change::run(args, &root, &store)
}

/// Where undo records are.
fn store(root: &Root) -> Store {
    Store::at(root, state::named())
}

/// A guardian is done in less.
const GRACE: Duration = Duration::from_secs(5);

/// Says in a line what should have been set back and was not. Whatever stands in the way of that is no reason not to
/// do what ebb was asked to do.
pub(crate) fn remind() {
    let Ok(root) = Root::live() else { return };
    if let Some(line) = overdue(&root, &store(&root)) {
        let _ = std::io::Write::write_all(&mut anstream::stderr(), format!("ebb: {line}\n").as_bytes());
    }
}

fn overdue(root: &Root, store: &Store) -> Option<String> {
    let records = store.pending().records;
    if records.is_empty() {
        return None;
    }
    let (boot, now) = (Boot::read(root), boottime());
    let late = records
        .iter()
        .filter_map(|record| Some((record.overdue(&boot, now).filter(|late| *late > GRACE)?, record)));
    let (longest, _) = late.clone().max_by_key(|(late, _)| *late)?;
    let settings: Vec<&str> =
        late.flat_map(|(_, record)| &record.changes).map(|change| change.setting.as_str()).collect();
    let names = escape(&settings.join(", ")).into_owned();
    Some(format!("{names}: due to be set back {} ago, and not done: ebb tune --undo", change::human(longest)))
}
