//! The process that sets back when the time is up, whatever becomes of the ebb that started it.
//!
//! It is ebb itself, run again with the record's id, in a session of its own: no terminal's end and no Ctrl-C reaches
//! it. Asked to end (a shutdown, a service manager that clears up) it sets back at once. It ends without a word when
//! its record goes, for then somebody else has done its work. If it is killed as well, the record stays: the ebb that
//! waits in the foreground sets back, else `ebb tune --undo`, of which every later ebb reminds.

use anyhow::Context;
use ebbtide_observe::Root;
use ebbtide_reclaim::state;
use ebbtide_reclaim::tune::{Record, Store, TuneError, Undone, undo};
use ebbtide_sys::interrupt::Interrupts;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

/// What a guardian says once it keeps watch.
const READY: &str = "ready\n";

/// Starts the guardian of `record` and waits until it keeps watch.
pub(super) fn start(root: Option<&Path>, record: &Record) -> Result<Child, TuneError> {
    let mut command = Command::new("/proc/self/exe");
    command.arg0("ebb").args(["tune", "--guard", &record.id]).current_dir("/");
    if let Some(root) = root {
        command.arg("--root").arg(root);
    }
    if let Some(state) = state::named() {
        command.env("EBB_STATE", state);
    }
    let fail = |error: std::io::Error| TuneError::File {
        what: "nothing was changed, as no guardian can be started:",
        path: "/proc/self/exe".into(),
        error,
    };
    let spawned = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let mut guardian = spawned.map_err(fail)?;
    let mut said = String::new();
    if let Some(pipe) = &mut guardian.stdout {
        BufReader::with_capacity(READY.len(), pipe).read_line(&mut said).map_err(fail)?;
    }
    if said == READY { Ok(guardian) } else { Err(fail(std::io::Error::other("it ended at once"))) }
}

/// Waits in the foreground until the guardian is done; a signal makes it set back at once.
pub(super) fn wait(mut guardian: Child, signals: &Interrupts) -> anyhow::Result<()> {
    let pid = rustix::process::Pid::from_child(&guardian);
    let mut pipe = guardian.stdout.take().context("the guardian's pipe")?;
    loop {
        let mut fds = [PollFd::new(&pipe, PollFlags::IN), PollFd::new(signals, PollFlags::IN)];
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let (ended, signal) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if signal && signals.take() {
            // It has not been waited for, so the pid is its own; and it may have ended just now.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        if ended && std::io::Read::read(&mut pipe, &mut [0; 64])? == 0 {
            break;
        }
    }
    guardian.wait()?;
    Ok(())
}

/// The guardian itself.
pub(super) fn guard(root: &Root, store: &Store, id: &str) -> anyhow::Result<ExitCode> {
    // It fails where ebb was started as the leader of a process group, by hand; it guards all the same.
    let _ = rustix::process::setsid();
    let signals = Interrupts::catch()?;
    let record = store.load(id)?;
    let deadline = record.deadline.context("the record has no deadline: nothing to wait for")?;
    let timer = timer(Duration::from_millis(deadline))?;
    let directory = watch(store.dir());
    // A machine that is out of memory needs it most; not every user may ask for that.
    let _ = std::fs::write("/proc/self/oom_score_adj", "-900");
    let mut out = std::io::stdout();
    out.write_all(READY.as_bytes()).and_then(|()| out.flush())?;
    while store.holds(id) {
        let mut fds = vec![PollFd::new(&timer, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        fds.extend(directory.as_ref().map(|directory| PollFd::new(directory, PollFlags::IN)));
        match poll(&mut fds, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let due = !fds[0].revents().is_empty() || !fds[1].revents().is_empty();
        if due {
            let undone = undo(root, store, Some(id), false)?;
            return Ok(ExitCode::from(u8::from(!undone.iter().all(Undone::is_done))));
        }
        if let Some(directory) = &directory {
            drain(directory);
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Readable at `deadline` after boot, time asleep included.
fn timer(deadline: Duration) -> rustix::io::Result<OwnedFd> {
    let timer = rustix::time::timerfd_create(TimerfdClockId::Boottime, TimerfdFlags::CLOEXEC)?;
    // All zero would stop the timer instead.
    let deadline = deadline.max(Duration::from_nanos(1));
    let value = Timespec { tv_sec: deadline.as_secs() as i64, tv_nsec: deadline.subsec_nanos().into() };
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
    rustix::time::timerfd_settime(&timer, TimerfdTimerFlags::ABSTIME, &once)?;
    Ok(timer)
}

/// Readable when a file goes from `directory`. Without it (inotify's limits) the guardian finds out at its time.
fn watch(directory: &Path) -> Option<OwnedFd> {
    let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).ok()?;
    inotify::add_watch(&fd, directory, WatchFlags::DELETE | WatchFlags::MOVED_FROM | WatchFlags::DELETE_SELF)
        .ok()?;
    Some(fd)
}

fn drain(fd: &impl AsFd) {
    let mut events = [0; 4096];
    while rustix::io::read(fd, &mut events).is_ok_and(|read| read > 0) {}
}
