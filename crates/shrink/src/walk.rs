//! The state of one cascade: which walk over the tree it is in, where it stopped, what it may still do.
//!
//! A cascade is a few walks over the whole tree. The first only measures. The next ones cut, the largest buffers
//! first: each takes what gives back at least a sixteenth of the largest that is left, so the order is right within
//! that factor without a list, without allocation, and whatever changes in between. What is cut in place comes in
//! the first of these walks, what must be copied in later ones; last come walks for what was locked, or may have been
//! passed over because the tree changed in the middle of a walk.
//!
//! Where a slice ended is remembered as step numbers from the root. That is advice: the owner may have changed the
//! tree since. Invariants: a slice takes at least one step that no slice of this walk took before (or ends the
//! walk), steps only go forward, and a walk has a most number of steps: so each place gets its turn and a cascade
//! ends, whatever the tree does.

use crate::history::History;
use crate::path::{Link, Show};
use crate::policy::{Plan, Policy, Tuning};
use crate::report::Report;
use crate::traits::{Site, Way};
use crate::{Bytes, DEEPEST};
use std::time::{Duration, Instant};

/// A walk takes what gives back at least this part of the largest that is left.
const SPREAD: usize = 16;
/// Steps between looks at the clock, which costs about as much as these steps.
const CLOCK_EVERY: u64 = 16;
/// What it takes to pass over an entry of a map or a node of a list, which can only be gone through from its beginning (1.4 ns measured).
/// Where that is most of a slice, as much again is worked, or the time would go into getting there; it is reckoned, not
/// measured, because other work on the machine would count, too.
const PASSING: Duration = Duration::from_nanos(2);
/// Most steps of the first walk. Later ones take twice as many as it took.
const MOST_STEPS: u64 = 1 << 26;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Measure,
    Cut(Way),
    /// What was locked before: both ways.
    Again,
}

/// One walk over the tree.
struct Round {
    kind: Kind,
    /// Cuts what gives back so much,
    from: Bytes,
    /// and less than this: what gives more had its turn.
    below: Bytes,
    /// The largest seen that gives back less than `from`.
    next: Bytes,
    busy: usize,
    cut: usize,
    steps: u64,
}

impl Round {
    fn new(kind: Kind, largest: Bytes, below: Bytes, floor: Bytes) -> Round {
        let from = Bytes(largest.0 / SPREAD).max(floor);
        Round { kind, from, below, next: Bytes::ZERO, busy: 0, cut: 0, steps: 0 }
    }
}

/// What is left of a slice.
#[derive(Clone, Copy)]
pub(crate) struct Left {
    pub(crate) bytes: Bytes,
    /// No end where that is beyond what the clock tells.
    pub(crate) until: Option<Instant>,
}

pub(crate) struct Walk {
    pub(crate) policy: Policy,
    pub(crate) history: History,
    pub(crate) report: Report,
    round: Round,
    /// The largest gain that the first walk found, for each way.
    largest: [Bytes; 2],
    most_steps: u64,
    tries: u32,
    /// Locks that others held.
    missed: usize,
    /// The walk was left and taken up again: what changed places meanwhile may have been passed over.
    interrupted: bool,
    /// And it cut something: another walk may find more.
    unsure: bool,
    /// Step numbers from the root to the step that was not taken; so many of them count.
    cursor: [usize; DEEPEST],
    resume: usize,
    /// When the cascade began, and this slice of it.
    begin: Instant,
    began: Instant,
    /// Entries of maps and nodes of lists that this slice passed over to get to where the last one ended.
    passed: u32,
    given: Bytes,
    /// Steps of this slice that no earlier slice took.
    fresh: u64,
    look: bool,
    spent: bool,
}

impl Walk {
    pub(crate) fn new(policy: Policy, history: History) -> Walk {
        let begin = Instant::now();
        Walk {
            policy,
            history,
            report: Report { cascades: 1, ..Report::default() },
            round: Round::new(Kind::Measure, Bytes::ZERO, Bytes::MAX, Bytes::ZERO),
            largest: [Bytes::ZERO; 2],
            most_steps: MOST_STEPS,
            tries: policy.tries,
            missed: 0,
            interrupted: false,
            unsure: false,
            cursor: [0; DEEPEST],
            resume: 0,
            begin,
            began: begin,
            passed: 0,
            given: Bytes::ZERO,
            fresh: 0,
            look: false,
            spent: false,
        }
    }

    pub(crate) fn begin_slice(&mut self) {
        self.began = Instant::now();
        self.given = Bytes::ZERO;
        (self.fresh, self.passed, self.look, self.spent) = (0, 0, false, false);
    }

    /// How long it took.
    pub(crate) fn end_slice(&mut self) -> Duration {
        let took = self.began.elapsed();
        self.report.slices += 1;
        self.report.time += took;
        self.report.longest_slice = self.report.longest_slice.max(took);
        took
    }

    /// Whether the slice has used up its time or bytes.
    pub(crate) fn spent(&self) -> bool {
        self.spent
    }

    /// Whether no step will be taken any more before the tree is left.
    pub(crate) fn over(&self) -> bool {
        self.spent || self.round.steps > self.most_steps
    }

    /// Whether this step is to be taken now: it is not one that was taken before, and the slice is not spent.
    pub(crate) fn enter(&mut self, depth: usize, step: usize) -> bool {
        if self.over() {
            return false;
        }
        if depth < self.resume {
            match step.cmp(&self.cursor[depth]) {
                std::cmp::Ordering::Less => return false,
                // On the way to where the last slice ended: not a new step.
                std::cmp::Ordering::Equal if depth + 1 < self.resume => return true,
                _ => self.resume = 0,
            }
        }
        if self.fresh > 0 && self.used_up() {
            (self.spent, self.interrupted) = (true, true);
            self.cursor[depth] = step;
            self.resume = depth + 1;
            return false;
        }
        self.fresh += 1;
        self.round.steps += 1;
        self.cursor[depth] = step;
        self.round.steps <= self.most_steps
    }

    /// How many of the coming steps, from this one on, were taken by earlier slices.
    pub(crate) fn taken(&self, depth: usize, step: usize) -> usize {
        if depth < self.resume { self.cursor[depth].saturating_sub(step) } else { 0 }
    }

    /// So many entries of a map or nodes of a list were passed over one by one.
    pub(crate) fn passed(&mut self, entries: usize) {
        self.passed = self.passed.saturating_add(u32::try_from(entries).unwrap_or(u32::MAX));
    }

    fn used_up(&mut self) -> bool {
        if self.given >= self.policy.slice_bytes || self.policy.slice.is_zero() {
            return true;
        }
        let look = std::mem::take(&mut self.look) || self.fresh.is_multiple_of(CLOCK_EVERY);
        look && self.began.elapsed()
            >= self.policy.slice.max(PASSING.saturating_mul(self.passed).saturating_mul(2))
    }

    /// A value too deep to be looked at.
    pub(crate) fn too_deep(&mut self) {
        if self.round.kind == Kind::Measure {
            self.report.too_deep += 1;
        }
    }

    /// A lock that another holds.
    pub(crate) fn busy(&mut self) {
        self.round.busy += 1;
    }

    pub(crate) fn offer<S: Site + ?Sized>(&mut self, site: &mut S, link: &Link<'_>, tuning: Tuning) {
        let measuring = self.round.kind == Kind::Measure;
        if measuring {
            self.report.sites += 1;
            self.report.slack += site.unused();
        }
        let Some(plan) = self.policy.plan(site, tuning) else { return };
        let way = site.way();
        match self.round.kind {
            Kind::Measure => {
                let largest = &mut self.largest[way as usize];
                *largest = plan.gain.max(*largest);
                self.report.found(link, site.kind(), plan.gain);
            }
            Kind::Cut(other) if other != way => {}
            Kind::Cut(_) | Kind::Again => {
                if plan.gain < self.round.from {
                    self.round.next = self.round.next.max(plan.gain);
                } else if plan.gain < self.round.below {
                    self.cut(site, plan, way, link);
                }
            }
        }
    }

    /// The same for a part of a buffer, of which another may have been cut before. Whether this one was.
    pub(crate) fn offer_part<S: Site>(
        &mut self,
        site: &mut S,
        link: &Link<'_>,
        tuning: Tuning,
        begun: bool,
    ) -> bool {
        let given = self.given;
        if self.round.kind == Kind::Measure {
            // Later walks may take a step for each element.
            self.round.steps = self.round.steps.saturating_add(site.room() as u64);
        }
        if !begun {
            self.offer(site, link, tuning);
        } else if let Some(plan) = self.policy.plan_rest(site, tuning) {
            self.cut(site, plan, site.way(), link);
        }
        self.given > given
    }

    pub(crate) fn left(&self) -> Left {
        Left { bytes: self.policy.slice_bytes - self.given, until: self.began.checked_add(self.policy.slice) }
    }

    fn cut<S: Site + ?Sized>(&mut self, site: &mut S, plan: Plan, way: Way, link: &Link<'_>) {
        let copies = way == Way::Copies;
        // Walks that come again meet again what was left alone.
        let first = usize::from(self.round.kind != Kind::Again);
        if copies && plan.left > self.policy.transient {
            self.report.too_large_to_copy += first;
            return;
        }
        let rest = self.policy.rest;
        let place = if rest.is_zero() { 0 } else { link.fingerprint(Show::Keys) };
        if self.history.resting(place, self.began, self.begin, rest) {
            self.report.resting += first;
            return;
        }
        let before = site.bytes(site.room());
        // One buffer may take long: the clock is looked at after it.
        self.look = true;
        if site.fit(plan.target).is_err() {
            self.report.refused += 1;
            return;
        }
        if copies {
            self.report.transient = self.report.transient.max(plan.left);
        }
        let returned = before - site.bytes(site.room());
        if returned == Bytes::ZERO {
            return;
        }
        self.given += returned;
        self.round.cut += 1;
        self.history.cut(place, self.began, self.begin, rest);
        let show = if self.policy.keys { Show::Keys } else { Show::Star };
        self.report.gave(link, site.kind(), returned, show);
    }

    /// The walk has reached the end of the tree: whether there is another to take.
    pub(crate) fn next_round(&mut self) -> bool {
        self.resume = 0;
        let again = self.round.kind == Kind::Again;
        // Of the walks that come again each tells for itself; of the others, any may have missed something.
        let unsure = std::mem::take(&mut self.interrupted) && self.round.cut > 0;
        self.unsure = unsure || (self.unsure && !again);
        self.missed = if again { self.round.busy } else { self.missed.max(self.round.busy) };
        self.report.busy = self.missed;
        if let Some(round) = self.following() {
            self.round = round;
            return true;
        }
        if self.tries == 0 || (self.missed == 0 && !self.unsure) {
            return false;
        }
        self.tries -= 1;
        let floor = self.policy.floor;
        self.round = Round::new(Kind::Again, floor, Bytes::MAX, floor);
        // At once it would find the same locks held, and the same places: the owner has its turn first.
        self.spent = true;
        true
    }

    /// The next of the walks that cut: the smaller ones of this way, then the other way.
    fn following(&mut self) -> Option<Round> {
        let (done, floor) = (&self.round, self.policy.floor);
        let smaller = (done.next >= floor).then(|| Round::new(done.kind, done.next, done.from, floor));
        let begin = |way: Way| {
            let largest = self.largest[way as usize];
            (largest >= floor).then(|| Round::new(Kind::Cut(way), largest, Bytes::MAX, floor))
        };
        match done.kind {
            Kind::Measure => {
                self.most_steps = done.steps.saturating_mul(2).saturating_add(1024);
                begin(Way::InPlace).or_else(|| begin(Way::Copies))
            }
            Kind::Cut(Way::InPlace) => smaller.or_else(|| begin(Way::Copies)),
            Kind::Cut(Way::Copies) => smaller,
            Kind::Again => None,
        }
    }

    /// Whether the slice is used up, also between two walks.
    pub(crate) fn pause(&mut self) -> bool {
        self.look = true;
        self.spent |= self.fresh > 0 && self.used_up();
        self.spent
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::Step;
    use crate::{Cascade, Shrink};
    use std::collections::{BTreeMap, LinkedList};

    /// How many entries the fifth slice says it passed over, where each takes one.
    fn passed(mut value: impl Shrink) -> u32 {
        let mut walk = Walk::new(Policy::new().slice(Duration::ZERO), History::default());
        let link = Link { up: None, step: Step::Root("value") };
        for _ in 0..5 {
            walk.begin_slice();
            value.shrink(&mut Cascade::root(&mut walk, &link));
        }
        walk.passed
    }

    /// Or slices of a long list would be spent on getting to where the last one ended.
    #[test]
    fn what_cannot_leap_says_how_far_it_went() {
        let lists = || (0..100).map(|_| Vec::<u8>::new());
        let way = passed(lists().enumerate().collect::<BTreeMap<_, _>>());
        assert!(way > 0);
        assert_eq!(passed(lists().collect::<LinkedList<_>>()), way);
        #[cfg(feature = "slab")]
        assert_eq!(passed(lists().enumerate().collect::<slab::Slab<_>>()), way);
        assert_eq!(passed(lists().collect::<Vec<_>>()), 0);
    }
}
