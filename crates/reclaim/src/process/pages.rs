//! Drops the free pages that no function gives back: the tops of glibc's thread arenas, the chunks of LuaJIT's trees.
//!
//! All threads are stopped, and must all be at rest; then what is free is read from the allocator's books, and a thread
//! drops it: process_madvise on itself (6.14 and later, many ranges at once), else madvise for each. A stop ends when
//! its time is over, and the next one begins where it ended.
//!
//! Invariant: a page is dropped in the same stop in which the books called it free.

use super::code::Code;
use super::rest::{Resting, Scene};
use super::{Done, Options};
use ebbtide_heaps::{Fault, Live, MemorySource, PageState, Residency, glibc, luajit};
use ebbtide_observe::process::Process;
use ebbtide_sys::borrow::{BorrowError, Borrowed};
use ebbtide_sys::freeze::{self, Stopped};
use std::ops::Range;
use std::time::{Duration, Instant};

const MADVISE: u64 = 28;
const PROCESS_MADVISE: u64 = 440;
const DONTNEED: u64 = 4;
/// PIDFD_SELF_THREAD (6.14): no descriptor is opened in the target.
const SELF: u64 = (-10000_i64) as u64;
/// Ranges dropped by one system call; 4 KiB of the target's stack hold them.
const BATCH: usize = 256;
/// And so much at most, unless one range is larger: 0.6 ms (0.3 us for each page of a run, measured on 6.18).
const BATCH_BYTES: u64 = 8 << 20;
/// One system call in the target.
const CALL_MOST: Duration = Duration::from_millis(500);
/// Between two looks whether it is at rest.
const PAUSE: Duration = Duration::from_micros(500);
/// The target runs for at least so many times as long as it stood still.
const SHARE: u32 = 4;

/// What was found free.
pub(super) struct Found {
    /// Whole pages, resident or not.
    pages: Vec<Range<u64>>,
    /// Whether that is all there is.
    is_all: bool,
}

/// Says what is free, in parts that are asked for one by one.
pub(super) trait Free: Sync {
    /// How many parts there are.
    fn parts(&self) -> usize;

    /// The addresses of its locks; `None` if one of them is held, or its books make no sense.
    fn locks(&self, source: &dyn MemorySource) -> Result<Option<Vec<u64>>, Fault>;

    /// Whole free pages of `part` now, as many as can be found while `go_on`. `None` if the books make no sense.
    fn pages(
        &self,
        source: &dyn MemorySource,
        part: usize,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Found>, Fault>;
}

/// The tops of thread arenas.
pub(super) struct Tops(pub(super) Vec<glibc::Arenas>);

impl Tops {
    fn all(&self, source: &dyn MemorySource) -> Result<Option<Vec<glibc::Top>>, Fault> {
        let mut all = Vec::new();
        for arenas in &self.0 {
            let Some(tops) = arenas.tops(source)? else { return Ok(None) };
            all.extend(tops);
        }
        Ok(Some(all))
    }
}

impl Free for Tops {
    fn parts(&self) -> usize {
        1
    }

    fn locks(&self, source: &dyn MemorySource) -> Result<Option<Vec<u64>>, Fault> {
        let free = self.all(source)?.filter(|tops| !tops.iter().any(|top| top.is_locked));
        Ok(free.map(|tops| tops.iter().map(|top| top.arena).collect()))
    }

    fn pages(
        &self,
        source: &dyn MemorySource,
        _: usize,
        _: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Found>, Fault> {
        let pages = |tops: Vec<glibc::Top>| tops.into_iter().map(|top| top.pages).collect();
        Ok(self.all(source)?.map(|tops| Found { pages: pages(tops), is_all: true }))
    }
}

/// The trees of Lua states. lj_alloc has no locks: a state belongs to one thread at a time.
pub(super) struct Trees(pub(super) luajit::States);

impl Free for Trees {
    fn parts(&self) -> usize {
        self.0.parts()
    }

    fn locks(&self, _: &dyn MemorySource) -> Result<Option<Vec<u64>>, Fault> {
        Ok(Some(Vec::new()))
    }

    fn pages(
        &self,
        source: &dyn MemorySource,
        part: usize,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Found>, Fault> {
        let free = self.0.free(source, part, go_on)?;
        Ok(free.map(|free| Found { pages: free.pages, is_all: free.is_all }))
    }
}

/// How one stop went.
enum Stop {
    /// All was dropped, from this part on to the last.
    All,
    /// Its time was over: so many bytes were dropped, and this part is next.
    Part(u64, usize),
    /// Not all were at rest.
    Busy(String),
    /// It cannot go on.
    Over(String),
}

/// Drops what `free` says is free in `process`.
pub(super) fn give_back(process: &Process, code: &Code, options: &Options, free: &dyn Free) -> Done {
    let mut done = Done::default();
    let (mut part, mut waited) = (0, Instant::now());
    loop {
        let body = |stopped: &Stopped<'_>| Moment { process, stopped, code, options, free }.stop(part);
        let (stop, took) = match freeze::all_stopped(process.pid(), body) {
            Ok(stopped) => stopped,
            Err(error) => {
                done.short = Some(error.to_string());
                return done;
            }
        };
        done.longest_stop = done.longest_stop.max(took);
        done.stops += 1;
        match stop {
            Stop::All => return done,
            Stop::Part(bytes, next) if bytes > 0 || next > part => (part, waited) = (next, Instant::now()),
            Stop::Busy(_) | Stop::Part(..) if waited.elapsed() < options.patience => {}
            Stop::Part(..) => {
                let most = options.max_stop;
                done.short = Some(format!("its books take longer to read than a stop may take: {most:?}"));
                return done;
            }
            Stop::Busy(why) | Stop::Over(why) => {
                done.short = Some(why);
                return done;
            }
        }
        std::thread::sleep(PAUSE.max(took * SHARE));
        await_rest(process, options, waited);
    }
}

/// Waits until it seems to be at rest, without stopping it, or the patience ends.
fn await_rest(process: &Process, options: &Options, since: Instant) {
    while since.elapsed() < options.patience {
        let Ok(source) = Live::new(process, false) else { return };
        if (Scene { process, source: &source, locks: &[] }).threads().1.is_empty() {
            return;
        }
        std::thread::sleep(PAUSE);
    }
}

/// A moment in which everybody stands still.
struct Moment<'a> {
    process: &'a Process,
    stopped: &'a Stopped<'a>,
    code: &'a Code,
    options: &'a Options,
    free: &'a dyn Free,
}

impl Moment<'_> {
    /// Drops what is free, from `part` on, as far as time allows.
    fn stop(&self, part: usize) -> Stop {
        self.try_stop(part).unwrap_or_else(Stop::Over)
    }

    fn try_stop(&self, mut part: usize) -> Result<Stop, String> {
        let source = Live::new(self.process, true).map_err(said)?;
        let Some(locks) = self.free.locks(&source).map_err(said)? else {
            return Ok(Stop::Busy("its allocator is always at work".to_owned()));
        };
        let scene = Scene { process: self.process, source: &source, locks: &locks };
        let (resting, busy) = scene.threads();
        if let Some(tid) = busy.first() {
            let count = busy.len();
            return Ok(Stop::Busy(format!(
                "never are all its threads at rest: {count} are not, {tid} among them"
            )));
        }
        let mut dropped = 0;
        while part < self.free.parts() {
            let Some(found) = self.free.pages(&source, part, &mut || !self.is_over()).map_err(said)? else {
                return Ok(Stop::Busy("its allocator's books do not add up".to_owned()));
            };
            let runs = present(&source, found.pages).map_err(said)?;
            let (bytes, whole) = self.drop_all(&resting, &runs).map_err(said)?;
            dropped += bytes;
            if !whole || !found.is_all {
                return Ok(Stop::Part(dropped, part));
            }
            part += 1;
            if self.is_over() && part < self.free.parts() {
                return Ok(Stop::Part(dropped, part));
            }
        }
        Ok(Stop::All)
    }

    fn is_over(&self) -> bool {
        self.stopped.since() >= self.options.max_stop
    }

    /// Drops `runs` by one of the threads at rest, until the time is over; how much, and whether that was all.
    fn drop_all(&self, resting: &[Resting], runs: &[Range<u64>]) -> Result<(u64, bool), BorrowError> {
        if runs.is_empty() {
            return Ok((0, true));
        }
        let mut why = BorrowError::NoRoom;
        for thread in resting {
            match Borrowed::borrow(self.stopped, thread.tid, self.code.restorer, thread.stack.clone()) {
                Ok(mut borrowed) => return self.drop_by(&mut borrowed, runs),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    fn drop_by(&self, thread: &mut Borrowed<'_>, runs: &[Range<u64>]) -> Result<(u64, bool), BorrowError> {
        let (mut sum, mut at_once) = (0, true);
        for batch in batches(runs) {
            // The first is always dropped, so that each stop comes further.
            if sum > 0 && self.is_over() {
                return Ok((sum, false));
            }
            let bytes: u64 = batch.iter().map(|run| run.end - run.start).sum();
            if at_once {
                // Less than all of it comes only of a kernel that cannot do this on its own process.
                at_once = self.drop_batch(thread, batch)? == bytes as i64;
                sum += if at_once { bytes } else { 0 };
            }
            for run in batch.iter().filter(|_| !at_once) {
                if sum > 0 && self.is_over() {
                    return Ok((sum, false));
                }
                let args = [run.start, run.end - run.start, DONTNEED, 0, 0, 0];
                if thread.system_call(self.code.gate, MADVISE, args, CALL_MOST)? == 0 {
                    sum += run.end - run.start;
                }
            }
        }
        Ok((sum, true))
    }

    fn drop_batch(&self, thread: &mut Borrowed<'_>, batch: &[Range<u64>]) -> Result<i64, BorrowError> {
        let words = batch.iter().flat_map(|run| [run.start, run.end - run.start]);
        let vector: Vec<u8> = words.flat_map(u64::to_le_bytes).collect();
        let args = [SELF, thread.scratch(&vector)?, batch.len() as u64, DONTNEED, 0, 0];
        thread.system_call(self.code.gate, PROCESS_MADVISE, args, CALL_MOST)
    }
}

/// `runs` in parts that one system call drops in a fraction of a stop.
fn batches(runs: &[Range<u64>]) -> impl Iterator<Item = &[Range<u64>]> {
    let mut rest = runs;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |run: &&Range<u64>| {
            bytes += run.end - run.start;
            bytes <= BATCH_BYTES
        };
        let count = rest.iter().take(BATCH).take_while(fits).count().max(1).min(rest.len());
        let (batch, after) = rest.split_at_checked(count).filter(|(batch, _)| !batch.is_empty())?;
        rest = after;
        Some(batch)
    })
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// What of `pages` is in memory.
fn present(source: &dyn MemorySource, mut pages: Vec<Range<u64>>) -> Result<Vec<Range<u64>>, Fault> {
    pages.sort_unstable_by_key(|range| range.start);
    let (mut residency, mut runs) = (Residency::new(source), Vec::new());
    for range in pages.into_iter().filter(|range| !range.is_empty()) {
        residency.each(range, |run, state| {
            if state == PageState::Present {
                runs.push(run);
            }
        })?;
    }
    Ok(runs)
}
