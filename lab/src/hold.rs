//! Holding an incident: from "ready" until standard input closes or a signal comes, and the way out.

use crate::case::Case;
use crate::machine::Machine;
use crate::stage::Stage;
use crate::{journal, noise, sys};
use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use serde_json::{Value, json};
use std::io::Write;

/// Makes `case`, says so in one JSON line on standard output, holds it until standard input closes or a
/// signal comes, and cleans up. A case that this machine cannot run says `{"ready":false,"skipped":"why"}`.
pub fn run(case: &Case, machine: Machine) -> Result<()> {
    sys::block_signals(true)?;
    for line in journal::sweep()? {
        eprintln!("{line}");
    }
    if let Some(why) = case.missing(&machine) {
        return say(&json!({ "ready": false, "skipped": why }));
    }
    let mut stage = Stage::new(machine)?;
    let held = make(case, &mut stage).and_then(|()| say(&stage.ready_line())).and_then(|()| hold(&stage));
    let cleared = stage.clear();
    held.and(cleared)
}

fn make(case: &Case, stage: &mut Stage) -> Result<()> {
    case.noise.iter().try_for_each(|&noise| noise::make(noise, stage)).context("making the noise")?;
    (case.make)(stage)
}

fn say(line: &Value) -> Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    Ok(out.flush()?)
}

/// Waits for the end of standard input, or a signal. A dead actor is an error: the incident is over.
fn hold(stage: &Stage) -> Result<()> {
    let signals = sys::signals()?;
    let stdin = std::io::stdin();
    loop {
        let mut fds = [PollFd::new(&stdin, PollFlags::IN), PollFd::new(&signals, PollFlags::IN)];
        poll(&mut fds, None)?;
        let (input, signal) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if input && rustix::io::read(&stdin, &mut [0u8; 256])? == 0 {
            return Ok(());
        }
        if signal && sys::next_signal(&signals)? != libc::SIGCHLD {
            return Ok(());
        }
        if let Some(pid) = stage.ended() {
            bail!("process {pid} of the incident ended while it was held");
        }
    }
}
