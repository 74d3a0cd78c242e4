//! Has a thread at rest call a function of the program's own allocator, while all others run on.

use super::code::{self, Code};
use super::levers::Function;
use super::rest::{Resting, Scene};
use super::{Done, Options};
use ebbtide_heaps::Live;
use ebbtide_observe::process::Process;
use ebbtide_sys::borrow::{BorrowError, Borrowed};
use ebbtide_sys::freeze;
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
    loop {
        match attempt(process, code, address, function, &mut done) {
            Ok(()) => return done,
            Err(why) if began.elapsed() > options.patience => {
                done.short = Some(why);
                return done;
            }
            Err(_) if done.short.is_some() => return done,
            Err(_) => std::thread::sleep(PAUSE),
        }
    }
}

/// One attempt; an error says why there was none, and another may be made unless `done` says that it is over.
fn attempt(
    process: &Process,
    code: &Code,
    address: u64,
    function: &Function,
    done: &mut Done,
) -> Result<(), String> {
    let before = Live::new(process, false).map_err(|e| e.to_string())?;
    let look = |source: &Live<'_>| {
        let (resting, _) = Scene { process, source, locks: &[] }.threads();
        resting.into_iter().filter(Resting::may_call)
    };
    let candidate = look(&before).next().ok_or("no thread of it is at rest")?;
    let body = |stopped: &freeze::Stopped<'_>| {
        // It may have gone on since.
        let now = Live::new(process, false).map_err(|e| e.to_string())?;
        let same = look(&now).find(|resting| resting.tid == candidate.tid);
        let resting = same.ok_or("no thread of it stays at rest")?;
        let borrowed = Borrowed::borrow(stopped, resting.tid, code.restorer, resting.stack, false);
        let mut borrowed = borrowed.map_err(|e| e.to_string())?;
        let mut args = function.args;
        if let Some(text) = function.text {
            args[0] = borrowed.text(text).map_err(|e| e.to_string())?;
        }
        Ok(borrowed.call(address, args, CALL_MOST))
    };
    let (called, stop) =
        freeze::one_stopped(process.pid(), candidate.tid, body).map_err(|e| e.to_string())?;
    done.longest_stop = done.longest_stop.max(stop);
    done.stops += 1;
    match called {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => {
            // The call was begun: it is not made twice.
            let why = match error {
                BorrowError::Late => {
                    format!("{} takes longer than {CALL_MOST:?} and goes on", function.names[0])
                }
                other => format!("{}: {other}", function.names[0]),
            };
            done.short = Some(why.clone());
            Err(why)
        }
        Err(why) => Err(why),
    }
}
