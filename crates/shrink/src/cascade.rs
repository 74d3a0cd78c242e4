//! What a value is handed when it shrinks: it offers buffers and children, the cascade decides.
//!
//! Invariants: each call that can be taken is one numbered step of its level, also when it is passed over; nothing
//! here allocates, except to record what was found.

use crate::path::{Link, Step};
use crate::walk::Walk;
use crate::{Policy, Shrink, ShrinkShared, Site, Tuning};
use std::fmt::Debug;

/// Steps from the root beyond which values are not looked at: a list of boxes, each in the one before, is as deep as
/// it is long, and the stack is not.
pub const DEEPEST: usize = 32;

/// One level of a cascade on its way through a tree of values: handed to [`Shrink::shrink`].
///
/// An implementation offers its own buffers by [`site`](Cascade::site) and its children by the others, always all of
/// them and in the same order. Whether one is cut, looked at, left for a later slice, or was done by an earlier one
/// is the cascade's business.
pub struct Cascade<'a> {
    walk: &'a mut Walk,
    link: &'a Link<'a>,
    depth: usize,
    next: usize,
    tuning: Tuning,
}

impl<'a> Cascade<'a> {
    pub(crate) fn root(walk: &'a mut Walk, link: &'a Link<'a>) -> Cascade<'a> {
        Cascade { walk, link, depth: 0, next: 0, tuning: Tuning::NONE }
    }

    /// The policy it follows.
    pub fn policy(&self) -> &Policy {
        &self.walk.policy
    }

    /// Offers one buffer of the value at this level.
    pub fn site<S: Site + ?Sized>(&mut self, site: &mut S) {
        if self.step() {
            self.walk.offer(site, self.link, self.tuning);
        }
    }

    /// Offers many buffers, which the report knows by their numbers.
    pub fn sites<S: Site>(&mut self, sites: impl IntoIterator<Item = S>) {
        let taken = self.pass();
        for (index, mut site) in sites.into_iter().enumerate().skip(taken) {
            if self.walk.over() {
                return;
            }
            if self.step() {
                let link = Link { up: Some(self.link), step: Step::Index(index) };
                self.walk.offer(&mut site, &link, self.tuning);
            }
        }
    }

    /// Descends into a part that has no name of its own.
    pub fn part(&mut self, shrink: impl FnOnce(&mut Cascade<'_>)) {
        if self.step() && self.deeper() {
            let (link, depth) = (self.link, self.depth + 1);
            shrink(&mut Cascade { walk: &mut *self.walk, link, depth, next: 0, tuning: self.tuning });
        }
    }

    /// Descends into a field.
    pub fn field<T: Shrink + ?Sized>(&mut self, name: &'static str, value: &mut T) {
        self.field_with(name, Tuning::NONE, |cascade| value.shrink(cascade));
    }

    /// Descends into a field that others hold, too.
    pub fn field_shared<T: ShrinkShared + ?Sized>(&mut self, name: &'static str, value: &T) {
        self.field_with(name, Tuning::NONE, |cascade| value.shrink_shared(cascade));
    }

    /// Descends into a field by a function, its own buffer under a tuning of its own.
    pub fn field_with(&mut self, name: &'static str, tuning: Tuning, shrink: impl FnOnce(&mut Cascade<'_>)) {
        self.child(Step::Field(name), tuning, shrink);
    }

    /// Descends into each element of a sequence.
    pub fn elements<'e, T: Shrink + 'e>(&mut self, elements: impl IntoIterator<Item = &'e mut T>) {
        if T::is_flat() {
            return;
        }
        let taken = self.pass();
        for (index, element) in elements.into_iter().enumerate().skip(taken) {
            if self.walk.over() {
                return;
            }
            self.child(Step::Index(index), Tuning::NONE, |cascade| element.shrink(cascade));
        }
    }

    /// Descends into each element of a sequence that others hold, too.
    pub fn elements_shared<'e, T: ShrinkShared + 'e>(&mut self, elements: impl IntoIterator<Item = &'e T>) {
        if T::is_flat_shared() {
            return;
        }
        let taken = self.pass();
        for (index, element) in elements.into_iter().enumerate().skip(taken) {
            if self.walk.over() {
                return;
            }
            self.child(Step::Index(index), Tuning::NONE, |cascade| element.shrink_shared(cascade));
        }
    }

    /// Descends into each value of a map; the report knows it by its key.
    pub fn entries<'e, K, V>(&mut self, entries: impl IntoIterator<Item = (&'e K, &'e mut V)>)
    where
        K: Debug + 'e,
        V: Shrink + 'e,
    {
        if V::is_flat() {
            return;
        }
        let taken = self.pass();
        self.walk.passed(taken);
        for (key, value) in entries.into_iter().skip(taken) {
            if self.walk.over() {
                return;
            }
            self.child(Step::Key(&key), Tuning::NONE, |cascade| value.shrink(cascade));
        }
    }

    /// Descends into each value of a map that others hold, too.
    pub fn entries_shared<'e, K, V>(&mut self, entries: impl IntoIterator<Item = (&'e K, &'e V)>)
    where
        K: Debug + 'e,
        V: ShrinkShared + 'e,
    {
        if V::is_flat_shared() {
            return;
        }
        let taken = self.pass();
        self.walk.passed(taken);
        for (key, value) in entries.into_iter().skip(taken) {
            if self.walk.over() {
                return;
            }
            self.child(Step::Key(&key), Tuning::NONE, |cascade| value.shrink_shared(cascade));
        }
    }

    /// Says that another thread holds the lock of this value; it is tried again in a later slice.
    pub fn busy(&mut self) {
        self.walk.busy();
    }

    /// Passes over the elements that earlier slices took.
    fn pass(&mut self) -> usize {
        let taken = self.walk.taken(self.depth, self.next);
        self.next += taken;
        taken
    }

    fn step(&mut self) -> bool {
        let step = self.next;
        self.next += 1;
        self.walk.enter(self.depth, step)
    }

    fn deeper(&mut self) -> bool {
        let deeper = self.depth + 1 < DEEPEST;
        if !deeper {
            self.walk.too_deep();
        }
        deeper
    }

    fn child(&mut self, step: Step<'_>, tuning: Tuning, shrink: impl FnOnce(&mut Cascade<'_>)) {
        if self.step() && self.deeper() {
            let link = Link { up: Some(self.link), step };
            let depth = self.depth + 1;
            shrink(&mut Cascade { walk: &mut *self.walk, link: &link, depth, next: 0, tuning });
        }
    }
}
