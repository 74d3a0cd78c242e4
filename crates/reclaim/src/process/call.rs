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
const CALL_MOST: Duration = Duration::from_secs(2);
/// Between two looks for a thread at rest.
const PAUSE: Duration = Duration::from_millis(1);

/// Calls `function` in `process`.
pub(super) fn call(process: &Process, code: &Code, options: &Options, function: &Function) -> Done {
    let mut done = Done::default();
    let Some(address) = code::function(process, function) else {
        done.short = Some(format!("no file of it has {} among its symbols", function.names[0]));
        return done;
    };
    let began = Instant::now();
    for turn in 0.. {
        match (Attempt { process, code, options, address, function }).make(turn, &mut done) {
            Ok(()) => break,
            Err(why) if began.elapsed() > options.patience => {
                done.short = Some(why);
                break;
            }
            Err(_) if done.short.is_some() => break,
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
    done
}

/// One attempt.
struct Attempt<'a> {
    process: &'a Process,
    code: &'a Code,
    options: &'a Options,
    address: u64,
    function: &'a Function,
}

impl Attempt<'_> {
    /// An error says why there was no call, and another attempt may be made unless `done` says that it is over.
    fn make(&self, turn: usize, done: &mut Done) -> Result<(), String> {
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
        match called {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                // The call was begun: it is not made twice.
                let name = self.function.names[0];
                let why = match error {
                    BorrowError::Late => format!("{name} takes longer than {CALL_MOST:?} and goes on"),
                    other => format!("{name}: {other}"),
                };
                done.short = Some(why.clone());
                Err(why)
            }
            Err(why) => Err(why),
        }
    }

    /// The threads that may make the call now, and those that are not at rest.
    fn threads(&self) -> Result<(Vec<Resting>, Vec<u32>), String> {
        let source = Live::new(self.process, false).map_err(said)?;
        let (mut resting, busy) = Scene { process: self.process, source: &source, locks: &[] }.threads();
        resting.retain(Resting::may_call);
        Ok((resting, busy))
    }

    /// Has thread `tid`, which stands still, make the call, if it is at rest: it may have gone on since.
    fn call(&self, stopped: &freeze::Stopped<'_>, tid: u32) -> Result<Result<(), BorrowError>, String> {
        let (resting, _) = self.threads()?;
        let same = resting.into_iter().find(|resting| resting.tid == tid);
        let stack = same.ok_or("no thread of it stays at rest")?.stack;
        let mut borrowed = Borrowed::borrow(stopped, tid, self.code.restorer, stack, false).map_err(said)?;
        let mut args = self.function.args;
        if let Some(text) = self.function.text {
            args[0] = borrowed.text(text).map_err(said)?;
        }
        Ok(borrowed.call(self.address, args, CALL_MOST))
    }
}
