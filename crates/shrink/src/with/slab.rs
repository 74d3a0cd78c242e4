//! `slab`: keys are positions, so only the end beyond the last key in use can go.
//!
//! Its only way to do that, `shrink_to_fit`, aborts where memory is refused: it is used where the policy
//! [allows that](crate::Policy::may_abort). An empty slab is replaced by a new one without.

use crate::std_impls::{slack_of, slack_of_shared};
use crate::{Bytes, Cascade, Refused, Shrink, ShrinkShared, Site, Way};
use slab::Slab;

impl<T> Site for Slab<T> {
    /// The last key in use and those before it.
    fn used(&self) -> usize {
        if self.is_empty() { 0 } else { self.iter().next_back().map_or(0, |(key, _)| key + 1) }
    }
    fn room(&self) -> usize {
        self.capacity()
    }
    fn bytes(&self, room: usize) -> Bytes {
        /// As slab's own entry.
        #[allow(dead_code, reason = "only its size is asked for")]
        enum Entry<T> {
            Vacant(usize),
            Occupied(T),
        }
        Bytes::of::<Entry<T>>(room)
    }
    fn way(&self) -> Way {
        Way::InPlace
    }
    fn fit(&mut self, _: usize) -> Result<(), Refused> {
        if self.is_empty() {
            *self = Slab::new();
        } else {
            self.shrink_to_fit();
        }
        Ok(())
    }
    fn kind(&self) -> &'static str {
        "Slab"
    }
}

impl<T: Shrink> Shrink for Slab<T> {
    fn slack(&self) -> Bytes {
        let values = self.iter().map(|(_, value)| value);
        self.bytes(self.capacity() - self.len()) + slack_of(self.len(), values)
    }
    fn shrink(&mut self, cascade: &mut Cascade<'_>) {
        cascade.nodes(self.iter_mut().map(|(_, value)| value));
        if self.is_empty() || cascade.policy().may_abort {
            cascade.site(self);
        }
    }
}

/// A slab of locks.
impl<T: ShrinkShared> ShrinkShared for Slab<T> {
    fn slack_shared(&self) -> Bytes {
        slack_of_shared(self.len(), self.iter().map(|(_, value)| value))
    }
    fn shrink_shared(&self, cascade: &mut Cascade<'_>) {
        cascade.nodes_shared(self.iter().map(|(_, value)| value));
    }
}
