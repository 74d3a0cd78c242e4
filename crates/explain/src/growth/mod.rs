//! What grew while it was watched: counters over time, each judged, and what their growth together means.
//!
//! A climb of live memory and a climb of cache are different counters here, so they cannot be taken for each
//! other: cache may climb for ever and is nobody's leak. A climb of pages alone is never called a leak: see [`process`]; of
//! one of live bytes, see [`HeapWatch`].

mod cgroup;
mod host;
mod inside;
mod process;

pub use cgroup::cgroup;
pub use host::{HostWatch, host};
pub use inside::{HeapWatch, LIVE};
pub use process::{Descriptors, ProcessWatch, process};

use crate::trend::{MEANINGFUL, Series, Verdict, judge};
use ebbtide_observe::Bytes;
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use std::time::Duration;

/// One counter over time.
#[derive(Debug, Clone)]
pub struct Track {
    /// Its stable name, as the ledger's lines are called.
    pub id: &'static str,
    /// What its growth means, for people; empty where the name says it.
    pub remark: &'static str,
    /// Its samples.
    pub series: Series,
}

/// One counter, judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// Its stable name.
    pub id: &'static str,
    /// What its growth means; empty where the name says it.
    pub remark: &'static str,
    /// Its first sample.
    pub from: Bytes,
    /// Its last sample.
    pub to: Bytes,
    /// What it did in between.
    pub verdict: Verdict,
}

/// All counters, judged.
#[derive(Debug, Clone, PartialEq)]
pub struct Growth {
    /// How long it was watched.
    pub span: Duration,
    /// How many samples were taken.
    pub samples: usize,
    /// The counters.
    pub counters: Vec<Judged>,
}

impl Growth {
    /// Judges `tracks`; changes below `meaningful` are noise.
    fn judge(tracks: &[Track], meaningful: Bytes) -> Growth {
        let counters = tracks.iter().map(|track| Judged {
            id: track.id,
            remark: track.remark,
            from: track.series.samples().first().map_or(Bytes::ZERO, |s| s.1),
            to: track.series.samples().last().map_or(Bytes::ZERO, |s| s.1),
            verdict: judge(&track.series, meaningful),
        });
        Growth {
            span: tracks.iter().map(|t| t.series.span()).max().unwrap_or_default(),
            samples: tracks.iter().map(|t| t.series.samples().len()).max().unwrap_or_default(),
            counters: counters.collect(),
        }
    }

    /// The counter of this name.
    pub fn get(&self, id: &str) -> Option<&Judged> {
        self.counters.iter().find(|counter| counter.id == id)
    }

    fn climbs(&self, id: &str) -> Option<&Judged> {
        self.get(id).filter(|counter| matches!(counter.verdict, Verdict::Climb(_)))
    }
}

impl Judged {
    /// What it gained.
    pub fn gained(&self) -> Bytes {
        self.to - self.from
    }
}

/// Noise of one process's counters.
const PROCESS_NOISE: Bytes = MEANINGFUL;

/// Noise of the whole host's: counters are kept per CPU, and every process on the host moves them.
const HOST_NOISE: Bytes = Bytes::from_mib(4);

impl Serialize for Growth {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Growth", 3)?;
        out.serialize_field("seconds", &self.span.as_secs_f64())?;
        out.serialize_field("samples", &self.samples)?;
        out.serialize_field("counters", &self.counters)?;
        out.end()
    }
}

impl Serialize for Judged {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut out = serializer.serialize_struct("Judged", 6)?;
        out.serialize_field("id", self.id)?;
        out.serialize_field("verdict", word(&self.verdict))?;
        out.serialize_field("says", &self.verdict.to_string())?;
        out.serialize_field("from_bytes", &self.from)?;
        out.serialize_field("to_bytes", &self.to)?;
        match &self.verdict {
            Verdict::Climb(slope) | Verdict::Fall(slope) => {
                out.serialize_field("bytes_per_s", &slope.rate.0)?;
            }
            _ => out.skip_field("bytes_per_s")?,
        }
        out.end()
    }
}

/// The verdict's stable name.
fn word(verdict: &Verdict) -> &'static str {
    match verdict {
        Verdict::Flat { .. } => "flat",
        Verdict::Climb(_) => "climb",
        Verdict::Fall(_) => "fall",
        Verdict::SawTooth { .. } => "saw-tooth",
        Verdict::Step { .. } => "step",
        Verdict::Undecided(_) => "undecided",
    }
}
