//! The three traits: what is owned shrinks by [`Shrink`], what is shared by [`ShrinkShared`], and one buffer
//! describes itself to the policy as a [`Site`].
//!
//! Invariant: a value reached by shared reference only is never changed, except through a lock that was tried.

use crate::{Bytes, Cascade};
use std::collections::TryReserveError;
use std::fmt;

/// A value that can give back memory it holds and does not use: its own, and that of everything it owns.
///
/// Derive it for structs and enums; implement it by hand for a collection of your own:
///
/// ```
/// use ebbtide_shrink::{Bytes, Cascade, Refused, Shrink, Site};
///
/// struct Ring { slots: Box<[u64]>, used: usize }
///
/// impl Site for Ring {
///     fn used(&self) -> usize { self.used }
///     fn room(&self) -> usize { self.slots.len() }
///     fn bytes(&self, room: usize) -> Bytes { Bytes::of::<u64>(room) }
///     fn fit(&mut self, room: usize) -> Result<(), Refused> {
///         let mut smaller = Vec::new();
///         smaller.try_reserve_exact(room)?;
///         smaller.extend_from_slice(&self.slots[..self.used]);
///         smaller.resize(room, 0);
///         self.slots = smaller.into_boxed_slice();
///         Ok(())
///     }
/// }
///
/// impl Shrink for Ring {
///     fn slack(&self) -> Bytes { self.unused() }
///     fn shrink(&mut self, cascade: &mut Cascade<'_>) { cascade.site(self) }
/// }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` does not implement `Shrink`",
    note = "derive it: `#[derive(ebbtide_shrink::Shrink)]`; or leave a field out: `#[shrink(skip)]`; or name a \
            function for it: `#[shrink(with = path)]`",
    note = "types of other crates need a feature of `ebbtide-shrink` (hashbrown, indexmap, bytes, tokio, ...); maps \
            need `Debug` keys and a hasher that is `Clone`; what is behind `Arc` needs `ShrinkShared`: a lock"
)]
pub trait Shrink {
    /// Heap held and not used, in this value and what it owns: an estimate that looks at no more than
    /// [`SAMPLE`](crate::SAMPLE) elements of each collection, and neither locks nor allocates.
    fn slack(&self) -> Bytes;

    /// Offers this value's buffers ([`Cascade::site`]) and descends into what it owns ([`Cascade::field`],
    /// [`Cascade::elements`], [`Cascade::entries`]), in the same order each time: the cascade remembers by number
    /// where a slice ended.
    fn shrink(&mut self, cascade: &mut Cascade<'_>);

    /// Whether no value of this type holds anything to give back, so that collections of it need not look at each
    /// element. A type that owns others on the heap says no without asking them: they may own its like again.
    fn is_flat() -> bool
    where
        Self: Sized,
    {
        false
    }
}

/// A value that can give back memory while others hold references to it: through a lock that is tried and never
/// waited for. `Arc<T>` and `Rc<T>` are [`Shrink`] where `T` is this.
///
/// Values without a lock (`Arc<str>`, counters) implement it by giving back nothing.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot shrink while it is shared",
    note = "put it behind a `Mutex` or `RwLock`, derive `ShrinkShared` for a struct whose fields have locks of \
            their own, or leave the field out: `#[shrink(skip)]`"
)]
pub trait ShrinkShared {
    /// As [`Shrink::slack`]; what another thread has locked counts as nothing.
    fn slack_shared(&self) -> Bytes;

    /// As [`Shrink::shrink`]; what another thread has locked is tried again later ([`Cascade::busy`]).
    fn shrink_shared(&self, cascade: &mut Cascade<'_>);

    /// Whether no value of this type gives back anything while it is shared.
    fn is_flat_shared() -> bool
    where
        Self: Sized,
    {
        false
    }
}

/// One buffer, as the policy sees it: how much room it has, how much of it is used, and how to change that.
pub trait Site {
    /// Elements in use.
    fn used(&self) -> usize;

    /// Elements there is room for: never fewer than [`used`](Site::used).
    fn room(&self) -> usize;

    /// Heap that the buffer takes, or would take, with room for so many elements.
    fn bytes(&self, room: usize) -> Bytes;

    /// How [`fit`](Site::fit) goes about it.
    fn way(&self) -> Way {
        Way::Copies
    }

    /// Cuts the buffer down to room for about so many elements, never fewer than are in use.
    ///
    /// # Errors
    /// [`Refused`] where the allocator refused; everything is then as it was. It must not panic, nor abort as
    /// `shrink_to` of the standard collections does.
    fn fit(&mut self, room: usize) -> Result<(), Refused>;

    /// What the report calls it.
    fn kind(&self) -> &'static str {
        std::any::type_name::<Self>()
    }

    /// Bytes of the buffer beyond what its elements need.
    fn unused(&self) -> Bytes {
        self.bytes(self.room()) - self.bytes(self.used())
    }
}

/// How a buffer becomes smaller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Way {
    /// The allocator cuts off its end: no second buffer.
    InPlace,
    /// A smaller one is made before the old one goes, or it takes as long as if it were: done after everything that is
    /// cut in place, and only up to [`Policy::transient`](crate::Policy::transient).
    Copies,
}

/// The allocator had no memory for the smaller buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the allocator refused memory for a smaller buffer")
    }
}

impl std::error::Error for Refused {}

impl From<TryReserveError> for Refused {
    fn from(_: TryReserveError) -> Refused {
        Refused
    }
}
