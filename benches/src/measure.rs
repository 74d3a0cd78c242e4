//! What one command takes: wall time, processor time, peak memory. Each command is measured by a process of
//! its own, because the kernel sums processor time and keeps the peak over all children of a process.
//!
//! Invariant: the peak is the command's own and not its starter's, which exec hands down (exec_mmap in
//! fs/exec.c, setmax_mm_hiwater_rss): the measuring process holds about 2 MB, less than any Rust program that
//! reads /proc.

use anyhow::{Context, Result, bail};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// What a command took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Taken {
    pub(crate) wall: Duration,
    /// User and system time.
    pub(crate) cpu: Duration,
    /// KiB; the kernel keeps it in that unit.
    pub(crate) peak_kib: u64,
}

/// Runs `command`, whose output is dropped, in a process that measures it.
pub(crate) fn measure(command: &[OsString]) -> Result<Taken> {
    let output = Command::new(crate::this_program()?).arg("measure").arg("--").args(command).output()?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    serde_json::from_slice(&output.stdout).context("the measuring process printed no JSON")
}

/// The measuring process.
pub(crate) fn run(command: &[OsString]) -> Result<ExitCode> {
    let (program, args) = command.split_first().context("no command")?;
    let start = Instant::now();
    let ended = Command::new(program).args(args).stdin(Stdio::null()).stdout(Stdio::null()).status();
    let wall = start.elapsed();
    let status = ended.with_context(|| format!("cannot start {}", program.display()))?;
    // ebb answers 1 where it has findings.
    if !matches!(status.code(), Some(0 | 1)) {
        bail!("{} failed: {status}", program.display());
    }
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN)?;
    let cpu = duration(usage.user_time()) + duration(usage.system_time());
    let peak_kib = u64::try_from(usage.max_rss())?;
    println!("{}", serde_json::to_string(&Taken { wall, cpu, peak_kib })?);
    Ok(ExitCode::SUCCESS)
}

fn duration(time: TimeVal) -> Duration {
    let seconds = u64::try_from(time.tv_sec()).unwrap_or(0);
    Duration::from_secs(seconds) + Duration::from_micros(u64::try_from(time.tv_usec()).unwrap_or(0))
}

/// The middle one of `figures`; 0 of none.
pub(crate) fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(0.0)
}
