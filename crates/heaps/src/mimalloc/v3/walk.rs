//! Over all arenas, and pages that have memory from the system for themselves, in the order of addresses.

use super::Found;
use super::arenas::Arena;
use super::books::{Books, HEADER_ROOM, SLICE};
use super::map::Map;
use crate::mimalloc::pages::Walk;
use crate::model::Heap;
use crate::source::{Fault, MemorySource};
use std::ops::Range;

/// What the heap has of the address space.
enum Part<'f> {
    Arena(&'f Arena),
    /// A page from the system, by the address of its head.
    Page(u64, Books),
    /// The map of pages.
    Map(Range<u64>),
}

impl Part<'_> {
    fn range(&self) -> Range<u64> {
        match self {
            Part::Arena(arena) => arena.range(),
            Part::Page(_, books) => books.page.range.clone(),
            Part::Map(range) => range.clone(),
        }
    }
}

/// Walks what was `found`.
pub(super) fn walk(source: &dyn MemorySource, found: &Found, ranges: bool) -> Result<Heap, Fault> {
    let mut walk = Walk::new(source, "3.0", ranges);
    let mut claims: Vec<Range<u64>> = Vec::new();
    for part in parts(&mut walk, found)? {
        let range = part.range();
        // What changed while it was looked for may overlap.
        if claims.last().is_some_and(|last| last.end > range.start) {
            continue;
        }
        walk.account.mapped(range.clone())?;
        match part {
            Part::Arena(found) => arena(&mut walk, found)?,
            Part::Page(at, books) => page(&mut walk, books, |reader| Books::alone(reader, at))?,
            Part::Map(range) => walk.account.metadata(range.end - range.start),
        }
        claims.push(range);
    }
    walk.close(format!("{} arenas", found.arenas.len()), claims)
}

/// The parts, by address.
fn parts<'f>(walk: &mut Walk<'_>, found: &'f Found) -> Result<Vec<Part<'f>>, Fault> {
    let reader = &mut walk.reader;
    let mut parts: Vec<Part<'f>> = found.arenas.iter().map(Part::Arena).collect();
    parts.push(Part::Map(found.map.range()));
    for (first, leaf) in found.map.leaves(reader)? {
        for at in Map::pages(reader, first, &leaf)? {
            let is_in_arena = found.arenas.iter().any(|arena| arena.range().contains(&at));
            let books = if is_in_arena { None } else { Books::alone(reader, at)? };
            parts.extend(books.map(|books| Part::Page(at, books)));
        }
        parts.push(Part::Map(leaf));
    }
    parts.sort_by_key(|part| part.range().start);
    Ok(parts)
}

fn arena(walk: &mut Walk<'_>, arena: &Arena) -> Result<(), Fault> {
    walk.account.metadata(arena.info * SLICE);
    let mut index = arena.info;
    while index < arena.slices {
        let start = arena.base + index * SLICE;
        let free = arena.free_from(index);
        if free > 0 {
            walk.account.free(start..start + free * SLICE)?;
            index += free;
            continue;
        }
        let books =
            if arena.has_page(index) { Books::in_arena(&mut walk.reader, arena.base, index)? } else { None };
        match books {
            Some(books) if books.page.range.end <= arena.range().end => {
                index += (books.page.range.end - start) / SLICE;
                page(walk, books, |reader| {
                    Books::in_arena(reader, arena.base, (start - arena.base) / SLICE)
                })?;
            }
            _ => {
                if !arena.has_page(index) && arena.is_meta(&mut walk.reader, index)? {
                    walk.account.metadata(SLICE);
                } else {
                    walk.odd(start..start + SLICE, "a slice is neither free nor of a page")?;
                }
                index += 1;
            }
        }
    }
    Ok(())
}

/// The page of `books`, which `again` reads once more.
fn page(
    walk: &mut Walk<'_>,
    books: Books,
    mut again: impl FnMut(&mut crate::Reader<'_>) -> Result<Option<Books>, Fault>,
) -> Result<(), Fault> {
    if !books.is_single() {
        return walk.page(books.page, |reader| Ok(again(reader)?.map(|books| books.page)));
    }
    let (page, block) = (&books.page, books.block());
    // Before its head, and between that and an aligned block, is nothing.
    walk.account.metadata(HEADER_ROOM);
    match (page.used, page.capacity) {
        (0, 0) => {}
        (0, _) => walk.account.free_behind(block, 8)?,
        _ if page.thread_free != 0 => walk.account.cached(page.block),
        _ => walk.account.live_at(block),
    }
    Ok(())
}
