//! Locks: tried, never waited for, and held no longer than a slice. An owner that has the lock by value needs none.
//!
//! A poisoned lock is used like another one: shrinking keeps contents as they are, so it neither needs nor breaks what
//! a panic may have left undone; the poison stays for whoever asks.

use std::cell::RefCell;
use std::sync::{Mutex, PoisonError, RwLock, TryLockError};

/// Implements both traits for a lock, from how it is tried for reading and for writing, and passed by its owner.
macro_rules! lock {
    ($([$($generics:tt)*] $type:ty, $this:ident => $read:expr, $write:expr, $own:expr;)*) => {$(
        impl<$($generics)* T: $crate::Shrink + ?Sized> $crate::Shrink for $type {
            fn slack(&self) -> $crate::Bytes {
                $crate::ShrinkShared::slack_shared(self)
            }
            fn shrink(&mut self, cascade: &mut $crate::Cascade<'_>) {
                let $this = self;
                $own.shrink(cascade);
            }
        }

        impl<$($generics)* T: $crate::Shrink + ?Sized> $crate::ShrinkShared for $type {
            fn slack_shared(&self) -> $crate::Bytes {
                let $this = self;
                $read.map_or($crate::Bytes::ZERO, |inner| inner.slack())
            }
            fn shrink_shared(&self, cascade: &mut $crate::Cascade<'_>) {
                let $this = self;
                match $write {
                    Some(mut inner) => inner.shrink(cascade),
                    None => cascade.busy(),
                }
            }
        }
    )*};
}
pub(crate) use lock;

lock! {
    [] RefCell<T>, this => this.try_borrow().ok(), this.try_borrow_mut().ok(), this.get_mut();
    [] Mutex<T>, this => tried(this.try_lock()), tried(this.try_lock()),
        this.get_mut().unwrap_or_else(PoisonError::into_inner);
    [] RwLock<T>, this => tried(this.try_read()), tried(this.try_write()),
        this.get_mut().unwrap_or_else(PoisonError::into_inner);
}

/// The guard, also of a poisoned lock; `None` where another has it.
fn tried<G>(answer: Result<G, TryLockError<G>>) -> Option<G> {
    match answer {
        Ok(guard) => Some(guard),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    }
}
