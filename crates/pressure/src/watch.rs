//! The watcher: one thread that polls the source and tells the readers.
//!
//! Why a thread and not the source's descriptor itself: a trigger's event is consumed by whoever polls first
//! (`psi_trigger_poll` clears it), so one nested in another epoll set loses it; a source may go away and another take
//! its place; and relief must be read, for no source tells it.
//!
//! Invariants: asleep without end while nothing is short and the source is not a polled one; a source is never waited
//! on in a way that could spin; the thread takes none of the program's signals.

use crate::choose::choose;
use crate::feed::{Feed, Lost};
use crate::hub::Hub;
use crate::judge::Judge;
use crate::{Event, Options, PassedOver, Source};
use nix::sys::signal::{SigSet, SigmaskHow, Signal};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, getpid};
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of the thread's stack. Asleep it has touched 12 KiB of it (20 in a debug build); the rest costs nothing.
const STACK: usize = 256 << 10;

/// The thread, from outside.
#[derive(Debug)]
pub(crate) struct Watcher {
    hub: Arc<Hub>,
    stop: Arc<OwnedFd>,
    process: Pid,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    pub(crate) fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Whether this is a forked child, where the thread is not.
    pub(crate) fn is_another_process(&self) -> bool {
        getpid() != self.process
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // In a forked child the descriptor is the parent's too: its thread would end.
        if self.is_another_process() {
            return;
        }
        // Cannot fail: the counter is 0.
        let _ = rustix::io::write(&*self.stop, &1_u64.to_ne_bytes());
        let elsewhere = |thread: &JoinHandle<()>| thread.thread().id() != std::thread::current().id();
        // The last reader may be dropped by the thread itself, with a task that it woke: then it just ends.
        if let Some(thread) = self.thread.take().filter(elsewhere) {
            // A panic of the thread has been reported by the panic hook.
            let _ = thread.join();
        }
    }
}

/// Chooses a source and starts the thread, which is not needed where there is none.
pub(crate) fn start(options: Options) -> io::Result<Watcher> {
    let (choice, feed) = choose(&options, &[]);
    let source = choice.source.clone();
    let hub = Arc::new(Hub::new(choice));
    let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
    let thread = match feed {
        None => None,
        Some(feed) => {
            let watch = Watch {
                judge: Judge::new(options.pace),
                options,
                feed,
                source,
                beaten: None,
                lost: Vec::new(),
                hub: Arc::clone(&hub),
                stop: Arc::clone(&stop),
            };
            Some(spawn(|| watch.run())?)
        }
    };
    Ok(Watcher { hub, stop, process: getpid(), thread })
}

/// Starts the thread with all signals blocked but those that tell of a fault in itself, for which the program may have
/// a handler. They are blocked before it starts, so that there is no moment in which it could take one.
fn spawn(run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let mut blocked = SigSet::all();
    for fault in
        [Signal::SIGSEGV, Signal::SIGBUS, Signal::SIGILL, Signal::SIGFPE, Signal::SIGTRAP, Signal::SIGSYS]
    {
        blocked.remove(fault);
    }
    let before = blocked.thread_swap_mask(SigmaskHow::SIG_SETMASK)?;
    let thread = std::thread::Builder::new().name("pressure".into()).stack_size(STACK).spawn(run);
    before.thread_set_mask()?;
    thread
}

/// The thread, from inside.
struct Watch {
    options: Options,
    judge: Judge,
    feed: Box<dyn Feed>,
    source: Source,
    /// When the source was last looked at because it must be polled.
    beaten: Option<Instant>,
    lost: Vec<PassedOver>,
    hub: Arc<Hub>,
    stop: Arc<OwnedFd>,
}

impl Watch {
    fn run(mut self) {
        while let Some(heard) = self.sleep() {
            let now = Instant::now();
            let goes_on = self.listen(&heard, now).or_else(|lost| self.go_on(lost));
            self.tell(now);
            if goes_on.is_err() {
                return;
            }
        }
    }

    /// How long there is nothing to do unless the source is heard; `None`: for ever.
    fn idle(&self, now: Instant) -> Option<Duration> {
        let left = |until: Instant| until.saturating_duration_since(now);
        let beat = self.feed.beat().map(|beat| self.beaten.map_or(Duration::ZERO, |at| left(at + beat)));
        let rest = self.feed.rests_until().filter(|until| *until > now).map(left);
        [self.judge.next(now), beat, rest].into_iter().flatten().min()
    }

    /// Sleeps until the source is heard or it is time for something; what was heard, `None` if it is time to end.
    fn sleep(&self) -> Option<Vec<PollFlags>> {
        let now = Instant::now();
        let timeout = self.idle(now).map(timespec);
        let mut fds = vec![PollFd::new(&*self.stop, PollFlags::IN)];
        fds.extend(self.feed.ears(now).into_iter().map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
        // Interrupted, or no memory for it: as if nothing was heard. The latter must not spin.
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Some(Vec::new()),
            Err(_) => {
                std::thread::sleep(Duration::from_millis(100));
                return Some(Vec::new());
            }
        }
        let mut heard = fds.iter().map(PollFd::revents);
        let stopped = heard.next().is_some_and(|flags| !flags.is_empty());
        (!stopped).then(|| heard.collect())
    }

    fn listen(&mut self, heard: &[PollFlags], now: Instant) -> Result<(), Lost> {
        if heard.iter().any(|flags| !flags.is_empty()) {
            self.judge.hear(self.feed.hear(heard, now)?, now);
            // Before a look: what was heard is told even if it is over already.
            self.tell(now);
        }
        let rested = |beat| self.beaten.is_none_or(|at| now.duration_since(at) >= beat);
        let beat = self.feed.beat().is_some_and(rested);
        if beat {
            self.beaten = Some(now);
        }
        if beat || self.judge.wants_look(now) {
            self.judge.look(self.feed.look()?, now);
        }
        Ok(())
    }

    /// Takes the next best source in place of the one that was lost; an error if there is none.
    fn go_on(&mut self, lost: Lost) -> Result<(), Lost> {
        self.judge.forget();
        self.lost.push(PassedOver::new(self.source.clone(), format!("lost: {}", lost.0)));
        let (choice, feed) = choose(&self.options, &self.lost);
        self.source = choice.source.clone();
        self.hub.choose(choice);
        self.feed = feed.ok_or(lost)?;
        self.beaten = None;
        Ok(())
    }

    fn tell(&mut self, now: Instant) {
        self.hub.set_level(self.judge.holds());
        if let Some(level) = self.judge.tell(now) {
            let event = Event { level, before: level, source: self.source.clone(), at: now, merged: 1 };
            self.hub.tell(event);
        }
    }
}

/// Rounded up, so that a sleep never ends before its time and is taken again for nothing.
fn timespec(duration: Duration) -> Timespec {
    let rounded = duration.saturating_add(Duration::from_micros(1));
    Timespec {
        tv_sec: i64::try_from(rounded.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(rounded.subsec_nanos()),
    }
}
