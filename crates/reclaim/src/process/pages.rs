//! Drops free pages that no function gives back, or none in a time that the process could bear: the tops of glibc's
//! thread arenas and the chunks in its bins, the chunks of LuaJIT's trees, the free slots of musl's groups.
//!
//! All threads are stopped, and must all be at rest, or come there in a moment; then what is free is read from the allocator's books, and a thread
//! drops it: process_madvise on itself (6.14 and later, many ranges at once), else madvise for each. A stop ends when
//! its time is over, and the next one begins where it ended.
//!
//! Invariant: a page is dropped in the same stop in which the books called it free.

use super::code::Code;
use super::rest::{ENDS, Resting, Scene};
use super::{Done, Options, said};
use ebbtide_heaps::{Fault, Free, Live, MemorySource, PageState, Residency, glibc, luajit, musl};
use ebbtide_observe::process::Process;
use ebbtide_sys::borrow::{BorrowError, Borrowed};
use ebbtide_sys::freeze::{self, FreezeError, Stopped};
use std::ops::Range;
use std::time::{Duration, Instant};

const MADVISE: u64 = 28;
const PROCESS_MADVISE: u64 = 440;
const DONTNEED: u64 = 4;
/// PIDFD_SELF_THREAD (6.14): no descriptor is opened in the target.
const SELF: u64 = (-10000_i64) as u64;
/// Ranges dropped by one system call; 4 KiB of the target's stack hold them.
const BATCH: usize = 256;
/// And so much at most: 0.3 ms (0.3 us for each page of a run, measured on 6.18).
const BATCH_BYTES: u64 = 4 << 20;
/// One system call in the target.
const CALL_MOST: Duration = Duration::from_millis(500);
/// Between two looks whether it is at rest.
const PAUSE: Duration = Duration::from_micros(500);
/// A process that never seems to be at rest may be met at the ends of its calls.
const REST_MOST: Duration = Duration::from_millis(50);
/// The target runs for at least so many times as long as it stood still.
const SHARE: u32 = 4;

/// An allocator whose books say what is free.
pub(super) trait Allocator: Sync {
    /// Its books now; `None` while they make no sense or a thread is at work in them. `source` stands still.
    fn now<'s>(&'s self, source: &'s dyn MemorySource) -> Result<Option<Box<dyn Now + 's>>, Fault>;
}

/// An allocator's books at one moment.
pub(super) trait Now {
    /// The addresses of its locks.
    fn locks(&self) -> Vec<u64>;

    /// Into how many parts its books are divided.
    fn parts(&self) -> usize;

    /// Whole free pages of `part`, as many as can be found while `go_on`. `None` if the books make no sense.
    fn free(&self, part: usize, go_on: &mut dyn FnMut() -> bool) -> Result<Option<Free>, Fault>;
}

/// glibc's arenas: the tops of thread arenas, and with `chunks`, which are those in bins, all that is free.
pub(super) struct Arenas {
    of: Vec<(glibc::Arenas, Option<Vec<Range<u64>>>)>,
}

/// Chunks in one part: their headers are read in less than half a millisecond.
const CHUNKS: usize = 128;

impl Arenas {
    /// Those of a process that runs on; with `all`, all that is free.
    pub(super) fn find(source: &dyn MemorySource, all: bool) -> Result<Arenas, Fault> {
        let with_chunks = |arenas: glibc::Arenas| {
            let chunks = all.then(|| arenas.chunks(source)).transpose()?;
            Ok((arenas, chunks))
        };
        let of = glibc::Arenas::find(source)?.into_iter().map(with_chunks);
        Ok(Arenas { of: of.collect::<Result<_, Fault>>()? })
    }
}

impl Allocator for Arenas {
    fn now<'s>(&'s self, source: &'s dyn MemorySource) -> Result<Option<Box<dyn Now + 's>>, Fault> {
        let mut all = Vec::new();
        for (arenas, chunks) in &self.of {
            let Some(now) = arenas.now(source)?.filter(|now| !now.is_locked()) else { return Ok(None) };
            all.push((now, chunks.as_deref()));
        }
        Ok(Some(Box::new(GlibcNow(all))))
    }
}

struct GlibcNow<'s>(Vec<(glibc::ArenasNow<'s>, Option<&'s [Range<u64>]>)>);

/// The tops, and the chunks in so many parts.
fn parts(chunks: Option<&[Range<u64>]>) -> usize {
    1 + chunks.unwrap_or_default().len().div_ceil(CHUNKS)
}

impl Now for GlibcNow<'_> {
    fn locks(&self) -> Vec<u64> {
        self.0.iter().flat_map(|(now, _)| now.locks()).collect()
    }

    fn parts(&self) -> usize {
        self.0.iter().map(|(_, chunks)| parts(*chunks)).sum()
    }

    fn free(&self, mut part: usize, _: &mut dyn FnMut() -> bool) -> Result<Option<Free>, Fault> {
        for (now, chunks) in &self.0 {
            match part.checked_sub(parts(*chunks)) {
                Some(rest) => part = rest,
                None if part == 0 => return now.tops(chunks.is_some()),
                None => {
                    let batch = chunks.unwrap_or_default().chunks(CHUNKS).nth(part - 1);
                    return now.free(batch.unwrap_or_default()).map(Some);
                }
            }
        }
        Ok(None)
    }
}

/// The trees of Lua states. lj_alloc has no locks: a state belongs to one thread at a time.
pub(super) struct Trees(pub(super) luajit::States);

impl Allocator for Trees {
    fn now<'s>(&'s self, source: &'s dyn MemorySource) -> Result<Option<Box<dyn Now + 's>>, Fault> {
        Ok(Some(Box::new((&self.0, source))))
    }
}

impl Now for (&luajit::States, &dyn MemorySource) {
    fn locks(&self) -> Vec<u64> {
        Vec::new()
    }

    fn parts(&self) -> usize {
        self.0.parts()
    }

    fn free(&self, part: usize, go_on: &mut dyn FnMut() -> bool) -> Result<Option<Free>, Fault> {
        self.0.free(self.1, part, go_on)
    }
}

/// musl's groups of slots.
///
/// Its lock has no symbol, and need not be known: nobody stands in the middle of a change and is at rest. mallocng changes
/// its books between taking the lock and leaving it, or by one atomic step, and makes no call that waits meanwhile
/// (mmap, munmap, mprotect, mremap, brk, madvise: malloc.c, free.c, realloc.c, 1.2.1 to 1.2.5). Whoever waits for the
/// lock has read nothing yet that is used afterwards but of a block that is still taken; and fork(), which holds it and
/// may wait for another (fork.c), changes nothing.
pub(super) struct Slots(pub(super) Option<musl::Groups>);

impl Allocator for Slots {
    fn now<'s>(&'s self, source: &'s dyn MemorySource) -> Result<Option<Box<dyn Now + 's>>, Fault> {
        match &self.0 {
            Some(groups) if groups.are_sound(source)? => Ok(Some(Box::new((groups, source)))),
            _ => Ok(None),
        }
    }
}

impl Now for (&musl::Groups, &dyn MemorySource) {
    fn locks(&self) -> Vec<u64> {
        Vec::new()
    }

    fn parts(&self) -> usize {
        self.0.parts()
    }

    fn free(&self, part: usize, _: &mut dyn FnMut() -> bool) -> Result<Option<Free>, Fault> {
        self.0.free(self.1, part).map(Some)
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

/// Why nothing was dropped.
enum Unrest {
    /// These are not at rest.
    Busy(Vec<u32>),
    /// It cannot go on.
    Over(String),
}

impl From<String> for Unrest {
    fn from(why: String) -> Unrest {
        Unrest::Over(why)
    }
}

/// These threads are not at rest.
fn never(busy: &[u32]) -> Stop {
    let (count, tid) = (busy.len(), busy.first().copied().unwrap_or_default());
    Stop::Busy(format!("never are all its threads at rest: {count} are not, {tid} among them"))
}

/// Drops what `allocator` says is free in `process`.
pub(super) fn give_back(
    process: &Process,
    code: &Code,
    options: &Options,
    allocator: &dyn Allocator,
) -> Done {
    let mut done = Done::default();
    let (mut part, mut waited) = (0, Instant::now());
    loop {
        let body = |stopped: &Stopped<'_>| Moment { process, stopped, code, options, allocator }.stop(part);
        let (stop, took) = match freeze::all_stopped(process.pid(), options.max_stop, body) {
            Ok(stopped) => stopped,
            Err(error @ FreezeError::Stuck(_)) => (Stop::Busy(error.to_string()), options.max_stop),
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
                let why =
                    format!("its books take longer to read than a stop may take: {most:?} (--max-stop)");
                done.short = Some(why);
                return done;
            }
            Stop::Busy(why) | Stop::Over(why) => {
                done.short = Some(why);
                return done;
            }
        }
        std::thread::sleep(PAUSE.max(took * SHARE));
        await_rest(process, (options.patience.saturating_sub(waited.elapsed())).min(REST_MOST));
    }
}

/// Waits until it seems to be at rest, without stopping it, or for `most`.
fn await_rest(process: &Process, most: Duration) {
    let began = Instant::now();
    while began.elapsed() < most {
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
    allocator: &'a dyn Allocator,
}

impl Moment<'_> {
    /// Drops what is free, from `part` on, as far as time allows.
    fn stop(&self, part: usize) -> Stop {
        self.try_stop(part).unwrap_or_else(Stop::Over)
    }

    fn try_stop(&self, part: usize) -> Result<Stop, String> {
        let mut stop = self.at_rest(part);
        if let Err(Unrest::Busy(busy)) = &stop {
            match self.await_ends(busy)? {
                Some(stop) => return Ok(stop),
                None => stop = self.at_rest(part),
            }
        }
        match stop {
            Ok(stop) => Ok(stop),
            Err(Unrest::Busy(busy)) => Ok(never(&busy)),
            Err(Unrest::Over(why)) => Err(why),
        }
    }

    /// Drops what is free, from `part` on, if all are at rest.
    fn at_rest(&self, mut part: usize) -> Result<Stop, Unrest> {
        let source = Live::new(self.process, true).map_err(said)?;
        let now = self.allocator.now(&source).map_err(said)?;
        let locks = now.as_ref().map(|now| now.locks()).unwrap_or_default();
        let (resting, busy) = Scene { process: self.process, source: &source, locks: &locks }.threads();
        if !busy.is_empty() {
            return Err(Unrest::Busy(busy));
        }
        let Some(now) = now else {
            return Ok(Stop::Busy("its allocator is always at work".to_owned()));
        };
        let mut dropped = 0;
        while part < now.parts() {
            let Some(found) = now.free(part, &mut || !self.is_over()).map_err(said)? else {
                return Ok(Stop::Busy("its allocator's books do not add up".to_owned()));
            };
            let runs = present(&source, found.pages).map_err(said)?;
            let (bytes, whole) = self.drop_all(&resting, &runs).map_err(said)?;
            dropped += bytes;
            if !whole || !found.is_all {
                return Ok(Stop::Part(dropped, part));
            }
            part += 1;
            if self.is_over() && part < now.parts() {
                return Ok(Stop::Part(dropped, part));
            }
        }
        Ok(Stop::All)
    }

    /// Lets `busy` come to the end of a call that might have waited. Where one does not come, it runs,
    /// and all others must be let go.
    fn await_ends(&self, busy: &[u32]) -> Result<Option<Stop>, String> {
        for (index, &tid) in busy.iter().enumerate() {
            let left = self.options.max_stop.mul_f64(0.5).saturating_sub(self.stopped.since());
            let came = match left.is_zero() {
                true => Err(FreezeError::Stuck(tid)),
                false => self.stopped.run_to_call(tid, left, ENDS),
            };
            match came {
                Ok(()) | Err(FreezeError::Ended) => {}
                Err(FreezeError::Stuck(_)) => return Ok(Some(never(&busy[index..]))),
                Err(error) => return Err(said(error)),
            }
        }
        Ok(None)
    }

    /// Whether there is no time left for looking on: letting all go takes some, too.
    fn is_over(&self) -> bool {
        self.stopped.since() >= self.options.max_stop.mul_f64(0.75)
    }

    /// Drops `runs` by one of the threads at rest, until the time is over; how much, and whether that was all.
    fn drop_all(&self, resting: &[Resting], runs: &[Range<u64>]) -> Result<(u64, bool), BorrowError> {
        if runs.is_empty() {
            return Ok((0, true));
        }
        let mut why = BorrowError::NoRoom;
        for thread in resting {
            let Code { restorer, is_filtered, .. } = *self.code;
            match Borrowed::borrow(self.stopped, thread.tid, restorer, thread.stack.clone(), is_filtered) {
                Ok(mut borrowed) => return self.drop_by(&mut borrowed, runs),
                Err(error) => why = error,
            }
        }
        Err(why)
    }

    fn drop_by(&self, thread: &mut Borrowed<'_>, runs: &[Range<u64>]) -> Result<(u64, bool), BorrowError> {
        let (mut sum, mut at_once) = (0, true);
        let mut last = Duration::ZERO;
        for batch in batches(runs) {
            let began = self.stopped.since();
            // The first is always dropped, so that each stop comes further.
            if sum > 0 && (self.is_over() || began + last > self.options.max_stop) {
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
            last = self.stopped.since() - began;
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

/// What of `pages` is in memory, in pieces that one system call may drop.
fn present(source: &dyn MemorySource, mut pages: Vec<Range<u64>>) -> Result<Vec<Range<u64>>, Fault> {
    pages.sort_unstable_by_key(|range| range.start);
    let (mut residency, mut runs) = (Residency::new(source), Vec::new());
    for range in pages.into_iter().filter(|range| !range.is_empty()) {
        residency.each(range, |run, state| {
            if state == PageState::Present {
                let starts = run.clone().step_by(BATCH_BYTES as usize);
                runs.extend(starts.map(|start| start..run.end.min(start + BATCH_BYTES)));
            }
        })?;
    }
    Ok(runs)
}
