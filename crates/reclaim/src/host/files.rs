//! The page cache of given files: posix_fadvise(DONTNEED) on a file, or on all regular files below a directory.
//!
//! Invariants: no symbolic link is followed and no other file system entered; only regular files are opened, without
//! waiting; the walk holds one directory's listing and the directories still to come, nothing for each file.
//! Who may rename directories below the one given can lead it to other files of theirs or of the same disk, whose
//! cache is then dropped: nothing is read, and nothing changed.

use crate::refused::{LeverError, Refusal, Right};
use crate::report::{Lever, Report};
use crate::slow::Terms;
use ebbtide_observe::{Pages, page_size};
use ebbtide_sys::cached::cached;
use rustix::fs::{Advice, OFlags, fadvise};
use rustix::io::Errno;
use std::collections::HashSet;
use std::fs::{File, Metadata};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

pub(super) fn reclaim(path: &Path, terms: &mut Terms) -> Result<Report, LeverError> {
    let began = Instant::now();
    let refused = |error| Refusal::io(path, &error, &[Right::DacRead]);
    let top = path.symlink_metadata().map_err(refused)?;
    if !top.is_dir() && !top.is_file() {
        let what = "is neither a regular file nor a directory; symbolic links are not followed";
        return Err(LeverError::Impossible(format!("{} {what}", path.display())));
    }
    let mut walk = Walk { device: top.dev(), apply: !terms.dry_run, ..Walk::default() };
    if top.is_file() {
        walk.file(path, &top).map_err(refused)?;
    } else {
        // An error below it is one among many; of the directory itself it is the answer.
        path.read_dir().map_err(refused)?;
        walk.below(path, began, terms);
    }
    let on = format!("the page cache of {} files, {}", walk.files, path.display());
    let mut lever =
        Lever::planned("file-cache", on, walk.clean.bytes(), "they are read from disk again when needed");
    lever.returned = (!terms.dry_run).then_some(walk.returned.bytes());
    lever.short = walk.short.take();
    Ok(Report::of(vec![lever], walk.notes(), began))
}

#[derive(Default)]
struct Walk {
    device: u64,
    apply: bool,
    files: u64,
    /// Pages of clean cache found, and of those dropped.
    clean: Pages,
    returned: Pages,
    unwritten: Pages,
    /// Whether the kernel told dirty pages apart.
    told: bool,
    /// Files of which others are not told what is cached.
    untold: u64,
    unreadable: u64,
    elsewhere: u64,
    /// Files with several names that were met: their cache is one.
    linked: HashSet<u64>,
    short: Option<String>,
}

/// Files with several names that are remembered; a cache that counts twice beyond is the lesser evil.
const LINKED: usize = 1 << 20;

impl Walk {
    fn below(&mut self, top: &Path, began: Instant, terms: &mut Terms) {
        let mut told = Instant::now();
        let mut dirs: Vec<PathBuf> = vec![top.to_owned()];
        while let Some(dir) = dirs.pop() {
            let Ok(entries) = dir.read_dir() else {
                self.unreadable += 1;
                continue;
            };
            for entry in entries {
                // Of an entry, not of what a link points to.
                let Ok((path, meta)) = entry.and_then(|entry| Ok((entry.path(), entry.metadata()?))) else {
                    self.unreadable += 1;
                    continue;
                };
                if !meta.is_dir() && !meta.is_file() {
                    continue;
                } else if meta.dev() != self.device {
                    self.elsewhere += 1;
                } else if meta.is_dir() {
                    dirs.push(path);
                } else if self.file(&path, &meta).is_err() {
                    self.unreadable += 1;
                }
                if began.elapsed() > terms.patience {
                    self.short = Some("it took longer than the time given for it (--patience)".to_owned());
                    return;
                }
                if told.elapsed().as_secs() > 0 {
                    told = Instant::now();
                    (terms.watch)(began.elapsed(), self.returned.bytes());
                }
            }
        }
    }

    fn file(&mut self, path: &Path, meta: &Metadata) -> std::io::Result<()> {
        if meta.len() == 0
            || (meta.nlink() > 1 && self.linked.len() < LINKED && !self.linked.insert(meta.ino()))
        {
            return Ok(());
        }
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
        let file = File::options().read(true).custom_flags(flags.bits() as i32).open(path)?;
        let opened = file.metadata()?;
        if !opened.is_file() || (opened.dev(), opened.ino()) != (meta.dev(), meta.ino()) {
            return Ok(());
        }
        let before = match cached(&file, opened.len()) {
            Err(Errno::PERM) => {
                self.untold += 1;
                return Ok(());
            }
            cached => cached?,
        };
        let unwritten = before.unwritten.unwrap_or(0);
        let clean = Pages(before.pages.saturating_sub(unwritten));
        self.files += 1;
        self.told |= before.unwritten.is_some();
        self.unwritten += Pages(unwritten);
        self.clean += clean;
        if self.apply && before.pages > 0 {
            fadvise(&file, 0, None, Advice::DontNeed)?;
            let after = cached(&file, opened.len())?;
            self.returned += Pages(before.pages.saturating_sub(after.pages));
        }
        Ok(())
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.unwritten > Pages(0) {
            let bytes = self.unwritten.bytes();
            notes.push(format!("{bytes} more are not written to disk yet: writing is begun, and what is not done in time stays"));
        }
        if self.files > 0 && !self.told {
            notes.push("this kernel does not tell which pages are not written to disk yet (cachestat, 6.5): those stay".to_owned());
        }
        if self.clean.bytes() >= page_size() {
            notes.push("pages that a process has mapped stay, as those of running programs".to_owned());
        }
        if self.untold > 0 {
            notes.push(format!(
                "{} files were left out: what of them is cached, the kernel tells only those who may write them",
                self.untold
            ));
        }
        if self.unreadable > 0 {
            notes.push(format!("{} files or directories could not be read", self.unreadable));
        }
        if self.elsewhere > 0 {
            notes.push(format!("{} entries are on other file systems and were left out", self.elsewhere));
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_observe::Bytes;
    use std::io::Write;
    use std::time::Duration;

    fn run(path: &Path, dry_run: bool) -> Result<Report, LeverError> {
        let mut terms = Terms { dry_run, patience: Duration::from_secs(60), watch: &mut |_, _| {} };
        reclaim(path, &mut terms)
    }

    /// A directory on a disk: a tmpfs keeps what it is told is not needed.
    fn on_disk() -> tempfile::TempDir {
        tempfile::tempdir_in(option_env!("CARGO_TARGET_TMPDIR").unwrap_or(env!("CARGO_MANIFEST_DIR")))
            .unwrap()
    }

    fn written(path: &Path, pages: u64) {
        let mut file = File::create(path).unwrap();
        file.write_all(&vec![7; (pages * page_size().0) as usize]).unwrap();
        file.sync_all().unwrap();
    }

    #[test]
    fn files_below_a_directory_and_nothing_else() {
        let (dir, other) = (on_disk(), on_disk());
        std::fs::create_dir(dir.path().join("inner")).unwrap();
        written(&dir.path().join("a"), 300);
        written(&dir.path().join("inner/b"), 200);
        std::fs::hard_link(dir.path().join("a"), dir.path().join("inner/a again")).unwrap();
        written(&other.path().join("c"), 100);
        std::os::unix::fs::symlink(other.path(), dir.path().join("link")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("fifo"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::RUSR,
            0,
        )
        .unwrap();
        let planned = run(dir.path(), true).unwrap();
        assert_eq!((planned.predicted, planned.returned), (Pages(500).bytes(), None));
        let done = run(dir.path(), false).unwrap();
        assert_eq!((done.predicted, done.returned), (Pages(500).bytes(), Some(Pages(500).bytes())));
        assert_eq!(run(dir.path(), true).unwrap().predicted, Bytes::ZERO);
        assert_eq!(run(&other.path().join("c"), true).unwrap().predicted, Pages(100).bytes());
    }

    #[test]
    fn what_is_no_file_is_refused() {
        let dir = on_disk();
        std::os::unix::fs::symlink("/", dir.path().join("link")).unwrap();
        for path in [Path::new("/no/such/file"), &dir.path().join("link"), Path::new("/dev/null")] {
            assert!(run(path, false).is_err(), "{}", path.display());
        }
    }
}
