//! Where glibc keeps what, by version. Source: malloc/malloc.c and malloc/arena.c of glibc 2.17 to 2.43, offsets
//! for LP64 with 16-byte alignment, which x86_64 and aarch64 share; checked against stripped libraries of 2.31,
//! 2.36 and 2.41 by the truth tests.
//!
//! Invariant: a layout is a claim that the evidence in `locate` and `arena` must confirm before it is used.

/// The last release whose sources were read.
const NEWEST: u32 = 43;
/// Bins of an arena: unsorted, small and large ones (NBINS - 1).
pub(super) const BINS: usize = 127;
/// Quick lists of an arena (NFASTBINS).
pub(super) const FAST_BINS: usize = 10;
/// A chunk's header: the size of the chunk before, where that is free, and its own size.
pub(super) const HEADER: u64 = 16;
/// MINSIZE: a chunk has room for two list pointers.
pub(super) const MIN_CHUNK: u64 = 32;
/// The chunk before is in use.
pub(super) const PREV_IN_USE: u64 = 1;
/// The chunk is a mapping of its own.
pub(super) const MMAPPED: u64 = 2;
/// The three flags in a size.
pub(super) const FLAGS: u64 = 7;

/// How threads cache blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cache {
    /// How many lists.
    pub(super) bins: usize,
    /// Bytes of one count.
    pub(super) count: usize,
    /// Counts say how many more there is room for (2.42), not how many there are.
    pub(super) counts_room: bool,
    /// The second word of a cached block: 2.29-2.33 its cache's address, from 2.34 one number for all.
    pub(super) key: Key,
}

/// What marks a cached block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Key {
    /// Nothing (2.26-2.28).
    None,
    /// The address of the cache.
    Address,
    /// The same in the whole process.
    Shared,
    /// One of the two, where the version is not known.
    Either,
}

impl Cache {
    /// `sizeof(tcache_perthread_struct)`.
    pub(super) fn size(&self) -> usize {
        self.bins * (self.count + 8)
    }

    /// The chunk such a structure is in: 0x250, 0x290 or 0x300.
    pub(super) fn chunk(&self) -> u64 {
        (self.size() as u64 + 8).next_multiple_of(HEADER)
    }

    /// Whether chunks of `size` belong to list `bin`: one size each for the first 64, a doubling each after.
    pub(super) fn belongs(&self, bin: usize, size: u64) -> bool {
        /// MAX_TCACHE_SMALL_SIZE, whose leading zeroes the large lists count from.
        const SMALL: u64 = 63 * 16 + MIN_CHUNK - 8;
        match bin {
            0..64 => size == MIN_CHUNK + 16 * bin as u64,
            _ => {
                size >= MIN_CHUNK + 16 * 64
                    && (SMALL.leading_zeros()).checked_sub(size.leading_zeros()) == Some(bin as u32 - 64)
            }
        }
    }
}

/// `struct malloc_par`: where its changing fields are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Params {
    /// `n_mmaps`, an int; `n_mmaps_max` and `max_n_mmaps` follow.
    pub(super) n_mmaps: usize,
    /// `mmapped_mem`; `max_mmapped_mem` follows.
    pub(super) mmapped: usize,
    /// `sbrk_base`.
    pub(super) sbrk_base: usize,
    /// `thp_pagesize`; `hp_pagesize` follows (2.35).
    pub(super) huge: Option<usize>,
    /// `tcache_bins`; `tcache_max_bytes` and `tcache_count` follow (2.26).
    pub(super) cache: Option<usize>,
    /// All of it.
    pub(super) size: usize,
}

/// One version's layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    /// The first version it may be: 36 for glibc 2.36.
    pub(super) since: u32,
    /// The last.
    pub(super) minor: u32,
    /// `malloc_state.fastbinsY`, until 2.42.
    pub(super) fast: Option<usize>,
    /// `malloc_state.top`.
    pub(super) top: usize,
    /// `malloc_state.bins`.
    pub(super) bins: usize,
    /// `malloc_state.next`.
    pub(super) next: usize,
    /// `malloc_state.system_mem`; `max_system_mem` follows and ends it.
    pub(super) system: usize,
    /// `mp_`.
    pub(super) params: Params,
    /// `sizeof(heap_info)`.
    pub(super) heap_info: u64,
    /// Thread caches, from 2.26; of 2.26-2.41 two, because distributions carried the wider counts back.
    pub(super) caches: &'static [Cache],
    /// List pointers are mixed with where they stand (2.32).
    pub(super) safe_links: bool,
}

impl Layout {
    /// The layouts glibc 2.`minor` may have, the likelier first; none for versions not known.
    pub(super) fn of(minor: u32) -> Vec<Layout> {
        match minor {
            // Enterprise distributions carried attached_threads (2.23) back.
            17..=22 => vec![Layout::build(minor, false), Layout::build(minor, true)],
            23..=42 => vec![Layout::build(minor, true)],
            NEWEST => vec![Layout::build(NEWEST, true)],
            _ => Vec::new(),
        }
    }

    /// The layouts of programs that do not name their version, as static ones do not. `safe_links` is whether
    /// the program has the messages that came with them.
    pub(super) fn unnamed(safe_links: bool) -> Vec<Layout> {
        let range = |since, minor, attached| Layout { since, ..Layout::build(minor, attached) };
        let caches = |layout, caches| Layout { caches, ..layout };
        let middle = match safe_links {
            true => caches(range(32, 34, true), const { &[cache(64, 2, false, Key::Either)] }),
            false => caches(
                range(27, 31, true),
                const { &[cache(64, 1, false, Key::None), cache(64, 2, false, Key::None)] },
            ),
        };
        vec![
            range(17, 22, false),
            range(17, 23, true),
            range(24, 25, true),
            range(26, 26, true),
            middle,
            caches(
                range(35, 42, true),
                const { &[cache(64, 2, false, Key::Shared), cache(76, 2, true, Key::Shared)] },
            ),
            range(NEWEST, NEWEST, true),
        ]
    }

    /// "2.36", "2.35-2.42".
    pub(super) fn version(&self) -> String {
        match self.since == self.minor {
            true => format!("2.{}", self.minor),
            false => format!("2.{}-2.{}", self.since, self.minor),
        }
    }

    fn build(minor: u32, attached: bool) -> Layout {
        let fast = match minor {
            ..=26 => Some(0x8),
            // have_fastchunks and padding come before.
            27..=42 => Some(0x10),
            _ => None,
        };
        let top = fast.map_or(0x8, |fast| fast + 8 * FAST_BINS);
        let bins = top + 16;
        let next = bins + 16 * BINS + 16;
        Layout {
            since: minor,
            minor,
            fast,
            top,
            bins,
            next,
            system: next + if attached { 24 } else { 16 },
            params: Params::of(minor),
            heap_info: if minor >= 35 { 0x30 } else { 0x20 },
            caches: caches(minor),
            safe_links: minor >= 32,
        }
    }

    /// `sizeof(struct malloc_state)`.
    pub(super) fn state_size(&self) -> usize {
        self.system + 16
    }

    /// Where a list pointer stored at `at` leads.
    pub(super) fn link(&self, at: u64, stored: u64) -> u64 {
        if self.safe_links { (at >> 12) ^ stored } else { stored }
    }

    /// Bytes that chunk sizes of mappings of their own leave out at the end.
    pub(super) fn mmapped_tail(&self) -> u64 {
        if self.minor >= 43 { HEADER } else { 0 }
    }

    /// Whether `found` bytes of large blocks can be what `mp_.mmapped_mem` counts as `counted`. In 2.43 every
    /// growth by mremap counts 16 bytes too many (mremap_chunk leaves out the tail; measured, Debian 2.43-7).
    pub(super) fn counts_mmapped(&self, counted: u64, found: u64) -> bool {
        match counted.checked_sub(found) {
            Some(0) => true,
            Some(more) => self.mmapped_tail() > 0 && more.is_multiple_of(HEADER),
            None => false,
        }
    }

    /// The offset of a heap to which thread arenas' heaps are aligned: HEAP_MAX_SIZE, which from 2.35 to 2.41
    /// follows the size of huge pages in use (heap_max_size).
    pub(super) fn heap_max(&self, huge_page: u64) -> u64 {
        /// aarch64 has the largest, with base pages of 64 KiB.
        const HUGE_MOST: u64 = 16 << 30;
        let follows = (35..=41).contains(&self.minor) && huge_page <= HUGE_MOST;
        if follows && huge_page.is_power_of_two() { 4 * huge_page } else { 64 << 20 }
    }
}

impl Params {
    fn of(minor: u32) -> Params {
        // The fields before n_mmaps: five words, then the huge page tunables.
        let (huge, n_mmaps) = match minor {
            ..=34 => (None, 0x28),
            35..=42 => (Some(0x28), 0x3c),
            _ => (Some(0x30), 0x44),
        };
        let mmapped = (n_mmaps + 16usize).next_multiple_of(8);
        // max_total_mem stood between until 2.23.
        let sbrk_base = mmapped + if minor <= 23 { 24 } else { 16 };
        let cache = (minor >= 26).then_some(sbrk_base + 8);
        Params { n_mmaps, mmapped, sbrk_base, huge, cache, size: cache.map_or(sbrk_base + 8, |at| at + 32) }
    }
}

const fn cache(bins: usize, count: usize, counts_room: bool, key: Key) -> Cache {
    Cache { bins, count, counts_room, key }
}

/// The thread caches that glibc 2.`minor` may have.
fn caches(minor: u32) -> &'static [Cache] {
    match minor {
        ..=25 => &[],
        26..=28 => const { &[cache(64, 1, false, Key::None), cache(64, 2, false, Key::Address)] },
        29 => const { &[cache(64, 1, false, Key::Address), cache(64, 2, false, Key::Address)] },
        30..=33 => const { &[cache(64, 2, false, Key::Address)] },
        34..=41 => const { &[cache(64, 2, false, Key::Shared)] },
        _ => const { &[cache(76, 2, true, Key::Shared)] },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Offsets measured from the sources with a C compiler.
    #[test]
    fn offsets_are_those_of_the_sources() {
        let one = |minor| Layout::of(minor)[0];
        for (minor, top, bins, next, system, size) in [
            (17, 0x58, 0x68, 0x868, 0x878, 0x888),
            (23, 0x58, 0x68, 0x868, 0x880, 0x890),
            (27, 0x60, 0x70, 0x870, 0x888, 0x898),
            (42, 0x60, 0x70, 0x870, 0x888, 0x898),
            (43, 0x8, 0x18, 0x818, 0x830, 0x840),
        ] {
            let layout = one(minor);
            let found = (layout.top, layout.bins, layout.next, layout.system, layout.state_size());
            assert_eq!(found, (top, bins, next, system, size), "2.{minor}");
        }
        for (minor, n_mmaps, mmapped, sbrk_base, cache) in [
            (17, 0x28, 0x38, 0x50, None),
            (23, 0x28, 0x38, 0x50, None),
            (24, 0x28, 0x38, 0x48, None),
            (26, 0x28, 0x38, 0x48, Some(0x50)),
            (35, 0x3c, 0x50, 0x60, Some(0x68)),
            (43, 0x44, 0x58, 0x68, Some(0x70)),
        ] {
            let params = one(minor).params;
            let found = (params.n_mmaps, params.mmapped, params.sbrk_base, params.cache);
            assert_eq!(found, (n_mmaps, mmapped, sbrk_base, cache), "2.{minor}");
        }
        assert_eq!(Layout::of(16), []);
        assert_eq!(Layout::of(44), []);
    }

    #[test]
    fn every_layout_has_an_unnamed_one() {
        for named in (17..=NEWEST).flat_map(Layout::of) {
            let same = |other: &&Layout| {
                (other.since..=other.minor).contains(&named.minor)
                    && (other.next, other.system, other.params) == (named.next, named.system, named.params)
                    && named.caches.iter().all(|cache| {
                        other
                            .caches
                            .iter()
                            .any(|other| (other.bins, other.count) == (cache.bins, cache.count))
                    })
            };
            let unnamed = Layout::unnamed(named.safe_links);
            let found = unnamed.iter().find(same);
            assert!(found.is_some_and(|found| found.heap_info == named.heap_info), "{named:?}");
        }
        assert_eq!(Layout::unnamed(true)[5].version(), "2.35-2.42");
        assert_eq!(Layout::of(36)[0].version(), "2.36");
    }

    #[test]
    fn chunks_of_thread_caches() {
        let chunks = |minor| caches(minor).iter().map(Cache::chunk).collect::<Vec<_>>();
        assert_eq!(chunks(26), [0x250, 0x290]);
        assert_eq!(chunks(36), [0x290]);
        assert_eq!(chunks(42), [0x300]);
        let large = caches(42)[0];
        assert!(large.belongs(0, 0x20) && large.belongs(63, 0x410) && !large.belongs(63, 0x420));
        // large_csize2tidx(0x420) = 64 + clz(1032) - clz(1056) = 64.
        assert!(large.belongs(64, 0x420) && large.belongs(64, 0x7f0) && large.belongs(65, 0x800));
    }
}
