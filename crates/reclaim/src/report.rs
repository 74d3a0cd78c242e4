//! What was planned and what came of it, in the shape of the JSON contract.

use ebbtide_observe::Bytes;
use serde::{Deserialize, Serialize, Serializer};
use std::time::{Duration, Instant};

/// One lever: planned, and where it was applied, what it did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Lever {
    /// A stable name: "malloc-trim", "arena-tops", "lua-pages", "dentries" ... (schema/reclaim.schema.json).
    pub id: &'static str,
    /// What it acts on, for people.
    pub on: String,
    /// What it would return.
    #[serde(rename = "predicted_bytes")]
    pub predicted: Bytes,
    /// Nobody knows what it would return: garbage, for one, only a collection finds. Nothing is predicted then.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub unforeseen: bool,
    /// What it returned; `None` where it was not applied.
    #[serde(rename = "returned_bytes")]
    pub returned: Option<Bytes>,
    /// What it costs the target.
    pub cost: String,
    /// The longest time that a thread of the target was held up.
    #[serde(rename = "longest_stop_us", serialize_with = "micros")]
    pub longest_stop: Duration,
    /// How often threads were held up.
    pub stops: u32,
    /// Why it was not applied, or not to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub short: Option<String>,
    /// What it makes, where that is no memory.
    #[serde(flatten)]
    pub blocks: Option<Blocks>,
    /// What it sets, until the process ends.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<Setting>,
    /// The command that takes it back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub undo: Option<String>,
}

/// A setting of an allocator inside a process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// As the allocator's manual has it: "M_TRIM_THRESHOLD", "arena.<i>.dirty_decay_ms".
    pub name: String,
    /// Of how many parts of the heap: arenas.
    pub parts: u64,
    /// What it was; `None` where that is not known yet.
    pub before: Option<i64>,
    /// What it shall be.
    pub set: i64,
    /// What it was found to be afterwards; `None` where it was not set.
    pub after: Option<i64>,
}

/// Free blocks as large as a huge page, which compaction puts together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Blocks {
    /// How many more there would be.
    #[serde(rename = "predicted_blocks")]
    pub predicted: u64,
    /// How many more there are; `None` where it was not applied.
    #[serde(rename = "made_blocks")]
    pub made: Option<u64>,
}

impl Lever {
    /// A lever that was not applied yet.
    pub fn planned(id: &'static str, on: String, predicted: Bytes, cost: &str) -> Lever {
        Lever {
            id,
            on,
            predicted,
            unforeseen: false,
            returned: None,
            cost: cost.to_owned(),
            longest_stop: Duration::ZERO,
            stops: 0,
            short: None,
            blocks: None,
            settings: Vec::new(),
            undo: None,
        }
    }

    /// One of which nobody knows what it would return.
    pub fn unforeseen(id: &'static str, on: String, cost: &str) -> Lever {
        Lever { unforeseen: true, ..Lever::planned(id, on, Bytes::ZERO, cost) }
    }

    /// Whether it returned less than half of what was predicted, which is worth being told.
    pub fn fell_short(&self) -> bool {
        let blocks = self.blocks.is_some_and(|b| b.made.is_some_and(|made| made < b.predicted / 2));
        blocks || self.returned.is_some_and(|returned| returned < self.predicted.scaled(0.5))
    }
}

/// What a reclaim did, or would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// What all levers would return.
    #[serde(rename = "predicted_bytes")]
    pub predicted: Bytes,
    /// What the target's memory fell by; `None` for a dry run.
    #[serde(rename = "returned_bytes")]
    pub returned: Option<Bytes>,
    /// The longest time that a thread of the target was held up.
    #[serde(rename = "longest_stop_us", serialize_with = "micros")]
    pub longest_stop: Duration,
    /// How long it took in all.
    #[serde(rename = "elapsed_us", serialize_with = "micros")]
    pub elapsed: Duration,
    /// Its parts.
    pub levers: Vec<Lever>,
    /// What else is worth knowing.
    pub notes: Vec<String>,
}

impl Report {
    /// The report of levers that hold no thread up, begun at `began`: their sums.
    pub(crate) fn of(levers: Vec<Lever>, notes: Vec<String>, began: Instant) -> Report {
        let applied = levers.iter().any(|lever| lever.returned.is_some());
        Report {
            predicted: levers.iter().map(|lever| lever.predicted).sum(),
            returned: applied.then(|| levers.iter().filter_map(|lever| lever.returned).sum()),
            longest_stop: Duration::ZERO,
            elapsed: began.elapsed(),
            levers,
            notes,
        }
    }
}

fn micros<S: Serializer>(time: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_u64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX))
}
