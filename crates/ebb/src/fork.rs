//! `ebb fork PID`: will fork() succeed, what will it cost, and what will copy-on-write add?
//!
//! Predicted from the outside and checked against nothing but the kernel's own rules; the target is not stopped,
//! and nothing of it is changed but (on request) its soft-dirty bits. Measuring how fast it writes takes some
//! seconds, and how long a fork takes is measured on a scratch process of ebb's own.

mod text;

use crate::cli::{Output, duration};
use crate::render::{self, Page};
use anyhow::{Context, anyhow};
use ebbtide_explain::fork::{self, Ceiling, Growth, Outcome, Prediction};
use ebbtide_observe::fork::{ForkSample, LiveFork};
use ebbtide_observe::process::{Name, Process};
use ebbtide_observe::writes::{self, PageSample, Written};
use ebbtide_observe::{Bytes, ReadError, Root, Unread};
use ebbtide_sys::fork::ForkTimes;
use ebbtide_sys::interrupt::Interrupts;
use serde::Serialize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What `ebb fork` is asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct ForkArgs {
    /// The process: its pid, or its name if only one has it
    #[arg(value_name = "PID|NAME")]
    target: String,
    /// Watch its writes for so long
    #[arg(long = "for", value_name = "TIME", value_parser = duration, default_value = "2s")]
    time: Duration,
    /// Count written pages exactly, by the kernel's soft-dirty bits (not in every kernel)
    ///
    /// It resets the target's bits and makes its next write to each page fault once. Without it pages are
    /// compared by their content.
    #[arg(long)]
    soft_dirty: bool,
    #[command(flatten)]
    output: Output,
}

/// The JSON of the verb: schema version 1, additive.
#[derive(Debug, Serialize)]
struct Report {
    schema_version: u32,
    pid: u32,
    name: Name,
    /// `None`: it cannot be told.
    would_succeed: Option<bool>,
    limit: Option<&'static str>,
    errno: Option<&'static str>,
    reason: String,
    /// What the overcommit rule counts.
    charge_bytes: Bytes,
    /// How far it can grow before a fork is refused; `None`: no rule will refuse it.
    headroom_bytes: Option<Bytes>,
    page_table_copy_us: Option<u64>,
    /// Pages side by side in RAM, and scattered.
    page_table_copy_us_range: Option<[u64; 2]>,
    dirty_bytes_per_s: Option<u64>,
    dirty_by: Option<&'static str>,
    cow: Cow,
    live_forks: Vec<Live>,
    unread: Vec<Unread>,
}

/// Copy-on-write, if it forked now.
#[derive(Debug, Serialize)]
struct Cow {
    limit: String,
    limit_bytes: Bytes,
    room_bytes: Bytes,
    /// `None`: not at the present rate of writing, or that is not known.
    seconds_until: Option<f64>,
    worst_case_bytes: Bytes,
    /// What it levels off at; `None`: no levelling off was seen, or nothing is known.
    expected_bytes: Option<Bytes>,
}

#[derive(Debug, Serialize)]
struct Live {
    pid: u32,
    cow_bytes: Bytes,
}

/// Samples, predicts, prints.
pub(crate) fn run(args: &ForkArgs) -> anyhow::Result<ExitCode> {
    let root = Root::live()?;
    let pid = crate::explain::pid(&root, &args.target)?;
    let process =
        Process::open(&root, pid).map_err(|_| anyhow!("there is no process {pid}; 'ebb ps' lists them"))?;
    let mut sample = ForkSample::read(&root, &process).context("it cannot fork, or cannot be read")?;
    let prediction = fork::predict(&sample);
    let growth = match growth(&root, &process, &sample, args) {
        Ok(growth) => growth,
        Err(e) => {
            sample.unread.push(Unread::of("its rate of writing", &e));
            None
        }
    };
    let times = copy_times(&sample).unwrap_or_else(|e| {
        let why = format!("a scratch process could not be forked: {e}");
        sample.unread.push(Unread { what: "the time to copy page tables".to_owned(), why });
        None
    });
    let report = report(&sample, prediction, growth.map(|g| (g, args.soft_dirty)), times);
    if args.output.json {
        render::print_json(&report)?;
    } else {
        render::print(&text::report(Page::of_stdout(), &report))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn report(
    sample: &ForkSample,
    prediction: Prediction,
    growth: Option<(Growth, bool)>,
    times: Option<[Duration; 2]>,
) -> Report {
    let Prediction { outcome, charge, headroom } = prediction;
    let (would_succeed, limit, errno, reason) = match outcome {
        Outcome::Succeeds(reason) => (Some(true), None, None, reason),
        Outcome::Refused(refusal) => (Some(false), Some(refusal.limit), Some(refusal.errno), refusal.reason),
        Outcome::Unknown(reason) => (None, None, None, reason),
    };
    let Ceiling { limit: ceiling, bytes, room } = fork::ceiling(sample);
    let worst_case = fork::worst_case(sample);
    let rate = growth.map(|(growth, _)| growth);
    let range = times.map(|times| times.map(|time| time.as_micros() as u64));
    Report {
        schema_version: 1,
        pid: sample.pid,
        name: sample.name,
        would_succeed,
        limit,
        errno,
        reason,
        charge_bytes: charge,
        headroom_bytes: headroom,
        // Between the two lies a factor of up to 3; their geometric mean is off by less than 2.
        page_table_copy_us: range.map(|[low, high]| (low as f64 * high as f64).sqrt() as u64),
        page_table_copy_us_range: range,
        dirty_bytes_per_s: rate.map(|growth| growth.per_second as u64),
        dirty_by: growth.map(|(_, soft_dirty)| if soft_dirty { "soft-dirty" } else { "content" }),
        cow: Cow {
            limit: ceiling,
            limit_bytes: bytes,
            room_bytes: room,
            // More than there is to copy is never copied, whatever the rate.
            seconds_until: rate.and_then(|growth| growth.seconds_until(room)).filter(|_| worst_case > room),
            worst_case_bytes: worst_case,
            expected_bytes: rate
                .filter(|g| g.plateau.is_finite())
                .map(|g| Bytes(g.plateau as u64).min(worst_case)),
        },
        live_forks: sample
            .forks
            .iter()
            .map(|&LiveFork { pid, copied }| Live { pid, cow_bytes: copied })
            .collect(),
        unread: sample.unread.clone(),
    }
}

/// How fast it writes to pages it has not written since; `None` where it has no private memory.
fn growth(
    root: &Root,
    process: &Process,
    sample: &ForkSample,
    args: &ForkArgs,
) -> Result<Option<Growth>, ReadError> {
    let Some(mappings) = sample.copied.as_ref().map(|c| &c.mappings).filter(|m| !m.is_empty()) else {
        return Ok(None);
    };
    let stop = Interrupts::catch().map_err(|e| ReadError::new("signalfd", e))?;
    let resident: Bytes = mappings.iter().map(|m| m.resident).sum();
    if args.soft_dirty {
        let own = Process::open(root, std::process::id())?;
        if !writes::soft_dirty_works(&own) {
            let path = own.dir().path("pagemap");
            return Err(ReadError::Malformed {
                path,
                what: "this kernel has no soft-dirty bits; leave --soft-dirty out",
            });
        }
        let began = Instant::now();
        writes::clear_soft_dirty(process)?;
        return twice(began, args.time, &stop, || {
            let after = began.elapsed();
            Ok((after, writes::soft_dirty(process, mappings)?.0 as f64))
        });
    }
    let began = Instant::now();
    let mut pages = PageSample::begin(process, mappings)?;
    twice(began, args.time, &stop, || {
        let written: Written = pages.compare();
        Ok((written.after, written.share() * resident.0 as f64))
    })
}

/// Measures at half of `time` and at twice as long after the beginning; an interrupt ends the waiting.
fn twice(
    began: Instant,
    time: Duration,
    stop: &Interrupts,
    mut measure: impl FnMut() -> Result<(Duration, f64), ReadError>,
) -> Result<Option<Growth>, ReadError> {
    stop.wait((time / 2).saturating_sub(began.elapsed()));
    let (after, half) = measure()?;
    stop.wait((after * 2).saturating_sub(began.elapsed()));
    let (after, full) = measure()?;
    Ok(Some(Growth::through(half, full, after.as_secs_f64())))
}

/// What copying the page tables would take, at best and at worst, by a scratch process's forks.
fn copy_times(sample: &ForkSample) -> Result<Option<[Duration; 2]>, rustix::io::Errno> {
    /// A sample of 64 MiB and more shows the cost of cache misses; more than 1 % of what is available is too much
    /// to ask of a host that is short of memory.
    const MOST: Bytes = Bytes::from_mib(256);
    const LEAST: Bytes = Bytes::from_mib(4);
    let Some(copied) = &sample.copied else { return Ok(None) };
    let room = fork::ceiling(sample).room.min(sample.memory.mem_available);
    let len = Bytes(room.0 / 64).min(MOST).max(LEAST);
    let base = ebbtide_sys::fork::measure(len.0 as usize, false)?;
    let mut times = scaled(base, len, copied.base_pages + copied.swapped);
    if copied.huge_pages > Bytes::ZERO {
        let huge = scaled(ebbtide_sys::fork::measure(len.0 as usize, true)?, len, copied.huge_pages);
        // The empty fork is in both.
        times =
            [times[0] + huge[0].saturating_sub(base.empty), times[1] + huge[1].saturating_sub(base.empty)];
    }
    Ok(Some(times))
}

/// `times` of a process of `len` bytes, for one of `bytes`.
fn scaled(times: ForkTimes, len: Bytes, bytes: Bytes) -> [Duration; 2] {
    [times.shortest, times.longest].map(|time| {
        let tables = time.saturating_sub(times.empty).as_secs_f64();
        times.empty + Duration::from_secs_f64(tables * bytes.share_of(len))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copying_scales_with_the_memory() {
        let ms = Duration::from_millis;
        let times = ForkTimes { empty: ms(1), shortest: ms(3), longest: ms(5) };
        assert_eq!(scaled(times, Bytes(100), Bytes(1000)), [ms(21), ms(41)]);
        assert_eq!(scaled(times, Bytes(100), Bytes::ZERO), [ms(1), ms(1)]);
    }
}
