//! What was done, by whom and with what result, as lines of JSON in a local file: what `ebb reclaim --history` shows.
//!
//! Invariants: a line is written before anything is done and another one after it, so what was killed half-way is known;
//! each goes to the disk whole or is taken back; writers take turns (flock); the files are bounded ([`MOST`], twice).
//! Whatever is wrong with the journal, giving back never waits for it longer than [`PATIENCE`] nor fails: the caller is
//! told what is wrong, as text for a warning. Reading takes any bytes: lines that make no sense are counted.

use crate::report::{Report, Setting};
use crate::slow::patiently;
use crate::{durable, state};
use ebbtide_observe::{Bytes, ReadError, Root};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const FILE: &str = "journal.jsonl";
/// The file before it, as rotation leaves it.
const BEFORE: &str = "journal.jsonl.1";

/// From this size on a file is set aside, and the one set aside before is gone: some 4,000 lines.
const MOST: u64 = 1 << 20;

/// For how long a write may take: a disk may hang, another writer may hold the lock.
const PATIENCE: Duration = Duration::from_secs(2);

/// What was acted on.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// "process", "cgroup" or "host".
    pub kind: String,
    /// A process's name, or what of the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// A process's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// A cgroup's path, or a file's or directory's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
}

/// Who did it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct By {
    /// The effective user.
    pub uid: u32,
    /// Who called sudo, as sudo says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sudo_uid: Option<u32>,
    /// Who logged in, as the kernel's audit knows it (/proc/self/loginuid).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login_uid: Option<u32>,
    /// The name that goes with it, as the environment has it: a hint, no proof.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login: Option<String>,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It was begun; in a history: and nothing says that it ended.
    Begun,
    /// Done as predicted.
    Done,
    /// Not to the end, or with less than half of what was predicted.
    Short,
    /// There was nothing to give back.
    Nothing,
    /// It was refused or failed.
    Failed,
}

/// One lever of an entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pulled {
    /// Which lever.
    pub id: String,
    /// What it was to return.
    pub predicted_bytes: Bytes,
    /// What it returned.
    pub returned_bytes: Option<Bytes>,
    /// Why not to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub short: Option<String>,
    /// What it set.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<Setting>,
}

/// One thing that was done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Which: the same in the line before and the line after.
    pub id: String,
    /// When it was begun: RFC 3339, UTC.
    pub at: String,
    /// Who did it.
    pub by: By,
    /// What was acted on.
    pub target: Target,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, where it failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// What was to come back.
    pub predicted_bytes: Bytes,
    /// What came back.
    pub returned_bytes: Option<Bytes>,
    /// How long it took.
    pub elapsed_us: u64,
    /// Its parts.
    pub levers: Vec<Pulled>,
}

impl Entry {
    /// `target` is about to be acted on.
    pub fn begin(target: Target) -> Entry {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Entry {
            id: format!("{}-{}", now.as_micros(), std::process::id()),
            at: humantime::format_rfc3339_seconds(UNIX_EPOCH + now).to_string(),
            by: By::read(),
            target,
            outcome: Outcome::Begun,
            why: None,
            predicted_bytes: Bytes::ZERO,
            returned_bytes: None,
            elapsed_us: 0,
            levers: Vec::new(),
        }
    }

    /// It is done.
    pub fn done(&mut self, report: &Report) {
        let levers = &report.levers;
        self.outcome = match levers.iter().any(|lever| lever.short.is_some() || lever.fell_short()) {
            true => Outcome::Short,
            false if levers.is_empty() => Outcome::Nothing,
            false => Outcome::Done,
        };
        (self.predicted_bytes, self.returned_bytes) = (report.predicted, report.returned);
        self.elapsed_us = u64::try_from(report.elapsed.as_micros()).unwrap_or(u64::MAX);
        let pulled = levers.iter().map(|lever| Pulled {
            id: lever.id.to_owned(),
            predicted_bytes: lever.predicted,
            returned_bytes: lever.returned,
            short: lever.short.clone(),
            settings: lever.settings.clone(),
        });
        self.levers = pulled.collect();
    }

    /// It failed.
    pub fn failed(&mut self, why: impl ToString) {
        self.outcome = Outcome::Failed;
        self.why = Some(why.to_string());
    }
}

impl By {
    fn read() -> By {
        let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let login_uid = Root::live().and_then(|root| root.read_number("proc/self/loginuid")).ok();
        By {
            uid: rustix::process::geteuid().as_raw(),
            sudo_uid: variable("SUDO_UID").and_then(|uid| uid.parse().ok()),
            // (uid_t) -1: nobody has logged in.
            login_uid: login_uid.and_then(|uid| u32::try_from(uid).ok()).filter(|&uid| uid != u32::MAX),
            // A variable may be longer than a line that can be read.
            login: variable("SUDO_USER")
                .or_else(|| variable("LOGNAME"))
                .map(|login| login.chars().take(64).collect()),
        }
    }
}

/// Where the journal is.
#[derive(Debug, Clone)]
pub struct Journal {
    dir: PathBuf,
}

/// All that a journal says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct History {
    /// What was done, the latest last.
    pub entries: Vec<Entry>,
    /// Lines that make no sense.
    pub damaged: u64,
}

impl Journal {
    /// The journal of this user, in [`state::of_this_user`]. `None` for a user without a home.
    pub fn of_this_user() -> Option<Journal> {
        state::of_this_user().map(Journal::at)
    }

    /// The journal in `dir`, which is made when it is first written.
    pub fn at(dir: impl Into<PathBuf>) -> Journal {
        Journal { dir: dir.into() }
    }

    /// Its file.
    pub fn path(&self) -> PathBuf {
        self.dir.join(FILE)
    }

    /// Adds `entry`. An error is worth a warning, nothing more.
    pub fn write(&self, entry: &Entry) -> Result<(), String> {
        let fail = |why: String| format!("{}: not recorded: {why}", self.path().display());
        let mut line = serde_json::to_vec(entry).map_err(|error| fail(error.to_string()))?;
        line.push(b'\n');
        let dir = self.dir.clone();
        match patiently(PATIENCE, &mut |_| {}, move || append(&dir, &line)) {
            Some(done) => done.map_err(|error| fail(error.to_string())),
            None => Err(fail("it takes too long: another writer holds it, or the disk hangs".to_owned())),
        }
    }

    /// What it says. An entry that was begun and has no end is one that was killed half-way, or is being done now.
    pub fn read(&self) -> Result<History, ReadError> {
        let mut history = History::default();
        let root = match Root::at(&self.dir) {
            Err(ReadError::Missing { .. }) => return Ok(history),
            root => root?,
        };
        let mut by_id: BTreeMap<String, usize> = BTreeMap::new();
        for file in [BEFORE, FILE] {
            let done = root.each_line(file, |line| {
                match serde_json::from_slice::<Entry>(line) {
                    Ok(entry) => match by_id.get(&entry.id) {
                        Some(&at) => history.entries[at] = entry,
                        None => {
                            by_id.insert(entry.id.clone(), history.entries.len());
                            history.entries.push(entry);
                        }
                    },
                    Err(_) if line.trim_ascii().is_empty() => {}
                    Err(_) => history.damaged += 1,
                }
                true
            });
            match done {
                Err(ReadError::Missing { .. }) => {}
                done => done?,
            }
        }
        Ok(history)
    }
}

/// Appends `line` to the journal in `dir`, alone and to the disk; if there is no room for all of it, none of it.
fn append(dir: &Path, line: &[u8]) -> std::io::Result<()> {
    durable::make_directory(dir)?;
    let mut file = locked(dir)?;
    let length = file.metadata()?.len();
    if length > 0 && length + line.len() as u64 > MOST {
        std::fs::rename(dir.join(FILE), dir.join(BEFORE))?;
        drop(file);
        return append(dir, line);
    }
    // A line that was cut off must not take this one with it.
    let mut text = Vec::with_capacity(line.len() + 1);
    let mut last = [b'\n'];
    if length > 0 {
        file.seek(SeekFrom::Start(length - 1))?;
        file.read_exact(&mut last)?;
    }
    if last != [b'\n'] {
        text.push(b'\n');
    }
    text.extend_from_slice(line);
    let written = file.write_all(&text).and_then(|()| file.sync_data());
    if written.is_err() {
        // An error here leaves a line cut off, which reading skips.
        let _ = file.set_len(length);
    }
    written
}

/// The journal's file, locked: and still the journal's once the lock is held, as rotation may have come in between.
fn locked(dir: &Path) -> std::io::Result<File> {
    let path = dir.join(FILE);
    let mut options = File::options();
    let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32;
    options.read(true).append(true).create(true).mode(0o600).custom_flags(flags);
    loop {
        let file = options.open(&path)?;
        let own = file.metadata()?;
        if !own.is_file() {
            return Err(std::io::Error::other("it is no regular file"));
        }
        flock(&file, FlockOperation::LockExclusive)?;
        match path.symlink_metadata() {
            Ok(now) if (now.dev(), now.ino()) == (own.dev(), own.ino()) => return Ok(file),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests;
