//! `ebb heap`: inside a process's heaps, while it runs: what lives, what is free, what could be given back.
//!
//! Nothing is stopped unless it is asked for (--freeze), and then for the walk alone. A process that becomes another
//! program while it is read is read again.

mod damage;
pub(crate) mod refused;
mod text;
mod watch;

use crate::render::{self, Page};
use crate::{cli, explain};
use ebbtide_heaps::{Extent, Fault, Heap, Look, LookError};
use ebbtide_observe::process::{Name, Process};
use ebbtide_observe::{Bytes, ReadError, Root, Unread};
use ebbtide_sys::freeze::{FreezeError, Frozen};
use serde::Serialize;
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `ebb heap`.
#[derive(Debug, clap::Args)]
pub(crate) struct HeapArgs {
    /// A process: its pid, or its name if only one has it
    #[arg(value_name = "PID|NAME")]
    target: String,
    /// Stop all its threads while its heaps are read, and say how long that took
    ///
    /// Without it everything is read while the process runs, and what changed meanwhile is read again. With it the
    /// figures are those of one moment. No signal is sent, and the threads run on even if ebb is killed; but a
    /// thread that waits in epoll_wait gets EINTR, as after SIGSTOP and SIGCONT.
    #[arg(long)]
    freeze: bool,
    /// Look again and again, so far apart (5s, 1m), until Ctrl-C or the process's end
    #[arg(long, value_name = "TIME", value_parser = cli::duration)]
    watch: Option<Duration>,
    /// With --watch: for so long
    #[arg(long = "for", value_name = "TIME", value_parser = cli::duration, requires = "watch")]
    time: Option<Duration>,
    /// With --watch: write CSV, a row for each look and allocator; bytes are integers
    #[arg(long, requires = "watch", conflicts_with = "json")]
    csv: bool,
    #[command(flatten)]
    output: cli::Output,
    /// Every arena, size class and mapping
    #[arg(long, short)]
    all: bool,
}

/// How often a look is taken again because the process became another program meanwhile.
const TRIES: usize = 5;

/// The process to look into.
struct Target {
    /// As it was asked for.
    pid: u32,
    name: Name,
    process: Process,
}

/// One look at it.
struct Seen {
    pid: u32,
    name: Name,
    /// VmRSS, which has more than heaps in it; `None` where it ended since.
    rss: Option<Bytes>,
    look: Look,
    /// How long it stood still for it; `None`: it ran.
    stop: Option<Duration>,
    at: SystemTime,
}

/// The JSON contract (schema/heap.schema.json).
#[derive(Serialize)]
struct Json<'a> {
    schema_version: u32,
    pid: u32,
    name: Name,
    unix_ms: u64,
    rss_bytes: Option<Bytes>,
    longest_stop_us: u64,
    allocators: &'a [Heap],
    stacks: Extent,
    code: Extent,
    unread: Vec<Unread>,
}

pub(crate) fn run(args: &HeapArgs) -> anyhow::Result<ExitCode> {
    let root = Root::live()?;
    let target = Target::find(&root, &args.target)?;
    if let Some(interval) = args.watch {
        return watch::run(&target, interval, args);
    }
    let seen = target.look(args.freeze)?;
    if args.output.json {
        render::print_json(&seen.json())?;
    } else {
        render::print(&text::report(Page::of_stdout(), &seen, args.all))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Why there was no look.
enum NoLook {
    Look(LookError),
    Freeze(FreezeError),
}

impl Target {
    fn find(root: &Root, wanted: &str) -> anyhow::Result<Target> {
        let pid = explain::pid(root, wanted)?;
        let no = |error: ReadError| refused::look("heap", pid, None, &LookError::Read(error));
        let process = Process::open(root, pid).map_err(no)?;
        let status = process.status().map_err(no)?;
        // The first thread may have ended while others live on: then one of them has the memory.
        let other =
            if status.vm.is_none() && status.threads > 1 { living_thread(root, &process) } else { None };
        if other.is_none() {
            explain::with_memory(pid, &status)?;
        }
        Ok(Target { pid, name: status.name, process: other.unwrap_or(process) })
    }

    /// Looks into it, stopping it for that if `freeze`.
    fn look(&self, freeze: bool) -> anyhow::Result<Seen> {
        let mut tries = 0;
        loop {
            match self.look_once(freeze) {
                Ok(seen) if freeze => return Ok(damage::lasting(seen, || self.look_once(true))),
                Ok(seen) => return Ok(seen),
                Err(NoLook::Look(error)) if is_gone(&error) && !self.has_ended() && tries < TRIES => {
                    tries += 1
                }
                Err(NoLook::Look(error)) => {
                    return Err(refused::look("heap", self.pid, self.process.status().ok().as_ref(), &error));
                }
                Err(NoLook::Freeze(error)) => return Err(refused::freeze(self.pid, error)),
            }
        }
    }

    fn look_once(&self, freeze: bool) -> Result<Seen, NoLook> {
        let frozen = match freeze {
            true => Some(Frozen::stop(self.pid).map_err(NoLook::Freeze)?),
            false => None,
        };
        let at = SystemTime::now();
        let look = Look::into(&self.process, freeze);
        let stop = frozen.map(Frozen::release);
        let look = look.map_err(NoLook::Look)?;
        let status = self.process.status().ok();
        let rss = status.and_then(|status| status.vm).map(|vm| vm.rss);
        let name = status.map_or(self.name, |status| status.name);
        Ok(Seen { pid: self.pid, name, rss, look, stop, at })
    }

    /// A zombie has no memory; what was executed anew has.
    fn has_ended(&self) -> bool {
        !self.process.status().is_ok_and(|status| status.vm.is_some())
    }
}

/// A thread of `process` that still has its memory.
fn living_thread(root: &Root, process: &Process) -> Option<Process> {
    let threads = process.threads().ok()?;
    threads.iter().find_map(|thread| {
        let process = Process::open(root, thread.tid()).ok()?;
        process.status().ok()?.vm.is_some().then_some(process)
    })
}

/// Whether the memory that was read is no more.
fn is_gone(error: &LookError) -> bool {
    matches!(error, LookError::Memory(Fault::Ended) | LookError::Read(ReadError::Vanished { .. }))
}

impl Seen {
    fn json(&self) -> Json<'_> {
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        Json {
            schema_version: 1,
            pid: self.pid,
            name: self.name,
            unix_ms: self.unix_ms(),
            rss_bytes: self.rss,
            longest_stop_us: self.stop.map_or(0, micros),
            allocators: &self.look.heaps,
            stacks: self.look.stacks,
            code: self.look.code,
            unread: self.look.unread(),
        }
    }

    fn unix_ms(&self) -> u64 {
        let since = self.at.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }
}
