//! When a buffer is worth cutting, to what, and how much of that one slice may do. Pure figures: no clock, no state.
//!
//! Invariants: a target never lies below what is in use, nor above what is held; any figures a caller gives (also
//! NaN) make a policy that terminates.

use crate::{Bytes, Site};
use std::time::Duration;

/// What to give back, and how fast. The defaults, and how they were measured, are in
/// [`guide::thresholds`](crate::guide::thresholds).
#[must_use = "a policy is a value: what changes it returns a changed one"]
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Policy {
    pub(crate) factor: f64,
    pub(crate) to: f64,
    pub(crate) floor: Bytes,
    pub(crate) slice: Duration,
    pub(crate) slice_bytes: Bytes,
    pub(crate) duty: f64,
    pub(crate) transient: Bytes,
    pub(crate) rest: Duration,
    pub(crate) tries: u32,
    pub(crate) keys: bool,
    pub(crate) may_abort: bool,
}

/// How many times its time a slice counts for at most: more than a buffer of 4 MiB that is copied at its end takes.
const HELD_UP: u32 = 16;

impl Default for Policy {
    fn default() -> Policy {
        Policy {
            factor: 2.0,
            to: 1.25,
            floor: Bytes::from_kib(1),
            slice: Duration::from_micros(500),
            slice_bytes: Bytes::from_mib(8),
            duty: 0.08,
            transient: Bytes::from_mib(4),
            rest: Duration::from_secs(10),
            tries: 3,
            keys: true,
            may_abort: false,
        }
    }
}

impl Policy {
    /// The defaults.
    pub fn new() -> Policy {
        Policy::default()
    }

    /// Gives back everything, in one go, without regard for latency: for a test, or a program that goes to sleep.
    pub fn everything() -> Policy {
        Policy::new()
            .hysteresis(1.0, 1.0)
            .floor(Bytes(1))
            .slice(Duration::MAX)
            .slice_bytes(Bytes::MAX)
            .duty(1.0)
            .transient(Bytes::MAX)
            .rest(Duration::ZERO)
    }

    /// Cut what has room for more than `factor` times what it holds, down to room for `to` times that. Default 2.0
    /// and 1.25. Both are at least 1, and `to` at most `factor`.
    pub fn hysteresis(mut self, factor: f64, to: f64) -> Policy {
        self.factor = factor.max(1.0);
        self.to = to.max(1.0).min(self.factor);
        self
    }

    /// Leave alone what would give back less. Default 1 KiB.
    pub fn floor(mut self, floor: Bytes) -> Policy {
        self.floor = floor.max(Bytes(1));
        self
    }

    /// The longest one slice may take, and so the longest a lock is held. Default 500 us. A single buffer is never
    /// cut half-way, so a slice may last longer by one buffer; the report has the longest. Zero means one step per
    /// slice.
    pub fn slice(mut self, slice: Duration) -> Policy {
        self.slice = slice;
        self
    }

    /// The most one slice may give back (freeing costs, too: 0.1 to 0.3 us for each page). Default 8 MiB.
    pub fn slice_bytes(mut self, bytes: Bytes) -> Policy {
        self.slice_bytes = bytes;
        self
    }

    /// How much of an owner's time may go into slices, as a share of it: after a slice, polls do nothing until the rest
    /// has passed, or a cascade would be a slice for each request. Default 0.08; 1 means no pause. A [`Job`](crate::Job)
    /// leaves that to its caller.
    pub fn duty(mut self, share: f64) -> Policy {
        self.duty = share.clamp(0.001, 1.0);
        self
    }

    /// The largest second buffer that may be made while the old one still exists: by so much may memory rise for a
    /// moment, in each thread that polls; and so long (the time to move so many bytes) may a slice overrun. What
    /// needs more is left and reported. Default 4 MiB.
    pub fn transient(mut self, bytes: Bytes) -> Policy {
        self.transient = bytes;
        self
    }

    /// A buffer that was cut is left alone for so long; and for twice as long, up to 16 times, each time that it has
    /// grown again by then. Default 10 s; zero switches it off.
    pub fn rest(mut self, rest: Duration) -> Policy {
        self.rest = rest;
        self
    }

    /// How many walks may follow the others: for locks that others held, and for what was passed over because the tree
    /// changed between slices. Default 3.
    pub fn tries(mut self, tries: u32) -> Policy {
        self.tries = tries;
        self
    }

    /// Whether the report may hold keys of maps (`queues["a"]`), or only that there was one (`queues[*]`), where keys
    /// are secrets. Default yes.
    pub fn keys(mut self, shown: bool) -> Policy {
        self.keys = shown;
        self
    }

    /// Also shrink what can only be shrunk by calls that abort the process if the allocator refuses (`Slab`). Default
    /// no: only an empty one is then given back.
    pub fn may_abort(mut self, may: bool) -> Policy {
        self.may_abort = may;
        self
    }

    /// How long an owner is left alone after a slice that took so long. One that took many times what it may was held up,
    /// by the kernel most likely: in a cgroup above its memory.high a single page fault takes up to 2 s
    /// (`mem_cgroup_handle_over_high`), after which the rest would wait for 23 s while memory is short.
    pub(crate) fn pause(&self, slice: Duration) -> Duration {
        let slice = slice.min(self.slice.saturating_mul(HELD_UP));
        // A cast saturates, and NaN, which passes `clamp`, becomes 0.
        Duration::from_nanos((slice.as_nanos() as f64 * (1.0 / self.duty - 1.0)) as u64)
    }

    /// What to do with this buffer: `None` leaves it.
    pub(crate) fn plan(&self, site: &(impl Site + ?Sized), tuning: Tuning) -> Option<Plan> {
        let (used, room) = (site.used(), site.room());
        let needed = used.max(tuning.keep);
        let factor = tuning.factor.unwrap_or(self.factor).max(1.0);
        // A cast from f64 saturates; a product beyond 2^53 may be rounded down.
        if room <= needed.max((needed as f64 * factor) as usize) {
            return None;
        }
        let target = ((needed as f64 * self.to.min(factor)).ceil() as usize).clamp(needed, room);
        let (held, left) = (site.bytes(room), site.bytes(target));
        let gain = held - left;
        (gain >= self.floor).then_some(Plan { target, gain, left })
    }

    /// The same for the rest of a buffer of which a part was cut: it goes on to the same target, though by now there may
    /// be less than the factor.
    pub(crate) fn plan_rest(&self, site: &(impl Site + ?Sized), tuning: Tuning) -> Option<Plan> {
        let factor = tuning.factor.unwrap_or(self.factor).min(self.to);
        self.plan(site, Tuning { factor: Some(factor), ..tuning })
    }
}

/// What one field says of its own buffer, before the policy.
#[must_use = "a tuning is a value: what changes it returns a changed one"]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Tuning {
    pub(crate) keep: usize,
    pub(crate) factor: Option<f64>,
}

impl Tuning {
    /// Nothing: the policy decides.
    pub const NONE: Tuning = Tuning { keep: 0, factor: None };

    /// Keep room for at least so many elements.
    pub const fn keep(mut self, elements: usize) -> Tuning {
        self.keep = elements;
        self
    }

    /// Cut only above so many times what is held, in place of the policy's factor.
    pub const fn factor(mut self, factor: f64) -> Tuning {
        self.factor = Some(factor.max(1.0));
        self
    }
}

/// A buffer that is worth cutting.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Plan {
    /// Elements to leave room for.
    pub(crate) target: usize,
    /// What that gives back.
    pub(crate) gain: Bytes,
    /// What the smaller buffer takes.
    pub(crate) left: Bytes,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Refused;
    use proptest::prelude::*;

    struct Fake(usize, usize);

    impl Site for Fake {
        fn used(&self) -> usize {
            self.0
        }
        fn room(&self) -> usize {
            self.1
        }
        fn bytes(&self, room: usize) -> Bytes {
            Bytes(room)
        }
        fn fit(&mut self, _: usize) -> Result<(), Refused> {
            Ok(())
        }
    }

    #[test]
    fn between_the_factors_nothing_happens() {
        let policy = Policy::new().floor(Bytes(1));
        assert_eq!(policy.plan(&Fake(100, 200), Tuning::NONE), None);
        let plan = policy.plan(&Fake(100, 201), Tuning::NONE).unwrap();
        assert_eq!((plan.target, plan.gain, plan.left), (125, Bytes(76), Bytes(125)));
        assert_eq!(policy.plan(&Fake(100, plan.target), Tuning::NONE), None);
    }

    #[test]
    fn a_field_keeps_what_it_says() {
        let policy = Policy::new().floor(Bytes(1));
        assert_eq!(policy.plan(&Fake(0, 2000), Tuning::NONE.keep(1000)), None);
        assert_eq!(policy.plan(&Fake(0, 2001), Tuning::NONE.keep(1000)).unwrap().target, 1250);
        assert_eq!(policy.plan(&Fake(10, 99), Tuning::NONE.factor(10.0)), None);
        assert_eq!(policy.plan(&Fake(0, 5), Tuning::NONE).unwrap().target, 0);
        assert_eq!(Policy::new().plan(&Fake(0, 1023), Tuning::NONE), None);
    }

    #[test]
    fn a_slice_is_followed_by_a_pause() {
        let pause = |duty| Policy::new().duty(duty).pause(Duration::from_micros(500)).as_micros();
        assert_eq!([pause(0.1), pause(0.5), pause(1.0), pause(9.0), pause(0.0)], [4500, 500, 0, 0, 499_500]);
        assert_eq!(pause(f64::NAN), 0);
        let held_up = Policy::new().duty(0.5).pause(Duration::from_secs(2));
        assert_eq!(held_up, Duration::from_millis(8));
        assert_eq!(Policy::everything().duty(0.5).pause(Duration::from_secs(2)), Duration::from_secs(2));
    }

    proptest! {
        #[test]
        fn a_target_lies_between_used_and_room(
            used: usize, more: usize, keep: usize, factor: f64, to: f64, own: Option<f64>
        ) {
            let site = Fake(used, used.saturating_add(more));
            let tuning = Tuning { keep, factor: own };
            if let Some(plan) = Policy::new().hysteresis(factor, to).plan(&site, tuning) {
                prop_assert!(plan.target >= site.0 && plan.target <= site.1);
            }
        }
    }
}
