//! `smallvec`: what has spilled to the heap is cut in place, or comes back inside when it fits.

use crate::std_impls::{slack_of, slack_of_shared, spread};
use crate::{Bytes, Cascade, Refused, Shrink, ShrinkShared, Site, Way, refit};
use smallvec::{Array, SmallVec};

impl<A: Array> Site for SmallVec<A> {
    fn used(&self) -> usize {
        self.len()
    }
    fn room(&self) -> usize {
        self.capacity()
    }
    fn bytes(&self, room: usize) -> Bytes {
        if room <= self.inline_size() { Bytes::ZERO } else { Bytes::of::<A::Item>(room) }
    }
    fn way(&self) -> Way {
        refit::way::<A::Item>()
    }
    fn fit(&mut self, room: usize) -> Result<(), Refused> {
        // Its name says grow; it sets the capacity, also to less, and says so where memory is refused (1.16).
        self.try_grow(room.max(self.len())).map_err(|_| Refused)
    }
    fn kind(&self) -> &'static str {
        "SmallVec"
    }
}

impl<A: Array<Item: Shrink>> Shrink for SmallVec<A> {
    fn slack(&self) -> Bytes {
        self.unused() + slack_of(self.len(), spread(self.iter()))
    }
    fn shrink(&mut self, cascade: &mut Cascade<'_>) {
        cascade.elements(self.iter_mut());
        cascade.site(self);
    }
}

impl<A: Array<Item: ShrinkShared>> ShrinkShared for SmallVec<A> {
    fn slack_shared(&self) -> Bytes {
        slack_of_shared(self.len(), spread(self.iter()))
    }
    fn shrink_shared(&self, cascade: &mut Cascade<'_>) {
        cascade.elements_shared(self);
    }
}
