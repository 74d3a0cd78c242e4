//! What a process runs, as far as it bears on its variables: which allocators, which C library, which names its
//! jemalloc asks for.

use super::environ::{overwritten, variables};
use super::present;
use ebbtide_heaps::{Heap, Kind};
use ebbtide_observe::process::membership::Membership;
use ebbtide_observe::process::{Name, Process};
use ebbtide_observe::{Bytes, ReadError};
use memchr::memmem;
use std::collections::BTreeSet;
use std::ops::RangeInclusive;

/// Files beyond this are read so far only: a browser's binary has 250 MB.
const MOST: usize = 512 << 20;

/// What is looked for in files is shorter than this, version numbers included.
const OVERLAP: usize = 128;

/// A process, and what it runs.
#[derive(Debug, Default)]
pub struct Program {
    /// Which.
    pub pid: u32,
    /// Its name.
    pub name: Name,
    /// What was its environment when it was executed, NUL between the variables.
    pub environ: Vec<u8>,
    /// Where the program has written its title over that: whether `environ` is what it has now.
    pub present: bool,
    /// Its arguments, NUL between them.
    pub cmdline: Vec<u8>,
    /// Files that it has mapped.
    pub mapped: BTreeSet<String>,
    /// Libraries of its LD_PRELOAD that are mapped under another name, as links are.
    pub preloaded: BTreeSet<String>,
    /// Its allocators.
    pub kinds: BTreeSet<Kind>,
    /// The GNU C library's version.
    pub glibc: Option<(u32, u32)>,
    /// Under which names its jemalloc looks for settings; none where it has no jemalloc.
    pub conf_names: BTreeSet<String>,
    /// The tightest memory limit of its cgroups, else RAM.
    pub limit: Option<Bytes>,
    /// The systemd unit that it belongs to.
    pub unit: Option<String>,
}

impl Program {
    /// Reads `process`, in which `heaps` were seen.
    ///
    /// Errors: an environment that may not be read, or a process that has ended.
    pub fn read(process: &Process, heaps: &[Heap], limit: Option<Bytes>) -> Result<Program, ReadError> {
        let mut environ = Vec::new();
        process.dir().read("environ", &mut environ)?;
        let now = if overwritten(&environ) { present::read(process) } else { None };
        let present = now.is_some();
        let (mut mapped, mut inodes) = (BTreeSet::new(), BTreeSet::new());
        process.each_mapping(|mapping| {
            if mapping.path.starts_with(b"/") {
                let path = mapping.deleted().unwrap_or(mapping.path);
                mapped.insert(String::from_utf8_lossy(path).into_owned());
                inodes.insert(mapping.inode);
            }
            true
        })?;
        let mut kinds: BTreeSet<Kind> =
            heaps.iter().map(|heap| heap.kind).filter(|kind| *kind != Kind::Unknown).collect();
        kinds.extend(mapped.iter().filter_map(|path| by_name(path)));
        let mut program = Program {
            pid: process.pid(),
            name: process.status()?.name,
            environ: now.unwrap_or(environ),
            present,
            cmdline: process.cmdline().unwrap_or_default(),
            mapped,
            kinds,
            limit,
            unit: process.membership().ok().and_then(|membership| unit(&membership)),
            ..Program::default()
        };
        program.glibc = program.glibc_version(process);
        program.preloaded = links(process, &program.environ, &inodes);
        if program.kinds.contains(&Kind::Jemalloc) {
            program.conf_names = program.conf_names(process);
        }
        Ok(program)
    }

    /// The base names of files that it has mapped.
    pub(super) fn libraries(&self) -> impl Iterator<Item = &str> {
        self.mapped.iter().map(|path| path.rsplit('/').next().unwrap_or_default())
    }

    /// Whether it runs `kind`; true also where nothing is known of its allocators.
    pub(super) fn may_run(&self, kind: Kind) -> bool {
        self.kinds.is_empty() || self.kinds.contains(&kind)
    }

    /// Its allocators, for people.
    pub(super) fn runs(&self) -> String {
        let kinds: Vec<String> = self.kinds.iter().map(Kind::to_string).collect();
        if kinds.is_empty() { "an allocator that ebb does not know".to_owned() } else { kinds.join(" and ") }
    }

    /// "GNU C Library (...) stable release version 2.36." in its libc; a static program has it itself.
    fn glibc_version(&self, process: &Process) -> Option<(u32, u32)> {
        let libc = self.mapped.iter().find(|path| is_libc(path.rsplit('/').next().unwrap_or_default()));
        let is_static = !self.libraries().any(|name| name.starts_with("ld-"));
        let file = match libc {
            Some(path) => format!("root{path}"),
            None if is_static && self.kinds.contains(&Kind::Glibc) => "exe".to_owned(),
            None => return None,
        };
        let mut found = None;
        search(process, &file, b"release version ", |around, at| {
            found = version(&around[at.end().to_owned()..]);
            found.is_none()
        });
        found
    }

    fn conf_names(&self, process: &Process) -> BTreeSet<String> {
        let own =
            self.mapped.iter().filter(|path| path.contains("jemalloc")).map(|path| format!("root{path}"));
        let mut names = BTreeSet::new();
        for file in own.chain(["exe".to_owned()]) {
            search(process, &file, b"MALLOC_CONF\0", |around, at| {
                let letters = |b: &u8| b.is_ascii_uppercase() || *b == b'_';
                let start = around[..*at.start()].iter().rposition(|b| !letters(b)).map_or(0, |p| p + 1);
                names.insert(String::from_utf8_lossy(&around[start..*at.end() - 1]).into_owned());
                true
            });
            if !names.is_empty() {
                break;
            }
        }
        names
    }
}

/// Whether `name` is that of glibc's library.
pub(super) fn is_libc(name: &str) -> bool {
    name == "libc.so.6" || name.starts_with("libc-2.")
}

/// The paths in LD_PRELOAD whose files are among `inodes`: a device's number is not the same in maps and in stat(2) on
/// every file system (btrfs, overlayfs), and among some dozen files the inode tells enough.
fn links(process: &Process, environ: &[u8], inodes: &BTreeSet<u64>) -> BTreeSet<String> {
    let set = variables(environ).into_iter().find(|(name, _)| name == "LD_PRELOAD");
    let is_mapped = |path: &&str| {
        let file = process.dir().open_file(&format!("root{path}"));
        let stat = file.ok().and_then(|file| rustix::fs::fstat(&file).ok());
        stat.is_some_and(|stat| inodes.contains(&stat.st_ino))
    };
    let set = set.map(|(_, value)| value).unwrap_or_default();
    set.split([' ', ':']).filter(|path| path.starts_with('/')).filter(is_mapped).map(str::to_owned).collect()
}

/// The service that a process is in, by its cgroup. A name with anything but what units' names have is none: it ends up
/// in a path.
fn unit(membership: &Membership) -> Option<String> {
    let all = [&membership.unified, &membership.memory, &membership.pids];
    let path =
        all.into_iter().flatten().find(|path| path.to_str().is_some_and(|path| path.contains(".service")))?;
    let mut parts = path.iter().rev().filter_map(std::ffi::OsStr::to_str);
    let name = parts.find(|part| part.ends_with(".service"))?;
    let good = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
    name.bytes().all(good).then(|| name.to_owned())
}

/// The allocator that a library is.
fn by_name(path: &str) -> Option<Kind> {
    let name = path.rsplit('/').next().unwrap_or_default();
    [("libjemalloc", Kind::Jemalloc), ("libtcmalloc", Kind::Tcmalloc), ("libmimalloc", Kind::Mimalloc)]
        .into_iter()
        .find_map(|(prefix, kind)| name.starts_with(prefix).then_some(kind))
}

/// "2.36" at the beginning of `text`.
fn version(text: &[u8]) -> Option<(u32, u32)> {
    let (major, minor) = ebbtide_observe::scan::key_value(text, b'.')?;
    let number = |text| ebbtide_observe::scan::number(text).and_then(|n| u32::try_from(n).ok());
    Some((number(major)?, number(minor)?))
}

/// Calls `each` with the text around every `needle` in `file` of the process, and where in it the needle is, until it
/// returns false. A file that cannot be read holds none.
fn search(
    process: &Process,
    file: &str,
    needle: &[u8],
    mut each: impl FnMut(&[u8], RangeInclusive<usize>) -> bool,
) {
    let Ok(fd) = process.dir().open_file(file) else { return };
    let finder = memmem::Finder::new(needle);
    let (mut block, mut kept, mut done) = (vec![0; 1 << 20], 0, 0);
    while done < MOST {
        let read = match rustix::io::read(&fd, &mut block[kept..]) {
            Ok(read) => read,
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return,
        };
        let filled = kept + read;
        // What begins in the last bytes is seen with what follows, in the next block.
        let fresh = if read == 0 { filled } else { filled.saturating_sub(OVERLAP) };
        for at in finder.find_iter(&block[..filled]).take_while(|&at| at < fresh) {
            if !each(&block[..filled], at..=at + needle.len()) {
                return;
            }
        }
        if read == 0 {
            return;
        }
        done += read;
        // As much again before it, for what stands in front of a needle.
        let keep = (2 * OVERLAP).min(filled);
        block.copy_within(filled - keep..filled, 0);
        kept = keep;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_observe::Root;
    use ebbtide_testkit::FakeRoot;

    fn process(fake: &FakeRoot) -> Process {
        Process::open(&Root::at(fake.path()).unwrap(), 7).unwrap()
    }

    #[test]
    fn needles_anywhere() {
        for before in [0, 1, OVERLAP - 5, (1 << 20) - 12, (1 << 20) - 5, (1 << 20), (1 << 20) + 7, 3 << 20] {
            let mut text = vec![b'.'; before];
            text.extend_from_slice(b"\0_RJEM_MALLOC_CONF\0 and so on");
            let fake = FakeRoot::new().process(7, [("exe", &text[..]), ("status", b"")]);
            let names = Program::default().conf_names(&process(&fake));
            assert_eq!(names.iter().collect::<Vec<_>>(), ["_RJEM_MALLOC_CONF"], "{before}");
        }
    }

    #[test]
    fn versions() {
        assert_eq!(version(b"2.36.\nCopyright"), Some((2, 36)));
        assert_eq!(version(b"2.41.9000.\n"), Some((2, 41)));
        assert_eq!(version(b"x.y"), None);
        assert_eq!(version(b""), None);
    }

    #[test]
    fn units() {
        let of = |path: &str| unit(&Membership { unified: Some(path.into()), ..Membership::default() });
        assert_eq!(of("/system.slice/nginx.service").as_deref(), Some("nginx.service"));
        assert_eq!(of("/user.slice/user@1.service/app.slice/a.service/sub").as_deref(), Some("a.service"));
        assert_eq!(of("/system.slice/a b.service"), None);
        assert_eq!(of("/user.slice/session-1.scope"), None);
    }

    #[test]
    fn this_test() {
        let process = Process::open(&Root::live().unwrap(), std::process::id()).unwrap();
        let program = Program::read(&process, &[], None).unwrap();
        if program.libraries().any(|name| name == "libc.so.6") {
            assert!(program.glibc >= Some((2, 17)), "{:?}", program.glibc);
        }
        assert!(program.conf_names.is_empty());
    }
}
