//! What holds other values: these add nothing of their own, and no step to the path except a tuple's numbers.

use crate::std_impls::deeper;
use crate::{Bytes, Cascade, Shrink, ShrinkShared};
use std::borrow::Cow;
use std::cell::{Cell, OnceCell};
use std::rc::Rc;
use std::sync::{Arc, OnceLock};

macro_rules! through {
    ($([$($generics:tt)*] $type:ty, $flat:expr, $measure:ident, $this:ident => $by_ref:expr, $by_mut:expr;)*) => {$(
        impl<$($generics)*> Shrink for $type {
            fn slack(&self) -> Bytes {
                let $this = self;
                $by_ref.map_or(Bytes::ZERO, |inner| $measure(|| inner.slack()))
            }
            fn shrink(&mut self, cascade: &mut Cascade<'_>) {
                let $this = self;
                if let Some(inner) = $by_mut {
                    inner.shrink(cascade);
                }
            }
            fn is_flat() -> bool {
                $flat
            }
        }
    )*};
}

/// Measures what lies within.
fn here(slack: impl FnOnce() -> Bytes) -> Bytes {
    slack()
}

through! {
    [T: Shrink] Option<T>, T::is_flat(), here, this => this.as_ref(), this.as_mut();
    [T: Shrink + ?Sized] Box<T>, false, deeper, this => Some(&**this), Some(&mut **this);
    [T: Shrink + ?Sized] &mut T, false, deeper, this => Some(&**this), Some(&mut **this);
    [T: Shrink] OnceCell<T>, T::is_flat(), here, this => this.get(), this.get_mut();
    [T: Shrink] OnceLock<T>, T::is_flat(), here, this => this.get(), this.get_mut();
    [T: Shrink] std::num::Wrapping<T>, T::is_flat(), here, this => Some(&this.0), Some(&mut this.0);
    [T: Shrink] std::cmp::Reverse<T>, T::is_flat(), here, this => Some(&this.0), Some(&mut this.0);
}

/// Its content cannot be measured while it is shared, only changed by its owner.
impl<T: Shrink> Shrink for Cell<T> {
    fn slack(&self) -> Bytes {
        Bytes::ZERO
    }
    fn shrink(&mut self, cascade: &mut Cascade<'_>) {
        self.get_mut().shrink(cascade);
    }
    fn is_flat() -> bool {
        T::is_flat()
    }
}

impl<T: Shrink, E: Shrink> Shrink for Result<T, E> {
    fn slack(&self) -> Bytes {
        self.as_ref().map_or_else(Shrink::slack, Shrink::slack)
    }
    fn shrink(&mut self, cascade: &mut Cascade<'_>) {
        match self {
            Ok(value) => value.shrink(cascade),
            Err(error) => error.shrink(cascade),
        }
    }
    fn is_flat() -> bool {
        T::is_flat() && E::is_flat()
    }
}

/// What is borrowed belongs to another owner.
impl<B: ToOwned<Owned: Shrink> + ?Sized> Shrink for Cow<'_, B> {
    fn slack(&self) -> Bytes {
        match self {
            Cow::Borrowed(_) => Bytes::ZERO,
            Cow::Owned(value) => value.slack(),
        }
    }
    fn shrink(&mut self, cascade: &mut Cascade<'_>) {
        if let Cow::Owned(value) = self {
            value.shrink(cascade);
        }
    }
}

macro_rules! pointers {
    ($($type:ident),*) => {$(
        /// Shared: through the locks inside. One that is reached by several paths is offered by each of them, and
        /// the second finds nothing left; a cycle ends at a lock that is held.
        impl<T: ShrinkShared + ?Sized> Shrink for $type<T> {
            fn slack(&self) -> Bytes {
                deeper(|| (**self).slack_shared())
            }
            fn shrink(&mut self, cascade: &mut Cascade<'_>) {
                (**self).shrink_shared(cascade);
            }
        }

        impl<T: ShrinkShared + ?Sized> ShrinkShared for $type<T> {
            fn slack_shared(&self) -> Bytes {
                deeper(|| (**self).slack_shared())
            }
            fn shrink_shared(&self, cascade: &mut Cascade<'_>) {
                (**self).shrink_shared(cascade);
            }
        }
    )*};
}
pointers!(Rc, Arc);

impl<T: ShrinkShared + ?Sized> ShrinkShared for Box<T> {
    fn slack_shared(&self) -> Bytes {
        deeper(|| (**self).slack_shared())
    }
    fn shrink_shared(&self, cascade: &mut Cascade<'_>) {
        (**self).shrink_shared(cascade);
    }
}

macro_rules! through_shared {
    ($($type:ident: $get:ident),*) => {$(
        impl<T: ShrinkShared> ShrinkShared for $type<T> {
            fn slack_shared(&self) -> Bytes {
                self.$get().map_or(Bytes::ZERO, T::slack_shared)
            }
            fn shrink_shared(&self, cascade: &mut Cascade<'_>) {
                if let Some(inner) = self.$get() {
                    inner.shrink_shared(cascade);
                }
            }
            fn is_flat_shared() -> bool {
                T::is_flat_shared()
            }
        }
    )*};
}
through_shared!(Option: as_ref, OnceCell: get, OnceLock: get);

macro_rules! tuples {
    ($(($($name:ident $index:tt),+))*) => {$(
        impl<$($name: Shrink),+> Shrink for ($($name,)+) {
            fn slack(&self) -> Bytes {
                Bytes::ZERO $(+ self.$index.slack())+
            }
            fn shrink(&mut self, cascade: &mut Cascade<'_>) {
                $(cascade.field(stringify!($index), &mut self.$index);)+
            }
            fn is_flat() -> bool {
                true $(&& $name::is_flat())+
            }
        }

        impl<$($name: ShrinkShared),+> ShrinkShared for ($($name,)+) {
            fn slack_shared(&self) -> Bytes {
                Bytes::ZERO $(+ self.$index.slack_shared())+
            }
            fn shrink_shared(&self, cascade: &mut Cascade<'_>) {
                $(cascade.field_shared(stringify!($index), &self.$index);)+
            }
            fn is_flat_shared() -> bool {
                true $(&& $name::is_flat_shared())+
            }
        }
    )*};
}
tuples! {
    (A 0)
    (A 0, B 1)
    (A 0, B 1, C 2)
    (A 0, B 1, C 2, D 3)
    (A 0, B 1, C 2, D 3, E 4)
    (A 0, B 1, C 2, D 3, E 4, F 5)
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6)
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7)
}
