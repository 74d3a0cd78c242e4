//! Which buffers were cut lately, so that one that grows again at once is left alone for longer each time.
//!
//! The memory lives with the owner (in its [`Member`](crate::Member) or [`Job`](crate::Job)), keyed by the place in
//! the tree, because nothing else survives: a wrapper around each collection would change users' types, and an
//! address changes whenever a parent's buffer moves. A place is advisory (elements of a `Vec` change places): the
//! worst that a mistake does is one cut too many or too late.
//!
//! Invariant: bounded ([`MOST`] places, others are forgotten); without memory nothing is noted.

use std::time::{Duration, Instant};

/// Most places remembered for one owner: 40 bytes each.
const MOST: usize = 512;
/// A rest doubles at most so often.
const MOST_STRIKES: u32 = 4;

#[derive(Default)]
pub(crate) struct History {
    /// Sorted by place.
    noted: Vec<Note>,
}

struct Note {
    place: u64,
    cut: Instant,
    strikes: u32,
}

impl Note {
    fn rest(&self, rest: Duration) -> Duration {
        rest.saturating_mul(1 << self.strikes)
    }
}

impl History {
    /// Whether this place was cut too short a time ago, in a cascade before the one that began at `begin`: several
    /// buffers may be at one place.
    pub(crate) fn resting(&self, place: u64, now: Instant, begin: Instant, rest: Duration) -> bool {
        let note = self.noted.binary_search_by_key(&place, |n| n.place).ok().map(|at| &self.noted[at]);
        note.is_some_and(|note| note.cut < begin && now.saturating_duration_since(note.cut) < note.rest(rest))
    }

    /// Notes that this place was cut now. If it had been before, it has grown again since: soon after its rest means
    /// a longer one.
    pub(crate) fn cut(&mut self, place: u64, now: Instant, begin: Instant, rest: Duration) {
        if rest.is_zero() {
            return;
        }
        match self.noted.binary_search_by_key(&place, |n| n.place) {
            Ok(at) => {
                let note = &mut self.noted[at];
                if note.cut >= begin {
                    return;
                }
                let soon = now.saturating_duration_since(note.cut) < note.rest(rest).saturating_mul(2);
                note.strikes = if soon { (note.strikes + 1).min(MOST_STRIKES) } else { 0 };
                note.cut = now;
            }
            // Where it is full, the new one takes the place of its neighbour in the order.
            Err(at) if self.noted.len() >= MOST => {
                let last = self.noted.len() - 1;
                self.noted[at.min(last)] = Note { place, cut: now, strikes: 0 };
            }
            Err(at) => {
                if self.noted.try_reserve(1).is_ok() {
                    self.noted.insert(at, Note { place, cut: now, strikes: 0 });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REST: Duration = Duration::from_secs(10);

    #[test]
    fn who_grows_again_at_once_rests_longer() {
        let start = Instant::now();
        let at = |s| start + Duration::from_secs(s);
        let mut history = History::default();
        assert!(!history.resting(1, at(0), at(0), REST));
        history.cut(1, at(0), at(0), REST);
        assert!(history.resting(1, at(9), at(9), REST) && !history.resting(1, at(10), at(10), REST));
        assert!(!history.resting(2, at(9), at(9), REST));
        history.cut(1, at(12), at(12), REST);
        assert!(history.resting(1, at(31), at(31), REST) && !history.resting(1, at(32), at(32), REST));
        history.cut(1, at(33), at(33), REST);
        assert!(history.resting(1, at(72), at(72), REST) && !history.resting(1, at(73), at(73), REST));
        // A second buffer at the same place, in the same cascade.
        assert!(!history.resting(1, at(34), at(33), REST));
        history.cut(1, at(34), at(33), REST);
        assert!(!history.resting(1, at(73), at(73), REST));
        // It kept what it was cut to for more than twice its rest: a new start.
        history.cut(1, at(200), at(200), REST);
        assert!(!history.resting(1, at(210), at(210), REST));
    }

    #[test]
    fn it_remembers_so_many_and_the_latest() {
        let now = Instant::now();
        let mut history = History::default();
        for n in 0..10 * MOST as u64 {
            let place = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
            history.cut(place, now, now, REST);
            assert!(history.resting(place, now, now + REST / 2, REST));
            assert!(history.noted.is_sorted_by_key(|n| n.place));
        }
        assert_eq!(history.noted.len(), MOST);
    }

    #[test]
    fn without_a_rest_nothing_is_noted() {
        let mut history = History::default();
        history.cut(1, Instant::now(), Instant::now(), Duration::ZERO);
        assert!(history.noted.is_empty());
    }
}
