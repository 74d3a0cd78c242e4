//! What holds other values: these add nothing of their own, and no step to the path except a tuple's numbers.

use crate::std_impls::deeper;
use crate::{Bytes, Cascade, Shrink, ShrinkShared};
use std::borrow::Cow;
use std::cell::{Cell, LazyCell, OnceCell};
use std::mem::ManuallyDrop;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, LazyLock, OnceLock};

/// Implements `Shrink` for what holds at most one value, from how that is got by reference and by its owner.
macro_rules! through {
    ($([$($generics:tt)*] $type:ty, $flat:expr, $measure:ident, $this:ident => $by_ref:expr, $by_mut:expr;)*) => {$(
        impl<$($generics)*> $crate::Shrink for $type {
            fn slack(&self) -> $crate::Bytes {
                let $this = self;
                $by_ref.map_or($crate::Bytes::ZERO, |inner| $measure(|| inner.slack()))
            }
            fn shrink(&mut self, cascade: &mut $crate::Cascade<'_>) {
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
pub(crate) fn here(slack: impl FnOnce() -> Bytes) -> Bytes {
    slack()
}

through! {
    [T: Shrink] Option<T>, T::is_flat(), here, this => this.as_ref(), this.as_mut();
    [T: Shrink + ?Sized] Box<T>, false, deeper, this => Some(&**this), Some(&mut **this);
    [T: Shrink + ?Sized] &mut T, false, deeper, this => Some(&**this), Some(&mut **this);
    [T: Shrink] OnceCell<T>, T::is_flat(), here, this => this.get(), this.get_mut();
    [T: Shrink] OnceLock<T>, T::is_flat(), here, this => this.get(), this.get_mut();
    [T: Shrink, F] LazyCell<T, F>, T::is_flat(), here, this => LazyCell::get(this), LazyCell::get_mut(this);
    [T: Shrink, F] LazyLock<T, F>, T::is_flat(), here, this => LazyLock::get(this), LazyLock::get_mut(this);
    [T: Shrink + Unpin + ?Sized] Pin<Box<T>>, false, deeper, this => Some(&**this), Some(this.as_mut().get_mut());
    [T: Shrink] ManuallyDrop<T>, T::is_flat(), here, this => Some(&**this), Some(&mut **this);
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

impl<T: ShrinkShared, E: ShrinkShared> ShrinkShared for Result<T, E> {
    fn slack_shared(&self) -> Bytes {
        self.as_ref().map_or_else(ShrinkShared::slack_shared, ShrinkShared::slack_shared)
    }
    fn shrink_shared(&self, cascade: &mut Cascade<'_>) {
        match self {
            Ok(value) => value.shrink_shared(cascade),
            Err(error) => error.shrink_shared(cascade),
        }
    }
    fn is_flat_shared() -> bool {
        T::is_flat_shared() && E::is_flat_shared()
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

/// What is borrowed belongs to another owner.
impl<B: ToOwned<Owned: ShrinkShared> + ?Sized> ShrinkShared for Cow<'_, B> {
    fn slack_shared(&self) -> Bytes {
        match self {
            Cow::Borrowed(_) => Bytes::ZERO,
            Cow::Owned(value) => value.slack_shared(),
        }
    }
    fn shrink_shared(&self, cascade: &mut Cascade<'_>) {
        if let Cow::Owned(value) = self {
            value.shrink_shared(cascade);
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

/// Implements `ShrinkShared` for what holds at most one value, from how that is got by reference.
macro_rules! through_shared {
    ($([$($generics:tt)*] $type:ty, $flat:expr, $measure:ident, $this:ident => $by_ref:expr;)*) => {$(
        impl<$($generics)*> $crate::ShrinkShared for $type {
            fn slack_shared(&self) -> $crate::Bytes {
                let $this = self;
                $by_ref.map_or($crate::Bytes::ZERO, |inner| $measure(|| inner.slack_shared()))
            }
            fn shrink_shared(&self, cascade: &mut $crate::Cascade<'_>) {
                let $this = self;
                if let Some(inner) = $by_ref {
                    inner.shrink_shared(cascade);
                }
            }
            fn is_flat_shared() -> bool {
                $flat
            }
        }
    )*};
}

through_shared! {
    [T: ShrinkShared] Option<T>, T::is_flat_shared(), here, this => this.as_ref();
    [T: ShrinkShared + ?Sized] Box<T>, false, deeper, this => Some(&**this);
    [T: ShrinkShared + ?Sized] Pin<Box<T>>, false, deeper, this => Some(&**this);
    [T: ShrinkShared] OnceCell<T>, T::is_flat_shared(), here, this => this.get();
    [T: ShrinkShared] OnceLock<T>, T::is_flat_shared(), here, this => this.get();
    [T: ShrinkShared, F] LazyCell<T, F>, T::is_flat_shared(), here, this => LazyCell::get(this);
    [T: ShrinkShared, F] LazyLock<T, F>, T::is_flat_shared(), here, this => LazyLock::get(this);
    [T: ShrinkShared] ManuallyDrop<T>, T::is_flat_shared(), here, this => Some(&**this);
}

#[allow(unused_imports, reason = "shared with the features' modules, none of which may be there")]
pub(crate) use {through, through_shared};

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
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8)
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9)
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10)
    (A 0, B 1, C 2, D 3, E 4, F 5, G 6, H 7, I 8, J 9, K 10, L 11)
}
