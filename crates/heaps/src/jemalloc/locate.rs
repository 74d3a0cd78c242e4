//! Finds a jemalloc in a program or library by what its writable data holds: the table of small size classes, and the
//! tree of extents. No symbol is needed, so prefixed and static builds are found too.
//!
//! Invariant: a tree is one only if leaves and extents bear each other out. An extent whose book is reached by an
//! entry tells its address, from which it follows at which entry of which leaf it must be, and where the root must
//! begin; several must agree, and its size class must be the entry's.

use super::layout::{Classes, END, EXTENT_BYTES, Layout, PAGE};
use super::tree::{Shape, Tree, children};
use crate::data::{self, Segment, pages, words};
use crate::reader::Reader;
use crate::residency::Residency;
use crate::source::{Area, Fault, MemorySource, PageState, covered};
use std::collections::{BTreeMap, BTreeSet};
use std::io::SeekFrom;
use std::ops::Range;

/// More data of one file in memory is not looked at.
const DATA_MOST: u64 = 256 << 20;
/// Leaves that are looked at where one is looked for.
const PROBES_MOST: usize = 1 << 14;
/// Entries that lead to a book, of a leaf, that are looked at.
const ENTRIES_MOST: usize = 4096;
/// Words that a page of the root has at most, as a rule: as many GiB.
const FEW: usize = 32;
/// Leaves below an inner node that are looked at.
const CHILDREN_MOST: usize = 64;
/// What is read of leaves in all.
const LEAVES_MOST: u64 = 256 << 20;
/// Extents that must agree on one root.
const AGREE_LEAST: u64 = 2;
/// So many that do end the search.
const AGREE_MOST: u64 = 32;
/// The most of a file that is searched for its version.
const TEXT_MOST: u64 = 128 << 20;

/// A jemalloc.
#[derive(Debug)]
pub(super) struct Jemalloc {
    /// Runs of its file's writable data that are in memory.
    pub(super) data: Vec<Range<u64>>,
    pub(super) classes: Classes,
    /// `None` where the table of size classes is there, but no tree of the known structure.
    pub(super) tree: Option<Tree>,
    /// As its file says: "5.3.0".
    pub(super) version: Option<String>,
}

impl Jemalloc {
    /// Whether large blocks have no classes: so it is from 5.3.1 on, unless opt.disable_large_size_classes says no, and
    /// then it makes no difference.
    pub(super) fn by_pages(&self) -> bool {
        let numbers =
            self.version.iter().flat_map(|version| version.split('.')).map(|part| part.parse::<u32>());
        numbers.map(Result::ok).collect::<Option<Vec<_>>>().is_some_and(|numbers| numbers >= vec![5, 3, 1])
    }
}

/// Whether there is a program or library that has room for a tree.
pub(super) fn may_be(source: &dyn MemorySource) -> bool {
    rooms(source.areas()).next().is_some()
}

/// Every jemalloc of `source`.
pub(super) fn find(source: &dyn MemorySource) -> Result<Vec<Jemalloc>, Fault> {
    let mut found = Vec::new();
    for segment in rooms(source.areas()) {
        found.extend(look(source, &segment)?);
    }
    Ok(found)
}

/// Where a root may be: in .bss; its first bytes may be on the last page of the file.
fn rooms(areas: &[Area]) -> impl Iterator<Item = Segment<'_>> {
    data::segments(areas).filter(|segment| segment.zeroed_size() >= Shape::Wide.node() - PAGE)
}

fn look(source: &dyn MemorySource, segment: &Segment<'_>) -> Result<Option<Jemalloc>, Fault> {
    let range = segment.range();
    let data = data::present(source, range.clone(), DATA_MOST)?;
    let mut reader = Reader::new(source);
    let Some(classes) = classes(&mut reader, &data)? else { return Ok(None) };
    let mut tree = None;
    for shape in Shape::ALL {
        tree = match tree {
            None => self::tree(&mut reader, &classes, &data, &range, shape)?,
            found => found,
        };
    }
    let version = version(source, segment.file);
    Ok(Some(Jemalloc { data, classes, tree, version }))
}

/// The table of small classes in `data`: since 5.2 it is filled when the program starts.
fn classes(reader: &mut Reader<'_>, data: &[Range<u64>]) -> Result<Option<Classes>, Fault> {
    let mut tables = Reader::new(reader.source());
    words(reader, data, |at, word| {
        if word != 8 {
            return Ok(None);
        }
        match Classes::read(|address| tables.u64(address), at) {
            Err(Fault::Unmapped(_) | Fault::Swapped(_)) => Ok(None),
            read => read,
        }
    })
}

/// The tree of `shape` whose root is in `range`.
fn tree(
    reader: &mut Reader<'_>,
    classes: &Classes,
    data: &[Range<u64>],
    range: &Range<u64>,
    shape: Shape,
) -> Result<Option<Tree>, Fault> {
    let source = reader.source();
    let mut probes = Probes {
        source,
        classes,
        shape,
        range,
        votes: BTreeMap::new(),
        seen: BTreeSet::new(),
        left: LEAVES_MOST,
        books: Reader::new(source),
    };
    // A pointer for each GiB or more: few of the root's words are set. The program's own tables are full of pointers.
    for is_full in [false, true] {
        let found = pages(reader, data, |at, words| {
            if is_full != (words.iter().filter(|word| **word != [0; 8]).count() > FEW) {
                return Ok(None);
            }
            for (at, word) in (at..).step_by(8).zip(words.iter().map(|word| u64::from_le_bytes(*word))) {
                let aligned = word != 0 && word.is_multiple_of(64) && word < END;
                let is_new = aligned && probes.seen.len() < PROBES_MOST && probes.seen.insert(word);
                if is_new && probes.node(at, word)? {
                    return Ok(Some(()));
                }
            }
            Ok(None)
        })?;
        if found.is_some() {
            break;
        }
    }
    let best = probes.votes.iter().max_by_key(|(_, votes)| **votes);
    let best = best.filter(|(_, votes)| **votes >= AGREE_LEAST);
    Ok(best.map(|(&(is_new, root), _)| Tree { layout: Layout::ALL[usize::from(is_new)], shape, root }))
}

/// Nodes that might be, and which roots they speak for.
struct Probes<'s, 'c> {
    source: &'s dyn MemorySource,
    classes: &'c Classes,
    shape: Shape,
    /// Where the root may be.
    range: &'c Range<u64>,
    /// By layout and address of the root: extents that say so.
    votes: BTreeMap<(bool, u64), u64>,
    seen: BTreeSet<u64>,
    /// Bytes that may still be read.
    left: u64,
    books: Reader<'s>,
}

impl Probes<'_, '_> {
    /// Looks at `node`, to which the word at `at` points. Whether a root has votes enough.
    fn node(&mut self, at: u64, node: u64) -> Result<bool, Fault> {
        let size = if self.shape == Shape::Wide { self.shape.node() } else { self.shape.leaf() };
        if self.left < size || !covered(self.source, node..node + size, Area::is_private_anon) {
            return Ok(false);
        }
        let mut leaves = vec![(0, node)];
        if self.shape == Shape::Wide {
            leaves.clear();
            self.left -= size;
            children(self.source, self.shape, node, self.shape.leaf(), &mut |number, leaf| {
                if leaves.len() < CHILDREN_MOST {
                    leaves.push((number, leaf));
                }
            })?;
        }
        for (number, leaf) in leaves {
            if self.leaf(at, number, leaf)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Looks at `leaf`, which is the child `number` of what the word at `at` points to, or that itself.
    fn leaf(&mut self, at: u64, number: u64, leaf: u64) -> Result<bool, Fault> {
        let mut runs = Vec::new();
        Residency::new(self.source).each(leaf..leaf + self.shape.leaf(), |run, state| {
            let size = run.end - run.start;
            if state == PageState::Present && size <= self.left {
                self.left -= size;
                runs.push(run);
            }
        })?;
        let (mut entries, mut reader) = (0, Reader::new(self.source));
        let size = self.shape.entry() as usize;
        for entry_at in runs.into_iter().flat_map(|run| run.step_by(size)) {
            let bytes = match reader.bytes(entry_at, size) {
                Ok(bytes) => bytes,
                Err(Fault::Unmapped(_) | Fault::Swapped(_)) => continue,
                Err(fault) => return Err(fault),
            };
            let packed = Layout::ALL.map(|layout| (layout, self.shape.packed(layout, bytes)));
            if !packed.iter().any(|(_, bits)| Layout::leads(*bits)) {
                continue;
            }
            let index = number * self.shape.fanout() + (entry_at - leaf) / self.shape.entry();
            for (layout, bits) in packed {
                let root = self.root_by(layout, at, index, bits)?;
                let (range, node) = (self.range, self.shape.node());
                let in_data = |root: &u64| *root >= range.start && root.saturating_add(node) <= range.end;
                if let Some(root) = root.filter(in_data) {
                    *self.votes.entry((layout == Layout::New, root)).or_default() += 1;
                }
            }
            entries += 1;
            if entries == ENTRIES_MOST {
                break;
            }
        }
        Ok(self.votes.values().any(|votes| *votes >= AGREE_MOST))
    }

    /// Where the root begins if the word at `at` in it leads to the leaf that has the entry `bits`, which is the
    /// `index`th below that word.
    fn root_by(&mut self, layout: Layout, at: u64, index: u64, bits: u64) -> Result<Option<u64>, Fault> {
        let entry = layout.entry(bits);
        if entry.book == 0 || !self.source.area_at(entry.book).is_some_and(Area::is_private_anon) {
            return Ok(None);
        }
        let extent = match self.books.array::<EXTENT_BYTES>(entry.book) {
            Ok(bytes) => layout.extent(&bytes, self.classes),
            Err(Fault::Unmapped(_) | Fault::Swapped(_)) => None,
            Err(fault) => return Err(fault),
        };
        let covers = self.shape.root_covers();
        let at_home = extent.filter(|extent| {
            extent.agrees(&entry)
                && extent.start % covers / PAGE == index
                && self.source.area_at(extent.start).is_some()
        });
        Ok(at_home.and_then(|extent| at.checked_sub(8 * (extent.start / covers))))
    }
}

/// What the file says it is: "5.3.0-0-g54eaed1d8b56" and the like, told by mallctl("version").
fn version(source: &dyn MemorySource, file: &Area) -> Option<String> {
    const STEP: usize = 1 << 20;
    const LONGEST: usize = 64;
    let mut file = source.file(file).ok()?;
    file.seek(SeekFrom::Start(0)).ok()?;
    let (mut part, mut kept, mut total) = (vec![0; STEP + LONGEST], 0, 0);
    while total < TEXT_MOST {
        let read = file.read(part.get_mut(kept..)?).ok().filter(|read| *read > 0)?;
        let end = kept + read;
        let found = memchr::memmem::find_iter(part.get(..end)?, b"\x005.").find_map(|at| {
            let text = part.get(at + 1..end)?;
            release(text.get(..text.iter().take(LONGEST).position(|&byte| byte == 0)?)?)
        });
        if found.is_some() {
            return found;
        }
        let from = end.saturating_sub(LONGEST);
        part.copy_within(from..end, 0);
        (kept, total) = (end - from, total + read as u64);
    }
    None
}

/// The release of "5.3.0-0-g54eaed1d8b56b1aa528be3bdd1877e59c56fa90c".
fn release(text: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(text).ok()?;
    let (release, rest) = text.split_once('-')?;
    let (commits, hash) = rest.split_once("-g")?;
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let is_version = release.split('.').count() == 3 && release.split('.').all(is_number);
    let is_hash = !hash.is_empty() && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_version && is_number(commits) && is_hash).then(|| release.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_told_from_other_numbers() {
        assert_eq!(release(b"5.3.0-0-g54eaed1d8b56").as_deref(), Some("5.3.0"));
        assert_eq!(release(b"5.2.1-0-g0").as_deref(), Some("5.2.1"));
        assert_eq!(release(b"5.3-0-g0"), None);
        assert_eq!(release(b"5.3.0-0-gxyz"), None);
        assert_eq!(release(b"5.10.0-32-amd64"), None);
        assert_eq!(release(b""), None);
    }
}
