//! Shared memory by its objects, whether or not a process maps them: memfds, unlinked tmpfs files, /dev/shm,
//! System V segments, each with who holds it.
//!
//! Such memory is in `Shmem` and in no process's resident set unless it is mapped there, so it is looked for
//! among open descriptors. Cheap first: a readlink per descriptor; a stat only where the link looks like
//! shared memory; maps only once there is something to look for, and only of processes that have some shmem
//! mapped. What only sits in a socket's queue (SCM_RIGHTS) or in a process whose descriptors may not be read
//! is not found.

use crate::error::unless_root;
use crate::process::all::share_out;
use crate::process::fds::FdWalk;
use crate::process::{Device, FdInfo, Mapping, Name, Pid, ProcSample, Processes, Target};
use crate::{Bytes, ReadError, Root, Unread, scan};
use rustix::fd::{AsFd, BorrowedFd};
use rustix::fs::{AtFlags, Mode, OFlags, StatFs, openat, statat, statfs};
use rustix::io::Errno;
use serde::Serialize;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

/// The most objects one sample holds.
pub const MAX_FILES: usize = 1 << 14;

/// The most holders listed of one object; [`SharedFile::holder_count`] has all.
pub const MAX_HOLDERS: usize = 8;

/// The most descriptors looked at in one process.
const MAX_FDS: usize = 1 << 17;

/// The most bytes kept of a name.
const MAX_NAME: usize = 256;

/// What kind of shared memory an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum SharedKind {
    /// memfd_create.
    Memfd,
    /// A file on a tmpfs that was unlinked and is still open. It is in what its tmpfs says is used.
    DeletedFile,
    /// A file in /dev/shm that is still there. It is in what its tmpfs says is used.
    File,
    /// A System V segment that somebody opened through /proc/PID/map_files.
    SysV,
}

/// Who has an object open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// The process.
    pub pid: Pid,
    /// Its name.
    pub name: Name,
    /// One of its descriptors of it.
    pub fd: u32,
}

/// An object that some process has open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SharedFile {
    /// Its file system: the kernel's own for a memfd, else the tmpfs.
    pub dev: Device,
    /// Its inode there.
    pub inode: u64,
    /// What it is.
    pub kind: SharedKind,
    /// Its name or path, cut to 256 bytes; foreign: show it through [`crate::Escaped`].
    pub name: Vec<u8>,
    /// Its length.
    pub size: Bytes,
    /// What it takes, in memory and in swap together.
    pub used: Bytes,
    /// Whether it consists of hugetlb pages, which are in no `Shmem`.
    pub hugetlb: bool,
    /// Processes that have it open, at most [`MAX_HOLDERS`].
    pub holders: Vec<Holder>,
    /// How many processes have it open.
    pub holder_count: usize,
    /// Whether some process maps it and has part of it resident or swapped, so that it is in that process's
    /// PSS; `None` where none was seen to but not all maps could be read.
    pub mapped: Option<bool>,
}

/// A System V segment of the reader's IPC namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Segment {
    /// Its key; 0 is IPC_PRIVATE.
    pub key: i32,
    /// Its id, for `ipcrm -m`.
    pub id: u32,
    /// Its length.
    pub size: Bytes,
    /// Its part in memory.
    pub rss: Bytes,
    /// Its part in swap.
    pub swap: Bytes,
    /// How many mappings it has.
    pub attached: u64,
    /// Who made it, maybe long gone.
    pub creator: Pid,
    /// Who attached or detached it last.
    pub last: Pid,
    /// Its owner.
    pub uid: u32,
    /// Whether it goes when the last mapping does (SHM_DEST).
    pub removed: bool,
    /// Whether it consists of hugetlb pages (SHM_HUGETLB).
    pub hugetlb: bool,
}

/// All shared memory objects that were found.
#[derive(Debug, Clone, Default)]
pub struct SharedMemory {
    /// Open files, the largest first.
    pub files: Vec<SharedFile>,
    /// System V segments, the largest first.
    pub segments: Vec<Segment>,
    /// Processes whose descriptors may not be read.
    pub denied: usize,
    /// Objects and descriptors beyond what one sample looks at.
    pub left_out: usize,
    /// What else could not be read.
    pub unread: Vec<Unread>,
}

impl SharedMemory {
    /// Finds the objects that `processes` hold. For 2,000 processes of three descriptors it takes half the
    /// time of reading all their rollups (measured, 6.18), so call it where `Shmem` is not explained by PSS
    /// and mounted tmpfs. On a root that is not the live one sizes are unknown (zero) and the inode is what
    /// fdinfo says.
    pub fn read(root: &Root, processes: &Processes) -> SharedMemory {
        let mut memory = SharedMemory::default();
        match root.sub("proc") {
            Ok(proc) => memory.find_files(&proc, processes),
            Err(error) => memory.unread.push(Unread::of("/proc", &error)),
        }
        match segments(root) {
            Ok(segments) => memory.segments = segments,
            Err(error) => memory.unread.push(Unread::of("/proc/sysvipc/shm", &error)),
        }
        if memory.denied > 0 {
            let processes = if memory.denied == 1 { "process" } else { "processes" };
            let what = format!("open files of {} {processes}", memory.denied);
            memory.unread.push(Unread { what, why: unless_root("permission denied") });
        }
        memory
    }

    /// The shared memory that `processes` map: what shmem has beyond it, nobody has mapped.
    pub fn mapped(processes: &[ProcSample]) -> Bytes {
        processes.iter().filter_map(ProcSample::counters).map(|counters| counters.pss_shmem).sum()
    }

    fn find_files(&mut self, proc: &Root, processes: &Processes) {
        let users: Vec<&ProcSample> = processes.all.iter().filter(|p| !p.stat.is_kernel_thread()).collect();
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let new = || (Found::default(), FdWalk::new());
        let mut found = Found::default();
        for (part, _) in share_out(&users, threads, new, |(found, walk), user| found.look(proc, walk, user)) {
            found.merge(part);
        }
        found.mark_mapped(proc, &users, threads);
        self.files = found.files.into_values().map(|(file, _)| file).collect();
        self.files.sort_by_key(|file| std::cmp::Reverse((file.used, file.size)));
        (self.denied, self.left_out) = (found.denied, found.left_out);
    }

    /// Open objects that no process was seen to map.
    pub fn unmapped(&self) -> impl Iterator<Item = &SharedFile> {
        self.files.iter().filter(|file| file.mapped != Some(true))
    }

    /// Segments that no process has attached.
    pub fn unattached(&self) -> impl Iterator<Item = &Segment> {
        self.segments.iter().filter(|segment| segment.attached == 0)
    }
}

/// One thread's findings.
#[derive(Default)]
struct Found {
    /// With the process that was last seen to hold each.
    files: BTreeMap<(Device, u64), (SharedFile, Pid)>,
    denied: usize,
    left_out: usize,
}

impl Found {
    fn look(&mut self, proc: &Root, walk: &mut FdWalk, sample: &ProcSample) {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fds = match openat(proc.fd(), format!("{}/fd", sample.pid), flags, Mode::empty()) {
            Ok(fds) => fds,
            Err(errno) => return self.refused(errno),
        };
        let mut count = 0;
        let listed = walk.each(fds.as_fd(), |fd, target| {
            count += 1;
            if target.may_be_shmem()
                && let Some(file) = identify(proc, fds.as_fd(), sample.pid, fd, target)
            {
                self.add(file, Holder { pid: sample.pid, name: *sample.name(), fd });
            }
            count < MAX_FDS
        });
        self.left_out += usize::from(count >= MAX_FDS);
        if let Err(errno) = listed {
            self.refused(errno);
        }
    }

    fn refused(&mut self, errno: Errno) {
        self.denied += usize::from(matches!(errno, Errno::ACCESS | Errno::PERM));
    }

    fn add(&mut self, file: SharedFile, holder: Holder) {
        if self.files.len() >= MAX_FILES && !self.files.contains_key(&(file.dev, file.inode)) {
            self.left_out += 1;
            return;
        }
        let (known, last) = self.files.entry((file.dev, file.inode)).or_insert((file, Pid::MAX));
        // All descriptors of a process come one after the other.
        if std::mem::replace(last, holder.pid) != holder.pid {
            known.hold(holder);
        }
    }

    fn merge(&mut self, other: Found) {
        self.denied += other.denied;
        self.left_out += other.left_out;
        for (id, (file, last)) in other.files {
            match self.files.entry(id) {
                Entry::Vacant(place) => {
                    place.insert((file, last));
                }
                Entry::Occupied(known) => {
                    let (known, _) = known.into_mut();
                    known.holder_count += file.holder_count - file.holders.len();
                    file.holders.into_iter().for_each(|holder| known.hold(holder));
                }
            }
        }
    }

    /// Says of every file whether one of `users` maps it.
    fn mark_mapped(&mut self, proc: &Root, users: &[&ProcSample], threads: usize) {
        if self.files.is_empty() {
            return;
        }
        let wanted: BTreeSet<(Device, u64)> = self.files.keys().copied().collect();
        let users: Vec<&ProcSample> = users.iter().copied().filter(|sample| may_map_shmem(sample)).collect();
        let parts = share_out(&users, threads, <(BTreeSet<_>, bool)>::default, |(seen, blind), sample| {
            let read = proc.each_line(&format!("{}/maps", sample.pid), |line| {
                let id = Mapping::parse(line).map(|mapping| (mapping.dev, mapping.inode));
                seen.extend(id.filter(|id| id.1 != 0 && wanted.contains(id)));
                true
            });
            *blind |= matches!(read, Err(ReadError::Denied { .. }));
        });
        let blind = parts.iter().any(|(_, blind)| *blind);
        for (id, (file, _)) in &mut self.files {
            let seen = parts.iter().any(|(seen, _)| seen.contains(id));
            file.mapped = if seen || !blind { Some(seen) } else { None };
        }
    }
}

impl SharedFile {
    fn hold(&mut self, holder: Holder) {
        self.holder_count += 1;
        if self.holders.len() < MAX_HOLDERS {
            self.holders.push(holder);
        }
    }
}

/// Whether a process may have shmem or hugetlb pages in its page tables. Where its rollup is refused, status
/// tells roughly; the rollup of a kernel before 5.3 does not tell.
fn may_map_shmem(sample: &ProcSample) -> bool {
    let some = |bytes: Bytes| bytes > Bytes::ZERO;
    match (sample.counters(), sample.status.and_then(|status| status.vm)) {
        (Some(counters), _) => {
            let told = some(counters.pss_anon + counters.pss_file + counters.pss_shmem);
            some(counters.pss_shmem + counters.swap + counters.hugetlb()) || !told && some(counters.pss)
        }
        (None, Some(vm)) => some(vm.rss_shmem + vm.swap + vm.hugetlb),
        (None, None) => true,
    }
}

/// The object behind descriptor `fd` in directory `fds`, if it is on a file system that lives in memory.
fn identify(proc: &Root, fds: BorrowedFd<'_>, pid: Pid, fd: u32, target: Target) -> Option<SharedFile> {
    let (kind, name) = match target {
        Target::Memfd(name) => (SharedKind::Memfd, name),
        Target::SysV(_) => (SharedKind::SysV, &b""[..]),
        Target::Deleted(path) => (SharedKind::DeletedFile, path),
        Target::File(path) => (SharedKind::File, path),
        _ => return None,
    };
    let mut file = SharedFile {
        dev: Device { major: 0, minor: 1 },
        inode: 0,
        kind,
        name: name[..name.len().min(MAX_NAME)].to_vec(),
        size: Bytes::ZERO,
        used: Bytes::ZERO,
        hugetlb: false,
        holders: Vec::new(),
        holder_count: 0,
        mapped: None,
    };
    if !proc.is_live() {
        let mut text = Vec::new();
        file.inode = FdInfo::parse(proc.read(&format!("{pid}/fdinfo/{fd}"), &mut text).ok()?).inode?;
        return Some(file);
    }
    let stat = statat(fds, fd.to_string(), AtFlags::empty()).ok()?;
    let system = statfs(proc.path(format!("{pid}/fd/{fd}"))).ok()?;
    file.hugetlb = in_memory(&system)?;
    file.dev = Device::of(stat.st_dev);
    file.inode = stat.st_ino;
    file.size = Bytes(u64::try_from(stat.st_size).unwrap_or_default());
    file.used = Bytes(u64::try_from(stat.st_blocks).unwrap_or_default().saturating_mul(512));
    Some(file)
}

/// Whether a file system keeps its files in hugetlb pages (true) or in shmem (false); `None` for others: the
/// name of a descriptor proves nothing.
fn in_memory(system: &StatFs) -> Option<bool> {
    const TMPFS_MAGIC: u32 = 0x0102_1994;
    const HUGETLBFS_MAGIC: u32 = 0x9584_58f6;
    match system.f_type as u32 {
        TMPFS_MAGIC => Some(false),
        HUGETLBFS_MAGIC => Some(true),
        _ => None,
    }
}

/// The segments in /proc/sysvipc/shm, the largest first.
fn segments(root: &Root) -> Result<Vec<Segment>, ReadError> {
    let mut segments = Vec::new();
    root.each_line("proc/sysvipc/shm", |line| {
        segments.extend(Segment::parse(line));
        true
    })?;
    segments.sort_by_key(|segment: &Segment| std::cmp::Reverse((segment.rss + segment.swap, segment.size)));
    Ok(segments)
}

impl Segment {
    /// One line of /proc/sysvipc/shm (sysvipc_shm_proc_show, ipc/shm.c); `None` for its heading.
    pub fn parse(line: &[u8]) -> Option<Segment> {
        const SHM_DEST: u64 = 0o1000;
        const SHM_HUGETLB: u64 = 0o4000;
        let mut words = scan::words(line);
        let key = scan::signed(words.next()?)?;
        let mut next = || scan::number(words.next()?);
        let (id, perms, size, creator) = (next()?, next()?, next()?, next()?);
        let (last, attached, uid) = (next()?, next()?, next()?);
        let (rss, swap) = (words.nth(6), words.next());
        let small = |n| u32::try_from(n).unwrap_or_default();
        let perms = octal(perms);
        Some(Segment {
            key: i32::try_from(key).unwrap_or_default(),
            id: small(id),
            size: Bytes(size),
            rss: Bytes(rss.and_then(scan::number).unwrap_or_default()),
            swap: Bytes(swap.and_then(scan::number).unwrap_or_default()),
            attached,
            creator: small(creator),
            last: small(last),
            uid: small(uid),
            removed: perms & SHM_DEST != 0,
            hugetlb: perms & SHM_HUGETLB != 0,
        })
    }
}

/// The number whose octal digits are the decimal digits of `digits`.
fn octal(digits: u64) -> u64 {
    if digits == 0 { 0 } else { octal(digits / 10) * 8 + digits % 10 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_testkit::FakeRoot;
    use proptest::prelude::*;

    const SEGMENTS: &str = "       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid\
        \x20     atime      dtime      ctime                   rss                  swap\n\
        \x20        0          3  1600               1048576 27451 27452      0  1000     0     0     0 \
        1763689000          0 1763689000                  4096                     8192\n\
        -559038737          4  4600              16777216     7     7      2     0     0     0     0 \
        1763689000          0 1763689000              16777216                        0\n";

    #[test]
    fn system_v_segments() {
        let fake = FakeRoot::new().file("proc/sysvipc/shm", SEGMENTS);
        let segments = segments(&Root::at(fake.path()).unwrap()).unwrap();
        assert_eq!(segments.len(), 2);
        let expected = Segment {
            key: 0,
            id: 3,
            size: Bytes(1 << 20),
            rss: Bytes(4096),
            swap: Bytes(8192),
            attached: 0,
            creator: 27_451,
            last: 27_452,
            uid: 1000,
            removed: true,
            hugetlb: false,
        };
        assert_eq!(segments[1], expected);
        assert_eq!((segments[0].key, segments[0].hugetlb, segments[0].removed), (-559_038_737, true, false));
    }

    fn stat(name: &str) -> String {
        format!("1 ({name}) S 0 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 5 8192 2 0\n")
    }

    /// Two processes that hold inode 5, one of which maps inode 6; `fds` of each.
    fn fake() -> FakeRoot {
        let process = |fake: FakeRoot, pid: u32, maps: &str| {
            let rollup = "Pss: 8 kB\nPss_Anon: 4 kB\nPss_Shmem: 4 kB\n";
            let dir = format!("proc/{pid}");
            fake.process(
                pid,
                [("stat", stat("holder")), ("maps", maps.to_owned()), ("smaps_rollup", rollup.to_owned())],
            )
            .link(format!("{dir}/fd/0"), "/dev/null")
            .link(format!("{dir}/fd/3"), "/memfd:buf (deleted)")
            .file(format!("{dir}/fdinfo/3"), "pos:\t0\nino:\t5\n")
            .link(format!("{dir}/fd/4"), "/memfd:buf (deleted)")
            .file(format!("{dir}/fdinfo/4"), "pos:\t0\nino:\t5\n")
        };
        let fake = process(FakeRoot::new(), 7, "1000-2000 rw-s 00000000 00:01 6 /x (deleted)\n");
        process(fake, 8, "").link("proc/8/fd/5", "/x (deleted)").file("proc/8/fdinfo/5", "ino:\t6\n")
    }

    #[test]
    fn objects_are_counted_once_with_their_holders() {
        let fake = fake();
        let root = Root::at(fake.path()).unwrap();
        let memory = SharedMemory::read(&root, &Processes::read(&root).unwrap());
        assert_eq!(memory.files.len(), 2);
        let buf = memory.files.iter().find(|file| file.inode == 5).unwrap();
        assert_eq!((buf.kind, buf.name.as_slice(), buf.holder_count), (SharedKind::Memfd, &b"buf"[..], 2));
        assert_eq!(buf.holders.iter().map(|holder| holder.pid).collect::<Vec<_>>(), [7, 8]);
        assert_eq!(buf.mapped, Some(false));
        let other = memory.files.iter().find(|file| file.inode == 6).unwrap();
        assert_eq!((other.kind, other.mapped), (SharedKind::DeletedFile, Some(true)));
        assert_eq!(memory.unmapped().map(|file| file.inode).collect::<Vec<_>>(), [5]);
        assert!(memory.unread[0].what.contains("sysvipc"));
    }

    #[test]
    fn holders_of_different_threads_add_up() {
        let (mut one, mut two) = (Found::default(), Found::default());
        let file = |fd| {
            let fake = fake();
            let proc = Root::at(fake.path().join("proc")).unwrap();
            identify(&proc, proc.fd(), 7, fd, Target::Memfd(b"buf")).unwrap()
        };
        for pid in 0..20 {
            let holder = Holder { pid, name: Name::new(b"x"), fd: 3 };
            let found = if pid % 2 == 0 { &mut one } else { &mut two };
            found.add(file(3), holder);
            found.add(file(4), holder);
        }
        one.merge(two);
        let (file, _) = one.files.values().next().unwrap();
        assert_eq!((file.holder_count, file.holders.len()), (20, MAX_HOLDERS));
    }

    proptest! {
        #[test]
        fn never_panics(line: Vec<u8>) {
            let _ = Segment::parse(&line);
        }

        #[test]
        fn never_panics_on_numbers(words in proptest::collection::vec("-?[0-9]{1,24}", 0..20)) {
            let _ = Segment::parse(words.join(" ").as_bytes());
        }
    }
}
