//! What a reader is told.

use crate::{Level, Source};
use std::fmt;
use std::time::Instant;

/// A change of the level, or a reminder that it lasts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// The level from `at` on.
    pub level: Level,
    /// The level of the event that this reader got before, [`Level::None`] at first.
    pub before: Level,
    /// Where it came from.
    pub source: Source,
    /// When it was heard of, which may be long before it is read.
    pub at: Instant,
    /// How many events this one stands for: more than 1 if the reader came late and older ones were merged into it.
    pub merged: u32,
}

/// What an [`Event`] means for whoever got the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Change {
    /// Pressure begins.
    Onset,
    /// It gets worse.
    Rise,
    /// It lasts: the source told of it again, and the cooldown since the last event is over.
    Still,
    /// It is less, not over.
    Fall,
    /// It is over.
    Release,
}

impl Event {
    /// What it means.
    pub fn change(&self) -> Change {
        match (self.before, self.level) {
            (Level::None, level) if level > Level::None => Change::Onset,
            (before, level) if before < level => Change::Rise,
            (before, level) if before == level => Change::Still,
            (_, Level::None) => Change::Release,
            _ => Change::Fall,
        }
    }

    /// Whether something should be given back now: pressure begins, gets worse or lasts. Of which level is another
    /// matter: [`Level::Low`] may come every 15 s in a container whose page cache fills its limit.
    pub fn is_call(&self) -> bool {
        matches!(self.change(), Change::Onset | Change::Rise | Change::Still)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Change::Onset => "onset",
            Change::Rise => "rise",
            Change::Still => "still",
            Change::Fall => "fall",
            Change::Release => "release",
        })
    }
}

impl fmt::Display for Event {
    /// `onset: medium (before: none), from ...`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} (before: {}), from {}", self.change(), self.level, self.before, self.source)
    }
}
