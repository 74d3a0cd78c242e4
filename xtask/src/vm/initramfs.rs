//! Writes the guest's root file system: a "newc" cpio archive, as Documentation/driver-api/early-userspace/
//! buffer-format.rst of the kernel describes it. Invariants: a path is written once, its parent directories
//! before it; everything belongs to root.

use crate::workspace::{output, which};
use anyhow::{Context, Result, bail, ensure};
use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_000;
const SYMLINK: u32 = 0o120_777;

/// An archive in the making.
#[derive(Default)]
pub(super) struct Initramfs {
    archive: Vec<u8>,
    paths: HashSet<PathBuf>,
}

impl Initramfs {
    /// Adds a directory and those above it.
    pub(super) fn dir(&mut self, path: &str) {
        self.parents(Path::new(path));
        self.entry(Path::new(path), DIRECTORY, &[]);
    }

    /// Adds a file; one that is there already stays as it is.
    pub(super) fn file(&mut self, path: impl AsRef<Path>, mode: u32, content: &[u8]) {
        self.parents(path.as_ref());
        self.entry(path.as_ref(), FILE | mode & 0o7777, content);
    }

    /// Adds a symbolic link.
    pub(super) fn symlink(&mut self, path: &str, target: &str) {
        self.parents(Path::new(path));
        self.entry(Path::new(path), SYMLINK, target.as_bytes());
    }

    /// Copies the file `from` of this machine to `to`.
    pub(super) fn copy(&mut self, from: &Path, to: impl AsRef<Path>) -> Result<()> {
        let why = || format!("cannot read {}", from.display());
        let mode = std::fs::metadata(from).with_context(why)?.permissions().mode();
        self.file(to, mode, &std::fs::read(from).with_context(why)?);
        Ok(())
    }

    /// Copies all files below the directory `from` to `to`; what is neither file nor directory is left out.
    pub(super) fn tree(&mut self, from: &Path, to: &Path) -> Result<()> {
        for entry in std::fs::read_dir(from).with_context(|| format!("cannot list {}", from.display()))? {
            let entry = entry?;
            let (path, to) = (entry.path(), to.join(entry.file_name()));
            match std::fs::metadata(&path) {
                Ok(meta) if meta.is_dir() => self.tree(&path, &to)?,
                Ok(meta) if meta.is_file() => self.copy(&path, to)?,
                _ => {}
            }
        }
        Ok(())
    }

    /// Adds program `name` of this machine as /bin/NAME, with its loader and the shared libraries that ldd
    /// names, at the paths they have here.
    pub(super) fn program(&mut self, name: &str) -> Result<()> {
        let path = which(name).with_context(|| format!("no program {name} on this machine"))?;
        let base = path.file_name().with_context(|| format!("{name} is no program"))?;
        self.copy(&path, Path::new("/bin").join(base))?;
        for library in libraries(&path)? {
            self.copy(&library, &library)?;
        }
        Ok(())
    }

    /// The finished archive.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.write("TRAILER!!!", 0, 0, &[]);
        self.archive
    }

    fn parents(&mut self, path: &Path) {
        let above: Vec<&Path> = path.ancestors().skip(1).collect();
        for dir in above.into_iter().rev() {
            self.entry(dir, DIRECTORY, &[]);
        }
    }

    fn entry(&mut self, path: &Path, mode: u32, content: &[u8]) {
        let name = path.strip_prefix("/").unwrap_or(path);
        if !name.as_os_str().is_empty() && self.paths.insert(name.to_owned()) {
            let inode = self.paths.len();
            self.write(&name.to_string_lossy(), inode, mode, content);
        }
    }

    /// One member: magic, 13 fields of eight hexadecimal digits, the name with its NUL, the content; name and
    /// content each end at a multiple of four.
    fn write(&mut self, name: &str, inode: usize, mode: u32, content: &[u8]) {
        let fields = [
            inode,
            mode as usize,
            0, // uid
            0, // gid
            1, // nlink
            0, // mtime
            content.len(),
            0, // device, major
            0, // device, minor
            0, // special file's device, major
            0, // special file's device, minor
            name.len() + 1,
            0, // check sum, of the "crc" format only
        ];
        self.archive.extend_from_slice(b"070701");
        for field in fields {
            self.archive.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.archive.extend_from_slice(name.as_bytes());
        self.archive.push(0);
        self.align();
        self.archive.extend_from_slice(content);
        self.align();
    }

    fn align(&mut self) {
        self.archive.resize(self.archive.len().next_multiple_of(4), 0);
    }
}

/// The loader and libraries of `program`; none for a static one or a script.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let ldd = Command::new("ldd").arg(program).output().context("cannot start ldd")?;
    let said = String::from_utf8_lossy(&ldd.stderr);
    if said.contains("not a dynamic executable") {
        return Ok(Vec::new());
    }
    ensure!(ldd.status.success(), "ldd {} failed: {said}", program.display());
    parse_ldd(&String::from_utf8_lossy(&ldd.stdout))
}

/// Lines are "NAME => PATH (ADDRESS)", "PATH (ADDRESS)" for the loader, "linux-vdso.so.1 (ADDRESS)", and
/// "statically linked" for a static position-independent program.
fn parse_ldd(text: &str) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for line in text.lines().map(str::trim) {
        let (name, path) = line.split_once(" => ").unwrap_or((line, line));
        if path == "not found" {
            bail!("the shared library {name} is missing");
        }
        let path = path.split(" (0x").next().unwrap_or(path);
        if path.starts_with('/') {
            paths.push(PathBuf::from(path));
        }
    }
    Ok(paths)
}

/// The content of the kernel module `path`, which Debian 13 packs with xz.
pub(super) fn module(path: &Path) -> Result<Vec<u8>> {
    if path.extension().is_some_and(|extension| extension == "xz") {
        return output(Command::new("xz").args(["--decompress", "--stdout"]).arg(path));
    }
    std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_aligned_and_parents_come_first() {
        let mut root = Initramfs::default();
        root.file("/a/b/c", 0o755, b"hello");
        root.file("/a/b/c", 0o755, b"other");
        root.symlink("/a/d", "b/c");
        let archive = root.finish();
        assert_eq!(archive.len() % 4, 0);
        let text = String::from_utf8_lossy(&archive);
        assert_eq!(text.matches("070701").count(), 5);
        assert!(!text.contains("other"));
        let at = |what: &str| text.find(what).unwrap();
        assert!(at("a\0") < at("a/b\0") && at("a/b\0") < at("a/b/c\0") && at("a/b/c\0") < at("hello"));
    }

    #[test]
    fn ldd_lines() {
        let text = "\tlinux-vdso.so.1 (0x00007ffe)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let want = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from);
        assert_eq!(parse_ldd(text).unwrap(), want);
        assert_eq!(parse_ldd("\tstatically linked\n").unwrap(), Vec::<PathBuf>::new());
        assert!(parse_ldd("\tlibx.so => not found\n").is_err());
    }
}
