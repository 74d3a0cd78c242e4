//! `hashbrown`: as std's maps, which are made of it. Its `HashTable` does not know its hash function: use
//! `#[shrink(with = path)]`.

use crate::std_impls::{keyed, table};
use hashbrown::{HashMap, HashSet};

table!(HashMap<K, V>, "hashbrown::HashMap", K, (K, V), this => room(this.allocation_size(), size_of::<(K, V)>()));
table!(HashSet<T>, "hashbrown::HashSet", T, T, this => room(this.allocation_size(), size_of::<T>()));
keyed!(HashMap, HashSet, this => this.values());

/// For how many elements a table of so many bytes has room: seven eighths of its buckets, but for the smallest.
/// `capacity()` counts places of removed elements as taken.
fn room(bytes: usize, element: usize) -> usize {
    let buckets = bytes.saturating_sub(16) / (element + 1);
    if buckets <= 8 { buckets.saturating_sub(1) } else { buckets / 8 * 7 }
}
