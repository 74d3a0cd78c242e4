//! All processes at once: the cheap record of each, read on all cores.
//!
//! Per process only `stat` and, where there is memory, `smaps_rollup`, opened relative to one descriptor of
//! /proc and read into buffers that each thread reuses; a record is the only thing a process costs. The
//! kernel writes each in one piece, so one `read` with room to spare takes all of it (a second one, just to
//! see the end, would cost a system call per file). `status` costs 12 us where `stat` costs 8.5 and the
//! rollup of a small process 42 (measured, 6.18), so it is read only where it can matter: for processes
//! that are large ([`LARGE_RSS`], [`LARGE_SIZE`]) or whose rollup is refused.
//!
//! What is not seen is data: processes that ended on the way, were refused, or are hidden by hidepid=.

use super::{Counters, Name, Pid, Stat, Status};
use crate::error::unless_root;
use crate::{Bytes, ReadError, Root, Unread, scan};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, RawDir, openat};
use rustix::io::Errno;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// The most processes one sample holds (40 MB of records); the rest are counted in
/// [`Processes::left_out`].
pub const MAX_PROCESSES: usize = 1 << 16;

/// From this resident set on `status` is read: below it no locked or swapped part is worth telling apart.
pub const LARGE_RSS: Bytes = Bytes::from_mib(8);

/// From this address space on `status` is read: below it page tables are at most 2 MiB and a few pages.
pub const LARGE_SIZE: Bytes = Bytes::from_gib(1);

/// How many pids a thread takes at a time: few enough that one with huge rollups does not end last.
const BATCH: usize = 16;

/// Bytes of the listing of /proc that are asked for at once: some 80 pids.
const LISTED: usize = 2 << 10;

/// What a process's memory is known of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// smaps_rollup.
    Read(Counters),
    /// It has none: a kernel thread, a zombie, or on its way out.
    None,
    /// smaps_rollup may not be read; `stat` and `status`, open to everyone, still give rough figures.
    Denied,
}

/// One process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProcSample {
    /// Its id.
    pub pid: Pid,
    /// Its stat file.
    pub stat: Stat,
    /// Its memory.
    pub memory: Memory,
    /// Its status, where the process is large or `memory` is denied.
    pub status: Option<Status>,
}

impl ProcSample {
    /// Its name.
    pub fn name(&self) -> &Name {
        &self.stat.name
    }

    /// The counters of its memory, if they could be read or there is nothing to count.
    pub fn counters(&self) -> Option<Counters> {
        match self.memory {
            Memory::Read(counters) => Some(counters),
            Memory::None => Some(Counters::default()),
            Memory::Denied => None,
        }
    }

    /// Its share of the memory it maps; `None` where it may not be read.
    pub fn pss(&self) -> Option<Bytes> {
        self.counters().map(|counters| counters.pss)
    }

    /// Resident: exact where smaps_rollup was read, else the kernel's rough counter.
    pub fn rss(&self) -> Bytes {
        self.counters().map_or_else(|| self.stat.rss.bytes(), |counters| counters.rss)
    }

    /// Its page tables: exact where status was read, else `None` and little (see [`LARGE_SIZE`]).
    pub fn page_tables(&self) -> Option<Bytes> {
        self.status.and_then(|status| status.vm).map(|vm| vm.page_tables)
    }
}

/// All processes that could be seen.
#[derive(Debug, Clone, Default)]
pub struct Processes {
    /// Those read, by pid.
    pub all: Vec<ProcSample>,
    /// Ended between the listing of /proc and the reading.
    pub vanished: usize,
    /// Of `all`: smaps_rollup was refused.
    pub denied: usize,
    /// Listed, but not even `stat` could be read (hidepid=1, or an error).
    pub unreadable: usize,
    /// Beyond [`MAX_PROCESSES`].
    pub left_out: usize,
    /// Threads the kernel counts (loadavg) and no process that was seen has: what hidepid=2 hides, and what
    /// began or ended while this was read. Counted only from 1% of all threads on, and at least 4; in a pid
    /// namespace the kernel still counts the whole machine's.
    pub hidden_threads: u64,
}

impl Processes {
    /// Reads all processes, on all cores.
    pub fn read(root: &Root) -> Result<Processes, ReadError> {
        Processes::read_beside(root, || ()).map(|(processes, ())| processes)
    }

    /// Reads all processes, on all cores, one of which does `other` first: a thread more than there are cores
    /// would make the last of them late.
    pub fn read_beside<O: Send>(
        root: &Root,
        other: impl FnOnce() -> O + Send,
    ) -> Result<(Processes, O), ReadError> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Processes::read_with(root, cores, other)
    }

    fn read_with<O: Send>(
        root: &Root,
        threads: usize,
        other: impl FnOnce() -> O + Send,
    ) -> Result<(Processes, O), ReadError> {
        let proc = root.sub("proc")?;
        let mut block = Vec::with_capacity(LISTED);
        let listing = Mutex::new(Listing::open(&proc, &mut block)?);
        let next = |pids: &mut Vec<Pid>| {
            if let Ok(mut listing) = listing.lock() {
                listing.next(pids);
            }
        };
        let (parts, other) = spread(threads, next, || Reader::new(proc.fd()), Reader::take, other);
        let left_out = listing.into_inner().unwrap_or_else(PoisonError::into_inner).end(&proc)?;
        let mut found = Processes::default();
        for part in parts {
            found.add(part.found);
        }
        found.left_out = left_out;
        // By key first: a record is 400 bytes.
        found.all.sort_by_cached_key(|process| process.pid);
        found.hidden_threads = hidden_threads(root, &found);
        Ok((found, other))
    }

    /// The process with id `pid`.
    pub fn get(&self, pid: Pid) -> Option<&ProcSample> {
        self.all.binary_search_by_key(&pid, |process| process.pid).ok().map(|at| &self.all[at])
    }

    /// What the sample lacks, for the report.
    pub fn unread(&self) -> Vec<Unread> {
        let mut list = Vec::new();
        let mut lacks = |count: usize, what: &str, why: String| {
            if count > 0 {
                let processes = if count == 1 { "process" } else { "processes" };
                list.push(Unread { what: format!("{what} of {count} {processes}"), why });
            }
        };
        lacks(self.denied, "PSS", unless_root("permission denied"));
        lacks(self.unreadable, "all", unless_root("hidden by hidepid= or not readable"));
        lacks(self.left_out, "all", "more processes than one sample holds".to_owned());
        let hidden = usize::try_from(self.hidden_threads).unwrap_or(usize::MAX);
        if hidden > 0 {
            let what = format!("processes with {hidden} threads in all");
            let why = "not listed in /proc: hidepid=, or another pid namespace; run on the host, as root";
            list.push(Unread { what, why: why.to_owned() });
        }
        list
    }

    fn add(&mut self, mut part: Processes) {
        self.all.append(&mut part.all);
        self.vanished += part.vanished;
        self.denied += part.denied;
        self.unreadable += part.unreadable;
    }
}

/// Has `take` called for every one of `items`, on at most `threads` threads, each with a `new` state of its
/// own; returns the states. Few items stay on this thread.
pub(crate) fn share_out<I: Copy + Sync, T: Send>(
    items: &[I],
    threads: usize,
    new: impl Fn() -> T + Sync,
    take: impl Fn(&mut T, I) + Sync,
) -> Vec<T> {
    let taken = AtomicUsize::new(0);
    let next = |batch: &mut Vec<I>| {
        let rest = items.get(taken.fetch_add(BATCH, Ordering::Relaxed)..).unwrap_or_default();
        batch.extend(rest.iter().take(BATCH));
    };
    let threads = threads.min(items.len().div_ceil(4 * BATCH));
    spread(threads, next, new, take, || ()).0
}

/// The same with items that `next` puts into the empty batch it is given, until it has none; the last thread
/// does `other` first.
fn spread<I, T: Send, O: Send>(
    threads: usize,
    next: impl Fn(&mut Vec<I>) + Sync,
    new: impl Fn() -> T + Sync,
    take: impl Fn(&mut T, I) + Sync,
    other: impl FnOnce() -> O + Send,
) -> (Vec<T>, O) {
    let work = || {
        let (mut state, mut batch) = (new(), Vec::with_capacity(BATCH));
        loop {
            next(&mut batch);
            if batch.is_empty() {
                return state;
            }
            batch.drain(..).for_each(|item| take(&mut state, item));
        }
    };
    if threads <= 1 {
        let other = other();
        return (vec![work()], other);
    }
    std::thread::scope(|scope| {
        let last = scope.spawn(|| (other(), work()));
        let workers: Vec<_> = (2..threads).map(|_| scope.spawn(work)).collect();
        let mut states = vec![work()];
        states.extend(workers.into_iter().map(joined));
        let (other, state) = joined(last);
        states.push(state);
        (states, other)
    })
}

/// What `thread` returned; its panic goes on here.
fn joined<T>(thread: std::thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// One thread's work and its buffers.
struct Reader<'p> {
    proc: BorrowedFd<'p>,
    text: Vec<u8>,
    found: Processes,
}

impl<'p> Reader<'p> {
    fn new(proc: BorrowedFd<'p>) -> Reader<'p> {
        Reader { proc, text: Vec::with_capacity(16 << 10), found: Processes::default() }
    }

    fn take(&mut self, pid: Pid) {
        // A process may exec (its old memory then answers ESRCH) or end between its files: look again.
        for _ in 0..3 {
            let stat = match self.read(pid, "stat").map(Stat::parse) {
                Ok(Some(stat)) => stat,
                Ok(None) | Err(Errno::NOENT | Errno::SRCH) => return self.found.vanished += 1,
                Err(_) => return self.found.unreadable += 1,
            };
            let has_memory = stat.vsize > Bytes::ZERO;
            let memory = if has_memory { self.memory(pid) } else { Ok(Memory::None) };
            match memory {
                Ok(memory) => return self.keep(pid, stat, memory),
                Err(Errno::SRCH | Errno::NOENT) => {}
                Err(_) => return self.keep(pid, stat, Memory::Denied),
            }
        }
        self.found.vanished += 1;
    }

    fn keep(&mut self, pid: Pid, stat: Stat, memory: Memory) {
        let denied = memory == Memory::Denied;
        let large = stat.rss.bytes() >= LARGE_RSS || stat.vsize >= LARGE_SIZE;
        let status = match denied || large {
            true => self.read(pid, "status").ok().and_then(Status::parse),
            false => None,
        };
        self.found.denied += usize::from(denied);
        self.found.all.push(ProcSample { pid, stat, memory, status });
    }

    fn memory(&mut self, pid: Pid) -> Result<Memory, Errno> {
        // An empty rollup, as a fake one or a process without mappings has it, counts nothing.
        let counters = self.read(pid, "smaps_rollup").map(Counters::parse)?;
        Ok(counters.map_or(Memory::None, Memory::Read))
    }

    /// All of file `name` of process `pid`.
    fn read(&mut self, pid: Pid, name: &str) -> Result<&[u8], Errno> {
        let mut path = [0; 32];
        let path = file_path(&mut path, pid, name);
        let fd = openat(self.proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        read_whole(fd.as_fd(), &mut self.text)?;
        Ok(&self.text)
    }
}

/// "PID/NAME", written without formatting machinery: it is done 4,000 times per sample.
fn file_path<'b>(buf: &'b mut [u8; 32], pid: Pid, name: &str) -> &'b [u8] {
    let mut at = buf.len() - name.len();
    buf[at..].copy_from_slice(name.as_bytes());
    at -= 1;
    buf[at] = b'/';
    let mut rest = pid;
    loop {
        at -= 1;
        buf[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            return &buf[at..];
        }
    }
}

/// Reads all of `fd` into `text`. A read that leaves room was the last: see the module.
fn read_whole(fd: BorrowedFd<'_>, text: &mut Vec<u8>) -> Result<(), Errno> {
    text.clear();
    loop {
        let room = text.capacity() - text.len();
        match rustix::io::read(fd, rustix::buffer::spare_capacity(text)) {
            Ok(n) if n < room || text.len() >= crate::root::MAX_FILE => return Ok(()),
            Ok(_) => text.reserve(text.capacity()),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
}

/// The pids in /proc, at most [`MAX_PROCESSES`], a few at a time: listing 2,000 takes the kernel 2 ms, during
/// which the first of them can be read.
struct Listing<'b> {
    entries: RawDir<'b, OwnedFd>,
    listed: usize,
    left_out: usize,
    failed: Option<Errno>,
}

impl<'b> Listing<'b> {
    fn open(proc: &Root, block: &'b mut Vec<u8>) -> Result<Listing<'b>, ReadError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd =
            openat(proc.fd(), ".", flags, Mode::empty()).map_err(|e| ReadError::new(proc.path(""), e))?;
        let entries = RawDir::new(fd, block.spare_capacity_mut());
        Ok(Listing { entries, listed: 0, left_out: 0, failed: None })
    }

    /// Puts the next few pids into `pids`; none at the end.
    fn next(&mut self, pids: &mut Vec<Pid>) {
        while self.failed.is_none()
            && pids.len() < BATCH
            && let Some(entry) = self.entries.next()
        {
            let pid = entry.map(|entry| pid_of(entry.file_name().to_bytes()));
            match pid {
                Ok(Some(pid)) if self.listed < MAX_PROCESSES => {
                    self.listed += 1;
                    pids.push(pid);
                }
                Ok(Some(_)) => self.left_out += 1,
                Ok(None) => {}
                Err(errno) => self.failed = Some(errno),
            }
        }
    }

    /// How many there were beyond [`MAX_PROCESSES`].
    fn end(self, proc: &Root) -> Result<usize, ReadError> {
        self.failed.map_or(Ok(self.left_out), |errno| Err(ReadError::new(proc.path(""), errno)))
    }
}

fn pid_of(name: &[u8]) -> Option<Pid> {
    let pid = name.iter().all(u8::is_ascii_digit).then(|| scan::number(name))??;
    Pid::try_from(pid).ok()
}

/// Threads in /proc/loadavg's "running/all" beyond those of the processes found; 0 within what begins and
/// ends while a sample is taken.
fn hidden_threads(root: &Root, found: &Processes) -> u64 {
    let mut text = Vec::new();
    let all = root.read("proc/loadavg", &mut text).ok().and_then(|text| {
        let tasks = scan::words(text).nth(3)?;
        scan::number(scan::key_value(tasks, b'/')?.1)
    });
    let seen: u64 = found.all.iter().map(|process| u64::from(process.stat.threads)).sum();
    let others = (found.vanished + found.unreadable + found.left_out) as u64;
    let hidden = all.unwrap_or_default().saturating_sub(seen + others);
    if hidden >= 4.max(seen / 100) { hidden } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_testkit::FakeRoot;

    const ROLLUP: &str = "5-7 ---p 00000000 00:00 0 [rollup]\nRss: 8 kB\nPss: 4 kB\nSwap: 0 kB\n";

    fn stat(name: &str, state: char, flags: u32, vsize: u64, rss: u64) -> String {
        format!("1 ({name}) {state} 0 1 1 0 -1 {flags} 0 0 0 0 0 0 0 0 20 0 2 0 5 {vsize} {rss} 0\n")
    }

    fn small() -> [(&'static str, String); 2] {
        [("stat", stat("x", 'S', 0, 8192, 2)), ("smaps_rollup", ROLLUP.into())]
    }

    fn read(fake: &FakeRoot) -> Processes {
        Processes::read(&Root::at(fake.path()).unwrap()).unwrap()
    }

    #[test]
    fn every_kind_of_process() {
        let hostile = "a) R 1\n\x1b[31m";
        let fake = FakeRoot::new()
            .process(30, [("stat", stat(hostile, 'S', 0, 8192, 3)), ("smaps_rollup", ROLLUP.into())])
            .process(2, [("stat", stat("kthreadd", 'S', 0x20_8040, 0, 0))])
            .process(9, [("stat", stat("gone", 'Z', 0, 0, 0))])
            .process(11, [("comm", "vanished")])
            .process(12, [("stat", "nonsense")])
            .dir("proc/sys")
            .file("proc/loadavg", "0.00 0.01 0.00 1/26 12345\n");
        let found = read(&fake);
        assert_eq!(found.all.iter().map(|p| p.pid).collect::<Vec<_>>(), [2, 9, 30]);
        assert_eq!((found.vanished, found.denied, found.unreadable, found.left_out), (2, 0, 0, 0));
        let shown = found.get(30).unwrap();
        assert_eq!(shown.name().as_bytes(), hostile.as_bytes());
        assert_eq!((shown.pss(), shown.rss(), shown.status), (Some(Bytes(4096)), Bytes(8192), None));
        assert!(found.get(2).unwrap().stat.is_kernel_thread());
        assert_eq!(
            (found.get(9).unwrap().memory, found.get(9).unwrap().pss()),
            (Memory::None, Some(Bytes::ZERO))
        );
        assert_eq!(found.get(10), None);
        // 26 threads by the kernel; 3 processes of 2, and 2 that vanished.
        assert_eq!(found.hidden_threads, 18);
        assert!(found.unread()[0].what.contains("18 threads"), "{:?}", found.unread());
    }

    #[test]
    fn memory_that_goes_away_in_between_is_a_vanished_process() {
        let fake = FakeRoot::new().process(7, [("stat", stat("x", 'R', 0, 8192, 2))]);
        let found = read(&fake);
        assert_eq!((found.all.len(), found.vanished), (0, 1));
    }

    #[test]
    fn a_large_process_has_its_status_however_long_that_is() {
        let groups = "65534 ".repeat(65_536);
        let status = format!("Name:\tx\nState:\tS\nGroups:\t{groups}\nVmPTE: 12 kB\n");
        let files =
            [("stat", stat("x", 'S', 0, 1 << 30, 2)), ("status", status), ("smaps_rollup", ROLLUP.into())];
        let fake = FakeRoot::new().process(7, files).process(8, small());
        let found = read(&fake);
        assert_eq!(found.get(7).unwrap().page_tables(), Some(Bytes(12 << 10)));
        assert_eq!(found.get(8).unwrap().page_tables(), None);
    }

    #[test]
    fn many_threads_read_what_one_reads() {
        let fake = (1..=300).fold(FakeRoot::new(), |fake, n| fake.process(n * 7, small()));
        let root = Root::at(fake.path()).unwrap();
        let one = Processes::read_with(&root, 1, || ()).unwrap().0;
        let many = Processes::read_with(&root, 4, || ()).unwrap().0;
        assert_eq!(one.all.len(), 300);
        assert_eq!(one.all, many.all);
    }

    #[test]
    fn file_paths() {
        for pid in [0, 1, 10, 4_194_304, u32::MAX] {
            assert_eq!(
                file_path(&mut [0; 32], pid, "smaps_rollup"),
                format!("{pid}/smaps_rollup").as_bytes()
            );
        }
    }

    #[test]
    fn the_live_machine() {
        let root = Root::live().unwrap();
        let found = Processes::read(&root).unwrap();
        let me = found.get(std::process::id()).unwrap();
        assert!(me.pss().unwrap() > Bytes::from_kib(100) && me.rss() >= me.pss().unwrap(), "{me:?}");
    }
}
