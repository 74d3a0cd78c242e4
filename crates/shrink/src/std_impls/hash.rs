//! Hash tables. `shrink_to` of std and hashbrown makes the new table before the old one goes, and aborts where memory
//! is refused; so does this make a second table, but by `try_reserve`, and only if the policy allows its size.
//!
//! std's `capacity()` counts places of removed elements as taken where their groups were full: a table that was full
//! to the brim is seen at a quarter to a half of its size (hashbrown 0.17: 28% where 1% is left, 49% where 30% is), one
//! that was filled to 80% of that at three quarters. So what is said to come back is a lower bound, and one that was
//! full and is still used to more than a seventh may be left as it is. hashbrown itself tells its true size.
//!
//! A hash function that panics loses the elements that were not moved yet, as in std's own `extend(drain())`; it has
//! hashed each of them before.

use crate::Bytes;
use std::collections::{HashMap, HashSet};

/// What hashbrown's table takes with room for so many elements of this size: buckets (a power of two, at most seven
/// eighths full), a control byte for each, and 16 more (hashbrown 0.15 to 0.17 on x86_64 and aarch64).
pub(crate) fn table_bytes(room: usize, element: usize) -> Bytes {
    let buckets = match room {
        0 => return Bytes::ZERO,
        1..=3 => 4,
        4..=7 => 8,
        8..=14 => 16,
        // The ratio is exact for full tables: 7/8 of a power of two is 8/7 of that, rounded down, at most.
        _ => (room.saturating_mul(8) / 7).checked_next_power_of_two().unwrap_or(usize::MAX),
    };
    Bytes(element.saturating_add(1).saturating_mul(buckets)) + Bytes(16)
}

/// Implements `Site` for a map or set by making a second one.
macro_rules! table {
    ($type:ident<$($of:ident),+>, $kind:literal, $key:ident, $element:ty, $this:ident => $room:expr) => {
        impl<$($of,)+ S> $crate::Site for $type<$($of,)+ S>
        where
            $key: Eq + std::hash::Hash,
            S: std::hash::BuildHasher + Clone,
        {
            fn used(&self) -> usize {
                self.len()
            }
            fn room(&self) -> usize {
                let $this = self;
                $room
            }
            fn bytes(&self, room: usize) -> $crate::Bytes {
                $crate::std_impls::table_bytes(room, size_of::<$element>())
            }
            fn fit(&mut self, room: usize) -> Result<(), $crate::Refused> {
                let mut smaller = $type::with_hasher(self.hasher().clone());
                smaller.try_reserve(room.max(self.len())).map_err(|_| $crate::Refused)?;
                if smaller.room() < self.room() {
                    smaller.extend(self.drain());
                    *self = smaller;
                }
                Ok(())
            }
            fn kind(&self) -> &'static str {
                $kind
            }
        }
    };
}

/// Implements both traits for a map and a set that are `Site`s, given some of the map's values to measure.
macro_rules! keyed {
    ($map:ident, $set:ident, $this:ident => $few:expr) => {
        /// Keys cannot be changed, so only values are descended into. Needs `Debug` keys, for the report, and a hasher
        /// that is `Clone`, for the smaller table: all the usual ones are.
        impl<K, V, S> $crate::Shrink for $map<K, V, S>
        where
            K: Eq + std::hash::Hash + std::fmt::Debug,
            V: $crate::Shrink,
            S: std::hash::BuildHasher + Clone,
        {
            fn slack(&self) -> $crate::Bytes {
                let $this = self;
                $crate::Site::unused(self) + $crate::std_impls::slack_of(self.len(), $few)
            }
            fn shrink(&mut self, cascade: &mut $crate::Cascade<'_>) {
                cascade.entries(self.iter_mut());
                cascade.site(self);
            }
        }

        impl<T: Eq + std::hash::Hash, S: std::hash::BuildHasher + Clone> $crate::Shrink for $set<T, S> {
            fn slack(&self) -> $crate::Bytes {
                $crate::Site::unused(self)
            }
            fn shrink(&mut self, cascade: &mut $crate::Cascade<'_>) {
                cascade.site(self);
            }
        }

        /// A map of locks.
        impl<K: std::fmt::Debug, V: $crate::ShrinkShared, S> $crate::ShrinkShared for $map<K, V, S> {
            fn slack_shared(&self) -> $crate::Bytes {
                let $this = self;
                $crate::std_impls::slack_of_shared(self.len(), $few)
            }
            fn shrink_shared(&self, cascade: &mut $crate::Cascade<'_>) {
                cascade.entries_shared(self);
            }
        }

        $crate::std_impls::flat_shared! {
            /// Elements of a set cannot be changed.
            [T, S] $set<T, S>
        }
    };
}

pub(crate) use {keyed, table};

table!(HashMap<K, V>, "HashMap", K, (K, V), this => this.capacity());
table!(HashSet<T>, "HashSet", T, T, this => this.capacity());
keyed!(HashMap, HashSet, this => this.values());
