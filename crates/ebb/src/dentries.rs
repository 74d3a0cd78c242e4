//! `ebb dentries --who 5s`: who makes the dentries.
//!
//! The kernel keeps a dentry for every name that was looked up, found or not, and a program that asks for
//! ever new names of files that are not there fills gigabytes with them. This verb traces path look-ups for
//! some seconds and names the programs and directories. Invariant: whatever ends it, the trace is removed,
//! by itself or (after a kill) by the next start.

mod text;

use crate::cli::{Output, duration};
use crate::render::{self, Page};
use anyhow::{Context, anyhow};
use ebbtide_observe::trace::{LookupTrace, Lookups, TraceError};
use ebbtide_sys::interrupt::Interrupts;
use ebbtide_sys::schedule::Urgent;
use rustix::fd::AsFd;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What `ebb dentries` is asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct DentriesArgs {
    /// Trace path look-ups for this long (5s, 500ms, 2m), then say who made them and where
    ///
    /// Meanwhile each look-up on this host takes about 1 us longer. Ctrl-C ends it early and shows what was
    /// seen so far.
    #[arg(long, value_name = "TIME", value_parser = duration, required = true)]
    #[arg(num_args = 0..=1, default_missing_value = "5s")]
    pub(crate) who: Duration,
    #[command(flatten)]
    pub(crate) output: Output,
    /// Show the N largest processes and directories
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) top: u16,
}

/// The JSON of the verb: schema version 1, additive.
#[derive(Serialize)]
struct Report<'a> {
    schema_version: u32,
    #[serde(flatten)]
    lookups: &'a Lookups,
    /// What ebb itself used meanwhile.
    cpu_us: u64,
}

/// Traces, then prints.
///
/// Errors: tracing is not possible here, with what to do about it; the caller exits with 2.
pub(crate) fn run(args: &DentriesArgs) -> anyhow::Result<ExitCode> {
    let stop = Interrupts::catch().context("cannot hold signals back")?;
    let cpu_before = cpu_time();
    let trace = LookupTrace::arm().map_err(|e| refused(&e))?;
    // Tests and scripts take this line for "from now on every look-up counts".
    let _ = writeln!(
        std::io::stderr(),
        "Tracing path look-ups for {:?}; Ctrl-C shows what was seen so far.",
        args.who
    );
    let mut lookups = watch(trace, &stop, args).context("the trace broke off")?;
    let cpu = cpu_time().saturating_sub(cpu_before);
    lookups.processes.truncate(args.top.into());
    if args.output.json {
        render::print_json(&Report { schema_version: 1, lookups: &lookups, cpu_us: cpu.as_micros() as u64 })?;
    } else {
        render::print(&text::report(Page::of_stdout(), &lookups, cpu))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Reads the trace until its time is up or a signal comes.
fn watch(mut trace: LookupTrace, stop: &Interrupts, args: &DentriesArgs) -> anyhow::Result<Lookups> {
    /// The shortest rest between two readings. A path in memory is soon overwritten or gone with its process:
    /// of a loop of short-lived processes on two busy cores, 90 % of the paths were read in time with 50 us
    /// and real-time priority, 62 % with 50 us and nice -20, 30 % with 500 us.
    const SOON: Duration = Duration::from_micros(50);
    /// Where records hold the paths, a reading has time until the buffers fill.
    const LATER: Duration = Duration::from_millis(5);
    let least = if trace.exact_paths() { LATER } else { SOON };
    // Not to be had without CAP_SYS_NICE; then fewer directories are known, and the report says so.
    let _urgent = if trace.exact_paths() { None } else { Urgent::begin().ok() };
    let end = Instant::now() + args.who;
    loop {
        let began = Instant::now();
        let more = trace.round()?;
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() || stop.take() {
            break;
        }
        // Resting for twice as long as it works bounds what tracing takes to a third of a core; behind by
        // more than a round it is bounded to a half.
        let rest = began.elapsed() * if more { 1 } else { 2 };
        let rest = rest.max(least).min(left);
        if stop.wait(rest) {
            break;
        }
        if !more {
            trace.wait(stop.as_fd(), left.saturating_sub(rest));
        }
    }
    Ok(trace.close(args.top.into())?)
}

/// Why it cannot trace, and what helps.
fn refused(error: &TraceError) -> anyhow::Error {
    let root = rustix::process::geteuid().is_root();
    let advice = match error {
        TraceError::Denied { .. } if !root => "Tracing takes root. Try: sudo ebb dentries --who 5s",
        TraceError::Denied { .. } => {
            "This root may not trace: it lacks CAP_SYS_ADMIN, as in a container, or the kernel is locked down \
             (cat /sys/kernel/security/lockdown). Try it on the host itself"
        }
        TraceError::NoTracefs { .. } => "Try: mount -t tracefs tracefs /sys/kernel/tracing",
        TraceError::NoEvents => {
            "It was built without CONFIG_FTRACE_SYSCALLS. Try, for one process: strace -f -e trace=%file -p PID"
        }
        TraceError::PidNamespace => "Try it on the host itself, or: nsenter -t 1 -p -m ebb dentries --who 5s",
        TraceError::Busy => "Try again when its other traces have ended",
        TraceError::Read(_) => "Try: ls /sys/kernel/tracing/instances",
    };
    anyhow!("cannot trace path look-ups: {error}. {advice}")
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec.try_into().unwrap_or(0), time.tv_nsec.try_into().unwrap_or(0))
}
