//! Where tcmalloc's static books are, found by structure in a data segment; offsets are those of gperftools 2.8 to
//! 2.16 (`src/{common,central_freelist,page_heap,span,pagemap}.h`), verified in Debian's libraries (2.8.1, 2.10, 2.16).
//!
//! Invariant: [`Books`] are returned only where four structures agree with each other: the tables of size classes
//! in both directions (size to class, class to size), an array of central lists numbered as these classes are, the
//! page heap's 256 list heads between its two sets and its statistics, and a page map before them with a leaf.

use crate::data;
use crate::reader::Reader;
use crate::source::{Area, Fault, there};
use memchr::memmem;
use std::ops::Range;

/// Bytes of a page of tcmalloc's.
pub(super) const PAGE: u64 = 8192;
/// Bytes of a span's book, and where in it the parts are.
pub(super) const SPAN_BYTES: u64 = 48;
/// Bytes of a central list's book.
pub(super) const CENTRAL_BYTES: u64 = 1216;
/// Entries of the page map's root; each leaf has as many as [`LEAF_ENTRIES`].
pub(super) const ROOT_ENTRIES: u64 = 1 << 17;
/// Entries of a leaf.
pub(super) const LEAF_ENTRIES: u64 = 1 << 18;
/// The page heap's cache of size classes, before the page map.
const CACHE_BYTES: u64 = 8 << 16;
/// List heads of the page heap: normal and returned for each length up to 128 pages.
const HEADS: u64 = 256;
/// The largest small object.
const SMALL_MOST: u64 = 256 << 10;
/// Size classes at most.
const CLASSES_MOST: usize = 128;
/// The page map and the cache are in zeroed data: where there is less, is no tcmalloc.
const ZEROED_LEAST: u64 = ROOT_ENTRIES * 8 + CACHE_BYTES;
/// More of a data segment is not searched.
const SEGMENT_MOST: u64 = 32 << 20;
/// Offsets in the map of sizes: table of class to size, of class to pages, number of classes.
const SIZES_AT: u64 = 2684;
const PAGES_AT: u64 = 3200;
/// The last of them from 2.11 on behind the least length of a span, too.
const COUNTS_AT: [u64; 2] = [4224, 4232];
/// Bytes of the map of sizes.
const SIZES_BYTES: u64 = 4240;
/// Entries of the table of size to class.
const BY_SIZE: u64 = 2169;

/// A size class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Class {
    /// Bytes of an object.
    pub(super) size: u64,
    /// How many objects a transfer moves.
    pub(super) moved: u32,
}

/// The static books.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Books {
    /// By number; 0 is none.
    pub(super) classes: Vec<Class>,
    /// The array of central lists.
    pub(super) central: u64,
    /// The page map's root.
    pub(super) root: u64,
    /// The page heap's statistics: system, free, unmapped bytes.
    pub(super) stats: u64,
    /// From the first to the last of the static books.
    pub(super) range: Range<u64>,
    /// Words of the segment that may point to thread caches, without doubles.
    pub(super) pointers: Vec<u64>,
}

/// Data segments with enough zeroed data for tcmalloc's books.
pub(super) fn segments(areas: &[Area]) -> impl Iterator<Item = Range<u64>> + '_ {
    let with_room = data::segments(areas).filter(|segment| segment.zeroed_size() >= ZEROED_LEAST);
    with_room.map(|segment| {
        let Range { start, end } = segment.range();
        start..end.min(start.saturating_add(SEGMENT_MOST))
    })
}

/// The books in `segment`.
pub(super) fn find(reader: &mut Reader<'_>, segment: Range<u64>) -> Result<Option<Books>, Fault> {
    let mut bytes = Vec::new();
    if there(reader.copy(segment.clone(), &mut bytes))?.is_none() {
        return Ok(None);
    }
    let picture = Picture { start: segment.start, bytes };
    let Some((map, classes)) = picture.sizes() else { return Ok(None) };
    let Some(central) = picture.central(classes.len() as u64) else { return Ok(None) };
    for heads in picture.heads() {
        let Some(root) = heads.checked_sub(96 + 8 + 8 * ROOT_ENTRIES) else { continue };
        if !picture.has_leaf(reader, root)? {
            continue;
        }
        let stats = heads + HEADS * SPAN_BYTES;
        let start = map.min(central).min(root.saturating_sub(CACHE_BYTES)).max(segment.start);
        let end = (map + SIZES_BYTES).max(central + CENTRAL_BYTES * CLASSES_MOST as u64).max(stats + 96);
        let pointers = picture.pointers(&[root..heads, central..central + CENTRAL_BYTES * 128]);
        let range = start..end.min(segment.end);
        return Ok(Some(Books { classes, central, root, stats, range, pointers }));
    }
    Ok(None)
}

/// A data segment as it was.
struct Picture {
    start: u64,
    bytes: Vec<u8>,
}

impl Picture {
    fn word(&self, address: u64) -> Option<u64> {
        let at = usize::try_from(address.checked_sub(self.start)?).ok()?;
        self.bytes.get(at..at.checked_add(8)?)?.try_into().ok().map(u64::from_le_bytes)
    }

    fn half(&self, address: u64) -> Option<u32> {
        let at = usize::try_from(address.checked_sub(self.start)?).ok()?;
        self.bytes.get(at..at.checked_add(4)?)?.try_into().ok().map(u32::from_le_bytes)
    }

    fn byte(&self, address: u64) -> Option<u8> {
        self.bytes.get(usize::try_from(address.checked_sub(self.start)?).ok()?).copied()
    }

    /// The map of sizes: where it is, and its classes.
    fn sizes(&self) -> Option<(u64, Vec<Class>)> {
        let begins: Vec<u8> = [0_u32, 8, 16].into_iter().flat_map(u32::to_le_bytes).collect();
        memmem::find_iter(&self.bytes, &begins).find_map(|at| {
            let map = (self.start + at as u64).checked_sub(SIZES_AT)?;
            let mut classes = COUNTS_AT.into_iter().filter_map(|at| self.classes(map, map.checked_add(at)?));
            Some((map, classes.next()?))
        })
    }

    /// The classes of the map of sizes at `map`, as many as are said at `count_at`, if all its tables agree.
    fn classes(&self, map: u64, count_at: u64) -> Option<Vec<Class>> {
        let count = self.word(count_at)?;
        if !map.is_multiple_of(8) || !(8..=CLASSES_MOST as u64).contains(&count) {
            return None;
        }
        let mut classes = vec![Class { size: 0, moved: 0 }];
        let mut below = 0;
        for number in 1..count {
            let size = u64::from(self.half(map + SIZES_AT + 4 * number)?);
            let pages = self.word(map + PAGES_AT + 8 * number)?;
            let moved = self.half(map + SIZES_AT - 512 + 4 * number)?;
            let fits = size > below && size <= SMALL_MOST && pages <= 1024 && size <= pages * PAGE;
            let class_of = |size: u64| self.byte(map + index(size)).map(u64::from);
            if !fits || class_of(size) != Some(number) || class_of(below + 1) != Some(number) {
                return None;
            }
            classes.push(Class { size, moved });
            below = size;
        }
        (below == SMALL_MOST).then_some(classes)
    }

    /// The array of central lists: each knows its class, and its two lists of spans have heads.
    fn central(&self, count: u64) -> Option<u64> {
        let last = (self.bytes.len() as u64).checked_sub(CENTRAL_BYTES * CLASSES_MOST as u64)?;
        let is_list = |at: u64, number: u64| {
            self.word(at + 8) == Some(number) && self.is_head(at + 16) && self.is_head(at + 64)
        };
        let all = |at: &u64| (0..count).rev().all(|number| is_list(at + number * CENTRAL_BYTES, number));
        (self.start..=self.start + last).step_by(8).find(all)
    }

    /// Whether a span's book at `at` is a list's head: no pages, and linked.
    fn is_head(&self, at: u64) -> bool {
        let linked = |to: Option<u64>| to.is_some_and(|to| to != 0 && to.is_multiple_of(8));
        let [pages, length] = [self.word(at), self.word(at + 8)];
        (pages, length) == (Some(0), Some(0)) && linked(self.word(at + 16)) && linked(self.word(at + 24))
    }

    /// Where the page heap's list heads may begin.
    fn heads(&self) -> impl Iterator<Item = u64> + '_ {
        let bytes = (self.bytes.len() as u64).saturating_sub(HEADS * SPAN_BYTES);
        (self.start..self.start + bytes).step_by(8).skip(12).filter(|at| {
            (0..HEADS).all(|head| self.is_head(at + head * SPAN_BYTES))
                && self.is_set(at - 96)
                && self.is_set(at - 48)
        })
    }

    /// Whether libstdc++'s std::set may be at `at`: after its comparator the root, red or black, and the count.
    fn is_set(&self, at: u64) -> bool {
        let header = at + 8;
        let words = [8, 16, 24, 32].map(|offset| self.word(header + offset));
        match words {
            [Some(0), Some(left), Some(right), Some(count)] => {
                left == header && right == header && count == 0
            }
            [Some(_), Some(left), Some(right), Some(count)] => left != 0 && right != 0 && count != 0,
            _ => false,
        }
    }

    /// Whether the page map at `root` has a leaf, with a span that begins at the page it is entered for.
    fn has_leaf(&self, reader: &mut Reader<'_>, root: u64) -> Result<bool, Fault> {
        for entry in 0..ROOT_ENTRIES {
            let Some(leaf) = self.word(root + 8 * entry) else { return Ok(false) };
            if leaf == 0 {
                continue;
            }
            let mut runs = Vec::new();
            let table = leaf..leaf.saturating_add(8 * LEAF_ENTRIES);
            crate::Residency::new(reader.source()).each(table, |run, _| runs.push(run))?;
            for at in runs.into_iter().flat_map(|run| run.step_by(8)) {
                let Some(span) = there(reader.u64(at))?.filter(|span| *span != 0) else { continue };
                let page = entry * LEAF_ENTRIES + at.wrapping_sub(leaf) / 8;
                return Ok(there(Reader::new(reader.source()).u64(span))? == Some(page));
            }
        }
        Ok(false)
    }

    /// Words that look like pointers, outside of `without`.
    fn pointers(&self, without: &[Range<u64>]) -> Vec<u64> {
        let words = self.bytes.as_chunks::<8>().0.iter().zip((self.start..).step_by(8));
        let outside = words.filter(|(_, at)| !without.iter().any(|range| range.contains(at)));
        let words = outside.map(|(word, _)| u64::from_le_bytes(*word));
        let mut found: Vec<u64> =
            words.filter(|word| word.is_multiple_of(8) && (0x1000..1 << 47).contains(word)).collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// The entry of `size` in the table of size to class.
fn index(size: u64) -> u64 {
    let index = if size <= 1024 { size.div_ceil(8) } else { (size + 127 + (120 << 7)) >> 7 };
    index.min(BY_SIZE - 1)
}
