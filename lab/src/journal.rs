//! What has to be undone: written to a file before it is done, replayed in reverse at the end.
//!
//! Invariants:
//! - One way out. A clean end, SIGTERM and the next start after a kill all replay the same lines; undoing
//!   what never came to be is no error, since a line is written before the deed.
//! - A journal is locked (flock) by its owner for as long as that lives; the kernel drops the lock of a dead
//!   owner, so the sweep at the next start takes up exactly the journals that nobody will replay. Pids, which
//!   are reused, decide nothing.
//! - A journal names the boot it is of. After a restart only its files are removed: everything else went with
//!   the machine, and an old value must not be written over a new one.

use crate::sys;
use anyhow::{Context, Result, bail, ensure};
use rustix::fs::FlockOperation;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long the kernel is given to let go of a cgroup whose last process was killed.
const LET_GO: Duration = Duration::from_secs(20);

/// One deed to undo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Undo {
    /// Kill what is in this cgroup and remove it.
    Cgroup(PathBuf),
    /// Remove the System V segment with this key.
    Segment(i32),
    /// Remove the System V message queue with this key.
    Queue(i32),
    /// Unmount this.
    Mount(PathBuf),
    /// Write this value back.
    Restore(PathBuf, String),
    /// Remove this file or directory with all in it.
    Remove(PathBuf),
    /// Reset and remove zram device N.
    Zram(u32),
    /// Unload this module.
    Module(String),
}

impl Undo {
    fn line(&self) -> String {
        match self {
            Undo::Cgroup(path) => format!("cgroup\t{}\n", path.display()),
            Undo::Segment(key) => format!("segment\t{key}\n"),
            Undo::Queue(key) => format!("queue\t{key}\n"),
            Undo::Mount(path) => format!("mount\t{}\n", path.display()),
            Undo::Restore(path, value) => format!("restore\t{}\t{value}\n", path.display()),
            Undo::Remove(path) => format!("remove\t{}\n", path.display()),
            Undo::Zram(n) => format!("zram\t{n}\n"),
            Undo::Module(name) => format!("module\t{name}\n"),
        }
    }

    fn parse(line: &str) -> Result<Undo> {
        let mut words = line.split('\t');
        let kind = words.next().unwrap_or_default();
        let arg = words.next().with_context(|| format!("journal line without argument: {line:?}"))?;
        Ok(match kind {
            "cgroup" => Undo::Cgroup(arg.into()),
            "segment" => Undo::Segment(arg.parse()?),
            "queue" => Undo::Queue(arg.parse()?),
            "mount" => Undo::Mount(arg.into()),
            "restore" => Undo::Restore(arg.into(), words.next().unwrap_or_default().to_owned()),
            "remove" => Undo::Remove(arg.into()),
            "zram" => Undo::Zram(arg.parse()?),
            "module" => Undo::Module(arg.to_owned()),
            _ => bail!("unknown journal line: {line:?}"),
        })
    }

    fn replay(&self) -> Result<()> {
        match self {
            Undo::Cgroup(path) => remove_cgroup(path),
            Undo::Segment(key) => sys::shm_remove(*key),
            Undo::Queue(key) => sys::msg_remove(*key),
            Undo::Mount(path) => match rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH) {
                Ok(()) | Err(rustix::io::Errno::NOENT | rustix::io::Errno::INVAL) => Ok(()),
                Err(e) => Err(e).with_context(|| format!("unmounting {}", path.display())),
            },
            Undo::Restore(path, value) => {
                fs::write(path, value).with_context(|| format!("restoring {}", path.display()))
            }
            Undo::Remove(path) => remove(path),
            Undo::Zram(n) => remove_zram(*n),
            Undo::Module(name) => sys::unload_module(&std::ffi::CString::new(name.as_str())?),
        }
    }
}

/// The deeds of one run, and its directory for files.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    file: File,
}

impl Journal {
    /// A new journal under [`base`].
    pub fn open() -> Result<Journal> {
        let dir = base()?.join(std::process::id().to_string());
        DirBuilder::new().recursive(true).mode(0o755).create(&dir)?;
        let mut file = OpenOptions::new().append(true).create(true).open(dir.join("undo"))?;
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("locking {}", dir.display()))?;
        file.write_all(format!("{}\n", boot()?).as_bytes()).context("writing the journal")?;
        Ok(Journal { dir, file })
    }

    /// Its directory: removed at the end with all in it.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Says that `deed` is about to come true.
    pub fn will(&mut self, deed: &Undo) -> Result<()> {
        self.file.write_all(deed.line().as_bytes()).context("writing the journal")
    }

    /// Undoes everything, last first, and removes the journal. Errors are collected; what could not be undone
    /// does not keep the rest from it, and the journal then stays for the next sweep.
    pub fn replay(&self) -> Result<()> {
        replay(&self.dir)
    }
}

/// Replays the journals of runs that were killed: what they undid, as text for people.
pub fn sweep() -> Result<Vec<String>> {
    let mut swept = Vec::new();
    for entry in fs::read_dir(base()?)? {
        let dir = entry?.path();
        let file = match File::open(dir.join("undo")) {
            Ok(file) => file,
            Err(e) if e.kind() == ErrorKind::NotFound => continue,
            Err(e) => return Err(e.into()),
        };
        if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        swept.push(match replay(&dir) {
            Ok(()) => format!("cleaned up after a killed run: {}", dir.display()),
            Err(e) => format!("a killed run is still there: {e:#}"),
        });
    }
    Ok(swept)
}

fn replay(dir: &Path) -> Result<()> {
    let text = fs::read_to_string(dir.join("undo"))?;
    let (written, deeds) = text.split_once('\n').unwrap_or_default();
    let same_boot = written == boot()?;
    let mut failed = Vec::new();
    for line in deeds.lines().rev() {
        let undone = match Undo::parse(line) {
            Ok(deed) if same_boot || matches!(deed, Undo::Remove(_)) => deed.replay(),
            Ok(_) => Ok(()),
            Err(e) => Err(e),
        };
        failed.extend(undone.err().map(|e| format!("{e:#}")));
    }
    ensure!(failed.is_empty(), "could not undo everything ({}): {}", dir.display(), failed.join("; "));
    remove(dir)
}

fn boot() -> Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

/// Where journals are: a directory of this user's own, since /tmp is everybody's.
pub fn base() -> Result<PathBuf> {
    let uid = rustix::process::geteuid().as_raw();
    let dir = std::env::temp_dir().join(format!("ebbtide-lab-{uid}"));
    DirBuilder::new().recursive(true).mode(0o755).create(&dir)?;
    let meta = fs::symlink_metadata(&dir)?;
    ensure!(meta.is_dir() && meta.uid() == uid, "{} is not a directory of uid {uid}", dir.display());
    Ok(dir)
}

/// Waits until no other run of cases holds this machine: they measure all of it, and drop its caches. Other
/// users' runs are not seen. Held until the file is dropped.
pub fn alone() -> Result<File> {
    let dir = base()?;
    let file = File::open(&dir)?;
    if rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
        eprintln!("waiting for another run of the lab ({})", dir.display());
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
    }
    Ok(file)
}

fn remove(path: &Path) -> Result<()> {
    let done = match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match done {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            Err(e).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Kills every process in the cgroup and removes it. A killed process leaves its cgroup only when it is
/// through with exiting, and v1 has no event for that: bounded polling.
fn remove_cgroup(path: &Path) -> Result<()> {
    let until = Instant::now() + LET_GO;
    loop {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_cgroup(&entry.path())?;
            }
        }
        for pid in fs::read_to_string(path.join("cgroup.procs")).unwrap_or_default().lines() {
            if let Some(pid) = pid.parse().ok().and_then(rustix::process::Pid::from_raw) {
                let _already_gone = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) if Instant::now() >= until => {
                return Err(e).with_context(|| format!("rmdir {}", path.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    }
}

fn remove_zram(n: u32) -> Result<()> {
    let device = PathBuf::from(format!("/sys/block/zram{n}"));
    if !device.exists() {
        return Ok(());
    }
    fs::write(device.join("reset"), "1").context("resetting zram")?;
    fs::write("/sys/class/zram-control/hot_remove", n.to_string()).context("removing zram")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_deed_survives_its_line() {
        let deeds = [
            Undo::Cgroup("/sys/fs/cgroup/x".into()),
            Undo::Segment(-3),
            Undo::Queue(7),
            Undo::Mount("/mnt/x".into()),
            Undo::Restore("/proc/sys/vm/nr_hugepages".into(), "0".into()),
            Undo::Remove("/tmp/x y".into()),
            Undo::Zram(1),
            Undo::Module("ebbtide_leak".into()),
        ];
        for deed in deeds {
            assert_eq!(Undo::parse(deed.line().trim_end_matches('\n')).unwrap(), deed);
        }
        assert!(Undo::parse("explode\t/").is_err());
        assert!(Undo::parse("").is_err());
    }

    #[test]
    fn a_journal_of_another_boot_only_removes_files() {
        let dir = tempfile::tempdir().unwrap();
        let (journal, file, value) =
            (dir.path().join("j"), dir.path().join("file"), dir.path().join("value"));
        for (boot, restored) in [("another-boot".to_owned(), "new"), (boot().unwrap(), "old")] {
            fs::create_dir(&journal).unwrap();
            fs::write(&file, "").unwrap();
            fs::write(&value, "new").unwrap();
            let deeds = [Undo::Remove(file.clone()), Undo::Restore(value.clone(), "old".into())];
            let lines: String = deeds.iter().map(Undo::line).collect();
            fs::write(journal.join("undo"), format!("{boot}\n{lines}")).unwrap();
            replay(&journal).unwrap();
            assert!(!file.exists() && !journal.exists());
            assert_eq!(fs::read_to_string(&value).unwrap(), restored);
        }
    }

    #[test]
    fn what_never_came_to_be_is_undone_without_error() {
        for deed in [
            Undo::Cgroup("/sys/fs/cgroup/ebbtide-lab-never-made".into()),
            Undo::Segment(0x0ebb_7f7f),
            Undo::Remove("/tmp/ebbtide-lab-never-made".into()),
            Undo::Zram(4_000_000),
        ] {
            deed.replay().unwrap();
        }
    }
}
