//! `hashbrown`: as std's maps, which are made of it. Its `HashTable` does not know its hash function: use
//! `#[shrink(with = path)]`.

use crate::std_impls::{sampled, table};
use crate::{Bytes, Cascade, Shrink, Site};
use hashbrown::{HashMap, HashSet};
use std::fmt::Debug;
use std::hash::{BuildHasher, Hash};

table!(HashMap<K, V>, "hashbrown::HashMap", K, (K, V));
table!(HashSet<T>, "hashbrown::HashSet", T, T);

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
