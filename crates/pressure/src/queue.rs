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
