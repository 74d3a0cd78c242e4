//! Asks a CPython of 3.14 to collect, as sys.remote_exec() asks: a script's path is written where its threads look, and
//! the first that comes by runs it between two of its own instructions, as it runs the automatic collection.
//!
//! What is better than as sys.remote_exec() does it: the request is written while all threads stand still, so that no
//! bit that the interpreter sets meanwhile is lost; it is made of every thread, of which the first does it and the others
//! find it done; one that waits in epoll_wait(2) is interrupted by the stop itself and looks; and a request that nobody
//! took in time is taken back.
//!
//! Invariants: the script lies in a directory of its own that belongs to the target's user and to which nobody else has
//! access; who removes `ask` runs the collection, so that it runs once at most; nothing is written to a thread that the
//! interpreter does not have in that moment.

use super::jvm::tmp;
use super::levers::Way;
use super::{Done, Options, Step, said};
use crate::report::Lever;
use ebbtide_heaps::Live;
use ebbtide_heaps::cpython::{Inbox, Requests};
use ebbtide_observe::process::{Process, Status};
use ebbtide_sys::freeze::{self, FreezeError, Stopped};
use ebbtide_sys::remote;
use rustix::fd::OwnedFd;
use rustix::fs::{AtFlags, Mode, OFlags, fchown, mkdirat, openat, statat, unlinkat};
use rustix::io::{Errno, write};
use rustix::process::{Gid, Pid, Uid};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Between two looks whether it is done.
const PAUSE: Duration = Duration::from_millis(2);
/// A thread that has just taken its request off has read the script by then.
const GRACE: Duration = Duration::from_millis(100);
/// Removed by the thread that collects, before it does.
const ASK: &str = "ask";
/// Removed by it afterwards.
const GOING: &str = "going";
const SCRIPT: &str = "collect.py";

/// What it costs: gc.collect() goes through every object and writes to its head.
const COST: &str =
    "its Python threads wait for a full collection; of forked workers it copies what they share";

/// A collection by `requests`. What is garbage nobody knows before.
pub(super) fn collection(requests: Requests) -> Step {
    let on = "what Python's collector finds to be garbage".to_owned();
    (Lever::unforeseen("python-gc", on, COST), Way::Python(requests))
}

/// Has the Python in `process` collect, and waits for the end of that no longer than the patience.
pub(super) fn collect(process: &Process, options: &Options, requests: &Requests) -> Done {
    let mut done = Done::default();
    done.short = attempt(process, options, requests, &mut done).err();
    done
}

fn attempt(process: &Process, options: &Options, requests: &Requests, done: &mut Done) -> Result<(), String> {
    let status: Status = process.status().map_err(said)?;
    let errand = Errand::lay(process.pid(), &status).map_err(|e| format!("its /tmp: {e}"))?;
    let ask = Moment { process, requests, errand: &errand };
    let asked = ask.stopped(options, done, Moment::ask);
    let answer = asked.and_then(|count| errand.await_end(options.patience, count));
    // Also where it was done: the other threads still have the request.
    let back = ask.stopped(options, done, Moment::take_back);
    std::thread::sleep(GRACE);
    answer?;
    back.map(drop)
}

/// A script where the target finds it.
struct Errand {
    directory: OwnedFd,
    parent: OwnedFd,
    name: String,
}

impl Errand {
    fn lay(pid: u32, status: &Status) -> Result<Errand, Errno> {
        let parent = tmp(pid)?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let name = format!(".ebbtide-{}-{}", std::process::id(), now.as_nanos());
        mkdirat(&parent, &name, Mode::RWXU)?;
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = openat(&parent, &name, flags, Mode::empty())?;
        let errand = Errand { directory, parent, name };
        errand.put(ASK, "", status)?;
        errand.put(GOING, "", status)?;
        errand.put(SCRIPT, &errand.script(), status)?;
        errand.give(&errand.directory, status)?;
        Ok(errand)
    }

    fn put(&self, name: &str, text: &str, status: &Status) -> Result<(), Errno> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&self.directory, name, flags, Mode::RUSR | Mode::WUSR)?;
        if write(&file, text.as_bytes())? != text.len() {
            return Err(Errno::NOSPC);
        }
        self.give(&file, status)
    }

    /// Makes `file` the target's user's, if it is another's.
    fn give(&self, file: &OwnedFd, status: &Status) -> Result<(), Errno> {
        let (user, group) = (Uid::from_raw(status.uid.effective), Gid::from_raw(status.gid.effective));
        fchown(file, Some(user), Some(group))
    }

    /// Its path, as the target has it.
    fn path(&self, file: &str) -> String {
        format!("/tmp/{}/{file}", self.name)
    }

    fn script(&self) -> String {
        let (ask, going) = (self.path(ASK), self.path(GOING));
        format!(
            "import gc, os\ntry:\n os.unlink('{ask}')\n gc.collect()\n os.unlink('{going}')\nexcept OSError:\n pass\n"
        )
    }

    fn has(&self, file: &str) -> bool {
        statat(&self.directory, file, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Waits until one of `count` threads has collected.
    fn await_end(&self, patience: Duration, count: usize) -> Result<(), String> {
        let began = Instant::now();
        while self.has(GOING) {
            if began.elapsed() > patience {
                return Err(match self.has(ASK) {
                    true => format!(
                        "none of its {count} Python threads came to look within {patience:?} (--patience)"
                    ),
                    false => {
                        format!("the collection takes longer than {patience:?} and goes on (--patience)")
                    }
                });
            }
            std::thread::sleep(PAUSE);
        }
        Ok(())
    }
}

impl Drop for Errand {
    /// A collection that goes on has read its script.
    fn drop(&mut self) {
        for file in [ASK, GOING, SCRIPT] {
            let _ = unlinkat(&self.directory, file, AtFlags::empty());
        }
        let _ = unlinkat(&self.parent, &self.name, AtFlags::REMOVEDIR);
    }
}

/// What is done while everybody stands still.
struct Moment<'a> {
    process: &'a Process,
    requests: &'a Requests,
    errand: &'a Errand,
}

impl Moment<'_> {
    fn stopped(
        &self,
        options: &Options,
        done: &mut Done,
        job: fn(&Self, Pid, &[Inbox]) -> Result<usize, String>,
    ) -> Result<usize, String> {
        let body = |stopped: &Stopped<'_>| {
            let pid = i32::try_from(stopped.pid()).ok().and_then(Pid::from_raw).ok_or("no such process")?;
            let source = Live::new(self.process, true).map_err(said)?;
            let inboxes = self.requests.inboxes(&source).map_err(said)?.map_err(said)?;
            job(self, pid, &inboxes)
        };
        let began = Instant::now();
        loop {
            let (result, took) = match freeze::all_stopped(self.process.pid(), options.max_stop, body) {
                Ok((result, took)) => (Some(result), took),
                // A thread that waits for a processor, most of the time.
                Err(FreezeError::Stuck(_)) if began.elapsed() < options.patience => (None, options.max_stop),
                Err(error) => return Err(said(error)),
            };
            done.longest_stop = done.longest_stop.max(took);
            done.stops += 1;
            match result {
                Some(result) => return result,
                None => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Asks every thread; how many.
    fn ask(&self, pid: Pid, inboxes: &[Inbox]) -> Result<usize, String> {
        let path = [self.errand.path(SCRIPT).as_bytes(), &[0]].concat();
        if inboxes.iter().any(|inbox| inbox.is_pending) {
            return Err("a debugger's request waits already".to_owned());
        }
        if inboxes.is_empty() || inboxes.iter().any(|inbox| inbox.room < path.len() as u64) {
            return Err("its interpreter has no threads that could be asked".to_owned());
        }
        for inbox in inboxes {
            remote::write(pid, inbox.script, &path).map_err(said)?;
            remote::write(pid, inbox.pending, &1_i32.to_le_bytes()).map_err(said)?;
            remote::write(pid, inbox.breaker, &inbox.alarmed.to_le_bytes()).map_err(said)?;
        }
        Ok(inboxes.len())
    }

    /// Takes back what is still asked; of how many threads.
    fn take_back(&self, pid: Pid, inboxes: &[Inbox]) -> Result<usize, String> {
        let path = [self.errand.path(SCRIPT).as_bytes(), &[0]].concat();
        let mut count = 0;
        for inbox in inboxes.iter().filter(|inbox| inbox.is_pending) {
            let mut script = vec![0; path.len()];
            let read = remote::read(pid, inbox.script, &mut script).map_err(said)?;
            // Another debugger may have asked meanwhile.
            if read == script.len() && script == path {
                remote::write(pid, inbox.pending, &0_i32.to_le_bytes()).map_err(said)?;
                count += 1;
            }
        }
        Ok(count)
    }
}
