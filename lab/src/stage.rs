//! The stage of one incident: whom it consists of, what was measured, and what has to be undone.
//!
//! Invariant: when a stage is dropped, first its actors die, then what it holds is let go, then the journal
//! is replayed, so nothing is undone while a process still uses it.

use crate::actor::Actor;
use crate::cgroup::Group;
use crate::journal::{Journal, Undo};
use crate::machine::Machine;
use anyhow::{Context, Result, ensure};
use ebbtide_observe::Bytes;
use serde_json::{Map, Value, json};
use std::any::Any;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The stage of one incident.
pub struct Stage {
    /// The machine it stands on.
    pub machine: Machine,
    /// What has to be undone.
    pub journal: Journal,
    actors: Vec<Actor>,
    held: Vec<Box<dyn Any>>,
    figures: Map<String, Value>,
    pid: i32,
    cgroup: Option<PathBuf>,
    files: u32,
}

impl Stage {
    /// An empty stage.
    pub fn new(machine: Machine) -> Result<Stage> {
        Ok(Stage {
            machine,
            journal: Journal::open()?,
            actors: Vec::new(),
            held: Vec::new(),
            figures: Map::new(),
            pid: std::process::id() as i32,
            cgroup: None,
            files: 0,
        })
    }

    /// `nominal`, scaled to the machine.
    pub fn size(&self, nominal: Bytes) -> Bytes {
        self.machine.size(nominal)
    }

    /// Keeps `thing` as long as the stage.
    pub fn hold(&mut self, thing: impl Any) {
        self.held.push(Box::new(thing));
    }

    /// Keeps `actor` as long as the stage; its end would be an error.
    pub fn cast(&mut self, actor: Actor) -> i32 {
        let pid = actor.pid();
        self.actors.push(actor);
        pid
    }

    /// Says that `pid` is whom to ask about; without this it is the lab's own process.
    pub fn target(&mut self, pid: i32) {
        self.pid = pid;
    }

    /// Says that `group` is what to ask about.
    pub fn target_group(&mut self, group: &Group) {
        self.cgroup = Some(group.path().to_owned());
    }

    /// Reports a measured figure.
    pub fn figure(&mut self, name: &str, value: impl Into<Value>) {
        self.figures.insert(name.to_owned(), value.into());
    }

    /// Reports measured bytes.
    pub fn bytes(&mut self, name: &str, value: Bytes) {
        self.figure(name, value.0);
    }

    /// What was measured under `name` so far.
    pub fn measured(&self, name: &str) -> Option<Bytes> {
        self.figures.get(name).and_then(Value::as_u64).map(Bytes)
    }

    /// The truth of the incident: `measured` must be within `percent` of `expected`, else it was not made.
    pub fn verify(&mut self, name: &str, measured: Bytes, expected: Bytes, percent: u64) -> Result<()> {
        self.bytes(name, measured);
        let off = measured.0.abs_diff(expected.0);
        ensure!(
            off <= expected.0 / 100 * percent,
            "{name} is {measured}, not {expected}: no such incident here"
        );
        Ok(())
    }

    /// The truth of the incident: `measured` must be at least `least`.
    pub fn at_least(&mut self, name: &str, measured: Bytes, least: Bytes) -> Result<()> {
        self.bytes(name, measured);
        ensure!(measured >= least, "{name} is {measured}, below {least}: no such incident here");
        Ok(())
    }

    /// The truth of the incident: `measured` must be at most `most`.
    pub fn at_most(&mut self, name: &str, measured: Bytes, most: Bytes) -> Result<()> {
        self.bytes(name, measured);
        ensure!(measured <= most, "{name} is {measured}, above {most}: no such incident here");
        Ok(())
    }

    /// A new directory on a disk with `room`.
    pub fn disk_dir(&mut self, room: Bytes) -> Result<PathBuf> {
        let dir = self.machine.disk(room)?.join(self.name("files"));
        self.journal.will(&Undo::Remove(dir.clone()))?;
        fs::create_dir(&dir)?;
        Ok(dir)
    }

    /// A new sparse file of `len` on a disk. Reading its holes fills the page cache as reading data does,
    /// with no byte written to the disk.
    pub fn sparse_file(&mut self, len: Bytes) -> Result<(PathBuf, File)> {
        let path = self.disk_dir(Bytes::ZERO)?.join("sparse");
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        file.set_len(len.0)?;
        Ok((path, file))
    }

    /// Mounts a tmpfs of its own.
    pub fn tmpfs(&mut self, most: Bytes) -> Result<PathBuf> {
        let name = self.name("tmpfs");
        let dir = self.journal.dir().join(name);
        self.journal.will(&Undo::Mount(dir.clone()))?;
        fs::create_dir(&dir)?;
        let options = std::ffi::CString::new(format!("size={}", most.0))?;
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("ebbtide-lab", &dir, "tmpfs", flags, options.as_c_str())
            .context("mounting tmpfs")?;
        Ok(dir)
    }

    /// Writes `value` to the kernel's file `path`; its old value comes back at the end.
    pub fn set(&mut self, path: &str, value: &str) -> Result<()> {
        let old = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
        self.journal.will(&Undo::Restore(path.into(), old.trim().to_owned()))?;
        fs::write(path, value).with_context(|| format!("writing {value} to {path}"))
    }

    /// Actors that ended although they should last.
    pub fn ended(&self) -> Option<i32> {
        self.actors.iter().find(|actor| actor.has_ended()).map(Actor::pid)
    }

    /// The line that says ready.
    pub fn ready_line(&self) -> Value {
        json!({
            "ready": true,
            "pid": self.pid,
            "cgroup": self.cgroup.as_deref().map(Path::display).map(|path| path.to_string()),
            "figures": self.figures,
        })
    }

    /// Lets everything go and undoes what was done.
    pub fn clear(mut self) -> Result<()> {
        self.let_go();
        self.journal.replay()
    }

    fn let_go(&mut self) {
        self.actors.clear();
        self.held.clear();
    }

    fn name(&mut self, what: &str) -> String {
        self.files += 1;
        format!("ebbtide-lab-{}-{what}-{}", std::process::id(), self.files)
    }
}
