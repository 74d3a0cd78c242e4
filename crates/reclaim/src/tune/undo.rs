//! The way back: settings as they were, whoever applied them and whatever became of it.
//!
//! It needs no disk space, and doing it again does nothing. A setting that is neither as ebb set it nor as it was is
//! somebody else's by now, and stays unless forced.

use super::{Back, Boot, Change, Record, Setting, Store, TuneError, persist};
use ebbtide_observe::Root;
use serde::Serialize;

/// What became of one change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Outcome {
    /// It is as it was.
    Restored,
    /// It was as it was already.
    Already,
    /// The machine has been restarted since, which undid it.
    Rebooted,
    /// Somebody else has changed it since.
    Changed {
        /// What it is now.
        present: String,
    },
    /// It could not be written.
    Failed {
        /// Why.
        why: String,
    },
}

/// One change, undone or not.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Undone {
    /// The record it belongs to.
    pub record: String,
    /// The setting.
    pub setting: String,
    /// What it was.
    pub before: String,
    /// What ebb had made of it.
    pub set: String,
    /// What undoes it.
    pub back: Back,
    /// What became of it.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// What is left to say.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Undone {
    /// Whether the change is gone.
    pub fn is_done(&self) -> bool {
        !matches!(self.outcome, Outcome::Changed { .. } | Outcome::Failed { .. })
    }
}

/// Undoes record `only`, or all there are, the newest first. `force` also where somebody else has changed the
/// setting since.
///
/// Errors: only where the records cannot be got at. What became of each change is in the list.
pub fn undo(root: &Root, store: &Store, only: Option<&str>, force: bool) -> Result<Vec<Undone>, TuneError> {
    let Some(_lock) = store.lock()? else { return Ok(Vec::new()) };
    let mut records = store.pending().records;
    records.retain(|record| only.is_none_or(|id| record.id == id));
    let boot = Boot::read(root);
    Ok(records.iter().flat_map(|record| undo_record(root, store, &boot, record, force)).collect())
}

fn undo_record(root: &Root, store: &Store, boot: &Boot, record: &Record, force: bool) -> Vec<Undone> {
    let over = record.is_over(boot);
    let undo = |change: &Change| Undone {
        record: record.id.clone(),
        setting: change.setting.clone(),
        before: change.before.clone(),
        set: change.set.clone(),
        back: change.back.clone(),
        outcome: if over { Outcome::Rebooted } else { outcome(root, change, record.persistent, force) },
        note: None,
    };
    let mut undone: Vec<Undone> = record.changes.iter().rev().map(undo).collect();
    if undone.iter().all(Undone::is_done)
        && let Err(error) = store.remove(&record.id)
    {
        let note = format!("{error}; that does no harm: the next undo finds that all is done");
        undone.iter_mut().for_each(|undone| undone.note = Some(note.clone()));
    }
    undone
}

fn outcome(root: &Root, change: &Change, persistent: bool, force: bool) -> Outcome {
    let read = |name: &str| -> Result<String, String> {
        let setting = Setting::known(name).map_err(|e| e.to_string())?;
        setting.read(root).map_err(|e| e.to_string())
    };
    let (own, back) = match (read(&change.setting), read(&change.back.setting)) {
        (Ok(own), Ok(back)) => (own, back),
        (Err(why), _) | (_, Err(why)) => return Outcome::Failed { why },
    };
    let as_before = own == change.before && back == change.back.value;
    if !as_before && own != change.set && !force {
        return Outcome::Changed { present: own };
    }
    match revert(root, change, persistent) {
        Err(error) => Outcome::Failed { why: error.to_string() },
        Ok(()) if as_before => Outcome::Already,
        Ok(()) => Outcome::Restored,
    }
}

/// Writes what undoes `change`, where it is not so already.
pub(super) fn revert(root: &Root, change: &Change, persistent: bool) -> Result<(), TuneError> {
    let setting = Setting::known(&change.setting)?;
    let back = Setting::known(&change.back.setting)?;
    if back.read(root).ok().as_deref() != Some(&change.back.value) {
        back.write(root, &change.back.value)?;
    }
    if persistent { persist::forget(root, setting, change) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::apply::{Options, apply, prepare};
    use super::*;
    use ebbtide_testkit::FakeRoot;

    fn machine() -> (FakeRoot, Root, Store) {
        let fake = FakeRoot::new()
            .file("proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
            .file("proc/sys/kernel/random/boot_id", "first\n")
            .file("proc/sys/vm/vfs_cache_pressure", "100\n");
        let root = Root::at(fake.path()).unwrap();
        let store = Store::at(&root, None);
        let plan = prepare(&root, &["vm.vfs_cache_pressure=150".to_owned()]).unwrap();
        apply(&root, &store, &plan, Options::default(), |_| Ok(())).unwrap();
        (fake, root, store)
    }

    fn outcomes(root: &Root, store: &Store, force: bool) -> Vec<Outcome> {
        undo(root, store, None, force).unwrap().into_iter().map(|undone| undone.outcome).collect()
    }

    fn pressure(fake: &FakeRoot) -> String {
        std::fs::read_to_string(fake.path().join("proc/sys/vm/vfs_cache_pressure")).unwrap()
    }

    #[test]
    fn somebody_elses_value_stays_unless_forced() {
        let (fake, root, store) = machine();
        fake.set("proc/sys/vm/vfs_cache_pressure", "70\n");
        assert_eq!(outcomes(&root, &store, false), [Outcome::Changed { present: "70".into() }]);
        assert_eq!((pressure(&fake).as_str(), store.pending().records.len()), ("70\n", 1));
        assert_eq!(outcomes(&root, &store, true), [Outcome::Restored]);
        assert_eq!((pressure(&fake).as_str(), store.pending().records.len()), ("100\n", 0));
    }

    #[test]
    fn killed_between_record_and_change_or_between_undo_and_removal() {
        let (fake, root, store) = machine();
        fake.set("proc/sys/vm/vfs_cache_pressure", "100\n");
        assert_eq!(outcomes(&root, &store, false), [Outcome::Already]);
        assert_eq!(outcomes(&root, &store, false), []);
    }

    #[test]
    fn a_reboot_has_undone_it() {
        let (fake, root, store) = machine();
        fake.set("proc/sys/kernel/random/boot_id", "second\n");
        // The same value by chance, set by somebody after the boot.
        assert_eq!(outcomes(&root, &store, false), [Outcome::Rebooted]);
        assert_eq!(pressure(&fake), "150\n");
        assert!(store.pending().records.is_empty());
    }

    #[test]
    fn what_cannot_be_written_stays_recorded() {
        let (fake, root, store) = machine();
        fake.remove("proc/sys/vm/vfs_cache_pressure");
        assert!(matches!(outcomes(&root, &store, false)[..], [Outcome::Failed { .. }]));
        assert_eq!(store.pending().records.len(), 1);
    }

    #[test]
    fn a_record_writes_nothing_but_settings() {
        let (fake, root, store) = machine();
        let mut record = store.pending().records.remove(0);
        record.changes[0].setting = "kernel.core_pattern".into();
        record.changes[0].back.setting = "kernel.core_pattern".into();
        store.write(&record).unwrap();
        let fake = fake.file("proc/sys/kernel/core_pattern", "core\n");
        assert!(matches!(outcomes(&root, &store, true)[..], [Outcome::Failed { .. }]));
        let core = std::fs::read_to_string(fake.path().join("proc/sys/kernel/core_pattern")).unwrap();
        assert_eq!(core, "core\n");
    }
}
