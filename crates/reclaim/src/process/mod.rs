//! What a process's allocators keep: given back from outside, without its help.
//!
//! Two ways. [`call`]: one thread that waits in a system call is borrowed and calls the allocator's own function;
//! everybody else runs on, and waits for a lock at most. [`pages`]: for what no function gives back, all threads are
//! stopped for a moment, and a thread at rest makes the system call that drops exactly the pages that the allocator's
//! books, read in that same moment, call free; each stop is short, and there are as many as it takes.
//!
//! Invariants: [`rest`] decides which thread may be borrowed and whether a process is at rest; nothing is done to a
//! process with a seccomp filter that was not told to allow it, nor to a heap that looks damaged.

mod call;
mod code;
mod pages;
mod rest;

use crate::report::{Lever, Report};
use call::Function;
use code::Code;
use ebbtide_heaps::{Heap, Kind, Look, LookError, glibc, luajit};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, ReadError};
use std::time::{Duration, Instant};

/// How to go about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Only plan.
    pub dry_run: bool,
    /// For how long all threads may stand still at once.
    pub max_stop: Duration,
    /// For how long, all in all, a moment is waited for in which the process is at rest.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Options {
        Options { dry_run: false, max_stop: Duration::from_millis(5), patience: Duration::from_secs(5) }
    }
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum ReclaimError {
    /// Its heaps could not be looked into.
    #[error(transparent)]
    Look(#[from] LookError),
    /// Its files could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Nothing may be called inside it.
    #[error("{0}")]
    Forbidden(String),
}

/// Gives back what the allocators of `process` keep, or says what would be.
pub fn reclaim(process: &Process, options: &Options) -> Result<Report, ReclaimError> {
    let began = Instant::now();
    let mut report = Report {
        predicted: Bytes::ZERO,
        returned: None,
        longest_stop: Duration::ZERO,
        elapsed: Duration::ZERO,
        levers: Vec::new(),
        notes: Vec::new(),
    };
    let look = Look::into(process, false)?;
    if look.heaps.iter().any(|heap| heap.name.as_deref().is_some_and(|name| name.starts_with("Go"))) {
        let why = "it is a Go program: goroutines run on small pieces of its heap, where no call can be made";
        return Err(ReclaimError::Forbidden(why.to_owned()));
    }
    for heap in look.known().filter(|heap| heap.figures.returnable > Bytes::ZERO) {
        plan(heap, &mut report);
    }
    report.predicted = report.levers.iter().map(|lever| lever.predicted).sum();
    if !options.dry_run && !report.levers.is_empty() {
        let code = allowed(process)?;
        let before = resident(process)?;
        for lever in &mut report.levers {
            apply(process, &code, options, lever)?;
            report.longest_stop = report.longest_stop.max(lever.longest_stop);
        }
        report.returned = Some(before - resident(process)?);
    }
    report.elapsed = began.elapsed();
    Ok(report)
}

/// The code that a call takes, if a call may be made.
fn allowed(process: &Process) -> Result<Code, ReclaimError> {
    // A filter that does not know madvise may kill the process for it.
    let statuses = process.threads()?.into_iter().map(|thread| thread.status());
    if statuses.flatten().any(|status| status.seccomp.is_some_and(|mode| mode != 0)) {
        return Err(ReclaimError::Forbidden(
            "it runs under a seccomp filter, which may end it for a system call made in its name".to_owned(),
        ));
    }
    let missing = || ReclaimError::Forbidden("it has no C library whose calls are known".to_owned());
    Code::find(process)?.ok_or_else(missing)
}

const TRIM: &str = "malloc-trim";
const TOPS: &str = "arena-tops";
const LUA: &str = "lua-pages";

/// The levers for one heap.
fn plan(heap: &Heap, report: &mut Report) {
    if !heap.corruptions.is_empty() {
        report.notes.push(format!("{}: it looks damaged, and is left alone", heap.kind));
        return;
    }
    let returnable = heap.figures.returnable;
    match heap.kind {
        Kind::Glibc => {
            let by_trim = heap.figures.returnable_by_trim.unwrap_or_default();
            if by_trim > Bytes::ZERO {
                let cost =
                    "each arena is locked while it is gone through: 7 to 11 ms for 300 MB (glibc 2.36)";
                report.levers.push(Lever::planned(TRIM, "glibc's free chunks".to_owned(), by_trim, cost));
            }
            let tops = returnable - by_trim;
            if tops > Bytes::ZERO {
                let cost = "all threads stop for a moment, as often as it takes";
                let on = "the tops of glibc's thread arenas".to_owned();
                report.levers.push(Lever::planned(TOPS, on, tops, cost));
            }
        }
        Kind::LuaJit => {
            let cost = "all threads stop for a moment, as often as it takes";
            report.levers.push(Lever::planned(LUA, "lj_alloc's free chunks".to_owned(), returnable, cost));
        }
        kind => report.notes.push(format!("{kind}: {returnable} could be given back; no lever for it yet")),
    }
}

fn apply(process: &Process, code: &Code, options: &Options, lever: &mut Lever) -> Result<(), ReclaimError> {
    let before = resident(process)?;
    let done = match lever.id {
        TRIM => call::call(process, code, options, &Function { name: "malloc_trim", args: [0; 6] }),
        TOPS => {
            let arenas = glibc::Arenas::find(&live(process)?).map_err(LookError::from)?;
            pages::give_back(process, code, options, &pages::Tops(arenas))
        }
        _ => {
            let states = luajit::States::find(&live(process)?).map_err(LookError::from)?;
            pages::give_back(process, code, options, &pages::Trees(states))
        }
    };
    (lever.longest_stop, lever.stops, lever.short) = (done.longest_stop, done.stops, done.short);
    lever.returned = Some(before - resident(process)?);
    Ok(())
}

fn live(process: &Process) -> Result<ebbtide_heaps::Live<'_>, ReadError> {
    ebbtide_heaps::Live::new(process, false)
}

/// What giving back makes less of: anonymous memory that is resident.
fn resident(process: &Process) -> Result<Bytes, ReadError> {
    Ok(process.rollup()?.anonymous)
}

/// How far a lever came.
#[derive(Debug, Default)]
struct Done {
    longest_stop: Duration,
    stops: u32,
    /// Why not to the end.
    short: Option<String>,
}
