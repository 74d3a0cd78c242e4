//! A directory that looks like a machine: what readers and rules are tested on without root rights and
//! without the real machine's noise.
//!
//! Laid out as a chain: `FakeRoot::new().file("proc/meminfo", "MemTotal: 1 kB\n").dir("sys")`. Paths are
//! relative to the root, with or without a leading slash; parents are made as needed. Everything panics on
//! failure, as a test that could not lay out its root has failed, and is removed on drop.
#![allow(clippy::expect_used)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A fake machine's root directory.
#[derive(Debug)]
pub struct FakeRoot {
    dir: tempfile::TempDir,
}

impl FakeRoot {
    /// An empty machine.
    #[allow(clippy::new_without_default)]
    pub fn new() -> FakeRoot {
        FakeRoot { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// With file `path` holding `content`; an existing one is replaced.
    pub fn file(self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> FakeRoot {
        self.set(path, content);
        self
    }

    /// With directory `path`.
    pub fn dir(self, path: impl AsRef<Path>) -> FakeRoot {
        std::fs::create_dir_all(self.inside(path.as_ref())).expect("a directory of the fake root");
        self
    }

    /// With symbolic link `path` to `target`, which need not exist and may hold any bytes but NUL.
    pub fn link(self, path: impl AsRef<Path>, target: impl AsRef<[u8]>) -> FakeRoot {
        let target = OsStr::from_bytes(target.as_ref());
        std::os::unix::fs::symlink(target, self.with_parents(path.as_ref()))
            .expect("a link of the fake root");
        self
    }

    /// With `path` unreadable for everyone but root (mode 000).
    pub fn denied(self, path: impl AsRef<Path>) -> FakeRoot {
        let mode = std::fs::Permissions::from_mode(0o000);
        std::fs::set_permissions(self.inside(path.as_ref()), mode).expect("a mode in the fake root");
        self
    }

    /// With `/proc/PID` of a process: `files` by their name in that directory.
    pub fn process<C: AsRef<[u8]>>(
        self,
        pid: u32,
        files: impl IntoIterator<Item = (&'static str, C)>,
    ) -> FakeRoot {
        let dir = PathBuf::from(format!("proc/{pid}"));
        files.into_iter().fold(self.dir(&dir), |root, (name, content)| root.file(dir.join(name), content))
    }

    /// Writes `content` to file `path` of a machine that is already in use: the next sample's counters.
    pub fn set(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) {
        std::fs::write(self.with_parents(path.as_ref()), content).expect("a file of the fake root");
    }

    /// Takes file or directory `path` away.
    pub fn remove(&self, path: impl AsRef<Path>) {
        let path = self.inside(path.as_ref());
        let removed = if path.is_dir() && !path.is_symlink() {
            std::fs::remove_dir_all(&path)
        } else {
            std::fs::remove_file(&path)
        };
        removed.expect("something in the fake root to remove");
    }

    fn inside(&self, path: &Path) -> PathBuf {
        self.dir.path().join(path.strip_prefix("/").unwrap_or(path))
    }

    fn with_parents(&self, path: &Path) -> PathBuf {
        let path = self.inside(path);
        let parent = path.parent().expect("a path below the root");
        std::fs::create_dir_all(parent).expect("a directory of the fake root");
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lays_out_files_links_and_processes() {
        let root = FakeRoot::new()
            .file("/proc/meminfo", "MemTotal: 1 kB\n")
            .link("proc/1/exe", b"/bin/\xff (deleted)")
            .process(1, [("status", "Name:\tinit\n"), ("fdinfo/3", "pos: 0\n")])
            .dir("sys/kernel");
        let read = |path: &str| std::fs::read_to_string(root.path().join(path)).unwrap();
        assert_eq!(read("proc/meminfo"), "MemTotal: 1 kB\n");
        assert_eq!(read("proc/1/status"), "Name:\tinit\n");
        assert_eq!(read("proc/1/fdinfo/3"), "pos: 0\n");
        let exe = std::fs::read_link(root.path().join("proc/1/exe")).unwrap();
        assert_eq!(exe.as_os_str().as_bytes(), b"/bin/\xff (deleted)");
        assert!(root.path().join("sys/kernel").is_dir());
    }

    #[test]
    fn changes_between_samples() {
        let root = FakeRoot::new().file("proc/loadavg", "1");
        root.set("proc/loadavg", "2");
        assert_eq!(std::fs::read(root.path().join("proc/loadavg")).unwrap(), b"2");
        root.remove("/proc");
        assert!(!root.path().join("proc").exists());
    }
}
