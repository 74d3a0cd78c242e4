//! What a value is handed when it shrinks: it offers buffers and children, the cascade decides.
//!
//! Invariants: each call that can be taken is one numbered step of its level, also when it is passed over; nothing
//! here allocates, except to record what was found.

use crate::path::{Link, Step};
use crate::walk::{Left, Walk};
use crate::{Policy, Shrink, ShrinkShared, Site, Tuning};
use std::fmt::{self, Debug};

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

impl fmt::Debug for Cascade<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Cascade { depth, next, tuning, .. } = self;
        f.debug_struct("Cascade")
            .field("depth", depth)
            .field("next", next)
            .field("tuning", tuning)
            .finish_non_exhaustive()
    }
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

    /// Offers many buffers, which the report knows by their numbers. Those that earlier slices took are made again to be
    /// passed over, so what is dear to know of one is better asked when the policy asks.
    pub fn sites<S: Site>(&mut self, sites: impl IntoIterator<Item = S>) {
        self.each(sites.into_iter().enumerate(), |cascade, (index, mut site)| {
            if cascade.step() {
                let link = Link { up: Some(cascade.link), step: Step::Index(index) };
                cascade.walk.offer(&mut site, &link, cascade.tuning);
            }
        });
    }

    /// Offers one buffer whose `fit` ends where the slice does: each part is a step, with the buffer as it is then.
    pub(crate) fn in_parts<S: Site>(&mut self, site: impl Fn(Left) -> S) {
        let taken = self.taken();
        self.next += taken;
        let mut begun = taken > 0;
        while self.step() {
            let mut site = site(self.walk.left());
            begun = self.walk.offer_part(&mut site, self.link, self.tuning, begun);
            if !begun {
                break;
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

    /// Descends into each element of a sequence. What earlier slices took is passed over by the iterator's `nth`, which
    /// should leap, as a slice's does: where it goes step by step, getting there may take most of each slice.
    pub fn elements<'e, T: Shrink + 'e>(&mut self, elements: impl IntoIterator<Item = &'e mut T>) {
        if !T::is_flat() {
            self.each(elements.into_iter().enumerate(), |cascade, (index, element)| {
                cascade.child(Step::Index(index), Tuning::NONE, |cascade| element.shrink(cascade));
            });
        }
    }

    /// The same for what can only be gone through from its beginning, as a list of nodes: a slice that has far to go
    /// lasts longer.
    pub(crate) fn nodes<'e, T: Shrink + 'e>(&mut self, nodes: impl IntoIterator<Item = &'e mut T>) {
        if !T::is_flat() {
            self.walk.passed(self.taken());
            self.elements(nodes);
        }
    }

    /// Descends into each element of a sequence that others hold, too.
    pub fn elements_shared<'e, T: ShrinkShared + 'e>(&mut self, elements: impl IntoIterator<Item = &'e T>) {
        if !T::is_flat_shared() {
            self.each(elements.into_iter().enumerate(), |cascade, (index, element)| {
                cascade.child(Step::Index(index), Tuning::NONE, |cascade| element.shrink_shared(cascade));
            });
        }
    }

    /// The same for what can only be gone through from its beginning.
    pub(crate) fn nodes_shared<'e, T: ShrinkShared + 'e>(&mut self, nodes: impl IntoIterator<Item = &'e T>) {
        if !T::is_flat_shared() {
            self.walk.passed(self.taken());
            self.elements_shared(nodes);
        }
    }

    /// Descends into each value of a map; the report knows it by its key.
    pub fn entries<'e, K, V>(&mut self, entries: impl IntoIterator<Item = (&'e K, &'e mut V)>)
    where
        K: Debug + 'e,
        V: Shrink + 'e,
    {
        if !V::is_flat() {
            self.walk.passed(self.taken());
            self.each(entries.into_iter(), |cascade, (key, value)| {
                cascade.child(Step::Key(key), Tuning::NONE, |cascade| value.shrink(cascade));
            });
        }
    }

    /// Descends into each value of a map that others hold, too.
    pub fn entries_shared<'e, K, V>(&mut self, entries: impl IntoIterator<Item = (&'e K, &'e V)>)
    where
        K: Debug + 'e,
        V: ShrinkShared + 'e,
    {
        if !V::is_flat_shared() {
            self.walk.passed(self.taken());
            self.each(entries.into_iter(), |cascade, (key, value)| {
                cascade.child(Step::Key(key), Tuning::NONE, |cascade| value.shrink_shared(cascade));
            });
        }
    }

    /// Says that another thread holds the lock of this value; it is tried again in a later slice.
    pub fn busy(&mut self) {
        self.walk.busy();
    }

    /// How many of the coming steps earlier slices took.
    fn taken(&self) -> usize {
        self.walk.taken(self.depth, self.next)
    }

    /// Takes each item that no earlier slice took, until the slice is over.
    fn each<T>(&mut self, items: impl Iterator<Item = T>, take: impl Fn(&mut Self, T)) {
        let taken = self.taken();
        self.next += taken;
        for item in items.skip(taken) {
            if self.walk.over() {
                return;
            }
            take(self, item);
        }
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
