//! What a trace found: who looked up how much, where, and how much of it in vain.

use super::accounts::Account;
use super::directories::{Counts, Directories, Directory, Size};
use super::event::Comm;
use crate::host::DentryState;
use crate::{Escaped, Root, Unread};
use serde::Serialize;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::sync::Arc;

/// The directory cache at the start and at the end.
#[derive(Debug, Clone, Serialize)]
pub struct BeforeAfter {
    /// When the trace began.
    pub before: Option<DentryState>,
    /// When it ended.
    pub after: Option<DentryState>,
}

/// What a trace found. Counts are of look-ups; where records were lost they are scaled up by `scale`.
#[derive(Debug, Clone, Serialize)]
pub struct Lookups {
    /// How long it traced.
    pub seconds: f64,
    /// Look-ups of paths by all processes.
    pub lookups: u64,
    /// Those that found nothing (ENOENT).
    pub failed: u64,
    /// Records that did not fit into the kernel's buffers; a look-up takes two.
    pub lost_events: u64,
    /// All records by those that were read: what the counts were multiplied by; 1.0 if none was lost.
    pub scale: f64,
    /// True if the kernel gave the paths; false if they were read from the callers' memory a moment later, so
    /// that the directories of a process are a sample, and the counts in them estimates.
    pub exact_paths: bool,
    /// The host's directory cache.
    pub dentries: BeforeAfter,
    /// By process, the one that asked for the most different names first: not look-ups make dentries, but names.
    pub processes: Vec<ProcessLookups>,
    /// By directory, the one with the most different names first.
    pub directories: Vec<DirectoryLookups>,
    /// What could not be read.
    pub unread: Vec<Unread>,
}

/// A process, or several of the same name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TracedProcess {
    /// Its id; `None` for several.
    pub pid: Option<u32>,
    /// Its name, escaped.
    pub name: String,
}

/// What a process looked up.
#[derive(Debug, Clone, Serialize)]
pub struct ProcessLookups {
    /// Its id; `None` if these are several processes that ended.
    pub pid: Option<u32>,
    /// Its name, escaped; "?" if it ended before it could be read.
    pub name: String,
    /// How many processes this is about.
    pub processes: u64,
    /// Who started it.
    pub parent: Option<TracedProcess>,
    /// Its root directory, if that is not the host's.
    pub root: Option<String>,
    /// True if its paths are those of another mount namespace: a container's.
    pub other_mounts: bool,
    /// Its look-ups.
    pub lookups: u64,
    /// Those that found nothing.
    pub failed: u64,
    /// Those of which the path could not be read any more.
    pub unknown_directory: u64,
    /// About how many different names it asked for in vain.
    pub missing_names: u64,
    /// About how many different names it asked for and found.
    pub found_names: u64,
    /// The deepest directory with two thirds of its different names in or below it.
    pub mostly_in: Option<MostlyIn>,
    /// Where, the most different names first; look-ups of unknown directories are spread as the known ones are.
    pub directories: Vec<DirectoryLookups>,
}

/// Where most of a process's names are.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct MostlyIn {
    /// The directory: hostile input.
    pub path: String,
    /// True if the names are also in directories below it.
    pub below: bool,
    /// Its share of the different names, 0.0 to 1.0.
    pub share: f64,
}

/// Look-ups in one directory.
#[derive(Debug, Clone, Serialize)]
pub struct DirectoryLookups {
    /// The directory: hostile input.
    pub path: String,
    /// True if directories below it are counted in.
    pub below: bool,
    /// Look-ups that found nothing.
    pub failed: u64,
    /// All look-ups.
    pub lookups: u64,
    /// About how many different names were not found, to 13 %: each has a negative dentry.
    pub missing_names: u64,
    /// About how many different names were found: each has a dentry.
    pub found_names: u64,
    /// Who did most of it; `None` inside a process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<TracedProcess>,
}

/// The frame of a sample.
#[derive(Debug)]
pub(super) struct Seen {
    pub(super) seconds: f64,
    pub(super) records: u64,
    pub(super) lost: u64,
    pub(super) exact: bool,
}

/// How the counts of a sample become those of all look-ups.
#[derive(Debug, Clone, Copy)]
struct Scale(f64);

impl Scale {
    fn of(self, count: u64) -> u64 {
        if self.0 == 1.0 { count } else { (count as f64 * self.0).round() as u64 }
    }
}

/// Makes the report of `accounts`, with `top` directories each.
pub(super) fn sum_up(
    mut accounts: Vec<Account>,
    seen: Seen,
    dentries: BeforeAfter,
    unread: Vec<Unread>,
    top: usize,
) -> Lookups {
    let scale = Scale(if seen.lost == 0 || seen.records == 0 {
        1.0
    } else {
        (seen.records as f64 + seen.lost as f64) / seen.records as f64
    });
    let mut total = Counts::default();
    accounts.iter().for_each(|a| total += a.counts);
    accounts.iter_mut().for_each(fill_in);
    let directories = all_directories(&accounts, scale, top);
    let mut processes: Vec<ProcessLookups> =
        accounts.into_iter().filter(|a| a.counts.lookups > 0).map(|a| process(a, scale, top)).collect();
    processes.sort_by_key(|p| (Reverse(p.missing_names + p.found_names), Reverse(p.lookups), p.pid));
    Lookups {
        seconds: seen.seconds,
        lookups: scale.of(total.lookups),
        failed: scale.of(total.failed),
        lost_events: seen.lost,
        scale: scale.0,
        exact_paths: seen.exact,
        dentries,
        processes,
        directories,
        unread,
    }
}

fn process(account: Account, scale: Scale, top: usize) -> ProcessLookups {
    let (root, other_mounts) = account.pid.map_or((None, false), place);
    let Account { name, parent_name, pid, parent, processes, counts, unread, directories } = account;
    let known = parent.is_some() || !parent_name.is_unknown();
    let (missing, found) = names(&directories);
    ProcessLookups {
        pid,
        name: text(&name),
        processes,
        parent: known.then(|| TracedProcess { pid: parent, name: text(&parent_name) }),
        root,
        other_mounts,
        lookups: scale.of(counts.lookups),
        failed: scale.of(counts.failed),
        unknown_directory: scale.of(unread.lookups),
        missing_names: scale.of(missing),
        found_names: scale.of(found),
        mostly_in: mostly_in(&directories),
        directories: largest(directories, scale, top),
    }
}

/// Lets the look-ups of which the path was read stand for all of the account's: each process is taken to look
/// up unread paths where it looks up those that were read.
fn fill_in(account: &mut Account) {
    let factor = |all: u64, unread: u64| match all.saturating_sub(unread) {
        0 => 1.0,
        read => all as f64 / read as f64,
    };
    let (all, unread) = (account.counts, account.unread);
    let found = |counts: Counts| counts.lookups.saturating_sub(counts.failed);
    let (failed, found) = (factor(all.failed, unread.failed), factor(found(all), found(unread)));
    account.directories.scale(failed, found);
}

/// About how many different names were not found, and were found.
fn names(directories: &Directories) -> (u64, u64) {
    let (missing, found) = directories
        .iter()
        .map(|(_, d)| d.names())
        .fold((0.0, 0.0), |sum, names| (sum.0 + names.0, sum.1 + names.1));
    (missing.round() as u64, found.round() as u64)
}

/// The root directory of `pid` if it is not "/", and whether it lives in another mount namespace.
fn place(pid: u32) -> (Option<String>, bool) {
    let Ok(files) = Root::live() else { return (None, false) };
    let mounts = |who: &str| files.link(&format!("proc/{who}/ns/mnt")).ok();
    let other =
        mounts(&pid.to_string()).is_some_and(|theirs| mounts("self").is_some_and(|mine| mine != theirs));
    (files.link(&format!("proc/{pid}/root")).ok().filter(|root| root != "/"), other)
}

fn text(name: &Comm) -> String {
    if name.is_unknown() { "?".to_owned() } else { Escaped(name.as_bytes()).to_string() }
}

fn mostly_in(directories: &Directories) -> Option<MostlyIn> {
    let (path, share) = directories.home(2.0 / 3.0)?;
    let here = directories.iter().find(|(at, _)| ***at == *path).map(|(_, d)| d);
    let alone = here.is_some_and(|d| !d.below)
        && directories.iter().all(|(at, _)| **at == *path || !is_below(at, path));
    Some(MostlyIn { path: String::from_utf8_lossy(path).into_owned(), below: !alone, share })
}

fn is_below(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| directory == b"/" || rest.first() == Some(&b'/'))
}

/// How many entries a table is folded to before its largest are shown: enough that those stay whole.
fn folded(top: usize) -> usize {
    top.saturating_mul(2).max(16)
}

fn largest(mut directories: Directories, scale: Scale, top: usize) -> Vec<DirectoryLookups> {
    directories.fold(folded(top));
    let mut all: Vec<_> = directories.iter().map(|(path, d)| directory(path, d, scale, None)).collect();
    sort(&mut all, top);
    all
}

fn directory(path: &[u8], d: &Directory, scale: Scale, by: Option<TracedProcess>) -> DirectoryLookups {
    let (missing, found) = d.names();
    DirectoryLookups {
        path: String::from_utf8_lossy(path).into_owned(),
        below: d.below,
        failed: scale.of(d.counts.failed),
        lookups: scale.of(d.counts.lookups),
        missing_names: scale.of(missing.round() as u64),
        found_names: scale.of(found.round() as u64),
        by,
    }
}

fn sort(directories: &mut Vec<DirectoryLookups>, top: usize) {
    directories.sort_by(|a, b| {
        let size = |d: &DirectoryLookups| (d.missing_names + d.found_names, d.lookups);
        size(b).cmp(&size(a)).then_with(|| a.path.cmp(&b.path))
    });
    directories.truncate(top);
}

/// The largest directories of all processes together, each with who did most of it.
fn all_directories(accounts: &[Account], scale: Scale, top: usize) -> Vec<DirectoryLookups> {
    let mut together = Directories::default();
    accounts.iter().for_each(|a| together.merge(&a.directories));
    together.fold(folded(top));
    let mut by: HashMap<&Arc<[u8]>, (Size, &Account)> = HashMap::new();
    for account in accounts {
        for (path, d) in account.directories.iter() {
            let most = by.entry(path).or_insert((d.size(), account));
            if d.size() > most.0 {
                *most = (d.size(), account);
            }
        }
    }
    let who = |path| by.get(path).map(|(_, a)| TracedProcess { pid: a.pid, name: text(&a.name) });
    let mut all: Vec<_> = together.iter().map(|(path, d)| directory(path, d, scale, who(path))).collect();
    sort(&mut all, top);
    all
}

#[cfg(test)]
mod tests {
    use super::super::accounts::Accounts;
    use super::super::resolve::Look;
    use super::super::tasks::Process;
    use super::*;

    fn sample(lost: u64) -> Lookups {
        let mut accounts = Accounts::default();
        for (pid, name, directory, failed, times) in
            [(812, "python3", "/var/cache/x", true, 90), (813, "sh", "/usr/bin", false, 10)]
        {
            let (name, parent_name) = (Comm::new(name.as_bytes()), Comm::default());
            let process = Process { pid, name, parent: 0, parent_name, root: None, cwd: None };
            for n in 0..times {
                let look = Look::In { directory: directory.as_bytes().into(), name: Some(n % 3) };
                accounts.add(pid, Some(&process), &look, failed);
            }
        }
        let seen = Seen { seconds: 2.0, records: 200, lost, exact: true };
        let dentries = BeforeAfter { before: None, after: None };
        sum_up(accounts.close(), seen, dentries, Vec::new(), 5)
    }

    #[test]
    fn the_worst_comes_first() {
        let sample = sample(0);
        assert_eq!((sample.lookups, sample.failed, sample.scale), (100, 90, 1.0));
        assert_eq!((sample.processes[0].pid, sample.processes[0].failed), (Some(812), 90));
        assert_eq!(sample.processes[0].parent, None);
        let worst = &sample.directories[0];
        assert_eq!((&*worst.path, worst.failed, worst.missing_names), ("/var/cache/x", 90, 3));
        assert_eq!((worst.lookups, worst.found_names), (90, 0));
        assert_eq!(worst.by.as_ref().unwrap().pid, Some(812));
    }

    #[test]
    fn lost_records_scale_the_counts() {
        let sample = sample(100);
        assert_eq!((sample.lookups, sample.failed, sample.scale), (150, 135, 1.5));
        assert_eq!(sample.processes[0].failed, 135);
        assert_eq!((sample.directories[0].failed, sample.directories[0].missing_names), (135, 5));
    }
}
