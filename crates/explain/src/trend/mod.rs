//! Trends: is a counter climbing, and does another climb in step with it?
//!
//! [`stats`] holds the rank statistics, `shape` tells a climb from what merely looks like one, `teeth` finds
//! saw-teeth, `in_step` sets two counters side by side. Everything here is pure and bounded: no sample is
//! read, no clock is asked.
//!
//! Invariant: a climb is named only where it is steady. Crying leak falsely is worse than asking for a longer
//! look, so whatever rises in one jump, levels off, gives back a good part or wanders is never [`Climb`].
//!
//! [`Climb`]: Verdict::Climb

mod in_step;
mod shape;
pub mod stats;
mod teeth;
#[cfg(test)]
mod tests;

pub use in_step::{InStep, in_step};
pub use shape::{MIN_SAMPLES, MIN_SPAN, judge};

use ebbtide_observe::{Bytes, Pages};
use std::fmt;
use std::time::Duration;

/// The smallest change of a process's or a cgroup's counter that means anything.
///
/// Linux 6.2 to 6.16 keep RSS in a percpu_counter: /proc/PID/status and statm may be off by the number of
/// CPUs times max(32, 2 x CPUs) pages (lib/percpu_counter.c), which reaches 1 MiB at 8 CPUs. Earlier kernels
/// batch 64 faults per thread (mm/memory.c, TASK_RSS_EVENTS_THRESH); later ones sum exactly, as smaps_rollup
/// always did. Memory charged to a cgroup moves in batches of 64 pages per CPU (MEMCG_CHARGE_BATCH). On hosts
/// with more CPUs, and for counters of the whole host, pass a larger change to [`judge`].
pub const MEANINGFUL: Bytes = Bytes::from_mib(1);

/// What a counter counts: bytes, pages, or things (`u64`: file descriptors, threads, objects).
pub trait Quantity: Copy {
    /// The bare number.
    fn number(self) -> u64;
}

impl Quantity for Bytes {
    fn number(self) -> u64 {
        self.0
    }
}

impl Quantity for Pages {
    fn number(self) -> u64 {
        self.0
    }
}

impl Quantity for u64 {
    fn number(self) -> u64 {
        self
    }
}

/// Samples of one counter, in order of time, each time once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Series<Q = Bytes> {
    samples: Vec<(Duration, Q)>,
}

impl<Q: Quantity> Series<Q> {
    /// A series of samples in any order, timed from any common start. Of several samples at the same time
    /// the last given counts.
    pub fn new(samples: impl IntoIterator<Item = (Duration, Q)>) -> Series<Q> {
        let mut samples: Vec<_> = samples.into_iter().collect();
        samples.sort_by_key(|sample| std::cmp::Reverse(sample.0));
        samples.reverse();
        samples.dedup_by_key(|sample| sample.0);
        Series { samples }
    }

    /// The samples, oldest first.
    pub fn samples(&self) -> &[(Duration, Q)] {
        &self.samples
    }

    /// From the first sample to the last.
    pub fn span(&self) -> Duration {
        match (self.samples.first(), self.samples.last()) {
            (Some(first), Some(last)) => last.0 - first.0,
            _ => Duration::ZERO,
        }
    }

    /// Nanoseconds and numbers, as [`stats`] takes them; both saturate at 2^63 (292 years, 8 EiB).
    fn points(&self) -> Vec<stats::Point> {
        let nanoseconds = |at: Duration| i64::try_from(at.as_nanos()).unwrap_or(i64::MAX);
        let number = |q: Q| i64::try_from(q.number()).unwrap_or(i64::MAX);
        self.samples.iter().map(|&(at, q)| (nanoseconds(at), number(q))).collect()
    }
}

/// A change over time, in bytes per second; negative where memory falls.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct Rate(pub f64);

/// As "1.20 MiB/s", "-64.0 KiB/s".
impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.0 < 0.0 { "-" } else { "" };
        f.pad(&format!("{sign}{}/s", Bytes(self.0.abs().round() as u64)))
    }
}

/// How fast, and how sure.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Slope {
    /// Theil-Sen's median slope.
    pub rate: Rate,
    /// Lower end of its 95% confidence interval.
    pub low: Rate,
    /// Upper end of it.
    pub high: Rate,
    /// Two-sided Mann-Kendall p. It takes samples for independent, so no verdict rests on it alone.
    pub p: f64,
}

/// What a counter does.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    /// Nothing but noise, all of it within this much.
    Flat {
        /// From the lowest sample to the highest, spikes of one sample aside.
        within: Bytes,
    },
    /// It rises steadily from beginning to end.
    Climb(Slope),
    /// It falls steadily from beginning to end.
    Fall(Slope),
    /// It gives back a good part of what it gains: a collector, the kernel's reclaim, a load that comes and
    /// goes.
    SawTooth {
        /// How many times it gave back.
        drops: usize,
        /// The median time from one drop to the next; `None` of a single drop.
        period: Option<Duration>,
        /// The median drop.
        amplitude: Bytes,
        /// What stays after each drop.
        valleys: Valleys,
    },
    /// One change, sudden or not, and then level: a warm-up, a table that grew, a burst that stayed.
    Step {
        /// The last time at the old level (the first sample where it was changing from the start).
        began: Duration,
        /// The first time at the new level.
        ended: Duration,
        /// The old level.
        from: Bytes,
        /// The new level.
        to: Bytes,
    },
    /// The samples do not decide.
    Undecided(Undecided),
}

/// Whether what stays after each drop of a saw-tooth climbs.
#[derive(Debug, Clone, PartialEq)]
pub enum Valleys {
    /// It does not: everything gained is given back.
    Level,
    /// It climbs steadily: under the teeth something is kept each time. In a generational collector this may
    /// be garbage that only the rarer, full collection takes.
    Climb(Slope),
    /// Too few valleys, or they move unsteadily.
    Unclear,
}

/// Why the samples do not decide.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Undecided {
    /// Fewer samples than [`MIN_SAMPLES`].
    TooFew {
        /// How many there are.
        samples: usize,
    },
    /// Sampled for less than [`MIN_SPAN`].
    TooShort {
        /// For how long.
        span: Duration,
    },
    /// It rises, but more and more slowly: a warm-up whose end was not seen.
    Levelling,
    /// It moves by more than noise, but not steadily in one direction.
    Unsteady,
}

impl fmt::Display for Slope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Slope { rate, low, high, p } = self;
        let p = if *p < 0.001 { "p < 0.001".to_owned() } else { format!("p = {p:.3}") };
        write!(f, "{rate} (95%: {low} to {high}, {p})")
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Flat { within } => write!(f, "flat within {within}"),
            Verdict::Climb(slope) => write!(f, "climbs by {slope}"),
            Verdict::Fall(slope) => write!(f, "falls by {slope}"),
            Verdict::SawTooth { drops, period, amplitude, valleys } => {
                let times = if *drops == 1 { "once".to_owned() } else { format!("{drops} times") };
                write!(f, "gave {amplitude} back {times}")?;
                if let Some(period) = period {
                    write!(f, ", every {:.1} s", period.as_secs_f64())?;
                }
                match valleys {
                    Valleys::Level => f.write_str("; what stays is level"),
                    Valleys::Climb(slope) => write!(f, "; what stays climbs by {slope}"),
                    Valleys::Unclear => f.write_str("; what stays is unclear"),
                }
            }
            Verdict::Step { began, ended, from, to } => {
                let (began, ended) = (began.as_secs_f64(), ended.as_secs_f64());
                write!(f, "from {from} to {to} between {began:.1} s and {ended:.1} s, then level")
            }
            Verdict::Undecided(why) => write!(f, "undecided: {why}"),
        }
    }
}

impl fmt::Display for Undecided {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Undecided::TooFew { samples } => {
                write!(f, "{samples} samples, at least {MIN_SAMPLES} are needed")
            }
            Undecided::TooShort { span } => {
                let (span, least) = (span.as_secs_f64(), MIN_SPAN.as_secs());
                write!(f, "watched for {span:.1} s, at least {least} s are needed")
            }
            Undecided::Levelling => f.write_str("it rises ever more slowly; watch longer"),
            Undecided::Unsteady => f.write_str("it moves, but not steadily; watch longer"),
        }
    }
}
