//! mimalloc 3.0 (3.0.1).
//!
//! Static data have a table of arenas, which name the table, and a word that leads to the map of all pages. Both must
//! be there, and the map must have a page of an arena, whose books name the arena and the slice.
//!
//! Arenas are taken from the system by the GiB and have nothing in memory where they were never used. Blocks of more
//! than 32 MiB, and such with large alignments, have memory from the system for themselves.

mod arenas;
mod books;
mod map;
mod walk;

use crate::data;
use crate::model::Heap;
use crate::ranges::append;
use crate::reader::Reader;
use crate::source::{Area, Fault, MemorySource};
use arenas::Arena;
use books::Books;
use map::Map;
use std::ops::Range;

/// More of a data segment in memory is not searched.
const DATA_MOST: u64 = 32 << 20;

/// All books.
#[derive(Debug)]
struct Found {
    arenas: Vec<Arena>,
    map: Map,
}

/// The heap, with its returnable pages if `ranges` says so.
pub(super) fn look(source: &dyn MemorySource, ranges: bool) -> Result<Option<Heap>, Fault> {
    if !has_room(source.areas()) {
        return Ok(None);
    }
    let mut reader = Reader::new(source);
    for segment in data::segments(source.areas()) {
        if let Some(found) = find(&mut reader, segment.range())? {
            return walk::walk(source, &found, ranges).map(Some);
        }
    }
    Ok(None)
}

/// Whether there is memory that may be an arena.
fn has_room(areas: &[Area]) -> bool {
    let mut memory: Vec<Range<u64>> = Vec::new();
    for area in areas.iter().filter(|area| area.inode == 0 && !area.perms.shared) {
        append(&mut memory, area.range.clone());
    }
    memory.iter().any(|range| range.end - range.start >= arenas::LEAST)
}

/// The books that the data in `segment` lead to.
fn find(reader: &mut Reader<'_>, segment: Range<u64>) -> Result<Option<Found>, Fault> {
    let source = reader.source();
    let runs = data::present(source, segment, DATA_MOST)?;
    let mut data = Reader::new(source);
    let table = data::words(&mut data, &runs, |at, count| {
        let arenas = if arenas::may_be(count) { arenas::of_table(reader, at)? } else { Vec::new() };
        Ok(a_page(reader, &arenas)?.map(|page| (arenas, page)))
    })?;
    let Some((arenas, page)) = table else { return Ok(None) };
    let map = data::words(&mut data, &runs, |_, word| Map::read(reader, word, page))?;
    Ok(map.map(|map| Found { arenas, map }))
}

/// A page of `arenas`.
fn a_page(reader: &mut Reader<'_>, arenas: &[Arena]) -> Result<Option<u64>, Fault> {
    for arena in arenas {
        for index in arena.pages() {
            if let Some(books) = Books::in_arena(reader, arena.base, index)? {
                return Ok(Some(books.page.range.start));
            }
        }
    }
    Ok(None)
}
