//! `indexmap`: a list of entries and a table of their numbers, both made anew; the order stays.

use crate::std_impls::{keyed, spread, table_bytes};
use crate::{Bytes, Refused, Site};
use indexmap::{IndexMap, IndexSet};
use std::hash::{BuildHasher, Hash};

macro_rules! site {
    ($type:ident<$($of:ident),+>, $kind:literal, $key:ident) => {
        impl<$($of,)+ S> Site for $type<$($of,)+ S>
        where
            $key: Eq + Hash,
            S: BuildHasher + Clone,
        {
            fn used(&self) -> usize {
                self.len()
            }
            fn room(&self) -> usize {
                self.capacity()
            }
            fn bytes(&self, room: usize) -> Bytes {
                // An entry has its hash, too; the table has numbers.
                Bytes::of::<(usize, ($($of,)+))>(room) + table_bytes(room, size_of::<usize>())
            }
            fn fit(&mut self, room: usize) -> Result<(), Refused> {
                let mut smaller = $type::with_hasher(self.hasher().clone());
                smaller.try_reserve_exact(room.max(self.len())).map_err(|_| Refused)?;
                if smaller.capacity() < self.capacity() {
                    smaller.extend(self.drain(..));
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

site!(IndexMap<K, V>, "IndexMap", K);
site!(IndexSet<T>, "IndexSet", T);
keyed!(IndexMap, IndexSet, this => spread(this.values()));
