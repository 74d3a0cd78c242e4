//! The walk over the tree of extents, in the order of addresses: each is told to the books of its arena.
//!
//! Invariants: an extent counts only if the entry of its first page and its book agree and the entry of its last page
//! leads to the same book; where they do not, both are read again, and if they still do not, the page is unresolved
//! and the walk goes on behind it. Every entry is looked at once, so the walk ends whatever the tree says.

use super::caches::{Caches, Mark};
use super::layout::{Classes, EXTENT_BYTES, Extent, LARGE_PAD, PAGE, State};
use super::tree::Tree;
use crate::account::Account;
use crate::model::{Certainty, Corruption, Figures, SizeClass};
use crate::reader::Reader;
use crate::residency::Residency;
use crate::source::{Area, Fault, MemorySource, PageState, covered};
use ebbtide_observe::Bytes;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

/// How often an entry and a book that disagree are read again.
const REREADS: u32 = 3;
/// After as many disagreements that stay the walk gives up.
const STRANGE_MOST: u64 = 1 << 16;
/// How many corruptions are told.
const CORRUPTIONS_MOST: usize = 16;
/// Books are read in pieces of this much, and as many are kept: 32 MiB.
const PIECE: u64 = 16 << 10;
const PIECES_MOST: usize = 2048;
/// Books are in blocks of whole huge pages.
const HUGE: u64 = 2 << 20;
/// As many of them are remembered: 128 GiB of books.
const PLACES_MOST: usize = 1 << 16;

/// What the walk finds beside figures.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) certainty: Certainty,
    pub(super) corruptions: Vec<Corruption>,
    pub(super) by_arena: BTreeMap<u32, Figures>,
    /// What extents take, in order.
    pub(super) claims: Vec<Range<u64>>,
    pub(super) dirty: Bytes,
    pub(super) muzzy: Bytes,
    pub(super) retained: Bytes,
    /// Entries that never agreed with their extents.
    pub(super) strange: u64,
    /// Bytes of leaves that are swapped out.
    pub(super) swapped: Bytes,
    /// Extents of huge pages that have books of their own.
    pub(super) of_huge: u64,
}

pub(super) struct Walk<'s, 'c> {
    source: &'s dyn MemorySource,
    tree: Tree,
    classes: &'c Classes,
    caches: &'c Caches,
    /// The first mark that lies at or behind what was walked.
    next_mark: usize,
    pub(super) account: Account<'s>,
    /// Whether large blocks have the size of their pages.
    by_pages: bool,
    arena: u32,
    books: Books<'s>,
    /// Reads entries of last pages, and entries again.
    entries: Reader<'s>,
    /// By number: the leaves.
    leaves: BTreeMap<u64, u64>,
    pub(super) findings: Findings,
}

/// Books of extents, as they were when the first of their neighbours was asked for.
struct Books<'s> {
    reader: Reader<'s>,
    pieces: HashMap<u64, Vec<u8>>,
    /// The huge pages they were in.
    places: BTreeSet<u64>,
}

impl Books<'_> {
    fn read(&mut self, address: u64) -> Result<[u8; EXTENT_BYTES], Fault> {
        let start = address - address % PIECE;
        if self.places.len() < PLACES_MOST {
            self.places.insert(address - address % HUGE);
        }
        let end = address.saturating_add(EXTENT_BYTES as u64);
        if end > start + PIECE {
            return self.reader.array(address);
        }
        if !self.pieces.contains_key(&start) {
            let mut piece = Vec::new();
            // Blocks of books are whole huge pages, but what is taken for one may be anything.
            if self.reader.copy(start..start + PIECE, &mut piece).is_err() {
                return self.reader.array(address);
            }
            if self.pieces.len() >= PIECES_MOST {
                self.pieces.clear();
            }
            self.pieces.insert(start, piece);
        }
        let piece = self.pieces.get(&start).and_then(|piece| piece.get((address - start) as usize..));
        piece.and_then(|bytes| bytes.first_chunk()).copied().ok_or(Fault::Unmapped(address))
    }

    fn forget(&mut self, address: u64) {
        self.pieces.remove(&(address - address % PIECE));
        self.reader.refresh();
    }
}

/// What a look at an entry came to.
enum Looked {
    /// Its extent.
    Here(Extent),
    /// No extent any more, or one that is elsewhere.
    Gone,
    /// The two disagree, as they may for a moment. What is up to there is known by neither.
    Disagrees(u64),
    /// What no jemalloc writes.
    Nonsense(&'static str),
}

impl<'s, 'c> Walk<'s, 'c> {
    pub(super) fn new(
        source: &'s dyn MemorySource,
        tree: Tree,
        classes: &'c Classes,
        caches: &'c Caches,
        account: Account<'s>,
        by_pages: bool,
    ) -> Self {
        Walk {
            source,
            tree,
            classes,
            caches,
            next_mark: 0,
            account,
            by_pages,
            arena: 0,
            books: Books { reader: Reader::new(source), pieces: HashMap::new(), places: BTreeSet::new() },
            entries: Reader::new(source),
            leaves: BTreeMap::new(),
            findings: Findings::default(),
        }
    }

    /// Goes over the whole tree.
    pub(super) fn all(&mut self) -> Result<(), Fault> {
        self.leaves = self.tree.leaves(self.source)?;
        let shape = self.tree.shape;
        let leaves: Vec<(u64, u64)> = self.leaves.iter().map(|(&number, &leaf)| (number, leaf)).collect();
        let mut residency = Residency::new(self.source);
        let mut next = 0;
        for (number, leaf) in leaves {
            let mut runs = Vec::new();
            residency.each(leaf..leaf + shape.leaf(), |run, state| runs.push((run, state)))?;
            for (run, state) in runs {
                if state == PageState::Swapped {
                    self.findings.swapped += Bytes(run.end - run.start);
                    continue;
                }
                let first = number * shape.leaf_covers();
                next = self.run(run.clone(), first + (run.start - leaf) / shape.entry() * PAGE, next)?;
                if self.findings.strange >= STRANGE_MOST {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Goes over the entries in `run`, the first of which is of the page `page`; pages before `next` are known.
    /// Returns where the last extent ends.
    fn run(&mut self, run: Range<u64>, page: u64, mut next: u64) -> Result<u64, Fault> {
        let mut at = run.start;
        // By pages, and not in advance: what was read long ago may be of extents that are gone.
        let mut piece = [0; PAGE as usize];
        while at < run.end {
            let len = (run.end - at).min(PAGE - at % PAGE);
            let wanted = at..at + len;
            let read = match self.source.read_ranges(&[wanted], &mut piece[..len as usize]) {
                Ok(read) => read.min(len as usize),
                Err(Fault::Unmapped(_) | Fault::Swapped(_)) => 0,
                Err(fault) => return Err(fault),
            };
            if !self.source.is_still() {
                self.books.pieces.clear();
            }
            let Tree { layout, shape, .. } = self.tree;
            let entries = piece[..read].chunks_exact(shape.entry() as usize);
            for (address, entry) in (at..).step_by(shape.entry() as usize).zip(entries) {
                let page = page + (address - run.start) / shape.entry() * PAGE;
                let bits = shape.packed(layout, entry);
                if bits != 0 && page >= next {
                    next = self.entry(address, page, next, bits)?;
                    if self.findings.strange >= STRANGE_MOST {
                        return Ok(next);
                    }
                }
            }
            at += len;
        }
        Ok(next)
    }

    /// Looks at the entry `bits` at `at`, which is of `page`; pages before `next` are known. Returns where to go on.
    fn entry(&mut self, at: u64, page: u64, next: u64, mut bits: u64) -> Result<u64, Fault> {
        let mut tries = 0;
        let end = loop {
            let looked = match self.look(page, next, bits) {
                Err(Fault::Unmapped(_)) => Looked::Nonsense("an entry of the tree leads nowhere"),
                Err(Fault::Swapped(_)) => Looked::Disagrees(page + PAGE),
                looked => looked?,
            };
            match looked {
                Looked::Here(extent) => {
                    self.extent(&extent)?;
                    return Ok(extent.range().end);
                }
                Looked::Gone => return Ok(page + PAGE),
                Looked::Disagrees(_) | Looked::Nonsense(_) if tries < REREADS && !self.source.is_still() => {
                    tries += 1;
                    self.findings.certainty.reread += 1;
                    self.entries.refresh();
                    self.books.forget(self.tree.layout.entry(bits).book);
                    bits = self.tree.read(&mut self.entries, at).unwrap_or(0);
                }
                Looked::Disagrees(end) => break end,
                Looked::Nonsense(what) => {
                    if self.source.is_still() {
                        self.corrupt(at, what);
                    }
                    break page + PAGE;
                }
            }
        };
        self.findings.strange += 1;
        if covered(self.source, page..end, Area::is_private_anon) {
            self.claim(page..end)?;
            self.findings.certainty.unresolved += Bytes(end - page);
        }
        Ok(end)
    }

    /// `range` is jemalloc's.
    fn claim(&mut self, range: Range<u64>) -> Result<(), Fault> {
        self.account.mapped(range.clone())?;
        match self.findings.claims.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ => self.findings.claims.push(range),
        }
        Ok(())
    }

    fn corrupt(&mut self, address: u64, what: &str) {
        if self.findings.corruptions.len() < CORRUPTIONS_MOST {
            self.findings.corruptions.push(Corruption { address, what: what.to_owned() });
        }
    }

    fn look(&mut self, page: u64, next: u64, bits: u64) -> Result<Looked, Fault> {
        let entry = self.tree.layout.entry(bits);
        if entry.book == 0 {
            return Ok(Looked::Gone);
        }
        if !self.source.area_at(entry.book).is_some_and(Area::is_private_anon) {
            return Ok(Looked::Nonsense("an entry of the tree leads nowhere"));
        }
        let bytes = self.books.read(entry.book)?;
        let Some(extent) = self.tree.layout.extent(&bytes, self.classes) else {
            return Ok(Looked::Nonsense("an extent's book makes no sense"));
        };
        let range = extent.range();
        let ends_here = self.is_home(entry.book, range.end - PAGE)?;
        // While the process works an extent may come after its first entry was passed.
        let begins_here = range.start == page || self.is_home(entry.book, range.start)?;
        if !range.contains(&page) {
            // With guarded extents 5.3.0 leaves entries behind, whose books were used again.
            let is_elsewhere = ends_here && begins_here;
            return Ok(if is_elsewhere { Looked::Gone } else { Looked::Disagrees(page + PAGE) });
        }
        if !extent.agrees(&entry) || !ends_here || !begins_here {
            return Ok(Looked::Disagrees(page + PAGE));
        }
        if range.start < next {
            return Ok(Looked::Disagrees(range.end));
        }
        if !covered(self.source, range, |area| !area.perms.shared || area.perms.write) {
            return Ok(Looked::Nonsense("an extent is not mapped"));
        }
        Ok(Looked::Here(extent))
    }

    /// Whether the entry of `page` leads to `book`.
    fn is_home(&mut self, book: u64, page: u64) -> Result<bool, Fault> {
        let shape = self.tree.shape;
        let Some(leaf) = self.leaves.get(&(page / shape.leaf_covers())) else { return Ok(false) };
        let index = page % shape.leaf_covers() / PAGE;
        let bits = self.tree.read(&mut self.entries, leaf + index * shape.entry())?;
        Ok(self.tree.layout.entry(bits).book == book)
    }

    /// Whether any of `range` is an extent's.
    pub(super) fn has_claimed(&self, range: &Range<u64>) -> bool {
        let claims = &self.findings.claims;
        let next = claims.get(claims.partition_point(|claim| claim.end <= range.start));
        next.is_some_and(|claim| claim.start < range.end)
    }

    /// Where leaves and books of extents are: somewhere in each block of jemalloc's own memory that they are in.
    pub(super) fn places(&self) -> Vec<u64> {
        self.leaves.values().chain(&self.books.places).copied().collect()
    }

    /// Closes the books.
    pub(super) fn close(mut self) -> Result<(Findings, Vec<SizeClass>), Fault> {
        let told = self.account.take_figures()?;
        *self.findings.by_arena.entry(self.arena).or_default() += told;
        let (_, histogram) = self.account.close()?;
        Ok((self.findings, histogram))
    }

    /// Enters what was told since the last call as the last arena's, and goes on with `next`.
    pub(super) fn turn_to(&mut self, next: u32) -> Result<(), Fault> {
        if next != self.arena {
            let told = self.account.take_figures()?;
            *self.findings.by_arena.entry(self.arena).or_default() += told;
            self.arena = next;
        }
        Ok(())
    }

    fn extent(&mut self, extent: &Extent) -> Result<(), Fault> {
        self.turn_to(extent.arena)?;
        let range = extent.range();
        self.claim(range.clone())?;
        self.findings.of_huge += u64::from(extent.of_huge);
        match extent.state {
            State::Active if extent.slab => self.slab(extent)?,
            State::Active => self.large(extent),
            State::Spare if extent.of_huge => self.account.free(range)?,
            State::Spare if self.source.is_still() => {}
            State::Dirty | State::Muzzy => {
                let kept = if extent.state == State::Dirty {
                    &mut self.findings.dirty
                } else {
                    &mut self.findings.muzzy
                };
                *kept += Bytes(extent.size);
                self.account.trimmable(range.clone())?;
                self.account.free(range)?;
            }
            State::Retained => self.findings.retained += Bytes(extent.size),
            State::Spare | State::Changing => self.findings.certainty.unresolved += Bytes(extent.size),
        }
        Ok(())
    }

    /// The mark at or behind `address`, once those before it are passed.
    fn mark_from(&mut self, address: u64) -> Option<(u64, Mark)> {
        let rest = self.caches.marks.get(self.next_mark..)?;
        self.next_mark += rest.iter().take_while(|(at, _)| *at < address).count();
        self.caches.marks.get(self.next_mark).copied()
    }

    /// What the marks say of the block `block` of class `class`, which is in use.
    fn marked(&mut self, block: Range<u64>, class: u64) -> Option<Mark> {
        let (at, mark) = self.mark_from(block.start).filter(|(at, _)| *at < block.end)?;
        match mark {
            Mark::Own => Some(mark),
            Mark::Cached(of) if at == block.start && u64::from(of) == class => Some(mark),
            // It was handed out, or freed by another way, since the cache was read.
            Mark::Cached(_) => {
                self.findings.certainty.reread += 1;
                None
            }
        }
    }

    fn slab(&mut self, extent: &Extent) -> Result<(), Fault> {
        let bin = self.classes.bin(extent.class).filter(|bin| bin.slab == extent.size).copied();
        let Some((bin, free)) = bin.and_then(|bin| Some((bin, extent.free_regions(&bin)?))) else {
            self.findings.certainty.unresolved += Bytes(extent.size);
            self.findings.strange += 1;
            return Ok(());
        };
        let end = extent.range().end;
        let has_marks = self.mark_from(extent.start).is_some_and(|(at, _)| at < end);
        if extent.free == 0 && !has_marks {
            self.account.live_many(bin.size, bin.regions);
            return Ok(());
        }
        let mut live = 0;
        for index in 0..bin.regions {
            let start = extent.start + index * bin.size;
            let region = start..start + bin.size;
            let is_free = free.get((index / 64) as usize).is_some_and(|group| group >> (index % 64) & 1 != 0);
            if is_free {
                self.account.free(region)?;
                continue;
            }
            match self.marked(region, extent.class).filter(|_| has_marks) {
                Some(Mark::Cached(_)) => self.account.cached(bin.size),
                Some(Mark::Own) => self.account.metadata(bin.size),
                None => live += 1,
            }
        }
        self.account.live_many(bin.size, live);
        Ok(())
    }

    fn large(&mut self, extent: &Extent) {
        // A sampled small block has an extent to itself, and the class of its size. Since 5.3.1 a large block has
        // whole pages, as many as were asked for, and not those of its class.
        let class = self.classes.size(extent.class).unwrap_or(extent.size).min(extent.size);
        let is_large = extent.class >= self.classes.bins();
        let size =
            if is_large && self.by_pages { class.min(extent.size.saturating_sub(LARGE_PAD)) } else { class };
        match self.large_mark(extent) {
            Some(Mark::Cached(_)) => self.account.cached(size),
            Some(Mark::Own) => self.account.metadata(size),
            None => self.account.live_at(extent.start..extent.start + size),
        }
    }

    /// A large block begins anywhere on its extent's first page.
    fn large_mark(&mut self, extent: &Extent) -> Option<Mark> {
        let (at, mark) = self.mark_from(extent.start).filter(|(at, _)| *at < extent.range().end)?;
        match mark {
            Mark::Cached(of) if at - extent.start >= LARGE_PAD || u64::from(of) != extent.class => {
                self.findings.certainty.reread += 1;
                None
            }
            mark => Some(mark),
        }
    }
}
