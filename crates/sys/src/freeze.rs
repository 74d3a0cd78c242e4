//! Stopping every thread of a process for a moment: ptrace(PTRACE_SEIZE), which sends no signal and leaves no
//! trace, and PTRACE_INTERRUPT.
//!
//! Invariants: whatever happens the threads run again: [`Frozen`] releases them when it is dropped, and the
//! kernel does when this process or thread ends, also by a kill (ptrace(2): a tracer's exit detaches); a signal
//! that a thread was about to get when it stopped is handed on. ptrace's calls belong to the thread that made
//! the first one, so a `Frozen` cannot be sent elsewhere.

use rustix::io::Errno;
use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

/// Rounds over /proc/PID/task until no new thread appears: a program that starts threads faster than they can be
/// stopped is let go.
const ROUNDS: usize = 64;

/// The longest that a thread may take to stop. One that waits for its vfork child, or in a driver, does not
/// until that ends.
const PATIENCE: Duration = Duration::from_millis(200);

/// Why a process was not stopped; it runs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FreezeError {
    /// ESRCH: it ended.
    Ended,
    /// EPERM: another user's, not dumpable, forbidden by Yama, or traced by a debugger already.
    Denied,
    /// A thread did not stop in time: it waits in the kernel for something that cannot be interrupted.
    Stuck(u32),
    /// It starts threads faster than they can be stopped.
    Multiplying,
    /// Anything else.
    Os(Errno),
}

impl std::fmt::Display for FreezeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FreezeError::Ended => f.write_str("the process ended"),
            FreezeError::Denied => f.write_str(
                "it may not be traced: another user's (run as root), forbidden by Yama, or a debugger has it (see \
                 TracerPid in its status)",
            ),
            FreezeError::Stuck(tid) => write!(f, "thread {tid} does not stop: it waits inside the kernel"),
            FreezeError::Multiplying => f.write_str("it starts threads faster than they can be stopped"),
            FreezeError::Os(errno) => errno.fmt(f),
        }
    }
}

impl std::error::Error for FreezeError {}

/// A process whose threads all stand still.
#[derive(Debug)]
pub struct Frozen {
    threads: BTreeSet<u32>,
    since: Instant,
    /// ptrace's calls belong to a thread.
    _not_send: PhantomData<*const ()>,
}

impl Frozen {
    /// `ptrace(PTRACE_SEIZE)`, `ptrace(PTRACE_INTERRUPT)` for every thread of process `pid`, until all of them
    /// have stopped. On an error none stands still.
    pub fn stop(pid: u32) -> Result<Frozen, FreezeError> {
        let mut frozen = Frozen { threads: BTreeSet::new(), since: Instant::now(), _not_send: PhantomData };
        for _ in 0..ROUNDS {
            let before = frozen.threads.len();
            for tid in threads(pid)? {
                if !frozen.threads.contains(&tid) {
                    frozen.seize(pid, tid)?;
                }
            }
            if frozen.threads.len() == before {
                return if before > 0 { Ok(frozen) } else { Err(FreezeError::Ended) };
            }
        }
        Err(FreezeError::Multiplying)
    }

    /// Lets the threads run; returns for how long the first of them stood still.
    pub fn release(mut self) -> Duration {
        self.detach();
        self.since.elapsed()
    }

    fn seize(&mut self, pid: u32, tid: u32) -> Result<(), FreezeError> {
        match ptrace(libc::PTRACE_SEIZE, tid, 0) {
            Ok(()) => {}
            // A thread that ended is no thread any more; the leader's zombie is EPERM.
            Err(Errno::SRCH) => return Ok(()),
            Err(Errno::PERM) if tid == pid && is_zombie(pid, tid) => return Ok(()),
            Err(Errno::PERM) => return Err(FreezeError::Denied),
            Err(errno) => return Err(FreezeError::Os(errno)),
        }
        self.threads.insert(tid);
        match ptrace(libc::PTRACE_INTERRUPT, tid, 0) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(FreezeError::Os(errno)),
        }
        if !self.wait(tid)? {
            self.threads.remove(&tid);
        }
        Ok(())
    }

    /// Waits until `tid` stands still; false if it ended instead.
    fn wait(&self, tid: u32) -> Result<bool, FreezeError> {
        let began = Instant::now();
        loop {
            match wait_once(tid) {
                Ok(Some(status)) if libc::WIFSTOPPED(status) => {
                    if status >> 16 == libc::PTRACE_EVENT_STOP {
                        return Ok(true);
                    }
                    // It stopped to get a signal: it shall have it, and stops again for the interrupt.
                    let signal = libc::WSTOPSIG(status);
                    let _ended_is_seen_by_the_next_wait = ptrace(libc::PTRACE_CONT, tid, signal);
                }
                Ok(Some(_)) | Err(Errno::CHILD) => return Ok(false),
                Ok(None) if began.elapsed() > PATIENCE => return Err(FreezeError::Stuck(tid)),
                Ok(None) => std::thread::sleep(Duration::from_micros(20)),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(FreezeError::Os(errno)),
            }
        }
    }

    fn detach(&mut self) {
        for tid in std::mem::take(&mut self.threads) {
            // One that never stopped (FreezeError::Stuck) cannot be detached by a call: it runs on until it meets
            // the interrupt, and the kernel lets it go when this thread ends. Whoever sees that error should end.
            let _ended = ptrace(libc::PTRACE_DETACH, tid, 0);
        }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.detach();
    }
}

fn threads(pid: u32) -> Result<Vec<u32>, FreezeError> {
    let entries = std::fs::read_dir(format!("/proc/{pid}/task")).map_err(|_| FreezeError::Ended)?;
    Ok(entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect())
}

fn is_zombie(pid: u32, tid: u32) -> bool {
    let stat = std::fs::read(format!("/proc/{pid}/task/{tid}/stat")).unwrap_or_default();
    let after = stat.iter().rposition(|&byte| byte == b')').map_or(0, |at| at + 2);
    matches!(stat.get(after), Some(b'Z' | b'X'))
}

/// `ptrace(request, tid, 0, data)` for requests whose data is a number.
fn ptrace(request: libc::c_uint, tid: u32, data: libc::c_int) -> Result<(), Errno> {
    let data = data as usize as *mut libc::c_void;
    // SAFETY: SEIZE, INTERRUPT, CONT and DETACH take the address for nothing and the data for a number (options,
    // nothing, a signal): the kernel reads and writes no memory of this process for them.
    #[allow(unsafe_code)]
    let result =
        unsafe { libc::ptrace(request, tid as libc::pid_t, std::ptr::null_mut::<libc::c_void>(), data) };
    if result == 0 { Ok(()) } else { Err(last()) }
}

/// `waitpid(tid, __WALL | WNOHANG)`: the status, if there is one.
fn wait_once(tid: u32) -> Result<Option<libc::c_int>, Errno> {
    let mut status = 0;
    // SAFETY: `status` is an int that lives for the call, which is all that is written.
    #[allow(unsafe_code)]
    let waited = unsafe { libc::waitpid(tid as libc::pid_t, &mut status, libc::__WALL | libc::WNOHANG) };
    match waited {
        0 => Ok(None),
        1.. => Ok(Some(status)),
        _ => Err(last()),
    }
}

fn last() -> Errno {
    Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)
}
