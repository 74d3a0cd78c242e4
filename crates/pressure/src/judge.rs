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
        self.reminded |= self.told > Level::None && level >= self.told;
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
            self.heard
                .get(level as usize)
                .copied()
                .flatten()
                .is_some_and(|at| now.duration_since(at) < silence)
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PACE: Pace = Pace {
        cooldown: Duration::from_secs(15),
        settle: Duration::from_secs(3),
        quiet: Duration::from_secs(10),
        look_every: Duration::from_secs(1),
    };

    fn saw(not_below: Level) -> Look {
        Look { at_least: Level::None, not_below: Some(not_below) }
    }

    /// A judge and a clock in seconds.
    struct Court(Judge, Instant);

    impl Court {
        fn new() -> Court {
            Court(Judge::new(PACE), Instant::now())
        }

        fn at(&self, seconds: u64) -> Instant {
            self.1 + Duration::from_secs(seconds)
        }

        fn hear(&mut self, seconds: u64, level: Level) -> Option<Level> {
            self.0.hear(level, self.at(seconds));
            self.0.tell(self.at(seconds))
        }

        fn look(&mut self, seconds: u64, look: Look) -> Option<Level> {
            self.0.look(look, self.at(seconds));
            self.0.tell(self.at(seconds))
        }
    }

    #[test]
    fn relief_is_believed_only_after_a_while() {
        let mut court = Court::new();
        assert_eq!(court.hear(0, Level::Medium), Some(Level::Medium));
        // The averages may be as old as before the stall.
        assert_eq!(court.look(1, saw(Level::None)), None);
        assert_eq!(court.look(3, saw(Level::Medium)), None);
        assert_eq!(court.look(4, saw(Level::None)), Some(Level::None));
        assert_eq!(court.0.next(court.at(4)), None, "asleep for ever");
    }

    #[test]
    fn silence_must_do_where_nothing_can_be_seen() {
        let mut court = Court::new();
        assert_eq!(court.hear(0, Level::Critical), Some(Level::Critical));
        assert_eq!(court.hear(5, Level::Low), None);
        assert_eq!(court.look(9, Look::default()), None);
        assert_eq!(court.look(10, Look::default()), Some(Level::Low));
        assert_eq!(court.look(15, Look::default()), Some(Level::None));
    }

    #[test]
    fn the_same_onset_waits_and_a_worse_one_does_not() {
        let mut court = Court::new();
        assert_eq!(court.hear(0, Level::Medium), Some(Level::Medium));
        assert_eq!(court.look(4, saw(Level::None)), Some(Level::None));
        assert_eq!(court.hear(5, Level::Medium), None, "within the cooldown");
        assert_eq!(court.0.holds(), Level::Medium);
        assert_eq!(court.hear(6, Level::Critical), Some(Level::Critical));
        assert_eq!(court.look(10, saw(Level::None)), Some(Level::None));
        assert_eq!(court.hear(19, Level::Medium), None);
        assert_eq!(court.look(20, saw(Level::Medium)), None);
        assert_eq!(court.look(21, saw(Level::Medium)), Some(Level::Medium), "15 s after the critical one");
    }

    #[test]
    fn what_was_over_before_it_could_be_told_is_not_told() {
        let mut court = Court::new();
        assert_eq!(court.hear(0, Level::Low), Some(Level::Low));
        assert_eq!(court.look(4, saw(Level::None)), Some(Level::None));
        assert_eq!(court.hear(5, Level::Low), None);
        assert_eq!(court.look(9, saw(Level::None)), None);
        assert_eq!(court.0.tell(court.at(100)), None);
    }

    #[test]
    fn reminders_come_once_in_a_cooldown_and_only_if_heard() {
        let mut court = Court::new();
        assert_eq!(court.hear(0, Level::Medium), Some(Level::Medium));
        assert_eq!(court.hear(1, Level::Medium), None);
        assert_eq!(court.0.next(court.at(1)), Some(PACE.look_every));
        assert_eq!(court.look(14, saw(Level::Medium)), None);
        assert_eq!(court.look(15, saw(Level::Medium)), Some(Level::Medium));
        assert_eq!(court.look(60, saw(Level::Medium)), None, "not heard again");
    }

    #[test]
    fn a_lost_source_leaves_nothing_behind() {
        let mut court = Court::new();
        assert_eq!(court.hear(0, Level::Critical), Some(Level::Critical));
        court.0.forget();
        assert_eq!(court.0.tell(court.at(0)), Some(Level::None));
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Hear(u8),
        Look(u8, Option<u8>),
        Nothing,
    }

    fn steps() -> impl Strategy<Value = Vec<(u16, Step)>> {
        let step = prop_oneof![
            (0..4_u8).prop_map(Step::Hear),
            (0..4_u8, proptest::option::of(0..4_u8)).prop_map(|(least, below)| Step::Look(least, below)),
            Just(Step::Nothing),
        ];
        proptest::collection::vec((0..8000_u16, step), 0..60)
    }

    proptest! {
        #[test]
        fn only_what_holds_is_told_and_in_its_time(steps in steps()) {
            let mut judge = Judge::new(PACE);
            let mut now = Instant::now();
            let (mut told, mut told_at, mut rose) = (Level::None, None::<Instant>, [None::<Instant>; 4]);
            for (millis, step) in steps {
                now += Duration::from_millis(millis.into());
                match step {
                    Step::Hear(level) => judge.hear(Level::of(level), now),
                    Step::Look(least, below) => {
                        let look = Look { at_least: Level::of(least), not_below: below.map(Level::of) };
                        judge.look(look, now);
                        prop_assert!(judge.holds() >= look.at_least);
                    }
                    Step::Nothing => {}
                }
                let rested = |at: Option<Instant>| at.is_none_or(|at| now.duration_since(at) >= PACE.cooldown);
                if let Some(level) = judge.tell(now) {
                    prop_assert_eq!(level, judge.holds());
                    if level > told {
                        prop_assert!(rested(rose[level as usize]));
                        rose.iter_mut().take(level as usize + 1).for_each(|rose| *rose = Some(now));
                    } else if level == told {
                        prop_assert!(level > Level::None && rested(told_at));
                    }
                    (told, told_at) = (level, Some(now));
                } else if judge.holds() != told {
                    prop_assert!(judge.holds() > told && !rested(rose[judge.holds() as usize]), "not told in time");
                }
                prop_assert!(judge.tell(now).is_none(), "told twice");
                // Nothing is due now: the watcher would not spin.
                let due = judge.next(now).is_some_and(|next| next.is_zero());
                prop_assert!(!due || judge.wants_look(now));
            }
        }
    }
}
