//! What a process's allocators keep: given back from outside, without its help.
//!
//! Two ways. [`call`]: one thread that waits in a system call is borrowed and calls the allocator's own function;
//! everybody else runs on, and waits for a lock at most. [`pages`]: for what no function gives back, all threads are
//! stopped for a moment, and a thread at rest makes the system call that drops exactly the pages that the allocator's
//! books, read in that same moment, call free; each stop is short, and there are as many as it takes. Runtimes that can
//! be asked to collect are asked first, where that is wanted: [`jvm`], [`python`]; [`redis`] purges by itself where
//! nothing can be called in it. [`lasting`] sets what shall stay so.
//!
//! Invariants: [`rest`] decides which thread may be borrowed and whether a process is at rest; under a seccomp filter no
//! function is called, and a system call only with the filter suspended; nothing is done to a heap that looks damaged.

mod call;
mod code;
mod jvm;
mod lasting;
mod levers;
mod pages;
mod python;
mod redis;
mod rest;

use crate::report::{Lever, Report};
use crate::slow::settled;
use code::Code;
use ebbtide_heaps::cpython::Requests;
use ebbtide_heaps::{Look, LookError, luajit, musl};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, ReadError};
use levers::{Function, Planner, Way};
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
    /// Have a Redis defragment for so long at most.
    pub defragment: Option<Duration>,
    /// Set its allocator so that less is kept from now on, until the process ends.
    pub lasting: bool,
}

impl Default for Options {
    fn default() -> Options {
        let (max_stop, patience) = (Duration::from_millis(5), Duration::from_secs(5));
        Options { dry_run: false, max_stop, patience, collect: false, defragment: None, lasting: false }
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
    let is_redis = redis::is_server(process);
    let planner = Planner { max_stop, is_filtered, is_redis, jvm: process.jvm().ok().flatten() };
    let mut notes = Vec::new();
    let mut hand = if options.dry_run { None } else { Some(Hand::new(process, options)?) };
    let mut plan: Vec<Step> =
        collection(process, options, &planner, &look, &mut notes)?.into_iter().collect();
    match options.defragment {
        Some(_) if is_redis => plan.push((redis::defragmentation(process, options), Way::Defragment)),
        Some(_) => notes.push("it is no Redis that could be told to defragment".to_owned()),
        None => {}
    }
    if let Some(hand) = hand.as_mut().filter(|_| !plan.is_empty()) {
        hand.apply(&mut plan)?;
        // What was garbage then, or fragments, is its allocators' now.
        look = Look::into(process, false)?;
    }
    let heaps = look.known().filter(|heap| heap.figures.returnable > Bytes::ZERO);
    let mut rest: Vec<Step> = heaps.flat_map(|heap| planner.levers(heap, &mut notes)).collect();
    if options.lasting {
        rest.extend(lasting::plan(process, &look, &planner, &mut notes)?);
    }
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
            Way::Call(function) => match self.code() {
                Ok(code) => self.call(code, function, lever),
                Err(ReclaimError::Forbidden(why)) if self.can_ask(function) => self.instead(lever, why),
                Err(error) => return Err(error),
            },
            Way::Redis => redis::purge(process, options),
            Way::Defragment => {
                let patience = options.defragment.unwrap_or(options.patience);
                redis::defragment(process, patience, &mut lever.undo)
            }
            Way::Lasting(kind) => lasting::set(process, self.code()?, options, *kind, &mut lever.settings)?,
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

    /// Calls `function`, or has it done otherwise where no thread could be borrowed.
    fn call(&self, code: &Code, function: &Function, lever: &mut Lever) -> Done {
        let mut done = call::call(self.process, code, self.options, function);
        match done.short.take_if(|_| !done.is_begun && self.can_ask(function)) {
            Some(why) => done.and(self.instead(lever, why)),
            None => done,
        }
    }

    /// Whether the process can do by itself what `function` would.
    fn can_ask(&self, function: &Function) -> bool {
        *function == levers::JEMALLOC && redis::is_server(self.process)
    }

    /// What Redis does itself, as nothing can be called in it: `why`.
    fn instead(&self, lever: &mut Lever, why: String) -> Done {
        let mut done = redis::purge(self.process, self.options);
        match &mut done.short {
            Some(refused) => *refused = format!("{why}; and over its socket: {refused}"),
            None => (lever.id, lever.on) = ("redis-purge", format!("{}, as {why}", levers::PURGE)),
        }
        done
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
    /// Whether a function was entered: then it is not to be done again.
    is_begun: bool,
    /// Why not to the end.
    short: Option<String>,
}

impl Done {
    /// This, and what was done next.
    fn and(self, next: Done) -> Done {
        Done {
            longest_stop: self.longest_stop.max(next.longest_stop),
            stops: self.stops + next.stops,
            is_begun: self.is_begun || next.is_begun,
            short: next.short,
        }
    }
}
