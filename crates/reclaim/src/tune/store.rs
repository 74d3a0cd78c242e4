//! The state directory: undo records, each a file that is there whole or not at all.
//!
//! Records are named by time and process, readable by everybody (every run of ebb says what is overdue), and written
//! only by the owner of the directory. Changes take a lock on the directory itself, which needs no file and no space.

use super::record::FORMAT;
use super::{Boot, Record, TuneError};
use crate::{durable, state};
use ebbtide_observe::Root;
use rustix::fd::OwnedFd;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use std::path::{Path, PathBuf};

/// A record is a few hundred bytes; a file beyond this is none.
const LARGEST: u64 = 64 << 10;

/// A directory of undo records.
#[derive(Debug)]
pub struct Store {
    dir: PathBuf,
}

/// What the directory holds.
#[derive(Debug, Default)]
pub struct Pending {
    /// The records, the newest first: what was changed last is undone first.
    pub records: Vec<Record>,
    /// Files that are no records, and why.
    pub broken: Vec<(PathBuf, String)>,
}

/// Held while records and settings change.
#[derive(Debug)]
pub struct Lock {
    _dir: OwnedFd,
}

impl Store {
    /// The records in state directory `state`, or in the machine's own below `root`.
    pub fn at(root: &Root, state: Option<PathBuf>) -> Store {
        Store { dir: state.unwrap_or_else(|| state::of_root(root)).join("undo") }
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Makes the directory where it is missing.
    pub(crate) fn create(&self) -> Result<(), TuneError> {
        durable::make_directory(&self.dir).map_err(|e| TuneError::file("cannot make", &self.dir, e))
    }

    /// Waits for other runs of ebb that change settings. `None` where there is no directory, and so nothing to lock.
    pub fn lock(&self) -> Result<Option<Lock>, TuneError> {
        let fail = |errno: rustix::io::Errno| TuneError::file("cannot lock", &self.dir, errno);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = match rustix::fs::open(&self.dir, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            other => other.map_err(fail)?,
        };
        self.trusted(&dir)?;
        loop {
            match flock(&dir, FlockOperation::LockExclusive) {
                Err(rustix::io::Errno::INTR) => {}
                other => return other.map(|()| Some(Lock { _dir: dir })).map_err(fail),
            }
        }
    }

    /// A record says what root is to write: nobody else may be its author.
    fn trusted(&self, dir: &OwnedFd) -> Result<(), TuneError> {
        let untrusted = |why| TuneError::Untrusted { path: self.dir.clone(), why };
        let stat = rustix::fs::fstat(dir).map_err(|e| TuneError::file("cannot read", &self.dir, e))?;
        if stat.st_uid != rustix::process::geteuid().as_raw() {
            return Err(untrusted("it belongs to another user, whose undo records are not carried out"));
        }
        if stat.st_mode & 0o022 != 0 {
            return Err(untrusted("others may write to it, so its undo records are not carried out"));
        }
        Ok(())
    }

    /// An id is a name and no path: a slash in it leads nowhere.
    fn path(&self, id: &str) -> PathBuf {
        self.dir.join(format!("{}.json", id.replace('/', "_")))
    }

    /// Puts `record` on the disk.
    pub(crate) fn write(&self, record: &Record) -> Result<(), TuneError> {
        let path = self.path(&record.id);
        serde_json::to_vec_pretty(record)
            .map_err(std::io::Error::from)
            .and_then(|text| durable::replace(&path, &text))
            .map_err(|e| {
                TuneError::file("nothing was changed, as the undo record cannot be written:", path, e)
            })
    }

    /// Removes a record.
    pub(crate) fn remove(&self, id: &str) -> Result<(), TuneError> {
        let path = self.path(id);
        durable::remove(&path).map_err(|e| TuneError::file("cannot remove", path, e))
    }

    /// Whether record `id` is still there.
    pub fn holds(&self, id: &str) -> bool {
        self.path(id).exists()
    }

    /// Reads record `id`.
    pub fn load(&self, id: &str) -> Result<Record, TuneError> {
        let path = self.path(id);
        read(&path).map_err(|e| TuneError::file("cannot read", path, e))
    }

    /// Everything in the directory; nothing where there is none.
    pub fn pending(&self) -> Pending {
        let mut pending = Pending::default();
        let Ok(entries) = std::fs::read_dir(&self.dir) else { return pending };
        for path in entries.flatten().map(|entry| entry.path()) {
            let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
            if hidden || path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match read(&path) {
                Ok(record) => pending.records.push(record),
                // Undone while it was being read.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                Err(error) => pending.broken.push((path, error.to_string())),
            }
        }
        pending.records.sort_by(|a, b| (b.made, &b.id).cmp(&(a.made, &a.id)));
        pending.broken.sort();
        pending
    }

    /// Of the records, those that a change of this boot left behind.
    pub(crate) fn live(&self, boot: &Boot) -> Vec<Record> {
        let mut records = self.pending().records;
        records.retain(|record| !record.is_over(boot));
        records
    }
}

fn read(path: &Path) -> std::io::Result<Record> {
    use std::io::{Error, ErrorKind::InvalidData};
    let meta = std::fs::metadata(path)?;
    if !meta.is_file() || meta.len() > LARGEST {
        return Err(Error::new(InvalidData, "it is no file, or too large for an undo record"));
    }
    let record: Record = serde_json::from_slice(&std::fs::read(path)?)?;
    if record.format != FORMAT {
        return Err(Error::new(InvalidData, "it was written by another version of ebb"));
    }
    // Its file is found by its id again.
    if path.file_stem().is_none_or(|stem| stem.to_str() != Some(&record.id)) {
        return Err(Error::new(InvalidData, "its name is not its id"));
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tune::{Back, Change};
    use ebbtide_testkit::FakeRoot;
    use proptest::prelude::*;
    use std::os::unix::fs::PermissionsExt;

    fn record(id: &str, made: u64) -> Record {
        let back = Back { setting: "vm.swappiness".into(), value: "60".into() };
        let change = Change {
            setting: "vm.swappiness".into(),
            before: "60".into(),
            set: "10".into(),
            back,
            line_before: None,
        };
        Record {
            format: FORMAT,
            id: id.into(),
            boot: Boot("a".into()),
            made,
            by: 0,
            deadline: Some(1),
            persistent: false,
            changes: vec![change],
        }
    }

    #[test]
    fn records_come_back_newest_first() {
        let fake = FakeRoot::new();
        let store = Store::at(&Root::at(fake.path()).unwrap(), None);
        assert!(store.lock().unwrap().is_none() && store.pending().records.is_empty());
        store.create().unwrap();
        let lock = store.lock().unwrap();
        assert!(lock.is_some());
        for (id, made) in [("1-1", 1), ("3-1", 3), ("2-1", 2)] {
            store.write(&record(id, made)).unwrap();
        }
        fake.set("var/lib/ebbtide/undo/bad.json", "{");
        fake.set("var/lib/ebbtide/undo/4-1.json", serde_json::to_vec(&record("5-1", 5)).unwrap());
        fake.set("var/lib/ebbtide/undo/.1-1.json.99", "half");
        let pending = store.pending();
        let ids: Vec<&str> = pending.records.iter().map(|record| record.id.as_str()).collect();
        assert_eq!((ids, pending.broken.len()), (vec!["3-1", "2-1", "1-1"], 2));
        assert_eq!(store.load("2-1").unwrap(), record("2-1", 2));
        store.remove("2-1").unwrap();
        store.remove("2-1").unwrap();
        assert!(!store.holds("2-1") && store.holds("1-1"));
        assert!(store.live(&Boot("b".into())).is_empty());
        assert_eq!(store.live(&Boot("a".into())).len(), 2);
    }

    #[test]
    fn a_directory_that_others_write_to_is_not_trusted() {
        let fake = FakeRoot::new();
        let store = Store::at(&Root::at(fake.path()).unwrap(), None);
        store.create().unwrap();
        std::fs::set_permissions(store.dir(), std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(store.lock(), Err(TuneError::Untrusted { .. })));
    }

    proptest! {
        #[test]
        fn any_bytes_are_no_record(text: Vec<u8>) {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("x.json");
            std::fs::write(&path, text).unwrap();
            prop_assert!(read(&path).is_err());
        }
    }
}
