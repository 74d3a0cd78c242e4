//! obmalloc's structures as 64-bit CPython 3.8 to 3.14 lays them out, parsed from bytes.
//!
//! Sources: Objects/obmalloc.c of 3.8 to 3.11, Include/internal/pycore_obmalloc.h of 3.12 and later. They have
//! not changed but for the sizes of arenas and pools. Invariant: nothing here believes a number it read; what is
//! out of its bounds is `None`.

use std::ops::Range;

/// Size classes: 16, 32, ... 512 bytes.
pub(super) const CLASSES: u64 = 32;
/// Bytes of a pool's header.
pub(super) const HEADER: u64 = 48;
/// Bytes of `usedpools`: two words for each class.
pub(super) const USED_BYTES: u64 = CLASSES * 16;
/// Bytes of an arena_object.
pub(super) const OBJECT: u64 = 48;
/// How many arena_objects there are at first; their number doubles.
pub(super) const FIRST_OBJECTS: u32 = 16;
/// How many there may be here: with them 16 TiB of arenas.
pub(super) const OBJECTS_MOST: u32 = 1 << 24;
/// Pools in an arena.
const POOLS: u32 = 64;
/// A pool's class before it is first used.
const NO_CLASS: u32 = 0xffff;

/// Sizes that are fixed when CPython is built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Geometry {
    /// Bytes of a pool.
    pub(super) pool: u64,
    /// Bytes of an arena.
    pub(super) arena: u64,
}

impl Geometry {
    /// Up to 3.9, and later without the radix tree.
    pub(super) const SMALL: Geometry = Geometry { pool: 4 << 10, arena: 256 << 10 };
    /// From 3.10 on.
    pub(super) const LARGE: Geometry = Geometry { pool: 16 << 10, arena: 1 << 20 };

    /// Blocks in a pool of blocks of `size`.
    pub(super) fn blocks(self, size: u64) -> u64 {
        (self.pool - HEADER) / size
    }
}

/// The little-endian word at `at` of `bytes`; 0 beyond its end.
pub(super) fn word(bytes: &[u8], at: usize) -> u64 {
    let end = at.saturating_add(8);
    bytes.get(at..end).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

fn half(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

/// A pool's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Header {
    /// Blocks in use.
    pub(super) count: u32,
    /// The first free block, or 0.
    pub(super) free: u64,
    /// The next pool of its class with free blocks, or of the arena's free pools.
    pub(super) next: u64,
    /// The one before it in its class.
    pub(super) prev: u64,
    /// Its arena's number.
    pub(super) arena: u32,
    /// Its blocks' class.
    pub(super) class: u32,
    /// Where the first block is that was never handed out since the pool got its class.
    pub(super) carved: u32,
    /// The last place where a block can be.
    pub(super) last: u32,
}

impl Header {
    pub(super) fn parse(bytes: &[u8; HEADER as usize]) -> Header {
        Header {
            count: half(bytes, 0),
            free: word(bytes, 8),
            next: word(bytes, 16),
            prev: word(bytes, 24),
            arena: half(bytes, 32),
            class: half(bytes, 36),
            carved: half(bytes, 40),
            last: half(bytes, 44),
        }
    }

    /// Bytes of its blocks; `None` if it has no class yet, or none there is.
    pub(super) fn size(&self) -> Option<u64> {
        let class = u64::from(self.class);
        (class < CLASSES).then(|| (class + 1) * 16)
    }

    /// Whether it never had a class.
    pub(super) fn is_new(&self) -> bool {
        self.class == NO_CLASS
    }

    /// The geometry its numbers imply, if it is a pool's header.
    pub(super) fn geometry(&self) -> Option<Geometry> {
        let pool = u64::from(self.last) + self.size()?;
        [Geometry::SMALL, Geometry::LARGE].into_iter().find(|geometry| geometry.pool == pool)
    }
}

/// An arena_object that has an arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Arena {
    /// Its number in the array.
    pub(super) index: u32,
    /// Where it begins.
    pub(super) address: u64,
    /// The first pool that was never used.
    pub(super) unused: u64,
    /// How many pools are free, those never used included.
    pub(super) nfree: u32,
    /// How many pools it has.
    pub(super) ntotal: u32,
    /// The first free pool that was used, or 0.
    pub(super) free: u64,
}

impl Arena {
    /// Its pools' addresses.
    pub(super) fn pools(&self, geometry: Geometry) -> Range<u64> {
        let start = self.address.next_multiple_of(geometry.pool);
        start..start + u64::from(self.ntotal) * geometry.pool
    }

    /// Its addresses.
    pub(super) fn range(&self, geometry: Geometry) -> Range<u64> {
        self.address..self.address + geometry.arena
    }
}

/// An entry of the array of arena_objects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Object {
    /// With an arena.
    Arena(Arena),
    /// Without; the address of the next one without, or 0.
    Unused(u64),
}

impl Object {
    /// Entry `index` of an array; `None` if it is none.
    pub(super) fn parse(bytes: &[u8], index: u32, geometry: Geometry) -> Option<Object> {
        let address = word(bytes, 0);
        if address == 0 {
            return Some(Object::Unused(word(bytes, 32)));
        }
        let arena = Arena {
            index,
            address,
            unused: word(bytes, 8),
            nfree: half(bytes, 16),
            ntotal: half(bytes, 20),
            free: word(bytes, 24),
        };
        let end = address.checked_add(geometry.arena).filter(|end| *end < 1 << 56)?;
        let aligned = address.is_multiple_of(4096) && arena.unused.is_multiple_of(geometry.pool);
        // An arena that does not begin at a pool's boundary has one pool less.
        let whole = POOLS - u32::from(!address.is_multiple_of(geometry.pool));
        let counts = arena.ntotal == whole && arena.nfree <= arena.ntotal;
        let within = arena.unused >= address && arena.unused <= end;
        let free = arena.free == 0
            || (arena.free.is_multiple_of(geometry.pool)
                && arena.free >= address
                && arena.free < arena.unused);
        (aligned && counts && within && free).then_some(Object::Arena(arena))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn object(words: [u64; 6]) -> Vec<u8> {
        words.into_iter().flat_map(u64::to_le_bytes).collect()
    }

    #[test]
    fn entries_of_the_array() {
        let geometry = Geometry::LARGE;
        let base = 0x7f00_0000_0000;
        let good = [base, base + 0x8000, 64 << 32 | 63, base + 0x4000, 0, 0];
        let parsed = Object::parse(&object(good), 3, geometry);
        assert!(matches!(parsed, Some(Object::Arena(Arena { index: 3, nfree: 63, ntotal: 64, .. }))));
        assert_eq!(Object::parse(&object([0, 9, 9, 9, 77, 9]), 0, geometry), Some(Object::Unused(77)));
        for (at, wrong) in
            [(0, base + 8), (1, base + (2 << 20)), (1, base + 1), (2, 64 << 32 | 65), (2, 63 << 32), (3, 5)]
        {
            let mut bad = good;
            bad[at] = wrong;
            assert_eq!(Object::parse(&object(bad), 0, geometry), None, "{at} {wrong:#x}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_will_do(words: [u64; 6], index: u32) {
            let bytes = object(words);
            for geometry in [Geometry::SMALL, Geometry::LARGE] {
                if let Some(Object::Arena(arena)) = Object::parse(&bytes, index, geometry) {
                    prop_assert!(arena.pools(geometry).end <= arena.range(geometry).end);
                }
            }
            let header = Header::parse(bytes.as_slice().try_into().unwrap());
            prop_assert!(header.geometry().is_none() || header.size().is_some());
        }
    }
}
