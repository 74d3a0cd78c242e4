//! The walk over the range of Ebbtide's malloc: chunks cut into pages, large blocks, tables, thread heaps.
//!
//! Invariants: what magazines hold is known before the first chunk is told; a chunk whose entries contradict each
//! other is read again, and told as unresolved if they still do.

use super::block::{Block, Class};
use super::chunk::{Entries, Odd, Part, Span};
use super::lua;
use crate::account::Account;
use crate::model::{Certainty, Corruption, Heap, Kind};
use crate::reader::Reader;
use crate::source::{Fault, MemorySource, covered};
use ebbtide_observe::Bytes;
use std::ops::Range;

/// How often a chunk that contradicts itself is read again.
const REREADS: u32 = 3;
/// How many thread heaps are looked at.
const HEAPS_MOST: usize = 1 << 16;
/// How many corruptions are told.
const CORRUPTIONS_MOST: usize = 16;

/// What the walk counts, to be compared with the block's counters.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    mapped_pages: u64,
    run_pages: u64,
    large: u64,
    kept: u64,
    /// By class: slots handed out, to the program or a magazine; free slots.
    slots: Vec<(u64, u64)>,
}

struct Walk<'s, 'b> {
    block: &'b Block,
    account: Account<'s>,
    /// One for each table, so that each is read in its own order.
    readers: [Reader<'s>; 4],
    entries: Entries,
    /// Addresses in magazines, ascending, and how many of them were met.
    magazines: Vec<u64>,
    met: usize,
    tally: Tally,
    /// Entries of Lua heaps' pages that were counted, by chunk.
    lua_books: Vec<u64>,
    certainty: Certainty,
    corruptions: Vec<Corruption>,
    claims: Vec<Range<u64>>,
}

/// Walks what `block`, found at `at`, tells of; `None` if its tables are not there.
pub(super) fn walk(source: &dyn MemorySource, at: u64, block: &Block) -> Result<Option<Heap>, Fault> {
    let tables = block.tables();
    let heaps = heap_ranges(source, block)?;
    let states = lua::states(source, block)?;
    let lua = || states.iter().map(|state| state.range.clone());
    let books = || tables.iter().chain(&heaps).cloned().chain(lua());
    if block.paged == 0 || !books().all(|range| is_mapped(source, range)) {
        return Ok(None);
    }
    let mut paged = Vec::new();
    let set = block.paged..block.paged.saturating_add(block.chunks().div_ceil(64) * 8);
    match Reader::new(source).copy(set, &mut paged) {
        Ok(()) => {}
        Err(Fault::Swapped(_) | Fault::Unmapped(_)) => return Ok(None),
        Err(fault) => return Err(fault),
    }
    let mut walk = Walk {
        block,
        account: Account::new(source),
        readers: [(); 4].map(|()| Reader::new(source)),
        entries: Entries::default(),
        magazines: in_hand(source, block, &heaps, &states)?,
        met: 0,
        lua_books: Vec::new(),
        tally: Tally { slots: vec![(0, 0); block.classes.len()], ..Tally::default() },
        certainty: Certainty { still: source.is_still(), ..Certainty::default() },
        corruptions: Vec::new(),
        claims: Vec::new(),
    };
    walk.chunks(source, &paged)?;
    for range in books() {
        walk.account.metadata(range.end - range.start);
        walk.take(range)?;
    }
    let mut heap = walk.finish(source, at)?;
    heap.notes.extend(states.iter().map(|state| state.note(block)));
    Ok(Some(heap))
}

impl Walk<'_, '_> {
    /// All chunks, in the order of addresses.
    fn chunks(&mut self, source: &dyn MemorySource, paged: &[u8]) -> Result<(), Fault> {
        for chunk in 0..self.block.chunks() {
            let is_paged = paged.get((chunk / 8) as usize).is_some_and(|byte| byte >> (chunk % 8) & 1 != 0);
            let start = self.block.range + chunk * self.block.chunk();
            if is_paged {
                let range = start..start + self.block.chunk();
                if is_mapped(source, range.clone()) {
                    self.take(range)?;
                    self.tally.mapped_pages += self.block.chunk_pages;
                    self.paged(chunk, start)?;
                }
            } else {
                self.large(source, chunk, start)?;
            }
        }
        Ok(())
    }

    /// `range` was taken from the system.
    fn take(&mut self, range: Range<u64>) -> Result<(), Fault> {
        self.account.mapped(range.clone())?;
        match self.claims.last_mut().filter(|last| last.end == range.start) {
            Some(last) => last.end = range.end,
            None => self.claims.push(range),
        }
        Ok(())
    }

    /// A chunk cut into pages.
    fn paged(&mut self, chunk: u64, start: u64) -> Result<(), Fault> {
        let mut odd = None;
        for attempt in 0..=REREADS {
            if attempt > 0 {
                self.readers.iter_mut().for_each(Reader::refresh);
                self.certainty.reread += 1;
            }
            match self.read(chunk) {
                Ok(()) => {}
                Err(Fault::Swapped(_) | Fault::Unmapped(_)) => break,
                Err(fault) => return Err(fault),
            }
            match self.entries.parts(self.block, start) {
                Ok(parts) => return parts.into_iter().try_for_each(|part| self.part(part)),
                Err(found) => odd = Some(found),
            }
            if self.certainty.still {
                break;
            }
        }
        if let Some(Odd(address, what)) = odd.filter(|_| self.certainty.still) {
            self.damaged(address, what);
        }
        self.certainty.unresolved += Bytes(self.block.chunk());
        Ok(())
    }

    /// Reads a chunk's entries.
    fn read(&mut self, chunk: u64) -> Result<(), Fault> {
        let [class, record, wide, own] = self.block.tables().map(|table| table.start);
        let pages = self.block.chunk_pages;
        let parts = [
            (class, pages, &mut self.entries.classes),
            (record, pages * self.block.record_bytes, &mut self.entries.records),
            (wide, pages * self.block.wide_bytes, &mut self.entries.wides),
            (own, self.block.chunk_bytes, &mut self.entries.chunk),
        ];
        for ((start, bytes, into), reader) in parts.into_iter().zip(&mut self.readers) {
            into.clear();
            into.extend_from_slice(reader.bytes(start + chunk * bytes, bytes as usize)?);
        }
        self.entries.lua.clear();
        if let Some(lua) = self.block.lua.filter(|_| self.entries.has_lua(self.block)) {
            let bytes = pages * lua.entry_bytes;
            let start = self.block.range + lua.entry_at + chunk * bytes;
            let [.., last] = &mut self.readers;
            self.entries.lua.extend_from_slice(last.bytes(start, bytes as usize)?);
            if !self.lua_books.contains(&start) {
                self.lua_books.push(start);
                self.account.metadata(bytes);
                self.take(start..start + bytes)?;
            }
        }
        Ok(())
    }

    fn part(&mut self, part: Part) -> Result<(), Fault> {
        match part {
            Part::Free(range) => {
                self.account.trimmable(range.clone())?;
                for page in range.step_by(self.block.page as usize) {
                    self.account.free(page..page + self.block.page)?;
                }
            }
            Part::Run(range) => {
                self.account.live_at(range.clone());
                self.tally.run_pages += (range.end - range.start) / self.block.page;
            }
            Part::Span(span) => self.span(&span)?,
            Part::Kept(range) => {
                self.account.cached(range.end - range.start);
                self.account.trimmable(range)?;
            }
            Part::Between(range) => self.certainty.unresolved += Bytes(range.end - range.start),
        }
        Ok(())
    }

    /// A span's slots, and which of its pages a trim would give back: all of them if all slots are free or in
    /// magazines; where slots cross pages, also those that no slot in use touches.
    fn span(&mut self, span: &Span) -> Result<(), Fault> {
        let Some(&shape) = self.block.classes.get(usize::from(span.class)) else { return Ok(()) };
        let page = self.block.page;
        let mut in_use = vec![false; shape.pages as usize];
        let (mut out, mut free) = (0, 0);
        for index in 0..shape.slots {
            let into = index * shape.slot_bytes;
            let slot = span.start + into..span.start + into + shape.slot_bytes;
            if span.is_free(index) {
                self.account.free(slot)?;
                free += 1;
                continue;
            }
            out += 1;
            if self.is_in_magazine(slot.start) {
                self.account.cached(shape.slot_bytes);
                continue;
            }
            self.account.live(shape.slot_bytes);
            let touched = into / page..=(into + shape.slot_bytes - 1) / page;
            touched.for_each(|page| in_use[page as usize] = true);
        }
        if let Some(counts) = self.tally.slots.get_mut(usize::from(span.class)).filter(|_| !span.lua) {
            *counts = (counts.0 + out, counts.1 + free);
        }
        self.trimmable_span(span.start, &shape, &in_use)
    }

    fn trimmable_span(&mut self, start: u64, shape: &Class, in_use: &[bool]) -> Result<(), Fault> {
        let page = self.block.page;
        if !in_use.contains(&true) {
            return self.account.trimmable(start..start + shape.pages * page);
        }
        if shape.has_holes {
            for (index, _) in in_use.iter().enumerate().filter(|(_, used)| !**used) {
                let at = start + index as u64 * page;
                self.account.trimmable(at..at + page)?;
            }
        }
        Ok(())
    }

    /// Whether a magazine holds `slot`; ask in the order of addresses.
    fn is_in_magazine(&mut self, slot: u64) -> bool {
        while self.magazines.get(self.met).is_some_and(|address| *address < slot) {
            self.met += 1;
        }
        self.magazines.get(self.met) == Some(&slot)
    }

    /// A chunk that is not cut into pages: perhaps the first of a large block. Behind one that ends inside a chunk may
    /// be what was freed of it.
    fn large(&mut self, source: &dyn MemorySource, chunk: u64, start: u64) -> Result<(), Fault> {
        let page = chunk * self.block.chunk_pages;
        let (large, kept) = (self.block.large_class, self.block.kept_class);
        let bytes = self.large_at(source, page, start, &[large, kept])?;
        let pages = bytes / self.block.page;
        if !pages.is_multiple_of(self.block.chunk_pages) {
            self.large_at(source, page + pages, start + bytes, &[kept])?;
        }
        Ok(())
    }

    /// What begins at a page, if it is of one of these classes: its bytes, 0 if there is nothing to count.
    fn large_at(
        &mut self,
        source: &dyn MemorySource,
        page: u64,
        start: u64,
        wanted: &[u32],
    ) -> Result<u64, Fault> {
        let [class_at, record_at, ..] = self.block.tables().map(|table| table.start);
        let [classes, records, ..] = &mut self.readers;
        let class = classes.array::<1>(class_at + page);
        let class = match class {
            Ok([class]) => u32::from(class),
            Err(Fault::Swapped(_) | Fault::Unmapped(_)) => return Ok(0),
            Err(fault) => return Err(fault),
        };
        if !wanted.contains(&class) {
            return Ok(0);
        }
        let bytes = match records.u64(record_at + page * self.block.record_bytes) {
            Ok(bytes) => bytes,
            Err(Fault::Swapped(_) | Fault::Unmapped(_)) => return Ok(0),
            Err(fault) => return Err(fault),
        };
        let end = start.checked_add(bytes).filter(|_| bytes > 0 && bytes.is_multiple_of(self.block.page));
        let Some(range) = end.map(|end| start..end).filter(|range| is_mapped(source, range.clone())) else {
            if self.certainty.still {
                self.damaged(start, "a large block that is not mapped");
            }
            return Ok(0);
        };
        self.take(range.clone())?;
        if class == self.block.large_class {
            self.account.live_at(range);
            self.tally.large += bytes;
        } else {
            self.account.cached(bytes);
            self.account.trimmable(range)?;
            self.tally.kept += bytes;
        }
        Ok(bytes)
    }

    fn damaged(&mut self, address: u64, what: &str) {
        if self.corruptions.len() < CORRUPTIONS_MOST {
            self.corruptions.push(Corruption { address, what: what.to_owned() });
        }
    }

    fn finish(mut self, source: &dyn MemorySource, at: u64) -> Result<Heap, Fault> {
        // That nothing could be trimmed is an answer too.
        self.account.trimmable(0..0)?;
        let mut heap = Heap::new(Kind::Ebbtide);
        heap.version = Some(super::block::VERSION.to_string());
        heap.notes.push(format!(
            "{} given back by itself, {} of it used again; a free page waits {} ms",
            Bytes(self.block.page) * self.block.purged_pages,
            Bytes(self.block.page) * self.block.refaulted_pages,
            self.block.delay_ms
        ));
        if source.is_still() && self.tally != self.counted() {
            heap.notes.push(format!("the counters of the block at {at:#x} and its tables disagree"));
        }
        heap.huge = self.account.take_huge();
        (heap.figures, heap.histogram) = self.account.close()?;
        heap.certainty = self.certainty;
        heap.corruptions = self.corruptions;
        self.claims.sort_unstable_by_key(|range| range.start);
        heap.claims = self.claims;
        Ok(heap)
    }

    /// What the block's counters say of what the walk counts.
    fn counted(&self) -> Tally {
        Tally {
            mapped_pages: self.block.mapped_pages,
            run_pages: self.block.run_pages,
            large: self.block.large,
            kept: self.block.cached,
            slots: self.block.classes.iter().map(|class| (class.slots_out, class.slots_free)).collect(),
        }
    }
}

/// The thread heaps, used and unused.
fn heap_ranges(source: &dyn MemorySource, block: &Block) -> Result<Vec<Range<u64>>, Fault> {
    let mut reader = Reader::new(source);
    let (mut ranges, mut at) = (Vec::new(), block.heaps);
    while at != 0 && ranges.len() < HEAPS_MOST {
        let end = at.saturating_add(block.heap_bytes.next_multiple_of(block.page));
        ranges.push(at..end);
        at = match reader.u64(at.saturating_add(block.heap_next_at)) {
            Ok(next) => next,
            Err(Fault::Swapped(_) | Fault::Unmapped(_)) => 0,
            Err(fault) => return Err(fault),
        };
    }
    ranges.sort_unstable_by_key(|range| range.start);
    ranges.dedup();
    Ok(ranges)
}

/// What is in all threads' magazines and Lua heaps' hands, ascending.
fn in_hand(
    source: &dyn MemorySource,
    block: &Block,
    heaps: &[Range<u64>],
    states: &[lua::State],
) -> Result<Vec<u64>, Fault> {
    let mut reader = Reader::new(source);
    let mut found = Vec::new();
    for heap in heaps {
        for class in 1..block.classes.len() as u64 {
            let offset = block.heap_magazines_at.wrapping_add(class.wrapping_mul(block.magazine_bytes));
            let magazine = heap.start.wrapping_add(offset);
            let bytes = match reader.bytes(magazine, block.magazine_bytes as usize) {
                Ok(bytes) => bytes.as_chunks::<8>().0,
                Err(Fault::Swapped(_) | Fault::Unmapped(_)) => continue,
                Err(fault) => return Err(fault),
            };
            let count = bytes.first().map_or(0, |word| u64::from_le_bytes(*word) & 0xffff_ffff);
            let count = count.min(block.magazine_slots) as usize;
            found.extend(bytes.iter().skip(1).take(count).map(|word| u64::from_le_bytes(*word)));
        }
    }
    found.extend(states.iter().flat_map(|state| &state.in_hand));
    found.sort_unstable();
    Ok(found)
}

/// Whether all of `range` is mapped, and no file but that from which pages of Lua heaps share frames. The program may
/// have protected a part of what is its own.
fn is_mapped(source: &dyn MemorySource, range: Range<u64>) -> bool {
    covered(source, range, |area| {
        (area.inode == 0 && !area.perms.shared) || area.path.starts_with(b"/memfd:ebbtide lua")
    })
}
