//! The processes of an incident: forked children and foreign programs, each with a line to talk over.
//!
//! Invariants: an actor dies with its parent (PR_SET_PDEATHSIG) and is killed and reaped when dropped; nobody
//! sleeps to wait for one: it says a line when it is ready, or its end closes the line.

use crate::sys;
use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, getppid, kill_process, set_parent_process_death_signal};
use serde_json::{Value, json};
use std::convert::Infallible;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// A process of the incident, as its parent sees it.
#[derive(Debug)]
pub struct Actor {
    pid: i32,
    line: Line,
    /// Set for foreign programs, whose std handle must not be waited for twice.
    _program: Option<Child>,
}

/// What both ends talk over: JSON values, one a line.
#[derive(Debug)]
pub struct Line {
    from: BufReader<File>,
    to: File,
}

impl Line {
    /// Two ends that hear each other.
    fn pair() -> Result<(Line, Line)> {
        let (a_from, b_to) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        let (b_from, a_to) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        Ok((Line::of(a_from, a_to), Line::of(b_from, b_to)))
    }

    fn of(from: OwnedFd, to: OwnedFd) -> Line {
        Line { from: BufReader::new(from.into()), to: to.into() }
    }

    /// Says one value.
    pub fn say(&mut self, value: &Value) -> Result<()> {
        self.to.write_all(format!("{value}\n").as_bytes()).context("talking to an actor")
    }

    /// Waits for one value; an error if the other end has ended, or says one.
    pub fn hear(&mut self) -> Result<Value> {
        let mut text = String::new();
        ensure!(self.from.read_line(&mut text)? > 0, "an actor ended without a word");
        let value: Value = serde_json::from_str(&text).with_context(|| format!("an actor said {text:?}"))?;
        match value.get("error").and_then(Value::as_str) {
            Some(error) => bail!("an actor failed: {error}"),
            None => Ok(value),
        }
    }

    /// Says ready.
    pub fn ready(&mut self) -> Result<()> {
        self.say(&json!({}))
    }

    /// Holds what the actor has, for ever.
    pub fn park(&self) -> ! {
        sys::park()
    }
}

impl Actor {
    /// Forks a child that runs `body`, which ends in [`Line::park`] or for ever loops. The child's standard
    /// input and output are /dev/null, so that it keeps no pipe of the lab's caller open.
    pub fn fork(body: impl FnOnce(&mut Line) -> Result<Infallible>) -> Result<Actor> {
        let (ours, theirs) = Line::pair()?;
        let parent = rustix::process::getpid();
        if let Some(pid) = sys::fork()? {
            return Ok(Actor { pid, line: ours, _program: None });
        }
        drop(ours);
        let mut line = theirs;
        let failed = match begin(parent).and_then(|()| body(&mut line)) {
            Ok(never) => match never {},
            Err(e) => e,
        };
        let _parent_gone = line.say(&json!({ "error": format!("{failed:#}") }));
        sys::exit(1)
    }

    /// Forks a child as [`Actor::fork`] and waits until it says ready.
    pub fn ready(body: impl FnOnce(&mut Line) -> Result<Infallible>) -> Result<Actor> {
        let mut actor = Actor::fork(body)?;
        actor.hear()?;
        Ok(actor)
    }

    /// Starts a foreign program that writes JSON lines to its standard output.
    pub fn program(command: &mut Command) -> Result<Actor> {
        let parent = rustix::process::getpid();
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        die_with(command, parent);
        let mut child = command.spawn().with_context(|| format!("starting {command:?}"))?;
        let from = child.stdout.take().context("no stdout")?;
        let to = child.stdin.take().context("no stdin")?;
        let pid = i32::try_from(child.id())?;
        Ok(Actor { pid, line: Line::of(from.into(), to.into()), _program: Some(child) })
    }

    /// Its pid.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Waits for a value from it.
    pub fn hear(&mut self) -> Result<Value> {
        self.line.hear()
    }

    /// Waits for a value from it, and takes number `key` out of it.
    pub fn hear_number(&mut self, key: &str) -> Result<u64> {
        let value = self.hear()?;
        value.get(key).and_then(Value::as_u64).with_context(|| format!("an actor said no {key}: {value}"))
    }

    /// Tells it to go on.
    pub fn go(&mut self) -> Result<()> {
        self.line.ready()
    }

    /// Whether it has ended.
    pub fn has_ended(&self) -> bool {
        sys::has_ended(self.pid)
    }
}

impl Drop for Actor {
    fn drop(&mut self) {
        if let Some(pid) = Pid::from_raw(self.pid) {
            let _already_dead = kill_process(pid, Signal::KILL);
        }
        sys::reap(self.pid);
    }
}

/// The first steps of a forked child.
fn begin(parent: Pid) -> Result<()> {
    sys::block_signals(false)?;
    die_with_parent(parent)?;
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    sys::replace_stdio(&null, 0)?;
    sys::replace_stdio(&null, 1)
}

/// Asks for SIGKILL when the parent ends. Needed again after a change of uid, which clears it
/// (kernel/cred.c).
pub fn die_with_parent(parent: Pid) -> Result<()> {
    set_parent_process_death_signal(Some(Signal::KILL))?;
    ensure!(getppid() == Some(parent), "the parent ended first");
    Ok(())
}

/// Makes `command`'s program die with `parent`, with no signal blocked.
#[allow(unsafe_code)]
pub fn die_with(command: &mut Command, parent: Pid) {
    let begin = move || {
        sys::block_signals(false).and_then(|()| die_with_parent(parent)).map_err(std::io::Error::other)
    };
    // SAFETY: only async-signal-safe calls on the way that succeeds (pthread_sigmask, prctl, getppid).
    unsafe { command.pre_exec(begin) };
}
