//! Stopping every thread of a process for a moment: `ptrace(PTRACE_SEIZE)` and `PTRACE_INTERRUPT`, which send no
//! signal.
//!
//! Invariants: whatever happens the threads run again. They are traced by a thread of their own, which ends when
//! [`Frozen`] is released or dropped, or with this whole process, also by a kill; and the kernel lets go of what
//! an ending thread traces (exit_ptrace, kernel/ptrace.c), also of a thread that had not stopped yet, for which
//! PTRACE_DETACH is an error; who stopped them goes on only when it has. A signal that a thread was about to get is handed on, and a process that was
//! stopped by SIGSTOP stays so. One thing can be noticed from inside: epoll_wait(2), sigtimedwait(2), semop(2) and
//! receiving with a timeout end with EINTR, as they do after SIGSTOP and SIGCONT (signal(7)).

use crate::call::last_error;
#[cfg(target_arch = "x86_64")]
mod onward;

use rustix::io::Errno;
use rustix::process::Pid;
use std::collections::BTreeSet;
use std::fmt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Rounds over /proc/PID/task until no new thread appears: a program that starts threads faster than they can be
/// stopped is let go.
const ROUNDS: usize = 64;

/// How long to wait for the next thread to stop, while the others stand still. One that waits for its vfork child,
/// for a page in swap or in a driver stops when that ends.
const PATIENCE: Duration = Duration::from_millis(200);

/// The same for a thread that runs, or would if it had a processor: it stops as soon as it gets one (more than
/// 200 ms with 20 busy threads on 2 processors).
const PATIENCE_RUNNING: Duration = Duration::from_secs(1);

/// Between two looks whether a thread has stopped. Most take 10 to 60 us (6.18).
const PAUSE: Duration = Duration::from_micros(20);

/// Why a process was not stopped; it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezeError {
    /// ESRCH: it ended.
    Ended,
    /// EPERM: this process, such as a debugger, traces it already.
    Traced(u32),
    /// EPERM: another user's, not dumpable, or forbidden by Yama or another security module.
    Denied,
    /// This thread did not stop in time: it waits in the kernel for something that cannot be interrupted, or for a
    /// processor.
    Stuck(u32),
    /// It starts threads faster than they can be stopped.
    Multiplying,
    /// Anything else.
    Os(Errno),
}

impl fmt::Display for FreezeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FreezeError::Ended => f.write_str("it ended"),
            FreezeError::Traced(tracer) => {
                write!(f, "process {tracer} traces it already, as a debugger does")
            }
            FreezeError::Denied => f.write_str("it may not be traced"),
            FreezeError::Stuck(tid) => {
                write!(f, "thread {tid} does not stop: it waits inside the kernel, or for a processor")
            }
            FreezeError::Multiplying => f.write_str("it starts threads faster than they can be stopped"),
            FreezeError::Os(errno) => write!(f, "ptrace: {errno}"),
        }
    }
}

impl std::error::Error for FreezeError {}

/// A process whose threads all stand still.
#[derive(Debug)]
pub struct Frozen {
    /// Dropping it tells the tracing thread to end.
    hold: Option<Sender<()>>,
    tracer: Option<JoinHandle<(Duration, Released)>>,
}

impl Frozen {
    /// `ptrace(PTRACE_SEIZE)`, `ptrace(PTRACE_INTERRUPT)` for every thread of process `pid`, until all of them
    /// have stopped and no new one appears. On an error none stands still.
    ///
    /// Needs the right to trace: PTRACE_MODE_ATTACH (ptrace(2)), so Yama counts.
    pub fn stop(pid: u32) -> Result<Frozen, FreezeError> {
        let (hold, until) = channel();
        let (tell, stopped) = channel();
        let body = move || trace(pid, &tell, &until);
        let thread = std::thread::Builder::new().name("freeze".to_owned()).spawn(body);
        let tracer = thread.map_err(|e| FreezeError::Os(Errno::from_io_error(&e).unwrap_or(Errno::AGAIN)))?;
        let mut frozen = Frozen { hold: Some(hold), tracer: Some(tracer) };
        match stopped.recv() {
            Ok(Ok(())) => Ok(frozen),
            Ok(Err(error)) => {
                frozen.end();
                Err(error)
            }
            // The tracing thread sends before it ends.
            Err(_) => Err(FreezeError::Os(Errno::AGAIN)),
        }
    }

    /// Lets the threads run; returns for how long the first of them stood still, at most.
    pub fn release(mut self) -> Duration {
        self.end()
    }

    fn end(&mut self) -> Duration {
        self.hold = None;
        // A panic of the tracing thread ended it, and so let the threads go.
        let Some(Ok((stood, released))) = self.tracer.take().map(JoinHandle::join) else {
            return Duration::ZERO;
        };
        released.wait();
        stood
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.end();
    }
}

/// Stops every thread of process `pid`, has `job` done meanwhile by the thread that traces them, and lets them run,
/// however `job` ends. What `job` returned, and for how long the first of them stood still, at most. Where not all
/// stand still within `limit`, they are let go: [`FreezeError::Stuck`].
///
/// Needs what [`Frozen::stop`] needs.
pub fn all_stopped<R: Send>(
    pid: u32,
    limit: Duration,
    job: impl FnOnce(&Stopped) -> R + Send,
) -> Result<(R, Duration), FreezeError> {
    let stop = |threads: &mut Threads| {
        threads.limit = Some(limit);
        threads.stop()
    };
    traced(pid, stop, job)
}

/// As [`all_stopped`], for one thread of the process while the others run.
pub fn one_stopped<R: Send>(
    pid: u32,
    tid: u32,
    job: impl FnOnce(&Stopped) -> R + Send,
) -> Result<(R, Duration), FreezeError> {
    let stop = |threads: &mut Threads| {
        threads.call(tid)?;
        threads.await_stops()?;
        if threads.stopped.is_empty() { Err(FreezeError::Ended) } else { Ok(()) }
    };
    traced(pid, stop, job)
}

/// As [`one_stopped`], but the thread is let run on to the end of its next system call that is one of `meant`, by number:
/// there it stands still, with the call's result, while `job` is done. Where it comes to none within `limit` it runs on, and
/// nothing is done: [`FreezeError::Stuck`]; so on another processor than x86_64.
pub fn one_after_call<R: Send>(
    pid: u32,
    tid: u32,
    limit: Duration,
    meant: &[u32],
    job: impl FnOnce(&Stopped) -> R + Send,
) -> Result<(R, Duration), FreezeError> {
    let body = |stopped: &Stopped<'_>| {
        stopped.run_to_call(tid, limit, meant)?;
        let since = Instant::now();
        Ok((job(stopped), since.elapsed()))
    };
    one_stopped(pid, tid, body)?.0
}

fn traced<R: Send>(
    pid: u32,
    stop: impl FnOnce(&mut Threads) -> Result<(), FreezeError> + Send,
    job: impl FnOnce(&Stopped) -> R + Send,
) -> Result<(R, Duration), FreezeError> {
    let body = || {
        attend(pid);
        let mut threads = Threads::new(pid);
        let result = stop(&mut threads).map(|()| job(&Stopped(&threads)));
        let released = threads.release();
        (result.map(|result| (result, threads.since.elapsed())), released)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("freeze".to_owned()).spawn_scoped(scope, body);
        let thread = thread.map_err(|e| FreezeError::Os(Errno::from_io_error(&e).unwrap_or(Errno::AGAIN)))?;
        let (result, released) = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        released.wait();
        result
    })
}

/// Makes steps short for a thread that does nothing but trace: short sleeps are short (timer slack is 50 us else); it
/// waits for nobody while others wait for it, where that is allowed (CAP_SYS_NICE: on a busy machine stops of 5 ms took up
/// to 20 without); and it runs where the first thread of `pid` ran last, so that each wakes the other on its own processor and none has
/// to be woken from idling (90 us a step in a virtual machine, measured on 6.18). None of it is needed.
fn attend(pid: u32) {
    let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
    // A priority is a thread's own on Linux.
    let _ = rustix::process::setpriority_process(None, -20);
    let Some(processor) = processor(pid) else { return };
    let mut set = rustix::thread::CpuSet::new();
    if processor < rustix::thread::CpuSet::MAX_CPU {
        set.set(processor);
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
}

/// The processor that the first thread of `pid` ran on last: field 39 of its stat, the 37th behind the name.
fn processor(pid: u32) -> Option<usize> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(36)?.parse().ok()
}

/// Threads that stand still while their tracing thread looks at them. It cannot leave that thread: only there do
/// ptrace requests work.
#[derive(Debug)]
pub struct Stopped<'t>(&'t Threads);

impl Stopped<'_> {
    /// The process.
    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// The threads that stand still.
    pub fn ids(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.stopped.iter().copied()
    }

    /// Lets thread `tid`, one of them, run on to the end of its next system call that is one of `meant`, by number, while
    /// the others stand still. Where it comes to none within `limit`, and on another processor than x86_64, it runs on:
    /// [`FreezeError::Stuck`].
    pub fn run_to_call(&self, tid: u32, limit: Duration, meant: &[u32]) -> Result<(), FreezeError> {
        #[cfg(target_arch = "x86_64")]
        let came = onward::run_to_call(tid, limit, meant);
        #[cfg(not(target_arch = "x86_64"))]
        let came = Err(FreezeError::Stuck(tid));
        came
    }

    /// For how long the first of them has stood still, at most.
    pub fn since(&self) -> Duration {
        self.0.since.elapsed()
    }
}

/// The tracing thread: stops `pid`, says how that went, and lets it go when `until` closes.
fn trace(pid: u32, tell: &Sender<Result<(), FreezeError>>, until: &Receiver<()>) -> (Duration, Released) {
    let mut threads = Threads::new(pid);
    let result = threads.stop();
    let failed = result.is_err();
    if tell.send(result).is_ok() && !failed {
        // An error is what it waits for: the other end is gone.
        let _ = until.recv();
    }
    let released = threads.release();
    (threads.since.elapsed(), released)
}

/// What has become of the traced threads.
enum Released {
    /// They run.
    Now,
    /// Those that did not stand still run once this thread, their tracer, has ended.
    With(Pid),
}

impl Released {
    /// Waits for that. Joining is too early: the kernel wakes who joins before it lets go of what the thread traces
    /// (exit_mm and exit_notify in do_exit, kernel/exit.c), and who stops the same thread again would find it traced.
    fn wait(self) {
        let Released::With(tracer) = self else { return };
        let task = format!("/proc/self/task/{}", tracer.as_raw_nonzero());
        let began = Instant::now();
        while began.elapsed() < PATIENCE && std::fs::exists(&task).unwrap_or(false) {
            std::thread::sleep(PAUSE);
        }
    }
}

/// The threads of a process, as their tracer knows them.
#[derive(Debug)]
struct Threads {
    pid: u32,
    /// Before the first one was called.
    since: Instant,
    /// Stand still.
    stopped: BTreeSet<u32>,
    /// Shall stop.
    called: BTreeSet<u32>,
    /// Within this time, all of them.
    limit: Option<Duration>,
}

impl Threads {
    fn new(pid: u32) -> Threads {
        Threads { pid, since: Instant::now(), stopped: BTreeSet::new(), called: BTreeSet::new(), limit: None }
    }

    fn stop(&mut self) -> Result<(), FreezeError> {
        for _ in 0..ROUNDS {
            let mut new = false;
            for tid in ids(self.pid)? {
                new |= !self.stopped.contains(&tid) && self.call(tid)?;
            }
            if !new {
                return if self.stopped.is_empty() { Err(FreezeError::Ended) } else { Ok(()) };
            }
            self.await_stops()?;
        }
        Err(FreezeError::Multiplying)
    }

    /// Seizes thread `tid` and calls upon it to stop; false if it has ended.
    fn call(&mut self, tid: u32) -> Result<bool, FreezeError> {
        if self.stopped.is_empty() && self.called.is_empty() {
            self.since = Instant::now();
        }
        match ptrace(libc::PTRACE_SEIZE, tid, 0) {
            Ok(()) => {}
            Err(Errno::SRCH) => return Ok(false),
            // A thread that has ended and waits to be reaped, as the first one does while others live on.
            Err(Errno::PERM) if matches!(state(self.pid, tid), None | Some(b'Z' | b'X')) => return Ok(false),
            Err(Errno::PERM) => {
                return Err(tracer(self.pid, tid).map_or(FreezeError::Denied, FreezeError::Traced));
            }
            Err(errno) => return Err(FreezeError::Os(errno)),
        }
        match ptrace(libc::PTRACE_INTERRUPT, tid, 0) {
            // Ended since: the wait will say so.
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(FreezeError::Os(errno)),
        }
        self.called.insert(tid);
        Ok(true)
    }

    /// Waits until none is called any more: each has stopped, or ended.
    fn await_stops(&mut self) -> Result<(), FreezeError> {
        let mut last = Instant::now();
        while let Some(&slowest) = self.called.first() {
            match wait() {
                Ok(Some((tid, status))) => {
                    self.tell(tid, status);
                    last = Instant::now();
                }
                Ok(None) if self.limit.is_some_and(|limit| self.since.elapsed() > limit) => {
                    return Err(FreezeError::Stuck(slowest));
                }
                Ok(None) if last.elapsed() < PATIENCE => std::thread::sleep(PAUSE),
                Ok(None) => match state(self.pid, slowest) {
                    // One that calls exec becomes the first thread, and nothing is said of its old id.
                    None => drop(self.called.remove(&slowest)),
                    Some(b'R') if last.elapsed() < PATIENCE_RUNNING => std::thread::sleep(PAUSE),
                    Some(_) => return Err(FreezeError::Stuck(slowest)),
                },
                // None is traced any more: all have ended.
                Err(Errno::CHILD) => self.called.clear(),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(FreezeError::Os(errno)),
            }
        }
        Ok(())
    }

    /// What a wait said of `tid`.
    fn tell(&mut self, tid: u32, status: libc::c_int) {
        if !libc::WIFSTOPPED(status) {
            self.called.remove(&tid);
            self.stopped.remove(&tid);
        } else if status >> 16 == libc::PTRACE_EVENT_STOP {
            self.called.remove(&tid);
            self.stopped.insert(tid);
        } else {
            // It stopped to get a signal: it shall have it, and then stops as it was called to. An error says
            // that it was killed meanwhile, and the next wait says so too.
            let _ = ptrace(libc::PTRACE_CONT, tid, libc::WSTOPSIG(status));
        }
    }

    /// `ptrace(PTRACE_DETACH)`; the end of this thread does the same, only later, and also for those that run.
    fn release(&mut self) -> Released {
        let mut all = self.called.is_empty();
        for tid in std::mem::take(&mut self.stopped) {
            all &= ptrace(libc::PTRACE_DETACH, tid, 0).is_ok();
        }
        if all { Released::Now } else { Released::With(rustix::thread::gettid()) }
    }
}

fn ids(pid: u32) -> Result<Vec<u32>, FreezeError> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task")).map_err(|_| FreezeError::Ended)?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

/// The letter of what thread `tid` does; `None` where there is none any more.
fn state(pid: u32, tid: u32) -> Option<u8> {
    let stat = std::fs::read(format!("/proc/{pid}/task/{tid}/stat")).ok()?;
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    stat.get(name_end + 2).copied()
}

/// The process that traces thread `tid`. TracerPid names its tracing thread.
fn tracer(pid: u32, tid: u32) -> Option<u32> {
    let thread = number(&format!("/proc/{pid}/task/{tid}/status"), "TracerPid:")?;
    (thread != 0).then(|| number(&format!("/proc/{thread}/status"), "Tgid:").unwrap_or(thread))
}

/// The number in the line of `status` that begins with `key`.
fn number(status: &str, key: &str) -> Option<u32> {
    let text = String::from_utf8_lossy(&std::fs::read(status).ok()?).into_owned();
    text.lines().find_map(|line| line.strip_prefix(key))?.trim().parse().ok()
}

/// `ptrace(request, tid, 0, data)` for requests whose data is a number.
fn ptrace(request: libc::c_uint, tid: u32, data: libc::c_int) -> Result<(), Errno> {
    let data = data as usize as *mut libc::c_void;
    // SAFETY: SEIZE, INTERRUPT, SETOPTIONS, CONT, SYSCALL and DETACH take the address for nothing and the data for a
    // number (options, nothing, a signal): the kernel reads and writes no memory of this process for them.
    #[allow(unsafe_code)]
    let result =
        unsafe { libc::ptrace(request, tid as libc::pid_t, std::ptr::null_mut::<libc::c_void>(), data) };
    if result == 0 { Ok(()) } else { Err(last_error()) }
}

/// `waitpid(-1, __WALL | __WNOTHREAD | WNOHANG)`: the next thread of which there is something to say, among
/// those that this thread traces, and its status.
fn wait() -> Result<Option<(u32, libc::c_int)>, Errno> {
    let mut status = 0;
    let options = libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG;
    // SAFETY: `status` is an int that lives for the call, which is all that is written.
    #[allow(unsafe_code)]
    let waited = unsafe { libc::waitpid(-1, &mut status, options) };
    match waited {
        0 => Ok(None),
        1.. => Ok(Some((waited as u32, status))),
        _ => Err(last_error()),
    }
}
