//! How jemalloc 5 lays out its books: the tree of extents, an extent, the size classes.
//!
//! Read in include/jemalloc/internal/{rtree,extent_structs,edata,sc,bin_info}.h of 5.2.1, 5.3.0 and 5.3.1, for
//! 4 KiB pages (Debian's amd64 builds, Redis's own, tikv-jemallocator's). Invariant: an
//! [`Extent`] covers whole pages below 2^47 and has an existing state and size class, whatever was in memory.

use crate::source::Fault;
use std::ops::Range;

/// jemalloc's page.
pub(super) const PAGE: u64 = 4096;
/// User space ends below.
pub(super) const END: u64 = 1 << 47;
/// Bytes of an extent's book.
pub(super) const EXTENT_BYTES: usize = 128;
/// Where its bitmap begins; one bit for each region, set where it is free.
const BITMAP: usize = 64;
/// The most regions of a slab (LG_SLAB_MAXREGS is 9 with 4 KiB pages).
const REGIONS_MOST: u64 = 512;
/// Words of the bitmap of a slab.
pub(super) const GROUPS: usize = (REGIONS_MOST / 64) as usize;
/// From this size on a block has an extent to itself.
const LARGE: u64 = 4 * PAGE;
/// What a large block's extent may have beside it, for its start to vary within a page (`sz_large_pad`).
pub(super) const LARGE_PAD: u64 = PAGE;
/// An extent that no arena has is of this one.
const NO_ARENA: u32 = 0xfff;

/// Which release's bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// 5.2.
    Old,
    /// 5.3: a state of three bits, which the tree's entries repeat.
    New,
}

/// What an entry of a leaf says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    /// Where the extent's book is.
    pub(super) book: u64,
    slab: bool,
    class: u64,
    /// As the book has it; 5.3 only.
    state: Option<u64>,
}

/// What an extent is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Handed out: a slab of regions, or one large block.
    Active,
    /// Active, but of no size class: in the small cache of `opt.hpa`, or what guarded extents are cut from (5.3).
    Spare,
    /// Freed a while ago at most, and in memory.
    Dirty,
    /// Freed, and given back with MADV_FREE.
    Muzzy,
    /// Address space that was given back.
    Retained,
    /// In some thread's hands at this moment.
    Changing,
}

/// An extent's book.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) arena: u32,
    pub(super) slab: bool,
    pub(super) state: State,
    /// Index of its size class; the number of classes where it has none.
    pub(super) class: u64,
    /// Free regions of a slab.
    pub(super) free: u64,
    /// The first of its pages.
    pub(super) start: u64,
    pub(super) size: u64,
    /// Whether it is of a huge page that is divided by other books (5.3, `opt.hpa`).
    pub(super) of_huge: bool,
    state_bits: u64,
    bitmap: [u64; GROUPS],
}

impl Layout {
    pub(super) const ALL: [Layout; 2] = [Layout::Old, Layout::New];

    /// Its releases.
    pub(super) fn version(self) -> &'static str {
        match self {
            Layout::Old => "5.2",
            Layout::New => "5.3",
        }
    }

    /// Whether the word `bits` of a leaf leads to a book; where an extent was and is none, only the class is left.
    pub(super) fn leads(bits: u64) -> bool {
        bits & ((1 << 48) - 128) != 0
    }

    /// What the word `bits` of a leaf says: size class in the 16 highest bits, and in the lowest whether it is a slab;
    /// since 5.3 its state in bits 2 to 4.
    pub(super) fn entry(self, bits: u64) -> Entry {
        let book = bits & ((1 << 48) - 1);
        let (slab, class) = (bits & 1 != 0, bits >> 48);
        match self {
            Layout::Old => Entry { book: book & !1, slab, class, state: None },
            Layout::New => Entry { book: book & !127, slab, class, state: Some(bits >> 2 & 7) },
        }
    }

    /// The extent whose book is `bytes`; `None` if no jemalloc could have written it.
    pub(super) fn extent(self, bytes: &[u8; EXTENT_BYTES], classes: &Classes) -> Option<Extent> {
        let word = |at: usize| bytes.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word));
        let (bits, address, size) = (word(0)?, word(8)?, word(16)? & !(PAGE - 1));
        let (state_bits, class, free, of_huge) = match self {
            Layout::Old => (bits >> 16 & 3, bits >> 18 & 0xff, bits >> 26 & 0x3ff, false),
            Layout::New => (bits >> 17 & 7, bits >> 20 & 0xff, bits >> 28 & 0x3ff, bits >> 14 & 1 != 0),
        };
        let state = match state_bits {
            0 if class == classes.count() => State::Spare,
            0 => State::Active,
            1 => State::Dirty,
            2 => State::Muzzy,
            3 => State::Retained,
            4 | 5 => State::Changing,
            _ => return None,
        };
        let (arena, slab) = ((bits & 0xfff) as u32, bits >> 12 & 1 != 0);
        let start = address & !(PAGE - 1);
        let sane = size > 0 && start > 0 && start < END && size <= END - start;
        // A slab that was freed keeps the flag, but no class.
        let is_slab = slab && state == State::Active;
        let classed = class <= classes.count() && arena != NO_ARENA && (!is_slab || class < classes.bins());
        if !sane || !classed {
            return None;
        }
        let mut bitmap = [0; GROUPS];
        for (index, group) in bitmap.iter_mut().enumerate() {
            *group = word(BITMAP + 8 * index)?;
        }
        Some(Extent { arena, slab, state, class, free, start, size, of_huge, state_bits, bitmap })
    }
}

impl Extent {
    pub(super) fn range(&self) -> Range<u64> {
        self.start..self.start + self.size
    }

    /// Whether `entry`, which led to it, says the same of it. The entries of a freed extent keep the class that they
    /// told when it was in use.
    pub(super) fn agrees(&self, entry: &Entry) -> bool {
        let is_named = entry.slab == self.slab && entry.class == self.class;
        entry.state.is_none_or(|state| state == self.state_bits) && (is_named || self.state != State::Active)
    }

    /// Which regions of a slab of `bin` are free, one bit each, if the count of them and the bits agree.
    pub(super) fn free_regions(&self, bin: &Bin) -> Option<[u64; GROUPS]> {
        let mut groups = self.bitmap;
        for (index, group) in groups.iter_mut().enumerate() {
            let regions = bin.regions.saturating_sub(64 * index as u64);
            *group &= if regions < 64 { (1 << regions) - 1 } else { u64::MAX };
        }
        let count: u32 = groups.iter().map(|group| group.count_ones()).sum();
        (u64::from(count) == self.free).then_some(groups)
    }
}

/// A class of small blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bin {
    /// Bytes of a block.
    pub(super) size: u64,
    /// Bytes of a slab.
    pub(super) slab: u64,
    /// Blocks in a slab.
    pub(super) regions: u64,
}

/// Every size class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Classes {
    sizes: Vec<u64>,
    bins: Vec<Bin>,
}

/// Bytes of an entry of the table of small classes (`bin_info_t`).
pub(super) const BIN_BYTES: u64 = 40;
/// The most small classes there are: with a quantum of 8 bytes.
const BINS_MOST: u64 = 39;

impl Classes {
    /// The classes of a build whose table of small ones is at `address`, if that is one: its sizes are those that sc.c
    /// computes for a quantum of 16 or 8 bytes (Redis's own build), each with slabs of whole pages.
    pub(super) fn read(
        mut word: impl FnMut(u64) -> Result<u64, Fault>,
        address: u64,
    ) -> Result<Option<Classes>, Fault> {
        if word(address)? != 8 || !(1..=REGIONS_MOST * 8 / PAGE).contains(&(word(address + 8)? / PAGE)) {
            return Ok(None);
        }
        let mut bins = Vec::new();
        for index in 0..BINS_MOST {
            let at = address + index * BIN_BYTES;
            let (size, slab, counts) = (word(at)?, word(at + 8)?, word(at + 16)?);
            let regions = counts & 0xffff_ffff;
            let fits = (1..=REGIONS_MOST).contains(&regions)
                && slab.is_multiple_of(PAGE)
                && (1..=REGIONS_MOST * LARGE).contains(&slab)
                && size < LARGE
                && regions == slab / size.max(1)
                && word(at + 24)? == regions
                && word(at + 32)? == regions.div_ceil(64);
            if !fits {
                break;
            }
            bins.push(Bin { size, slab, regions });
        }
        Ok([4, 3].into_iter().find_map(|quantum| Classes::of(quantum, &bins)))
    }

    /// The classes of a quantum of 2^`quantum` bytes, if `bins` are its small ones.
    fn of(quantum: u32, bins: &[Bin]) -> Option<Classes> {
        let mut sizes: Vec<u64> = (3..quantum).map(|log| 1 << log).collect();
        sizes.extend((1..=4).map(|step| step << quantum));
        for log in quantum + 2..=62 {
            sizes.extend((1..=4).map(|step| (1 << log) + (step << (log - 2))));
        }
        // The last would be 2^63.
        sizes.pop();
        let small = sizes.iter().take_while(|size| **size < LARGE);
        let same =
            small.clone().count() <= bins.len() && small.zip(bins).all(|(size, bin)| *size == bin.size);
        let count = sizes.iter().take_while(|size| **size < LARGE).count();
        same.then(|| Classes { bins: bins[..count].to_vec(), sizes })
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.sizes.len() as u64
    }

    /// How many of them are of small blocks.
    pub(super) fn bins(&self) -> u64 {
        self.bins.len() as u64
    }

    /// Small class `index`.
    pub(super) fn bin(&self, index: u64) -> Option<&Bin> {
        self.bins.get(index as usize)
    }

    /// The block size of class `index`.
    pub(super) fn size(&self, index: u64) -> Option<u64> {
        self.sizes.get(index as usize).copied()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The table of small classes as sc.c fills it.
    pub(crate) fn table(quantum: u32) -> Vec<u8> {
        let mut sizes: Vec<u64> = (3..quantum).map(|log| 1 << log).collect();
        sizes.extend((1..=4).map(|step| step << quantum));
        for log in quantum + 2..14 {
            sizes.extend((1..=4).map(|step| (1 << log) + (step << (log - 2))));
        }
        sizes.retain(|size| *size < LARGE);
        let entry = |size: u64| {
            let slab = (1..).map(|pages| pages * PAGE).find(|slab| slab.is_multiple_of(size)).unwrap();
            let regions = slab / size;
            [size, slab, 1 << 32 | regions, regions, regions.div_ceil(64)]
        };
        sizes.into_iter().flat_map(entry).flat_map(u64::to_le_bytes).collect()
    }

    pub(crate) fn classes(quantum: u32) -> Option<Classes> {
        let mut table = table(quantum);
        table.resize(4096, 0);
        Classes::read(|at| Ok(u64::from_le_bytes(*table[at as usize..].first_chunk().unwrap())), 0).unwrap()
    }

    #[test]
    fn classes_are_those_of_the_manual() {
        let classes = classes(4).unwrap();
        assert_eq!((classes.count(), classes.bins()), (232, 36));
        assert_eq!(classes.bin(35), Some(&Bin { size: 14336, slab: 28672, regions: 2 }));
        assert_eq!((classes.size(36), classes.size(231)), (Some(16384), Some((1 << 62) + (3 << 60))));
        let redis = super::tests::classes(3).unwrap();
        assert_eq!((redis.count(), redis.bins()), (235, 39));
        assert_eq!(redis.size(4), Some(40));
        assert_eq!((redis.size(235), redis.bin(39)), (None, None));
    }

    proptest! {
        #[test]
        fn any_book_will_do(words in proptest::collection::vec(any::<u64>(), 16), bits: u64) {
            let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
            let classes = classes(4).unwrap();
            for layout in Layout::ALL {
                let entry = layout.entry(bits);
                if let Some(extent) = layout.extent(bytes[..].try_into().unwrap(), &classes) {
                    prop_assert!(extent.range().end <= END && !extent.range().is_empty());
                    extent.agrees(&entry);
                    if let Some(bin) = classes.bin(extent.class) {
                        extent.free_regions(bin);
                    }
                }
            }
        }
    }
}
