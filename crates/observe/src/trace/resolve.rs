//! From a path argument to the directory it was looked up in.
//!
//! The records of kernels before 6.19 hold only the address of the path in the caller's memory. It is read as
//! soon as the record is seen, within about a millisecond; by then a busy caller has written the next path to
//! the same place. So one reading stands for all look-ups of a batch through that address: the directory of a
//! path is a sample (`directory by sample`), the number of look-ups is not. Invariants: what could not be
//! read is [`Look::Unknown`], never a guess; a path is read only while the program that passed it still runs.

use super::event::PathAt;
use super::names;
use super::tasks::{Process, Tasks};
use ebbtide_sys::remote;
use rustix::io::Errno;
use rustix::process::Pid;
use std::collections::HashMap;
use std::sync::Arc;

/// `AT_FDCWD` of linux/fcntl.h: relative to the working directory.
pub(super) const AT_FDCWD: i32 = -100;

/// Stands for the root directory where a directory's descriptor could stand; no caller can pass it, as the
/// kernel takes any negative one but [`AT_FDCWD`] for an error.
const ROOT: i32 = i32::MIN;

/// `PATH_MAX` of linux/limits.h.
const PATH_MAX: usize = 4096;

/// How often one address is read in a batch until there is a path. A program without optimisation (rustc's
/// debug profile) has something else there most of the time between two calls: one reading in ten gave a path.
const TRIES: u8 = 8;

/// A directory with a longer path than this is counted to the nearest one above it that has a shorter one:
/// it bounds what a hostile program can make the tables hold.
const MAX_DIRECTORY: usize = 512;

/// Where a path leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Look {
    /// To a name in `directory`; `name` is the name's hash, if this very look-up's path was read.
    In { directory: Arc<[u8]>, name: Option<u64> },
    /// The path is empty: nothing is looked up.
    Nothing,
    /// It could not be read any more.
    Unknown,
}

/// Reads paths, and remembers them for the time of one batch.
#[derive(Debug)]
pub(super) struct Resolver {
    paths: HashMap<(u32, u64, i32), (Look, u8)>,
    bases: HashMap<(u32, i32), Option<Arc<[u8]>>>,
    path: Vec<u8>,
    /// How often memory could not be read for lack of rights.
    pub(super) denied: u64,
}

impl Resolver {
    pub(super) fn new() -> Resolver {
        Resolver {
            paths: HashMap::new(),
            bases: HashMap::new(),
            path: Vec::with_capacity(PATH_MAX),
            denied: 0,
        }
    }

    /// Forgets what was read: from now on memory is read anew.
    pub(super) fn next_batch(&mut self) {
        self.paths.clear();
        self.bases.clear();
    }

    /// Where the path that thread `tid` of process `pid` passed leads. `texts` holds the texts of the batch.
    pub(super) fn look(
        &mut self,
        tasks: &mut Tasks,
        who: (u32, u32),
        dfd: i32,
        at: PathAt,
        texts: &[u8],
    ) -> Look {
        let (tid, pid) = who;
        match at {
            PathAt::Text { start, len } => {
                let path =
                    texts.get(start as usize..).and_then(|t| t.get(..len as usize)).unwrap_or_default();
                self.join(tasks, pid, dfd, path)
            }
            PathAt::Memory(address) => {
                let key = (pid, address, dfd);
                match self.paths.get(&key) {
                    Some((Look::Unknown, tries)) if *tries < TRIES => {}
                    Some((known, _)) => return known.clone(),
                    None => {}
                }
                let look = self.read(tasks, tid, pid, dfd, address);
                let (known, tries) = self.paths.entry(key).or_insert((Look::Unknown, 0));
                *tries += 1;
                *known = match &look {
                    Look::In { directory, .. } => Look::In { directory: directory.clone(), name: None },
                    other => other.clone(),
                };
                look
            }
        }
    }

    fn read(&mut self, tasks: &mut Tasks, tid: u32, pid: u32, dfd: i32, address: u64) -> Look {
        let mut path = std::mem::take(&mut self.path);
        let look = match read_text(tid, address, &mut path).or_else(|_| read_text(pid, address, &mut path)) {
            Ok(()) if !is_text(&path) => Look::Unknown,
            Ok(()) => self.join(tasks, pid, dfd, &path),
            Err(e) => {
                self.denied += u64::from(e == Errno::PERM);
                Look::Unknown
            }
        };
        self.path = path;
        look
    }

    /// Joins `path` with the directory it is relative to and cuts off the last name.
    fn join(&mut self, tasks: &mut Tasks, pid: u32, dfd: i32, path: &[u8]) -> Look {
        if path.is_empty() {
            return Look::Nothing;
        }
        let base = self.base(tasks, pid, if path[0] == b'/' { ROOT } else { dfd });
        let Some(base) = base else { return Look::Unknown };
        let (directory, name) = normalise(&base, path);
        let hash = names::hash(&directory, name);
        Look::In { directory: directory.into(), name: Some(hash) }
    }

    /// The directory that `dfd` of process `pid` stands for.
    fn base(&mut self, tasks: &mut Tasks, pid: u32, dfd: i32) -> Option<Arc<[u8]>> {
        if let Some(known) = self.bases.get(&(pid, dfd)) {
            return known.clone();
        }
        let base = match dfd {
            // Without any knowledge an absolute path is taken for what it says.
            ROOT => inherited(tasks, pid, "root", |p| &mut p.root).or_else(|| Some(Arc::from(&b"/"[..]))),
            AT_FDCWD => inherited(tasks, pid, "cwd", |p| &mut p.cwd),
            fd => link(tasks, &format!("proc/{pid}/fd/{fd}")),
        };
        self.bases.insert((pid, dfd), base.clone());
        base
    }
}

/// Directory `which` of `pid`; of a process that is gone the one it last had or inherited.
fn inherited(
    tasks: &mut Tasks,
    pid: u32,
    which: &str,
    field: fn(&mut Process) -> &mut Option<Arc<[u8]>>,
) -> Option<Arc<[u8]>> {
    let read = link(tasks, &format!("proc/{pid}/{which}"));
    let process = tasks.get_mut(pid)?;
    let parent = process.parent;
    let known = field(process);
    if read.is_some() {
        known.clone_from(&read);
    }
    known.clone().or_else(|| link(tasks, &format!("proc/{parent}/{which}")))
}

/// What a link of /proc says, if that is a path and not "pipe:[7]".
fn link(tasks: &Tasks, path: &str) -> Option<Arc<[u8]>> {
    let target = tasks.files().link(path).ok()?;
    target.starts_with('/').then(|| target.into_bytes().into())
}

/// Reads the text at `address` in `tid`'s memory, up to its NUL, into `text`.
fn read_text(tid: u32, address: u64, text: &mut Vec<u8>) -> Result<(), Errno> {
    let pid = i32::try_from(tid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
    text.clear();
    while text.len() < PATH_MAX {
        let at = address.checked_add(text.len() as u64).ok_or(Errno::FAULT)?;
        // Few paths are longer than 256 bytes; and reads do not cross a page, as the next may not be there.
        let to_page_end = 4096 - (at % 4096) as usize;
        let filled = text.len();
        text.resize(filled + to_page_end.min(256).min(PATH_MAX - filled), 0);
        let n = remote::read(pid, at, &mut text[filled..])?;
        text.truncate(filled + n);
        if let Some(end) = text[filled..].iter().position(|&b| b == 0) {
            text.truncate(filled + end);
            return Ok(());
        }
        if n == 0 {
            return Err(Errno::FAULT);
        }
    }
    Err(Errno::NAMETOOLONG)
}

/// Whether what was read can be a path at all. Memory that was put to another use meanwhile seldom is text;
/// the few file names that are not either are counted as unknown.
fn is_text(path: &[u8]) -> bool {
    std::str::from_utf8(path).is_ok_and(|path| !path.chars().any(char::is_control))
}

/// The directory of `path` seen from `base`, and the name looked up in it. Dots are resolved by the text
/// alone, so that a ".." after a symbolic link may name the wrong directory.
fn normalise<'p>(base: &[u8], path: &'p [u8]) -> (Vec<u8>, &'p [u8]) {
    let mut whole = Vec::with_capacity(base.len() + path.len() + 1);
    let mut name: &[u8] = b"";
    for part in base.split(|&b| b == b'/').chain(path.split(|&b| b == b'/')) {
        match part {
            b"" | b"." => {}
            b".." => {
                let parent = whole.iter().rposition(|&b| b == b'/').unwrap_or(0);
                whole.truncate(parent);
            }
            part => {
                whole.push(b'/');
                whole.extend_from_slice(part);
            }
        }
    }
    // Of "." and ".." the directory itself is looked up, by no name.
    let last = path.rsplit(|&b| b == b'/').find(|part| !part.is_empty());
    if let Some(last) = last.filter(|&part| part != b"." && part != b"..") {
        name = last;
        whole.truncate(whole.len() - last.len() - 1);
    }
    while whole.len() > MAX_DIRECTORY {
        let parent = whole.iter().rposition(|&b| b == b'/').unwrap_or(0);
        whole.truncate(parent);
    }
    if whole.is_empty() {
        whole.push(b'/');
    }
    (whole, name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Root;
    use proptest::prelude::*;

    fn of(base: &str, path: &str) -> (String, String) {
        let (directory, name) = normalise(base.as_bytes(), path.as_bytes());
        (String::from_utf8(directory).unwrap(), String::from_utf8(name.to_vec()).unwrap())
    }

    #[test]
    fn paths_are_cut_into_directory_and_name() {
        let is = |directory: &str, name: &str| (directory.to_owned(), name.to_owned());
        assert_eq!(of("", "/etc/passwd"), is("/etc", "passwd"));
        assert_eq!(of("", "/etc//./x/../passwd"), is("/etc", "passwd"));
        assert_eq!(of("/srv/jail", "/etc/x"), is("/srv/jail/etc", "x"));
        assert_eq!(of("/home/a", "b"), is("/home/a", "b"));
        assert_eq!(of("/home/a", "../b/c/"), is("/home/b", "c"));
        assert_eq!(of("/home/a", ".."), is("/home", ""));
        assert_eq!(of("", "/x"), is("/", "x"));
        assert_eq!(of("", "/"), is("/", ""));
        assert_eq!(of("", "/../../x"), is("/", "x"));
        let (long, _) = of("", &format!("/short/{}/x", "y".repeat(600)));
        assert_eq!(long, "/short");
    }

    #[test]
    fn relative_paths_and_chroots() {
        let dir = tempfile::tempdir().unwrap();
        let proc = dir.path().join("proc/7");
        std::fs::create_dir_all(proc.join("fd")).unwrap();
        std::fs::write(proc.join("status"), "Name:\ta\nState:\tS (sleeping)\nTgid:\t7\nPPid:\t1\n").unwrap();
        std::os::unix::fs::symlink("/srv/jail/work", proc.join("cwd")).unwrap();
        std::os::unix::fs::symlink("/srv/jail", proc.join("root")).unwrap();
        std::os::unix::fs::symlink("/data", proc.join("fd/3")).unwrap();
        std::os::unix::fs::symlink("pipe:[7]", proc.join("fd/4")).unwrap();
        let mut tasks = Tasks::new(Root::at(dir.path()).unwrap());
        let pid = tasks.process_of(7);
        let mut resolver = Resolver::new();
        let mut look = |dfd, path: &str| {
            let at = PathAt::Text { start: 0, len: path.len() as u32 };
            match resolver.look(&mut tasks, (7, pid), dfd, at, path.as_bytes()) {
                Look::In { directory, .. } => String::from_utf8_lossy(&directory).into_owned(),
                other => format!("{other:?}"),
            }
        };
        assert_eq!(look(AT_FDCWD, "a/b"), "/srv/jail/work/a");
        assert_eq!(look(AT_FDCWD, "/a/b"), "/srv/jail/a");
        assert_eq!(look(3, "x"), "/data");
        assert_eq!(look(4, "x"), "Unknown");
        assert_eq!(look(5, "x"), "Unknown");
        assert_eq!(look(5, ""), "Nothing");
        // A child that is gone has its parent's directory.
        tasks.forked(7, 70, false, super::super::event::Comm::new(b"a"));
        let at = PathAt::Text { start: 0, len: 1 };
        let look = resolver.look(&mut tasks, (70, 70), AT_FDCWD, at, b"x");
        assert!(matches!(look, Look::In { directory, .. } if &*directory == b"/srv/jail/work"));
    }

    #[test]
    fn memory_is_read_once_a_batch() {
        let me = std::process::id();
        let mut tasks = Tasks::new(Root::live().unwrap());
        let pid = tasks.process_of(me);
        let mut resolver = Resolver::new();
        let mut look = |resolver: &mut Resolver, path: &[u8]| {
            let at = PathAt::Memory(path.as_ptr() as u64);
            resolver.look(&mut tasks, (me, pid), AT_FDCWD, at, b"")
        };
        let mut path = *b"/one/x\0";
        assert!(
            matches!(look(&mut resolver, &path), Look::In { directory, name: Some(_) } if &*directory == b"/one")
        );
        path[1..4].copy_from_slice(b"two");
        assert!(
            matches!(look(&mut resolver, &path), Look::In { directory, name: None } if &*directory == b"/one")
        );
        resolver.next_batch();
        assert!(matches!(look(&mut resolver, &path), Look::In { directory, .. } if &*directory == b"/two"));
        path[1] = 0x10;
        resolver.next_batch();
        assert_eq!(look(&mut resolver, &path), Look::Unknown);
        let gone = resolver.look(&mut tasks, (me, pid), AT_FDCWD, PathAt::Memory(8), b"");
        assert_eq!(gone, Look::Unknown);
    }

    proptest! {
        #[test]
        fn any_path_gives_an_absolute_directory(base in "(/[a.]{0,3}){0,4}", path: Vec<u8>) {
            let (directory, _) = normalise(base.as_bytes(), &path);
            prop_assert_eq!(directory[0], b'/');
            prop_assert!(directory.len() <= MAX_DIRECTORY.max(1));
        }
    }
}
