//! A change, planned and made: validated, recorded, guarded, written, read back; all of it or nothing.

use super::clock::unix_time;
use super::record::{FORMAT, back};
use super::{
    Boot, Change, Host, Measures, Record, Remark, Setting, Store, TuneError, Verdict, boottime, persist,
};
use ebbtide_observe::Root;
use serde::Serialize;
use std::time::Duration;

/// A change that was asked for.
#[derive(Debug)]
pub struct Planned {
    /// Of what.
    pub setting: &'static Setting,
    /// What it is.
    pub present: String,
    /// What it shall be.
    pub wanted: String,
    /// What that would do here.
    pub remark: Remark,
}

/// All changes of one call.
#[derive(Debug)]
pub struct Plan {
    /// In the order in which they were asked for.
    pub changes: Vec<Planned>,
    /// What the counters say now.
    pub before: Measures,
}

/// How a plan is applied.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Also what would do harm.
    pub force: bool,
    /// Undo it after so long.
    pub time: Option<Duration>,
    /// Write it to the files that are read at boot, too.
    pub persist: bool,
}

/// What was done.
#[derive(Debug, Serialize)]
pub struct Applied {
    /// The undo record; `None` where everything was so already.
    pub record: Option<Record>,
    /// What the counters said before.
    pub before: Measures,
    /// What they say after.
    pub after: Measures,
    /// What is worth knowing: a file that will override a persistent setting.
    pub notes: Vec<String>,
}

/// Validates "SETTING=VALUE" words. Reads, writes nothing.
///
/// Errors: what is no setting, no value of it, or not there on this kernel.
pub fn prepare(root: &Root, assignments: &[String]) -> Result<Plan, TuneError> {
    let unread = |name| move |error| TuneError::Read { name, error };
    let mut changes: Vec<(&Setting, String)> = Vec::new();
    for assignment in assignments {
        let (name, value) =
            assignment.split_once('=').ok_or_else(|| TuneError::NotAnAssignment(assignment.clone()))?;
        let setting = Setting::known(name.trim())?;
        let rival = changes.iter().find(|(s, _)| s.name == setting.name || Some(s.name) == setting.twin);
        if let Some((rival, _)) = rival {
            return Err(TuneError::Twice(rival.name, setting.name));
        }
        changes.push((setting, setting.value(value.trim())?));
    }
    let mut host = Host::read(root).map_err(unread("/proc/meminfo"))?;
    changes.iter().for_each(|(setting, value)| host.plan(setting.name, value));
    let planned = |(setting, wanted): (&'static Setting, String)| {
        let present = setting.read(root).map_err(unread(setting.name))?;
        let remark = host.judge(setting.name, &wanted);
        Ok(Planned { setting, present, wanted, remark })
    };
    Ok(Plan {
        changes: changes.into_iter().map(planned).collect::<Result<_, TuneError>>()?,
        before: Measures::read(root).map_err(unread("/proc/meminfo"))?,
    })
}

/// Applies `plan`. `guard` is called once the record is on the disk and before anything is changed; it may refuse.
///
/// Errors: nothing is changed then, and no record is left.
pub fn apply(
    root: &Root,
    store: &Store,
    plan: &Plan,
    options: Options,
    guard: impl FnOnce(&Record) -> Result<(), TuneError>,
) -> Result<Applied, TuneError> {
    harmless(plan, options.force)?;
    for planned in &plan.changes {
        planned.setting.writable(root, &planned.wanted)?;
    }
    store.create()?;
    let _lock = store.lock()?;
    let boot = Boot::read(root);
    for planned in &plan.changes {
        not_pending(store, &boot, planned.setting)?;
    }
    let changes = changes(root, plan, options.persist)?;
    let mut applied = Applied { record: None, before: plan.before, after: plan.before, notes: Vec::new() };
    if changes.is_empty() {
        return Ok(applied);
    }
    let deadline = options.time.map(|time| boottime() + time);
    let record = Record {
        format: FORMAT,
        id: format!("{}-{}", unix_time(), std::process::id()),
        boot,
        made: unix_time(),
        by: rustix::process::getuid().as_raw(),
        deadline: deadline.map(|deadline| u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX)),
        persistent: options.persist,
        changes,
    };
    let made = store.write(&record).and_then(|()| guard(&record)).and_then(|()| write(root, &record));
    if let Err(error) = made {
        // Nothing of it holds any more, so nobody needs the record; one that stays finds all as it was.
        let _ = store.remove(&record.id);
        return Err(error);
    }
    applied.after = Measures::read(root).unwrap_or(plan.before);
    applied.notes = if options.persist { notes(root, &record) } else { Vec::new() };
    applied.record = Some(record);
    Ok(applied)
}

fn harmless(plan: &Plan, force: bool) -> Result<(), TuneError> {
    let bad = |planned: &&Planned| matches!(planned.remark.verdict, Verdict::Harmful | Verdict::Invalid);
    match plan.changes.iter().filter(|_| !force).find(bad) {
        None => Ok(()),
        Some(planned) => Err(TuneError::Harmful {
            name: planned.setting.name,
            value: planned.wanted.clone(),
            why: planned.remark.says.clone(),
        }),
    }
}

/// Refuses what another record is to bring back: two undos of one setting would undo each other.
fn not_pending(store: &Store, boot: &Boot, setting: &Setting) -> Result<(), TuneError> {
    let same =
        |change: &Change| change.setting == setting.name || Some(change.setting.as_str()) == setting.twin;
    match store.live(boot).into_iter().flat_map(|record| record.changes).find(same) {
        None => Ok(()),
        Some(change) => {
            Err(TuneError::Pending { name: change.setting, before: change.before, set: change.set })
        }
    }
}

/// What is to be done, and what undoes it, as things are now that nobody else of ebb changes them.
fn changes(root: &Root, plan: &Plan, persist: bool) -> Result<Vec<Change>, TuneError> {
    let mut changes = Vec::new();
    for Planned { setting, wanted, .. } in &plan.changes {
        let unread = |error| TuneError::Read { name: setting.name, error };
        let before = setting.read(root).map_err(unread)?;
        let line_before = if persist { persist::kept(root, setting)? } else { None };
        if before == *wanted && !persist {
            continue;
        }
        changes.push(Change {
            setting: setting.name.to_owned(),
            back: back(root, setting, &before).map_err(unread)?,
            before,
            set: wanted.clone(),
            line_before,
        });
    }
    Ok(changes)
}

/// Writes all settings of `record`; after an error those that were written are as before.
fn write(root: &Root, record: &Record) -> Result<(), TuneError> {
    for (done, change) in record.changes.iter().enumerate() {
        let setting = Setting::known(&change.setting)?;
        let mut result = setting.write(root, &change.set);
        if result.is_ok() && record.persistent {
            result = persist::keep(root, setting, &change.set);
        }
        if let Err(error) = result {
            for change in record.changes[..=done].iter().rev() {
                // The error that counts is the first one; what a failed write left is what there was.
                let _ = super::undo::revert(root, change, record.persistent);
            }
            return Err(error);
        }
    }
    Ok(())
}

fn notes(root: &Root, record: &Record) -> Vec<String> {
    let note = |change: &Change| {
        let setting = Setting::known(&change.setting).ok()?;
        let (file, value) = persist::overridden(root, setting, &change.set)?;
        Some(format!(
            "{file} is read after /{} and sets {} to {value}: that is what the next boot will have",
            persist::file(setting),
            setting.name
        ))
    };
    record.changes.iter().filter_map(note).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::{Outcome, undo};
    use ebbtide_testkit::FakeRoot;

    fn machine() -> FakeRoot {
        FakeRoot::new()
            .file("proc/meminfo", "MemTotal: 16777216 kB\nMemAvailable: 8388608 kB\n")
            .file("proc/sys/kernel/random/boot_id", "first\n")
            .file("proc/sys/vm/vfs_cache_pressure", "100\n")
            .file("proc/sys/vm/dirty_ratio", "0\n")
            .file("proc/sys/vm/dirty_bytes", "536870912\n")
            .file("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    }

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|&word| word.to_owned()).collect()
    }

    fn run(root: &Root, assignments: &[&str], options: Options) -> Result<Applied, TuneError> {
        let store = Store::at(root, None);
        apply(root, &store, &prepare(root, &words(assignments))?, options, |record| {
            assert!(store.holds(&record.id), "the record comes first");
            Ok(())
        })
    }

    fn value(fake: &FakeRoot, path: &str) -> String {
        Root::at(fake.path()).unwrap().read_line(path).unwrap()
    }

    fn text(fake: &FakeRoot, path: &str) -> String {
        std::fs::read_to_string(fake.path().join(path)).unwrap()
    }

    #[test]
    fn there_and_back() {
        let fake = machine();
        let root = Root::at(fake.path()).unwrap();
        let applied =
            run(&root, &["vm.vfs_cache_pressure=150", "thp.enabled=never"], Options::default()).unwrap();
        let record = applied.record.unwrap();
        assert_eq!((record.changes.len(), record.deadline), (2, None));
        assert_eq!(value(&fake, "proc/sys/vm/vfs_cache_pressure"), "150");
        assert_eq!(value(&fake, "sys/kernel/mm/transparent_hugepage/enabled"), "never");
        let again = run(&root, &["vm.vfs_cache_pressure=160"], Options::default());
        assert!(matches!(again, Err(TuneError::Pending { .. })));
        let undone = undo(&root, &Store::at(&root, None), None, false).unwrap();
        assert!(undone.iter().all(|undone| undone.outcome == Outcome::Restored), "{undone:?}");
        assert_eq!(value(&fake, "proc/sys/vm/vfs_cache_pressure"), "100");
        assert_eq!(value(&fake, "sys/kernel/mm/transparent_hugepage/enabled"), "madvise");
        assert_eq!(undo(&root, &Store::at(&root, None), None, false).unwrap(), []);
    }

    #[test]
    fn nothing_is_done_without_a_record_or_a_guard() {
        let fake = machine().file("var/lib/ebbtide", "a file where the directory should be");
        let root = Root::at(fake.path()).unwrap();
        let error = run(&root, &["vm.vfs_cache_pressure=150"], Options::default()).unwrap_err();
        assert!(matches!(error, TuneError::File { .. }), "{error}");
        fake.remove("var/lib/ebbtide");
        let store = Store::at(&root, None);
        let plan = prepare(&root, &words(&["vm.vfs_cache_pressure=150"])).unwrap();
        let refuse = |_: &Record| Err(TuneError::NotAnAssignment(String::new()));
        assert!(apply(&root, &store, &plan, Options::default(), refuse).is_err());
        assert_eq!(value(&fake, "proc/sys/vm/vfs_cache_pressure"), "100");
        assert!(store.pending().records.is_empty());
    }

    #[test]
    fn all_or_nothing() {
        let fake = machine();
        let root = Root::at(fake.path()).unwrap();
        // A fake dirty_bytes does not turn dirty_ratio off; a value that reads back otherwise is refused.
        fake.remove("proc/sys/vm/dirty_ratio");
        fake.set("etc", "a file where a directory should be");
        let options = Options { persist: true, ..Options::default() };
        let error = run(&root, &["vm.vfs_cache_pressure=150"], options).unwrap_err();
        assert!(matches!(error, TuneError::File { .. }), "{error}");
        assert_eq!(value(&fake, "proc/sys/vm/vfs_cache_pressure"), "100");
        assert!(Store::at(&root, None).pending().records.is_empty());
    }

    #[test]
    fn what_does_harm_takes_force() {
        let fake = machine();
        let root = Root::at(fake.path()).unwrap();
        let harm = &["vm.vfs_cache_pressure=100000"];
        assert!(matches!(run(&root, harm, Options::default()), Err(TuneError::Harmful { .. })));
        run(&root, harm, Options { force: true, ..Options::default() }).unwrap();
        assert_eq!(value(&fake, "proc/sys/vm/vfs_cache_pressure"), "100000");
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let fake = machine();
        let root = Root::at(fake.path()).unwrap();
        for wrong in [
            &["vm.vfs_cache_pressure"][..],
            &["vm.vfs_cache_presure=1"],
            &["vm.vfs_cache_pressure=-1"],
            &["vm.vfs_cache_pressure=1", "vm/vfs_cache_pressure=2"],
            &["vm.dirty_ratio=1", "vm.dirty_bytes=99999"],
            &["vm.swappiness=1"],
            &["kernel.core_pattern=|/bin/sh"],
        ] {
            assert!(prepare(&root, &words(wrong)).is_err(), "{wrong:?}");
        }
        let same = run(&root, &["vm.vfs_cache_pressure=100"], Options::default()).unwrap();
        assert_eq!(same.record, None, "it is so already");
    }

    #[test]
    fn made_to_last() {
        let fake = machine().file("etc/sysctl.d/99-mine.conf", "vm.vfs_cache_pressure = 120\n");
        let root = Root::at(fake.path()).unwrap();
        let options = Options { persist: true, ..Options::default() };
        let applied = run(&root, &["vm.vfs_cache_pressure=150"], options).unwrap();
        assert!(applied.notes[0].contains("/etc/sysctl.d/99-mine.conf"), "{:?}", applied.notes);
        let file = "etc/sysctl.d/60-ebbtide.conf";
        assert!(text(&fake, file).ends_with("vm.vfs_cache_pressure = 150\n"));
        fake.set("proc/sys/kernel/random/boot_id", "second\n");
        let undone = undo(&root, &Store::at(&root, None), None, false).unwrap();
        assert_eq!(undone[0].outcome, Outcome::Restored, "a boot does not undo it");
        assert!(!fake.path().join(file).exists());
        assert_eq!(value(&fake, "proc/sys/vm/vfs_cache_pressure"), "100");
    }
}
