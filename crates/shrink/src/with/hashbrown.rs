//! `hashbrown`: as std's maps, which are made of it. Its `HashTable` does not know its hash function: use
//! `#[shrink(with = path)]`.

use crate::std_impls::{sampled, table};
use crate::{Bytes, Cascade, Shrink, Site};
use hashbrown::{HashMap, HashSet};
use std::fmt::Debug;
use std::hash::{BuildHasher, Hash};

table!(HashMap<K, V>, "hashbrown::HashMap", K, (K, V), this => room(this.allocation_size(), size_of::<(K, V)>()));
table!(HashSet<T>, "hashbrown::HashSet", T, T, this => room(this.allocation_size(), size_of::<T>()));

/// For how many elements a table of so many bytes has room: seven eighths of its buckets, but for the smallest.
/// `capacity()` counts places of removed elements as taken.
fn room(bytes: usize, element: usize) -> usize {
    let buckets = bytes.saturating_sub(16) / (element + 1);
    if buckets <= 8 { buckets.saturating_sub(1) } else { buckets / 8 * 7 }
}

/// As std's.
impl<K: Eq + Hash + Debug, V: Shrink, S: BuildHasher + Clone> Shrink for HashMap<K, V, S> {
    fn slack(&self) -> Bytes {
        let values = if V::is_flat() { Bytes::ZERO } else { sampled(self.len(), self.values(), V::slack) };
        self.unused() + values
    }
    fn shrink(&mut self, cascade: &mut Cascade<'_>) {
        cascade.entries(self.iter_mut());
        cascade.site(self);
    }
}

impl<T: Eq + Hash, S: BuildHasher + Clone> Shrink for HashSet<T, S> {
    fn slack(&self) -> Bytes {
        self.unused()
    }
    fn shrink(&mut self, cascade: &mut Cascade<'_>) {
        cascade.site(self);
    }
}
