//! `dashmap`: a hash table for each shard, each with its lock, which is tried.
//!
//! Its own `shrink_to_fit` waits for each shard and aborts where memory is refused; so this goes through `raw-api` to
//! the tables themselves (dashmap 6 on hashbrown 0.14).

use crate::std_impls::{sampled, slack_of, table_bytes};
use crate::{Bytes, Cascade, Refused, Shrink, ShrinkShared, Site};
use dashmap::{DashMap, SharedValue};
use hashbrown_14::raw::RawTable;
use std::fmt::Debug;
use std::hash::{BuildHasher, Hash, Hasher};

type Table<K, V> = RawTable<(K, SharedValue<V>)>;

/// One shard, whose lock is held.
struct Shard<'a, K, V, S> {
    table: &'a mut Table<K, V>,
    hasher: &'a S,
}

/// A key's hash as dashmap reckons it.
#[allow(
    clippy::manual_hash_one,
    reason = "a hasher may do that differently, and then nothing is found again"
)]
fn hash<K: Hash>(hasher: &impl BuildHasher, key: &K) -> u64 {
    let mut state = hasher.build_hasher();
    key.hash(&mut state);
    state.finish()
}

impl<K: Hash, V, S: BuildHasher> Site for Shard<'_, K, V, S> {
    fn used(&self) -> usize {
        self.table.len()
    }
    fn room(&self) -> usize {
        self.table.capacity()
    }
    fn bytes(&self, room: usize) -> Bytes {
        table_bytes(room, size_of::<(K, V)>())
    }
    fn fit(&mut self, room: usize) -> Result<(), Refused> {
        let hasher = |entry: &(K, SharedValue<V>)| hash(self.hasher, &entry.0);
        let mut smaller = RawTable::new();
        smaller.try_reserve(room.max(self.table.len()), hasher).map_err(|_| Refused)?;
        if smaller.capacity() < self.table.capacity() {
            for entry in self.table.drain() {
                smaller.insert(hasher(&entry), entry, hasher);
            }
            *self.table = smaller;
        }
        Ok(())
    }
    fn kind(&self) -> &'static str {
        "DashMap"
    }
}

/// The entries of a table that nobody else can reach meanwhile.
#[allow(unsafe_code)]
fn entries<K, V>(table: &mut Table<K, V>) -> impl Iterator<Item = (&K, &mut V)> {
    // SAFETY: the iterator holds the exclusive borrow of the table, so the table outlives it and does not change; each
    // bucket comes once, so no two references to one entry exist.
    unsafe { table.iter().map(|bucket| bucket.as_mut()).map(|(key, value)| (&*key, value.get_mut())) }
}

/// The values of a table that is locked for reading.
#[allow(unsafe_code)]
fn values<K, V>(table: &Table<K, V>) -> impl Iterator<Item = &V> {
    // SAFETY: the iterator holds a borrow of the table, so the table outlives it and does not change.
    unsafe { table.iter().map(|bucket| bucket.as_ref().1.get()) }
}

impl<K, V, S> Shard<'_, K, V, S>
where
    K: Eq + Hash + Debug,
    V: Shrink,
    S: BuildHasher,
{
    fn shrink(&mut self, cascade: &mut Cascade<'_>) {
        cascade.entries(entries(self.table));
        cascade.site(self);
    }
}

/// Through each shard's lock.
impl<K: Eq + Hash + Debug, V: Shrink, S: BuildHasher + Clone> ShrinkShared for DashMap<K, V, S> {
    fn slack_shared(&self) -> Bytes {
        let shard = |table: &Table<K, V>| {
            let bytes = |room| table_bytes(room, size_of::<(K, V)>());
            bytes(table.capacity()) - bytes(table.len()) + slack_of(table.len(), values(table))
        };
        let shards = self.shards();
        sampled(shards.len(), shards.iter(), |lock| {
            lock.try_read().map_or(Bytes::ZERO, |table| shard(&table))
        })
    }
    fn shrink_shared(&self, cascade: &mut Cascade<'_>) {
        for lock in self.shards() {
            cascade.part(|cascade| match lock.try_write() {
                Some(mut table) => Shard { table: &mut table, hasher: self.hasher() }.shrink(cascade),
                None => cascade.busy(),
            });
        }
    }
}

/// Without locking.
impl<K: Eq + Hash + Debug, V: Shrink, S: BuildHasher + Clone> Shrink for DashMap<K, V, S> {
    fn slack(&self) -> Bytes {
        self.slack_shared()
    }
    fn shrink(&mut self, cascade: &mut Cascade<'_>) {
        let hasher = self.hasher().clone();
        for lock in self.shards_mut() {
            cascade.part(|cascade| Shard { table: lock.get_mut(), hasher: &hasher }.shrink(cascade));
        }
    }
}
