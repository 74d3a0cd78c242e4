//! The walk over tcmalloc's page map: every span, in the order of addresses, and the objects in it.
//!
//! Invariants: spans do not overlap (what a span covers is not looked up again, where the page map may have old
//! entries); a span whose book contradicts the page map or its own list is read again, and is unresolved if it
//! still does; all bytes that are told lie in private memory without a file.

use super::books::{Books, Class, LEAF_ENTRIES, PAGE, ROOT_ENTRIES, SPAN_BYTES};
use super::lists::Lists;
use crate::account::Account;
use crate::model::{Certainty, Corruption, Heap, Kind};
use crate::ranges::{merged, without};
use crate::reader::Reader;
use crate::residency::Residency;
use crate::source::{Area, Fault, MemorySource, covered, there};
use ebbtide_observe::Bytes;
use std::collections::BTreeSet;
use std::ops::Range;

/// How often a span that contradicts itself is read again.
const REREADS: u32 = 3;
/// How many corruptions are told.
const CORRUPTIONS_MOST: usize = 16;
/// No span of small objects has more pages.
const SMALL_PAGES_MOST: u64 = 1024;
/// Bytes of a thread cache, with its links.
const CACHE_BYTES: u64 = 4096 + 128;
/// What metadata is claimed by.
const UNIT: u64 = 4096;

/// A span's book.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    pages: u64,
    /// Its first free object.
    objects: u64,
    /// How many of its objects its list does not have.
    out: u64,
    class: usize,
    place: Place,
}

/// Where a span is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    InUse,
    Normal,
    Returned,
}

/// What is known of a slot of a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Slot {
    Live,
    Free,
    Cached,
}

/// Bytes of spans, to be compared with the page heap's statistics.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    system: u64,
    normal: u64,
    returned: u64,
}

/// Pages with books that are not of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Gap {
    start: u64,
    /// How many; pages within a span have no books at all.
    pages: u64,
}

struct Walk<'s, 'b> {
    source: &'s dyn MemorySource,
    books: &'b Books,
    lists: Lists,
    account: Account<'s>,
    spans: Reader<'s>,
    objects: Reader<'s>,
    content: Vec<u8>,
    slots: Vec<Slot>,
    /// The page after the last span.
    next: u64,
    /// What was met since then and not understood.
    gap: Option<Gap>,
    tally: Tally,
    certainty: Certainty,
    corruptions: Vec<Corruption>,
    claims: Vec<Range<u64>>,
    /// Pages, by number, on which there are books of spans and thread caches.
    units: BTreeSet<u64>,
    leaves: Vec<Range<u64>>,
    span_count: u64,
}

/// Walks what `books` tell of, and collects the returnable pages if `ranges` says so; `None` if there is no span.
pub(super) fn walk(source: &dyn MemorySource, books: &Books, ranges: bool) -> Result<Option<Heap>, Fault> {
    let account = Account::new(source);
    let mut walk = Walk {
        source,
        books,
        lists: Lists::read(source, books)?,
        account: if ranges { account.with_ranges() } else { account },
        spans: Reader::new(source),
        objects: Reader::new(source),
        content: Vec::new(),
        slots: Vec::new(),
        next: 0,
        gap: None,
        tally: Tally::default(),
        certainty: Certainty { still: source.is_still(), ..Certainty::default() },
        corruptions: Vec::new(),
        claims: Vec::new(),
        units: BTreeSet::new(),
        leaves: Vec::new(),
        span_count: 0,
    };
    let mut root = Reader::new(source);
    for entry in 0..ROOT_ENTRIES {
        let leaf = there(root.u64(books.root + 8 * entry))?.unwrap_or(0);
        if leaf != 0 {
            walk.leaf(entry * LEAF_ENTRIES, leaf)?;
        }
    }
    if walk.claims.is_empty() { Ok(None) } else { walk.finish().map(Some) }
}

impl Walk<'_, '_> {
    /// The part of the page map that begins with page `first`.
    fn leaf(&mut self, first: u64, leaf: u64) -> Result<(), Fault> {
        let table = leaf..leaf.saturating_add(8 * LEAF_ENTRIES);
        if !covered(self.source, table.clone(), Area::is_private_anon) || !leaf.is_multiple_of(8) {
            self.damaged(leaf, "the page map leads to no memory of its own");
            return Ok(());
        }
        let (mut runs, mut entries) = (Vec::new(), Reader::new(self.source));
        Residency::new(self.source).each(table.clone(), |run, _| runs.push(run))?;
        for run in runs {
            let mut at = run.start;
            while at < run.end {
                let page = first + (at - leaf) / 8;
                if page < self.next {
                    at = at.saturating_add(8 * (self.next - page));
                    continue;
                }
                match there(entries.u64(at))? {
                    Some(book) if book != 0 => self.page(page, book, &mut entries, at)?,
                    _ => {}
                }
                at += 8;
            }
        }
        self.leaves.push(table);
        Ok(())
    }

    /// Page `page`, which the page map has `book` for at `entry`.
    fn page(&mut self, page: u64, book: u64, entries: &mut Reader<'_>, entry: u64) -> Result<(), Fault> {
        let (mut book, mut odd) = (book, "a span's book is not of the page that it is entered for");
        // Of what is not understood only the first page is read again, and what is a span.
        let mut rereads = if self.certainty.still || self.gap.is_some() { 0 } else { REREADS };
        let mut attempt = 0;
        loop {
            if let Some(span) = self.read(page, book)? {
                if let Some(span) = self.slots_of(page, book, span)? {
                    self.units.extend([book / UNIT, (book + SPAN_BYTES - 1) / UNIT]);
                    self.span_count += 1;
                    return self.enter(page, &span);
                }
                odd = "a span's list of free objects and its count disagree";
                rereads = if self.certainty.still { 0 } else { REREADS };
                if attempt >= rereads {
                    self.unresolved(page, &span)?;
                }
            } else if !self.certainty.still && self.rest_of(page, book)? {
                return Ok(());
            }
            if attempt >= rereads {
                break;
            }
            attempt += 1;
            self.certainty.reread += 1;
            entries.refresh();
            self.spans.refresh();
            self.objects.refresh();
            match there(entries.u64(entry))? {
                Some(0) => return Ok(()),
                Some(now) => book = now,
                None => break,
            }
        }
        if self.certainty.still {
            self.damaged(book, odd);
        }
        if self.next <= page {
            let gap = self.gap.unwrap_or(Gap { start: page, pages: 0 });
            self.gap = Some(Gap { pages: gap.pages + 1, ..gap });
        }
        Ok(())
    }

    /// The span of `book` that began with pages which were told already as they were before it took them, if `page` is
    /// its last: the heap has moved on, and what was not understood before is of it too.
    fn rest_of(&mut self, page: u64, book: u64) -> Result<bool, Fault> {
        let Some(words) = self.book(book)? else { return Ok(false) };
        let [start, pages, ..] = words;
        let from = self.gap.map_or(page, |gap| gap.start);
        if start >= from || start.checked_add(pages) != Some(page + 1) {
            return Ok(false);
        }
        let Some(span) = self.span(words).filter(|span| span.class == 0) else { return Ok(false) };
        let pages = page + 1 - from;
        self.gap = None;
        self.slots.clear();
        self.enter(from, &Span { pages, ..span })?;
        Ok(true)
    }

    /// The words of the span's book at `book`.
    fn book(&mut self, book: u64) -> Result<Option<[u64; 6]>, Fault> {
        let bytes = there(self.spans.array::<{ SPAN_BYTES as usize }>(book))?;
        Ok(bytes.map(|bytes| words_of(&bytes)))
    }

    /// The span that begins with `page`, if `book` is one of it and it lies in memory of its own.
    fn read(&mut self, page: u64, book: u64) -> Result<Option<Span>, Fault> {
        let words = self.book(book)?.filter(|words| words[0] == page);
        Ok(words.and_then(|words| self.span(words)))
    }

    /// The span whose book has `words`, if they agree and it lies in memory of its own.
    fn span(&self, words: [u64; 6]) -> Option<Span> {
        let [start, pages, _, _, objects, bits] = words;
        let place = match bits >> 24 & 3 {
            0 => Place::InUse,
            1 => Place::Normal,
            2 => Place::Returned,
            _ => return None,
        };
        let class = (bits >> 16 & 0xff) as usize;
        let small = class == 0 || (place == Place::InUse && pages <= SMALL_PAGES_MOST);
        let known = class < self.books.classes.len() && small;
        if pages == 0 || pages > 1 << 34 || start > 1 << 40 || !known {
            return None;
        }
        let range = start * PAGE..(start + pages) * PAGE;
        let own = covered(self.source, range, Area::is_private_anon);
        own.then_some(Span { pages, objects, out: bits & 0xffff, class, place })
    }

    /// Finds what each slot of `span` is; `None` if its list and its count disagree. Of a process that runs it is the
    /// span as it is now, of which a book that was read with many others may tell no more.
    fn slots_of(&mut self, page: u64, book: u64, span: Span) -> Result<Option<Span>, Fault> {
        self.slots.clear();
        let Some(&Class { size, .. }) = self.books.classes.get(span.class).filter(|class| class.size > 0)
        else {
            return Ok(Some(span));
        };
        let range = page * PAGE..(page + span.pages) * PAGE;
        let count = (range.end - range.start) / size;
        if (!self.certainty.still || span.out < count)
            && there(self.objects.copy(range.clone(), &mut self.content))?.is_none()
        {
            return Ok(None);
        }
        let Some(span) = self.now(page, book, span)? else { return Ok(None) };
        let Some(free) = count.checked_sub(span.out) else { return Ok(None) };
        self.slots.resize(count as usize, Slot::Live);
        let mut at = span.objects;
        for _ in 0..free {
            let Some(slot) = slot_of(&range, size, at) else { return Ok(None) };
            match self.slots.get_mut(slot) {
                Some(state) if *state == Slot::Live => *state = Slot::Free,
                _ => return Ok(None),
            }
            let into = (at - range.start) as usize;
            let next = self.content.get(into..into + 8).and_then(|word| word.try_into().ok());
            at = next.map_or(0, u64::from_le_bytes);
        }
        // A list that goes on has more than was counted.
        if at != 0 {
            return Ok(None);
        }
        for (objects, state) in [(&self.lists.cached, Slot::Cached), (&self.lists.moving, Slot::Free)] {
            let first = objects.partition_point(|object| *object < range.start);
            for object in objects[first..].iter().take_while(|object| **object < range.end) {
                if let Some(slot) = slot_of(&range, size, *object).and_then(|slot| self.slots.get_mut(slot)) {
                    *slot = state;
                }
            }
        }
        Ok(Some(span))
    }

    /// `span` as it is now, if it is still of as many pages and objects of that size.
    fn now(&mut self, page: u64, book: u64, span: Span) -> Result<Option<Span>, Fault> {
        if self.certainty.still {
            return Ok(Some(span));
        }
        let mut bytes = [0; SPAN_BYTES as usize];
        let read =
            there(self.source.read_ranges(std::slice::from_ref(&(book..book + SPAN_BYTES)), &mut bytes))?;
        let words = read.filter(|read| *read == bytes.len()).map(|_| words_of(&bytes));
        let now = words.filter(|words| words[0] == page).and_then(|words| self.span(words));
        Ok(now.filter(|now| (now.pages, now.class, now.place) == (span.pages, span.class, span.place)))
    }

    /// Takes the pages of a span from the page map.
    fn take(&mut self, page: u64, span: &Span) -> Result<Range<u64>, Fault> {
        let range = page * PAGE..(page + span.pages) * PAGE;
        self.close_gap();
        self.next = page + span.pages;
        self.account.mapped(range.clone())?;
        self.tally.system += range.end - range.start;
        match self.claims.last_mut().filter(|last| last.end == range.start) {
            Some(last) => last.end = range.end,
            None => self.claims.push(range.clone()),
        }
        Ok(range)
    }

    /// What was not understood stays so: there is a span behind it.
    fn close_gap(&mut self) {
        self.certainty.unresolved += Bytes(PAGE * self.gap.take().map_or(0, |gap| gap.pages));
    }

    /// A span whose objects are not known.
    fn unresolved(&mut self, page: u64, span: &Span) -> Result<(), Fault> {
        let range = self.take(page, span)?;
        self.certainty.unresolved += Bytes(range.end - range.start);
        Ok(())
    }

    /// Enters a span, the slots of which are known.
    fn enter(&mut self, page: u64, span: &Span) -> Result<(), Fault> {
        let range = self.take(page, span)?;
        match span.place {
            Place::Normal => {
                self.tally.normal += range.end - range.start;
                self.account.trimmable(range.clone())?;
                return self.account.free(range);
            }
            Place::Returned => {
                self.tally.returned += range.end - range.start;
                return self.account.free(range);
            }
            Place::InUse => {}
        }
        let size = self.books.classes.get(span.class).map_or(0, |class| class.size);
        if size == 0 {
            self.account.live(range.end - range.start);
            return Ok(());
        }
        let mut at = range.start;
        for run in self.slots.chunk_by(|a, b| a == b) {
            match run.first() {
                Some(Slot::Live) => self.account.live_many(size, run.len() as u64),
                Some(Slot::Cached) => run.iter().for_each(|_| self.account.cached(size)),
                _ => {
                    for object in (at..).step_by(size as usize).take(run.len()) {
                        self.account.free_behind(object..object + size, 8)?;
                    }
                }
            }
            at += size * run.len() as u64;
        }
        Ok(())
    }

    fn damaged(&mut self, address: u64, what: &str) {
        if self.corruptions.len() < CORRUPTIONS_MOST {
            self.corruptions.push(Corruption { address, what: what.to_owned() });
        }
    }

    /// Where the allocator's own books are, in order: pages with books of spans and thread caches, leaves of the
    /// page map, the static books; and of the brk heap all between what is known, for it has no other user.
    fn metadata(&mut self) -> Vec<Range<u64>> {
        let caches =
            self.lists.caches.iter().flat_map(|cache| [cache / UNIT, (cache + CACHE_BYTES - 1) / UNIT]);
        self.units.extend(caches);
        let outward = |range: &Range<u64>| range.start / UNIT * UNIT..range.end.next_multiple_of(UNIT);
        let mut ranges: Vec<_> = self.units.iter().map(|unit| unit * UNIT..(unit + 1) * UNIT).collect();
        ranges.extend(self.leaves.iter().map(outward));
        ranges.push(outward(&self.books.range));
        let own = |range: &Range<u64>| covered(self.source, range.clone(), Area::is_private_anon);
        let mut parts = Vec::new();
        for area in self.source.areas().iter().filter(|area| area.is_private_anon()) {
            let inside = |range: &&Range<u64>| range.start < area.range.end && area.range.start < range.end;
            if area.path == b"[heap]" {
                let all = || ranges.iter().chain(&self.claims).filter(inside);
                let (first, last) =
                    (all().map(|range| range.start).min(), all().map(|range| range.end).max());
                parts.extend(first.zip(last).map(|(first, last)| first..last.min(area.range.end)));
            }
            let cut = |range: &Range<u64>| range.start.max(area.range.start)..range.end.min(area.range.end);
            parts.extend(ranges.iter().filter(inside).map(cut));
        }
        parts.retain(own);
        merged(parts).into_iter().flat_map(|range| without(range, &self.claims)).collect()
    }

    fn finish(mut self) -> Result<Heap, Fault> {
        self.close_gap();
        let metadata = self.metadata();
        let mut room = 0;
        for range in metadata {
            room += range.end - range.start;
            self.account.mapped(range.clone())?;
            self.claims.push(range);
        }
        let leaves: u64 = self.leaves.iter().map(|leaf| leaf.end - leaf.start).sum();
        let books = self.books.range.end - self.books.range.start;
        let known =
            leaves + books + SPAN_BYTES * self.span_count + CACHE_BYTES * self.lists.caches.len() as u64;
        self.account.metadata(known.min(room));
        let mut heap = Heap::new(Kind::Tcmalloc);
        heap.version = Some("gperftools".to_owned());
        if self.certainty.still {
            for book in std::mem::take(&mut self.lists.short) {
                self.damaged(book, "a list has fewer objects than it counts");
            }
            self.compare(&mut heap)?;
        } else {
            self.certainty.reread += self.lists.short.len() as u64;
        }
        heap.returnable_ranges = self.account.take_ranges()?;
        (heap.figures, heap.histogram) = self.account.close()?;
        heap.figures.returnable_by_trim.get_or_insert_default();
        (heap.certainty, heap.corruptions) = (self.certainty, self.corruptions);
        self.claims.sort_unstable_by_key(|range| range.start);
        heap.claims = self.claims;
        Ok(heap)
    }

    /// Says where the page heap's statistics are others than what was met.
    fn compare(&self, heap: &mut Heap) -> Result<(), Fault> {
        let mut reader = Reader::new(self.source);
        let Some(stats) = there(reader.array::<24>(self.books.stats))? else { return Ok(()) };
        let words: Vec<u64> = stats.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect();
        let Tally { system, normal, returned } = self.tally;
        if words != [system, normal, returned] {
            heap.notes.push("the page heap's statistics and its spans disagree".to_owned());
        }
        Ok(())
    }
}

/// Which slot of `range`, of slots of `size`, begins at `address`.
fn slot_of(range: &Range<u64>, size: u64, address: u64) -> Option<usize> {
    let into = address.checked_sub(range.start).filter(|_| address < range.end)?;
    into.is_multiple_of(size).then_some((into / size) as usize)
}

/// The words of a span's book.
fn words_of(bytes: &[u8; SPAN_BYTES as usize]) -> [u64; 6] {
    let mut words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
    std::array::from_fn(|_| words.next().unwrap_or_default())
}
