//! Who looks up paths, and where: the kernel's system call events, read from a private tracing instance.
//!
//! [`LookupTrace`] is armed, reads in rounds for as long as its owner wants, and closes into [`Lookups`]. A
//! look-up's way: `tracefs` (where it is) - `instance` (own buffers, always removed) - `format`, `event` and `probe`
//! (what records mean on this kernel) - `page` (the ring buffer's bytes) - `stream` (all CPUs in order) -
//! `tasks` and `resolve` (whose path, which directory) - `accounts` and `directories` (bounded sums) -
//! `report`.
//!
//! Invariants: the machine is left as it was, also by a kill (the next start removes what is left); memory is
//! bounded by constants; and every system call of the traced kind is counted or its loss is. The price is paid
//! by every process that makes such calls: on Linux 6.18 a stat took 0.95 us of processor time before and 1.5 to
//! 1.9 us meanwhile.

mod accounts;
mod directories;
mod event;
mod format;
mod instance;
mod names;
mod page;
mod probe;
mod report;
mod resolve;
mod stream;
mod tasks;
mod tracefs;

pub use report::{BeforeAfter, DirectoryLookups, Lookups, MostlyIn, ProcessLookups, TracedProcess};

use crate::host::DentryState;
use crate::{ReadError, Root, Unread};
use accounts::Accounts;
use event::{Catalogue, Event, PathAt, Paths};
use instance::Instance;
use probe::PathProbe;
use resolve::{Look, Resolver};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::BorrowedFd;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use stream::{Batch, Stream};
use tasks::Tasks;
use tracefs::Tracefs;

/// Calls that have begun and not ended, at most. More are only possible where ends were lost.
const MAX_PENDING: usize = 1 << 14;

/// Why tracing cannot be.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// There is no tracefs to use.
    #[error("no tracefs: {why}")]
    NoTracefs {
        /// What was tried.
        why: String,
    },
    /// EACCES or EPERM: it takes root, or CAP_SYS_ADMIN and a kernel that is not locked down.
    #[error("{path}: permission denied", path = path.display())]
    Denied {
        /// What was refused.
        path: PathBuf,
    },
    /// The kernel has no system call events (CONFIG_FTRACE_SYSCALLS).
    #[error("this kernel has no system call events")]
    NoEvents,
    /// The trace speaks of processes by their ids in the initial pid namespace, and this is another.
    #[error("the kernel's trace cannot be matched with the processes of a container's pid namespace")]
    PidNamespace,
    /// This process has as many tracing instances as can be told apart.
    #[error("this process traces already")]
    Busy,
    /// Any other failure.
    #[error(transparent)]
    Read(ReadError),
}

impl From<ReadError> for TraceError {
    fn from(error: ReadError) -> TraceError {
        match error {
            ReadError::Denied { path } => TraceError::Denied { path },
            error => TraceError::Read(error),
        }
    }
}

/// A running trace of path look-ups. Dropping it removes its instance.
#[derive(Debug)]
pub struct LookupTrace {
    // Before the instance, which the kernel does not remove while its pipes are open.
    stream: Stream,
    instance: Instance,
    // After the instance, which uses it.
    _probe: Option<PathProbe>,
    catalogue: Catalogue,
    batch: Batch,
    tasks: Tasks,
    resolver: Resolver,
    accounts: Accounts,
    pending: HashMap<u32, Pending>,
    before: Option<DentryState>,
    started: u64,
}

/// A call that has begun.
#[derive(Debug)]
struct Pending {
    call: u16,
    dfd: i32,
    look: Look,
    may_be_empty: bool,
}

impl LookupTrace {
    /// Removes what killed traces left, sets up an own instance and starts it: look-ups from now on count.
    ///
    /// Errors: see [`TraceError`]; nothing is left behind by any of them.
    pub fn arm() -> Result<LookupTrace, TraceError> {
        let root = Root::live()?;
        if !in_initial_pid_namespace(&root) {
            return Err(TraceError::PidNamespace);
        }
        let tracefs = Arc::new(Tracefs::find(&root)?);
        let instance = Instance::create(&root, tracefs.clone())?;
        instance.configure()?;
        let mut catalogue = Catalogue::discover(&tracefs)?;
        let mut probe = None;
        if catalogue.paths() == Paths::Memory
            && let Some((made, events)) = PathProbe::make(&root, tracefs, instance.number())
        {
            events.iter().for_each(|(event, format)| catalogue.add_probe(event, format));
            probe = Some(made);
        }
        for event in catalogue.names() {
            instance.enable(event)?;
        }
        let stream = Stream::new(instance.pipes()?);
        let before = DentryState::read(&root).ok();
        instance.switch(true)?;
        Ok(LookupTrace {
            stream,
            instance,
            _probe: probe,
            catalogue,
            batch: Batch::default(),
            tasks: Tasks::new(root),
            resolver: Resolver::new(),
            accounts: Accounts::default(),
            pending: HashMap::new(),
            before,
            started: stream::now(),
        })
    }

    /// True if this kernel's records hold the paths; otherwise they are read from the callers' memory, and
    /// whoever calls [`LookupTrace::round`] sooner finds more of them.
    pub fn exact_paths(&self) -> bool {
        self.catalogue.paths() != Paths::Memory
    }

    /// Waits until look-ups can be read or `also` becomes readable, for `timeout` at most.
    pub fn wait(&self, also: BorrowedFd<'_>, timeout: Duration) {
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        let pipes = self.stream.pipes().iter().map(|pipe| PollFd::new(pipe, PollFlags::IN));
        let mut fds: Vec<PollFd<'_>> = pipes.chain([PollFd::from_borrowed_fd(also, PollFlags::IN)]).collect();
        // An interrupted wait is one that ends early, which callers expect of it.
        let _ = poll(&mut fds, Some(&timeout));
    }

    /// Reads what was written so far, at most 8 MiB, and counts it. Returns whether there is more.
    pub fn round(&mut self) -> Result<bool, ReadError> {
        let more = self.stream.round(&self.catalogue, &mut self.batch)?;
        self.resolver.next_batch();
        let batch = std::mem::take(&mut self.batch);
        let replaced = replaced_images(&batch);
        for (at, timed) in batch.events.iter().enumerate() {
            match timed.event {
                Event::Enter { tid, call, dfd, path, may_be_empty } => {
                    let gone = replaced.get(&tid).is_some_and(|&exec| at < exec);
                    // Memory is read only while it is what it was and nothing better will tell.
                    let readable = match path {
                        PathAt::Text { .. } => true,
                        PathAt::Memory(_) => !gone && self.catalogue.paths() != Paths::Probe,
                    };
                    self.enter(tid, Pending { call, dfd, look: Look::Unknown, may_be_empty });
                    if readable {
                        self.path(tid, path, &batch.texts);
                    }
                }
                Event::Path { tid, path } => self.path(tid, path, &batch.texts),
                Event::Exit { tid, call, ret } => self.exit(tid, call, ret),
                Event::Fork { tid, child, thread, name } => {
                    if let Some(missed) = self.tasks.forked(tid, child, thread, name) {
                        self.accounts.ended(&missed);
                    }
                }
                Event::Exec { tid, path } => self.exec(tid, path, &batch.texts),
                Event::Died { tid, name, group_dead } => {
                    self.pending.remove(&tid);
                    if let Some(process) = self.tasks.died(tid, name, group_dead) {
                        self.accounts.ended(&process);
                    }
                }
            }
        }
        self.batch = batch;
        Ok(more)
    }

    /// Stops, reads the rest and sums up, with the `top` largest directories of each process.
    pub fn close(mut self, top: usize) -> Result<Lookups, ReadError> {
        self.instance.switch(false)?;
        let seconds = (stream::now() - self.started) as f64 / 1e9;
        // One round more than there is data for: the last one hands on what the one before kept.
        while self.round()? {}
        self.round()?;
        let mut unread = Vec::new();
        if self.resolver.denied > 0 {
            let why = format!(
                "{} look-ups: process_vm_readv was refused; CAP_SYS_PTRACE helps",
                self.resolver.denied
            );
            unread.push(Unread { what: "paths in processes' memory".to_owned(), why });
        }
        let lost = self.instance.lost().unwrap_or_else(|e| {
            unread.push(Unread::of("number of lost records", &e));
            0
        });
        let after = DentryState::read(self.tasks.files());
        if let Err(e) = &after {
            unread.push(Unread::of("proc/sys/fs/dentry-state", e));
        }
        let seen = report::Seen { seconds, records: self.stream.records, lost, exact: self.exact_paths() };
        let dentries = report::BeforeAfter { before: self.before, after: after.ok() };
        Ok(report::sum_up(self.accounts.close(), seen, dentries, unread, top))
    }

    fn enter(&mut self, tid: u32, call: Pending) {
        if self.pending.len() >= MAX_PENDING {
            self.pending.clear();
        }
        self.pending.insert(tid, call);
    }

    /// The path of the call that `tid` is in; of a call with two paths the first one counts.
    fn path(&mut self, tid: u32, path: PathAt, texts: &[u8]) {
        let Some(pending) = self.pending.get_mut(&tid).filter(|p| p.look == Look::Unknown) else { return };
        let pid = self.tasks.process_of(tid);
        pending.look = self.resolver.look(&mut self.tasks, (tid, pid), pending.dfd, path, texts);
    }

    fn exit(&mut self, tid: u32, call: u16, ret: i64) {
        const ENOENT: i64 = -2;
        // An exit without its entry: the call began before the trace did, or the entry was lost.
        let Some(pending) = self.pending.remove(&tid).filter(|p| p.call == call) else { return };
        if pending.may_be_empty && pending.look == Look::Unknown {
            return;
        }
        let pid = self.tasks.process_of(tid);
        if pid == std::process::id() {
            return;
        }
        self.accounts.add(pid, self.tasks.get(pid), &pending.look, ret == ENOENT);
    }

    /// The kernel tells the path of a program that was started, so this one look-up is known for certain.
    fn exec(&mut self, tid: u32, path: PathAt, texts: &[u8]) {
        let pid = self.tasks.process_of(tid);
        if let Some(pending) = self.pending.get_mut(&tid) {
            pending.look = self.resolver.look(&mut self.tasks, (tid, pid), resolve::AT_FDCWD, path, texts);
        }
        if let PathAt::Text { start, len } = path {
            self.tasks.executed(tid, &texts[start as usize..][..len as usize]);
        }
    }
}

/// Which threads run another program by the end of the batch, and since which event: an address that was
/// passed before means something else now.
fn replaced_images(batch: &Batch) -> HashMap<u32, usize> {
    let execs = batch.events.iter().enumerate().filter_map(|(at, timed)| match timed.event {
        Event::Exec { tid, .. } => Some((tid, at)),
        _ => None,
    });
    execs.collect()
}

/// The initial pid namespace has a fixed inode number (PROC_PID_INIT_INO of linux/proc_ns.h).
fn in_initial_pid_namespace(root: &Root) -> bool {
    root.link("proc/self/ns/pid").map_or(true, |link| link == "pid:[4026531836]")
}
