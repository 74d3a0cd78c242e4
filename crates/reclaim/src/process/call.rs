//! Has a thread at rest call a function of the program's own allocator, while all others run on. Where none waits, one is
//! met at the end of a call that might have waited.

use super::code::{self, Code};
use super::levers::Function;
use super::rest::{ENDS, Resting, Scene};
use super::{Done, Options, said};
use ebbtide_heaps::Live;
use ebbtide_observe::process::Process;
use ebbtide_sys::borrow::{BorrowError, Borrowed};
use ebbtide_sys::freeze::{self, FreezeError};
use std::time::{Duration, Instant};

/// The call itself may take so long; then it is left to end by itself. malloc_trim goes through 1 GB in 30 ms.
pub(super) const CALL_MOST: Duration = Duration::from_secs(2);
/// Between two looks for a thread at rest.
const PAUSE: Duration = Duration::from_millis(1);

/// Calls `function` in `process`.
pub(super) fn call(process: &Process, code: &Code, options: &Options, function: &Function) -> Done {
    let mut done = Done::default();
    by_thread(process, code, options, function, &mut done, &|borrowed, address| {
        let mut args = function.args;
        if let Some(text) = function.text {
            let bytes: Vec<u8> = text.bytes().chain([0]).collect();
            args[0] = borrowed.beside(&bytes)?;
        }
        borrowed.call(address, args, CALL_MOST)
    });
    done
}

/// What a borrowed thread does with a function's address.
pub(super) type Act<'a, T> = dyn Fn(&mut Borrowed<'_>, u64) -> Result<T, BorrowError> + Sync + 'a;

/// Has a thread do `act` with `function`, once; how that went is added to `done`. `None` where `done` says why not.
pub(super) fn by_thread<T: Send>(
    process: &Process,
    code: &Code,
    options: &Options,
    function: &Function,
    done: &mut Done,
    act: &Act<'_, T>,
) -> Option<T> {
    let Some(address) = code::function(process, function) else {
        done.short = Some(format!("no file of it has {} among its symbols", function.names[0]));
        return None;
    };
    let (began, mut turn) = (Instant::now(), 0);
    loop {
        match (Attempt { process, code, options, address, act }).make(turn, done) {
            Ok(Ok(result)) => return Some(result),
            // It is not made twice.
            Ok(Err(error)) => {
                let name = function.names[0];
                done.is_begun = true;
                done.short = Some(match error {
                    BorrowError::Late => format!("{name} takes longer than {CALL_MOST:?} and goes on"),
                    other => format!("{name}: {other}"),
                });
                return None;
            }
            Err(why) if began.elapsed() > options.patience => {
                done.short = Some(why);
                return None;
            }
            Err(_) => std::thread::sleep(PAUSE),
        }
        turn += 1;
    }
}

/// One attempt.
struct Attempt<'a, T> {
    process: &'a Process,
    code: &'a Code,
    options: &'a Options,
    address: u64,
    act: &'a Act<'a, T>,
}

impl<T: Send> Attempt<'_, T> {
    /// What came of the call; an error says why there was none, and another attempt may be made.
    fn make(&self, turn: usize, done: &mut Done) -> Result<Result<T, BorrowError>, String> {
        let pid = self.process.pid();
        let (resting, busy) = self.threads()?;
        let called = match (resting.first(), busy.len()) {
            (Some(resting), _) => {
                let tid = resting.tid;
                freeze::one_stopped(pid, tid, |stopped| self.call(stopped, tid))
            }
            (None, 0) => return Err("no thread of it is at rest".to_owned()),
            (None, count) => {
                // In turn: not each of them makes such calls.
                let tid = busy[turn % count];
                let body = |stopped: &freeze::Stopped<'_>| self.call(stopped, tid);
                freeze::one_after_call(pid, tid, self.options.max_stop, ENDS, body)
            }
        };
        let (called, stop) = called.map_err(|error| match error {
            FreezeError::Stuck(_) => "no thread of it is at rest, or comes there".to_owned(),
            error => said(error),
        })?;
        done.longest_stop = done.longest_stop.max(stop);
        done.stops += 1;
        called
    }

    /// The threads that may make the call now, and those that are not at rest.
    fn threads(&self) -> Result<(Vec<Resting>, Vec<u32>), String> {
        let source = Live::new(self.process, false).map_err(said)?;
        let (mut resting, busy) = Scene { process: self.process, source: &source, locks: &[] }.threads();
        resting.retain(Resting::may_call);
        Ok((resting, busy))
    }

    /// Has thread `tid`, which stands still, make the call, if it is at rest: it may have gone on since.
    fn call(&self, stopped: &freeze::Stopped<'_>, tid: u32) -> Result<Result<T, BorrowError>, String> {
        let (resting, _) = self.threads()?;
        let same = resting.into_iter().find(|resting| resting.tid == tid);
        let stack = same.ok_or("no thread of it stays at rest")?.stack;
        let mut borrowed = Borrowed::borrow(stopped, tid, self.code.restorer, stack, false).map_err(said)?;
        Ok((self.act)(&mut borrowed, self.address))
    }
}
