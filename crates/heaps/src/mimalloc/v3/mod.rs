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

use crate::model::Heap;
use crate::ranges::append;
use crate::reader::Reader;
use crate::source::{Area, Fault, MemorySource, there};
use arenas::Arena;
use books::Books;
use map::Map;
use std::ops::Range;

/// More of a data segment is not searched.
const SEGMENT_MOST: u64 = 32 << 20;

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
    for segment in segments(source.areas()) {
        if let Some(found) = find(&mut reader, segment)? {
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

/// Writable data of programs and libraries, with the zeroed data that follow.
fn segments(areas: &[Area]) -> impl Iterator<Item = Range<u64>> + '_ {
    areas.iter().enumerate().filter_map(|(index, file)| {
        let is_data = file.inode != 0 && file.perms.read && file.perms.write && !file.perms.shared;
        let zeroed = areas
            .get(index + 1)
            .filter(|next| next.range.start == file.range.end && next.is_private_anon() && next.is_unnamed());
        let end = zeroed.map_or(file.range.end, |zeroed| zeroed.range.end);
        is_data.then(|| file.range.start..end.min(file.range.start.saturating_add(SEGMENT_MOST)))
    })
}

/// The books that the data in `segment` lead to.
fn find(reader: &mut Reader<'_>, segment: Range<u64>) -> Result<Option<Found>, Fault> {
    let mut bytes = Vec::new();
    if there(reader.copy(segment.clone(), &mut bytes))?.is_none() {
        return Ok(None);
    }
    let words = bytes.as_chunks::<8>().0;
    for (index, table) in (segment.start..segment.end).step_by(8).enumerate() {
        let Some(rest) = words.get(index..) else { break };
        let arenas = arenas::of_table(reader, table, rest)?;
        let Some(page) = a_page(reader, &arenas)? else { continue };
        for word in words {
            if let Some(map) = Map::read(reader, u64::from_le_bytes(*word), page)? {
                return Ok(Some(Found { arenas, map }));
            }
        }
    }
    Ok(None)
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
