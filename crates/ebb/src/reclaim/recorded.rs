//! What every target has in common: the journal around the deed, how it goes on the terminal meanwhile, and what would
//! help where a right is missing.
//!
//! Invariant: a journal that cannot be written is a warning on standard error and changes nothing else.

use super::ReclaimArgs;
use crate::escape::escape;
use crate::render::BAD;
use ebbtide_reclaim::journal::{Entry, Journal, Target};
use ebbtide_reclaim::{LeverError, Report, Terms};
use indicatif::{ProgressBar, ProgressDrawTarget};
use std::io::Write;
use std::time::Duration;

/// How long the kernel is waited for, where nothing else is said.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// Does `act` to `target` and records it; a dry run is not recorded.
pub(super) fn recorded(
    dry_run: bool,
    target: &Target,
    act: impl FnOnce() -> anyhow::Result<Report>,
) -> anyhow::Result<Report> {
    if dry_run {
        return act();
    }
    let Some(journal) = Journal::of_this_user() else {
        warn("not recorded: this user has no home directory for a journal; EBB_STATE names one");
        return act();
    };
    let mut entry = Entry::begin(target.clone());
    let begun = journal.write(&entry);
    let result = act();
    match &result {
        Ok(report) => entry.done(report),
        Err(error) => entry.failed(format!("{error:#}")),
    }
    // What is wrong with it is wrong twice, and said once.
    if let Err(why) = begun.and_then(|()| journal.write(&entry)) {
        warn(&why);
    }
    result
}

/// Runs a lever that may take long, and shows on a terminal how it goes.
pub(super) fn watched(
    args: &ReclaimArgs,
    lever: impl FnOnce(&mut Terms) -> Result<Report, LeverError>,
) -> anyhow::Result<Report> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    let mut watch = |elapsed: Duration, returned: ebbtide_observe::Bytes| {
        bar.set_message(format!("the kernel works: {} s, {returned} so far", elapsed.as_secs()));
        bar.tick();
    };
    let patience = args.patience.unwrap_or(PATIENCE);
    let result = lever(&mut Terms { dry_run: args.dry_run, patience, watch: &mut watch });
    bar.finish_and_clear();
    result.map_err(|error| match &error {
        LeverError::Refused(refusal) if refusal.missing.is_some() => {
            anyhow::anyhow!("nothing was done: {error}; try '{}'", as_root())
        }
        _ => anyhow::anyhow!("nothing was done: {error}"),
    })
}

/// This very command with sudo, to be copied.
fn as_root() -> String {
    let words = std::env::args().skip(1).map(|word| match word.chars().all(is_plain) {
        true => word,
        false => format!("'{}'", word.replace('\'', r"'\''")),
    });
    std::iter::once("sudo ebb".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}

fn is_plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || "/._-=:,+@%".contains(c)
}

fn warn(text: &str) {
    // Where even this cannot be written, there is nobody to be warned.
    let _ = writeln!(anstream::stderr(), "{BAD}ebb:{BAD:#} {}", escape(text));
}
