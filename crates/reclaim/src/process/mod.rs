//! What a process's allocators keep: given back from outside, without its help.
//!
//! Two ways, and for a JVM a third, [`jvm`]: it is asked. [`call`]: one thread that waits in a system call is borrowed and calls the allocator's own function;
//! everybody else runs on, and waits for a lock at most. [`pages`]: for what no function gives back, all threads are
//! stopped for a moment, and a thread at rest makes the system call that drops exactly the pages that the allocator's
//! books, read in that same moment, call free; each stop is short, and there are as many as it takes.
//!
//! Invariants: [`rest`] decides which thread may be borrowed and whether a process is at rest; under a seccomp filter no
//! function is called, and a system call only with the filter suspended; nothing is done to a heap that looks damaged.

mod call;
mod code;
mod jvm;
mod levers;
mod pages;
mod rest;

use crate::report::{Lever, Report};
use crate::slow::settled;
use code::Code;
use ebbtide_heaps::{Look, LookError, luajit};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, ReadError};
use levers::{Planner, Way};
use std::cell::OnceCell;
use std::time::{Duration, Instant};

/// How to go about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Only plan.
    pub dry_run: bool,
    /// For how long all threads may stand still at once.
    pub max_stop: Duration,
    /// For how long, all in all, a moment is waited for in which the process is at rest, or an answer of its runtime.
    pub patience: Duration,
    /// Have its runtime collect first, which stops the program for as long as that takes.
    pub collect: bool,
}

impl Default for Options {
    fn default() -> Options {
        let (max_stop, patience) = (Duration::from_millis(5), Duration::from_secs(5));
        Options { dry_run: false, max_stop, patience, collect: false }
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
    let (max_stop, is_filtered) = (options.max_stop, code::is_filtered(process)?);
    let planner = Planner { max_stop, is_filtered, jvm: process.jvm().ok().flatten() };
    let mut plan: Vec<(Lever, Way)> = Vec::new();
    match planner.collection(jvm_heap(&look)) {
        Some(collection) if options.collect => plan.push(collection),
        Some((lever, _)) if lever.predicted > Bytes::ZERO => {
            report.notes.push(format!("a collection would give back about {} (--gc)", lever.predicted));
        }
        None if options.collect => {
            report.notes.push("it runs no JVM that could be told to collect".to_owned())
        }
        _ => {}
    }
    let heaps = look.known().filter(|heap| heap.figures.returnable > Bytes::ZERO);
    plan.extend(heaps.flat_map(|heap| planner.levers(heap, &mut report.notes)));
    let allowed = plan.iter().filter(|(lever, _)| lever.short.is_none());
    report.predicted = allowed.map(|(lever, _)| lever.predicted).sum();
    if !options.dry_run && !plan.is_empty() {
        let before = anonymous(process)?;
        let mut hand = Hand { process, options, code: OnceCell::new(), resident: before };
        for step in plan.iter_mut().filter(|(lever, _)| lever.short.is_none()) {
            hand.apply(step)?;
            report.longest_stop = report.longest_stop.max(step.0.longest_stop);
        }
        report.returned = Some(before - hand.resident);
    }
    report.levers = plan.into_iter().map(|(lever, _)| lever).collect();
    report.elapsed = began.elapsed();
    Ok(report)
}

/// What applies levers.
struct Hand<'p> {
    process: &'p Process,
    options: &'p Options,
    /// Searched for when the first lever needs it: a JVM is only asked.
    code: OnceCell<Code>,
    /// What the process has now.
    resident: Bytes,
}

impl Hand<'_> {
    fn apply(&mut self, (lever, way): &mut (Lever, Way)) -> Result<(), ReclaimError> {
        let &mut Hand { process, options, .. } = self;
        let done = match way {
            Way::Jvm(command) => jvm::ask(process, command, options.patience),
            Way::Call(function) => call::call(process, self.code()?, options, function),
            Way::Arenas { all } => {
                let arenas = pages::Arenas::find(&live(process)?, *all).map_err(LookError::from)?;
                pages::give_back(process, self.code()?, options, &arenas)
            }
            Way::Trees => {
                let states = luajit::States::find(&live(process)?).map_err(LookError::from)?;
                pages::give_back(process, self.code()?, options, &pages::Trees(states))
            }
        };
        (lever.longest_stop, lever.stops, lever.short) = (done.longest_stop, done.stops, done.short);
        let after = match way {
            // G1 gives back from a thread of its own, within a second (JDK 16 and later).
            Way::Jvm(_) => settled(|| anonymous(process).unwrap_or(self.resident)),
            _ => anonymous(process)?,
        };
        lever.returned = Some(self.resident - after);
        self.resident = after;
        Ok(())
    }

    fn code(&self) -> Result<&Code, ReclaimError> {
        if let Some(code) = self.code.get() {
            return Ok(code);
        }
        let missing = || ReclaimError::Forbidden("it has no C library whose calls are known".to_owned());
        let code = Code::find(self.process)?.ok_or_else(missing)?;
        Ok(self.code.get_or_init(|| code))
    }
}

fn live(process: &Process) -> Result<ebbtide_heaps::Live<'_>, ReadError> {
    ebbtide_heaps::Live::new(process, false)
}

/// What is resident of a JVM's own heap.
fn jvm_heap(look: &Look) -> Bytes {
    let heaps = look.heaps.iter().filter(|heap| heap.name.as_deref() == Some("JVM heap"));
    heaps.map(|heap| heap.figures.resident).sum()
}

/// What giving back makes less of: anonymous memory that is resident.
fn anonymous(process: &Process) -> Result<Bytes, ReadError> {
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
