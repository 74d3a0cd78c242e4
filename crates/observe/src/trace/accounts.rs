//! Look-ups by process, in bounded space.
//!
//! A living process has an account of its own. One that ended is added to its family: all ended processes of
//! the same name with a parent of the same name, for of 20,000 curls that lived for 5 ms each none matters,
//! and together they may be the answer. Invariants: no look-up is lost by adding accounts together, and there
//! are at most [`MAX_LIVING`] accounts and [`MAX_FAMILIES`] families, whatever is started and however it calls
//! itself.

use super::directories::{Counts, Directories};
use super::event::Comm;
use super::resolve::Look;
use super::tasks::Process;
use std::collections::HashMap;
use std::hash::Hash;

const MAX_LIVING: usize = 1024;
const MAX_FAMILIES: usize = 512;

/// What one process, or all ended ones of a family, looked up.
#[derive(Debug, Clone)]
pub(super) struct Account {
    pub(super) name: Comm,
    pub(super) parent_name: Comm,
    /// Its process id; `None` if the account is of several processes.
    pub(super) pid: Option<u32>,
    /// Its parent's process id; `None` if there were several.
    pub(super) parent: Option<u32>,
    /// How many processes it counts.
    pub(super) processes: u64,
    pub(super) counts: Counts,
    /// The part of `counts` of which the path could not be read.
    pub(super) unread: Counts,
    pub(super) directories: Directories,
}

impl Account {
    fn of(pid: u32, process: Option<&Process>) -> Account {
        Account {
            name: process.map_or(Comm::default(), |p| p.name),
            parent_name: process.map_or(Comm::default(), |p| p.parent_name),
            pid: Some(pid),
            parent: process.map(|p| p.parent).filter(|&parent| parent != 0),
            processes: 1,
            counts: Counts::default(),
            unread: Counts::default(),
            directories: Directories::default(),
        }
    }

    fn merge(&mut self, other: &Account) {
        if self.pid.is_none() || self.pid != other.pid {
            self.pid = None;
            self.processes = self.processes.saturating_add(other.processes);
        }
        self.parent = self.parent.filter(|_| self.parent == other.parent);
        self.counts += other.counts;
        self.unread += other.unread;
        self.directories.merge(&other.directories);
    }
}

/// By the names of process and parent.
type Family = (Comm, Comm);

/// Everybody's accounts.
#[derive(Debug, Default)]
pub(super) struct Accounts {
    living: HashMap<u32, Account>,
    families: HashMap<Family, Account>,
}

impl Accounts {
    /// Notes one look-up by process `pid`.
    pub(super) fn add(&mut self, pid: u32, process: Option<&Process>, look: &Look, failed: bool) {
        let counts = Counts { lookups: 1, failed: failed.into() };
        let account = match self.living.get_mut(&pid) {
            Some(account) => account,
            None => {
                self.make_room();
                self.living.entry(pid).or_insert_with(|| Account::of(pid, process))
            }
        };
        if let Some(process) = process.filter(|p| p.name != account.name) {
            account.name = process.name;
        }
        match look {
            Look::In { directory, name } => account.directories.add(directory, counts, *name),
            Look::Unknown => account.unread += counts,
            Look::Nothing => return,
        }
        account.counts += counts;
    }

    /// `process` ended: its account goes to its family.
    pub(super) fn ended(&mut self, process: &Process) {
        if let Some(mut account) = self.living.remove(&process.pid) {
            account.name = process.name;
            self.bury(account);
        }
    }

    /// All accounts. A living process that did no more than the ended ones of its family is counted with them.
    pub(super) fn close(mut self) -> Vec<Account> {
        let living: Vec<Account> = self.living.drain().map(|(_, account)| account).collect();
        let (alike, mut all): (Vec<_>, Vec<_>) = living.into_iter().partition(|a| self.is_alike(a));
        alike.into_iter().for_each(|account| self.bury(account));
        all.extend(self.families.into_values());
        all
    }

    /// Whether `account` has at most as much as four of its family on average.
    fn is_alike(&self, account: &Account) -> bool {
        let family = self.families.get(&(account.name, account.parent_name));
        family.is_some_and(|f| {
            account.counts.lookups <= f.counts.lookups.saturating_mul(4) / f.processes.max(1)
        })
    }

    fn bury(&mut self, account: Account) {
        if account.counts.lookups == 0 {
            return;
        }
        let family = (account.name, account.parent_name);
        if self.families.len() >= MAX_FAMILIES && !self.families.contains_key(&family) {
            for small in smaller_half(&self.families) {
                if let Some(small) = self.families.remove(&small) {
                    add_to(&mut self.families, (Comm::OTHERS, Comm::default()), small);
                }
            }
        }
        add_to(&mut self.families, family, account);
    }

    /// Takes the smaller half of the living for ended if there are too many: what they look up later is added
    /// to it.
    fn make_room(&mut self) {
        if self.living.len() < MAX_LIVING {
            return;
        }
        for pid in smaller_half(&self.living) {
            if let Some(account) = self.living.remove(&pid) {
                self.bury(account);
            }
        }
    }
}

fn add_to(families: &mut HashMap<Family, Account>, family: Family, mut account: Account) {
    match families.get_mut(&family) {
        Some(of_family) => of_family.merge(&account),
        None => {
            (account.name, account.parent_name) = family;
            families.insert(family, account);
        }
    }
}

fn smaller_half<K: Copy + Eq + Hash>(accounts: &HashMap<K, Account>) -> Vec<K> {
    let mut by_size: Vec<(Counts, K)> = accounts.iter().map(|(&key, a)| (a.counts, key)).collect();
    by_size.sort_unstable_by_key(|&(counts, _)| counts);
    by_size.truncate(by_size.len().div_ceil(2));
    by_size.into_iter().map(|(_, key)| key).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(pid: u32, name: &str, parent: u32) -> Process {
        let (name, parent_name) = (Comm::new(name.as_bytes()), Comm::new(b"sh"));
        Process { pid, name, parent, parent_name, root: None, cwd: None }
    }

    fn look(directory: &str) -> Look {
        Look::In { directory: directory.as_bytes().into(), name: Some(1) }
    }

    #[test]
    fn ended_processes_of_a_family_are_one_account() {
        let mut accounts = Accounts::default();
        for pid in 10..14 {
            let curl = process(pid, "curl", 7);
            accounts.add(pid, Some(&curl), &look("/etc/pki"), true);
            accounts.add(pid, Some(&curl), &Look::Unknown, true);
            accounts.add(pid, Some(&curl), &Look::Nothing, false);
            if pid != 13 {
                accounts.ended(&curl);
            }
        }
        let server = process(20, "server", 1);
        accounts.add(20, Some(&server), &look("/srv"), false);
        let mut all = accounts.close();
        all.sort_by_key(|a| a.processes);
        let [server, curls] = &all[..] else { panic!("{all:?}") };
        assert_eq!((server.pid, server.processes), (Some(20), 1));
        assert_eq!((curls.pid, curls.parent, curls.processes), (None, Some(7), 4));
        assert_eq!(curls.counts, Counts { failed: 8, lookups: 8 });
        assert_eq!(curls.unread, Counts { failed: 4, lookups: 4 });
    }

    #[test]
    fn a_name_that_changes_is_the_last_one() {
        let mut accounts = Accounts::default();
        accounts.add(10, Some(&process(10, "sh", 7)), &look("/bin"), true);
        accounts.add(10, Some(&process(10, "curl", 7)), &look("/bin"), true);
        assert_eq!(accounts.close()[0].name, Comm::new(b"curl"));
    }

    #[test]
    fn any_number_of_processes_and_names_is_bounded_and_counted() {
        let mut accounts = Accounts::default();
        let n = 3 * (MAX_LIVING + MAX_FAMILIES) as u32;
        for pid in 1..=n {
            let process = process(pid, &format!("p{pid}"), pid / 2);
            accounts.add(pid, Some(&process), &look("/"), true);
            if pid % 2 == 0 {
                accounts.ended(&process);
            }
        }
        let all = accounts.close();
        assert!(all.len() <= MAX_LIVING + MAX_FAMILIES + 1);
        assert_eq!(all.iter().map(|a| a.counts.failed).sum::<u64>(), n.into());
        assert!(all.iter().any(|a| a.name == Comm::OTHERS && a.processes > 1));
    }
}
