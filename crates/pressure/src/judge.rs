//! What holds, and what of it is told: pure, with the time passed in.
//!
//! Two levels are kept apart. What *holds* rises as soon as a source is heard and sinks only once it has said nothing
//! for a while and relief was seen. What was *told* follows it: down at once, up at once unless as much was told a
//! moment ago (the cooldown). Invariant: nothing is told that does not hold at that moment.

use crate::Level;
use crate::options::Pace;
use std::time::{Duration, Instant};

/// What a look at the source, or at what tells of its relief, found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Look {
    /// So much is certain.
    pub(crate) at_least: Level,
    /// There is no sign that it is less than this; `None` if there is nothing to see, and silence must do.
    pub(crate) not_below: Option<Level>,
}

#[derive(Debug)]
pub(crate) struct Judge {
    pace: Pace,
    holds: Level,
    told: Level,
    /// When each level or a worse one was last heard of.
    heard: [Option<Instant>; 4],
    /// When a rise to each level or a worse one was last told.
    rose: [Option<Instant>; 4],
    /// When anything was last told.
    told_at: Option<Instant>,
    /// Whether the source was heard at the level that was told, since then.
    reminded: bool,
    looked: Option<Instant>,
}

impl Judge {
    pub(crate) fn new(pace: Pace) -> Judge {
        let (heard, rose) = ([None; 4], [None; 4]);
        let (holds, told) = (Level::None, Level::None);
        Judge { pace, holds, told, heard, rose, told_at: None, reminded: false, looked: None }
    }

    /// What holds now.
    pub(crate) fn holds(&self) -> Level {
        self.holds
    }

    /// The source was heard at `level`.
    pub(crate) fn hear(&mut self, level: Level, now: Instant) {
        for heard in self.heard.iter_mut().take(level as usize + 1) {
            *heard = Some(now);
        }
        self.holds = self.holds.max(level);
        self.reminded |= level > Level::None && level >= self.told;
    }

    /// A look was taken.
    pub(crate) fn look(&mut self, look: Look, now: Instant) {
        self.looked = Some(now);
        if look.at_least > Level::None {
            self.hear(look.at_least, now);
        }
        self.holds = self.lowest(look.not_below, now);
    }

    /// The source is gone, and with it whatever could tell of relief: nothing is known to hold any more.
    pub(crate) fn forget(&mut self) {
        self.holds = Level::None;
        self.heard = [None; 4];
    }

    /// The worst level up to what holds that was heard of so lately, or is so clearly there, that it still holds.
    fn lowest(&self, not_below: Option<Level>, now: Instant) -> Level {
        let silence = if not_below.is_some() { self.pace.settle } else { self.pace.quiet };
        let recent = |level: Level| {
            self.heard.get(level as usize).copied().flatten().is_some_and(|at| now.duration_since(at) < silence)
        };
        let holds = |level: &Level| recent(*level) || not_below.is_some_and(|least| least >= *level);
        Level::WORST_FIRST.into_iter().filter(|level| *level <= self.holds).find(holds).unwrap_or_default()
    }

    /// What is to be told now, if anything; it counts as told.
    pub(crate) fn tell(&mut self, now: Instant) -> Option<Level> {
        let due = self.due()?;
        if due.is_some_and(|due| due > now) {
            return None;
        }
        if self.holds > self.told {
            for rose in self.rose.iter_mut().take(self.holds as usize + 1) {
                *rose = Some(now);
            }
        }
        (self.told, self.told_at, self.reminded) = (self.holds, Some(now), false);
        Some(self.told)
    }

    /// When there is something to tell: `Some(None)` is at once.
    fn due(&self) -> Option<Option<Instant>> {
        let after = |at: Option<Instant>| at.and_then(|at| at.checked_add(self.pace.cooldown));
        if self.holds < self.told {
            Some(None)
        } else if self.holds > self.told {
            Some(after(self.rose.get(self.holds as usize).copied().flatten()))
        } else {
            self.reminded.then(|| after(self.told_at))
        }
    }

    /// How long until there may be something to do without the source being heard; `None`: for ever.
    pub(crate) fn next(&self, now: Instant) -> Option<Duration> {
        let look = (self.holds > Level::None).then(|| match self.looked {
            Some(at) => (at + self.pace.look_every).saturating_duration_since(now),
            None => self.pace.look_every,
        });
        let due = self.due().map(|due| due.map_or(Duration::ZERO, |due| due.saturating_duration_since(now)));
        look.into_iter().chain(due).min()
    }

    /// Whether it is time for a look.
    pub(crate) fn wants_look(&self, now: Instant) -> bool {
        let rested = |at: Instant| now.duration_since(at) >= self.pace.look_every;
        self.holds > Level::None && self.looked.is_none_or(rested)
    }
}
