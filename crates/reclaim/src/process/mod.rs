//! What a process's allocators keep: given back from outside, without its help.
//!
//! Two ways. [`call`]: one thread that waits in a system call is borrowed and calls the allocator's own function;
//! everybody else runs on, and waits for a lock at most. [`pages`]: for what no function gives back, all threads are
//! stopped for a moment, and a thread at rest makes the system call that drops exactly the pages that the allocator's
//! books, read in that same moment, call free; each stop is short, and there are as many as it takes. Runtimes that can
//! be asked to collect are asked first, where that is wanted: [`jvm`], [`python`].
//!
//! Invariants: [`rest`] decides which thread may be borrowed and whether a process is at rest; under a seccomp filter no
//! function is called, and a system call only with the filter suspended; nothing is done to a heap that looks damaged.

mod call;
mod code;
mod jvm;
mod levers;
mod pages;
mod python;
mod rest;

use crate::report::{Lever, Report};
use crate::slow::settled;
use code::Code;
use ebbtide_heaps::cpython::Requests;
use ebbtide_heaps::{Look, LookError, luajit, musl};
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
    let mut look = Look::into(process, false)?;
    if look.heaps.iter().any(|heap| heap.name.as_deref().is_some_and(|name| name.starts_with("Go"))) {
        let why = "it is a Go program: goroutines run on small pieces of its heap, where no call can be made";
        return Err(ReclaimError::Forbidden(why.to_owned()));
    }
    let (max_stop, is_filtered) = (options.max_stop, code::is_filtered(process)?);
    let planner = Planner { max_stop, is_filtered, jvm: process.jvm().ok().flatten() };
    let mut notes = Vec::new();
    let mut hand = if options.dry_run { None } else { Some(Hand::new(process, options)?) };
    let mut plan: Vec<Step> =
        collection(process, options, &planner, &look, &mut notes)?.into_iter().collect();
    if let Some(hand) = hand.as_mut().filter(|_| !plan.is_empty()) {
        hand.apply(&mut plan)?;
        // What was garbage then is its allocators' now.
        look = Look::into(process, false)?;
    }
    let heaps = look.known().filter(|heap| heap.figures.returnable > Bytes::ZERO);
    let mut rest: Vec<Step> = heaps.flat_map(|heap| planner.levers(heap, &mut notes)).collect();
    if let Some(hand) = &mut hand {
        hand.apply(&mut rest)?;
    }
    plan.append(&mut rest);
    let levers: Vec<Lever> = plan.into_iter().map(|(lever, _)| lever).collect();
    let allowed = levers.iter().filter(|lever| lever.returned.is_some() || lever.short.is_none());
    Ok(Report {
        predicted: allowed.map(|lever| lever.predicted).sum(),
        returned: hand.filter(|_| !levers.is_empty()).map(|hand| hand.before - hand.resident),
        longest_stop: levers.iter().map(|lever| lever.longest_stop).max().unwrap_or_default(),
        elapsed: began.elapsed(),
        levers,
        notes,
    })
}

/// A lever, and how it is applied.
type Step = (Lever, Way);

/// The collection that is asked for. Why there is none, and what one would give back, goes into `notes`.
fn collection(
    process: &Process,
    options: &Options,
    planner: &Planner,
    look: &Look,
    notes: &mut Vec<String>,
) -> Result<Option<Step>, ReclaimError> {
    match planner.collection(jvm_heap(look)) {
        Some(collection) if options.collect => return Ok(Some(collection)),
        Some((lever, _)) if lever.predicted > Bytes::ZERO => {
            notes.push(format!("a collection would give back about {} (--gc)", lever.predicted));
        }
        None if options.collect => match Requests::find(&live(process)?).map_err(LookError::from)? {
            Some(Ok(requests)) => return Ok(Some(python::collection(requests))),
            Some(Err(deaf)) => notes.push(deaf.to_string()),
            None => notes.push("it runs no JVM and no CPython that could be told to collect".to_owned()),
        },
        _ => {}
    }
    Ok(None)
}

/// What applies levers.
struct Hand<'p> {
    process: &'p Process,
    options: &'p Options,
    /// Searched for when the first lever needs it: a JVM is only asked.
    code: OnceCell<Code>,
    /// What the process had at first.
    before: Bytes,
    /// What it has now.
    resident: Bytes,
}

impl<'p> Hand<'p> {
    fn new(process: &'p Process, options: &'p Options) -> Result<Hand<'p>, ReadError> {
        let before = anonymous(process)?;
        Ok(Hand { process, options, code: OnceCell::new(), before, resident: before })
    }

    /// Applies what of `plan` may be.
    fn apply(&mut self, plan: &mut [Step]) -> Result<(), ReclaimError> {
        plan.iter_mut().filter(|(lever, _)| lever.short.is_none()).try_for_each(|step| self.pull(step))
    }

    fn pull(&mut self, (lever, way): &mut Step) -> Result<(), ReclaimError> {
        let &mut Hand { process, options, .. } = self;
        let done = match way {
            Way::Jvm(command) => jvm::ask(process, command, options.patience),
            Way::Python(requests) => python::collect(process, options, requests),
            Way::Call(function) => call::call(process, self.code()?, options, function),
            Way::Arenas { all } => {
                let arenas = pages::Arenas::find(&live(process)?, *all).map_err(LookError::from)?;
                pages::give_back(process, self.code()?, options, &arenas)
            }
            Way::Slots => {
                let groups = musl::Groups::find(&live(process)?).map_err(LookError::from)?;
                pages::give_back(process, self.code()?, options, &pages::Slots(groups))
            }
            Way::Trees => {
                let states = luajit::States::find(&live(process)?).map_err(LookError::from)?;
                pages::give_back(process, self.code()?, options, &pages::Trees(states))
            }
        };
        (lever.longest_stop, lever.stops, lever.short) = (done.longest_stop, done.stops, done.short);
        let after = match way {
            // G1 gives back from a thread of its own (JDK 16 and later), which on a busy machine begins late.
            Way::Jvm(_) => settled(Duration::from_secs(1), || anonymous(process).unwrap_or(self.resident)),
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

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// How far a lever came.
#[derive(Debug, Default)]
struct Done {
    longest_stop: Duration,
    stops: u32,
    /// Why not to the end.
    short: Option<String>,
}
