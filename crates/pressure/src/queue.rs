//! What one reader has not read yet: at most three events, whatever happens meanwhile.
//!
//! Invariants, from the level `seen` that the reader knows on: the last event is the last level there was; if the
//! level rose, a rise to the worst that was reached is told, even when all was over before the reader came, and even
//! when it knew that level already and pressure had gone in between; no level is told that was not; every event that
//! was pushed is counted in exactly one that is read.

use crate::{Event, Level};
use std::collections::VecDeque;

/// The events of one reader.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    seen: Level,
    unread: VecDeque<Event>,
}

impl Queue {
    pub(crate) fn is_empty(&self) -> bool {
        self.unread.is_empty()
    }

    /// The next event, made to follow on the one read before.
    pub(crate) fn pop(&mut self) -> Option<Event> {
        let mut event = self.unread.pop_front()?;
        event.before = std::mem::replace(&mut self.seen, event.level);
        Some(event)
    }

    pub(crate) fn push(&mut self, event: Event) {
        if let Some(last) = self.unread.back_mut().filter(|last| last.level == event.level) {
            // A reminder of what was not read yet.
            last.merged = last.merged.saturating_add(event.merged);
            return;
        }
        self.unread.push_back(event);
        self.merge();
    }

    /// Keeps the last event, before it the worst one that is a rise, and before that the lowest if it takes that to
    /// make it one.
    fn merge(&mut self) {
        let Some(peak) = self.unread.iter().map(|event| event.level).max() else { return };
        let last = self.unread.len() - 1;
        // Of equally bad ones the latest: what lies before it is what it rose from.
        let worst = self.unread.iter().rposition(|event| event.level == peak).unwrap_or(last);
        let before = self.unread.iter().take(worst).enumerate();
        let lowest = before.min_by_key(|(_, event)| event.level).map(|(at, _)| at);
        let keep = match peak > self.seen {
            true => [Some(worst), None],
            false if lowest.is_some() => [Some(worst), lowest],
            false => [None, None],
        };
        let mut carried = 0_u32;
        let mut at = 0;
        self.unread.retain_mut(|event| {
            let kept = keep.contains(&Some(at)) || at == last;
            at += 1;
            let count = event.merged.saturating_add(carried);
            carried = if kept { 0 } else { count };
            event.merged = count;
            kept
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Change, Kind, Source};
    use proptest::prelude::*;
    use std::time::Instant;

    fn event(level: Level) -> Event {
        let source = Source::bare(Kind::Nothing);
        Event { level, before: level, source, at: Instant::now(), merged: 1 }
    }

    /// What a reader finds that knew `seen` and comes after `pushed`.
    fn found(seen: Level, pushed: &[Level]) -> Vec<Event> {
        let mut queue = Queue { seen, ..Queue::default() };
        pushed.iter().for_each(|level| queue.push(event(*level)));
        std::iter::from_fn(|| queue.pop()).collect()
    }

    fn levels(events: &[Event]) -> Vec<Level> {
        events.iter().map(|event| event.level).collect()
    }

    #[test]
    fn nothing_that_matters_is_swallowed() {
        use Level::{Critical as C, Low as L, Medium as M, None as N};
        let cases: [(Level, &[Level], &[Level]); 9] = [
            (N, &[M, N], &[M, N]),
            (N, &[L, M, C, M, N, L], &[C, L]),
            (N, &[M, N, M, N, M, N], &[M, N]),
            (M, &[N, M], &[N, M]),
            (M, &[N, M, N, C, L], &[C, L]),
            (C, &[L, M, N], &[L, M, N]),
            (C, &[M, L, N], &[N]),
            (M, &[M, M], &[M]),
            (M, &[M, N], &[N]),
        ];
        for (seen, pushed, expected) in cases {
            assert_eq!(levels(&found(seen, pushed)), expected, "{seen} {pushed:?}");
        }
    }

    fn level() -> impl Strategy<Value = Level> {
        (0..4_u8).prop_map(Level::of)
    }

    proptest! {
        #[test]
        fn the_invariants_hold(seen in level(), pushed in proptest::collection::vec(level(), 0..30)) {
            let events = found(seen, &pushed);
            prop_assert!(events.len() <= 3);
            prop_assert_eq!(events.last().map(|event| event.level), pushed.last().copied());
            prop_assert_eq!(events.iter().map(|event| event.merged as usize).sum::<usize>(), pushed.len());
            let mut before = seen;
            for event in &events {
                prop_assert_eq!(event.before, before);
                prop_assert!(pushed.contains(&event.level));
                prop_assert!(event.change() != Change::Still || events.len() == 1);
                before = event.level;
            }
            let steps = std::iter::once(&seen).chain(&pushed).zip(&pushed);
            let worst_rise = steps.filter(|(before, after)| before < after).map(|(_, after)| *after).max();
            let told = events.iter().filter(|event| event.level > event.before).map(|event| event.level).max();
            prop_assert_eq!(told, worst_rise);
        }
    }
}
