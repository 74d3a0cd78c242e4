//! A Lua state as it was found: its books, the segments they name, what its collector says.
//!
//! Invariant: a state is one only where the books and the global state bear each other out and the allocator's
//! function lies in LuaJIT's own code.

use super::code::Code;
use super::layout::{Book, Global, Segment};
use super::scan::is_candidate;
use crate::model::Corruption;
use crate::reader::Reader;
use crate::source::{Fault, MemorySource};
use std::collections::HashSet;
use std::ops::Range;

/// 128 GiB in segments of the smallest size.
const SEGMENTS_MOST: usize = 1 << 20;
/// How often what a running process may have been changing is read again.
const REREADS: u64 = 3;

/// A Lua state.
#[derive(Debug, Clone)]
pub(super) struct State {
    pub(super) book: Book,
    pub(super) global: Global,
    /// In the order of addresses, none overlapping.
    pub(super) segments: Vec<Segment>,
    /// Segments that lie, in part, in no mapping that was known when the walk began.
    pub(super) unmapped: Vec<Range<u64>>,
    /// What is wrong with the list of segments.
    pub(super) broken: Option<Corruption>,
    /// How often it was read again.
    pub(super) reread: u64,
    /// Which of the files with LuaJIT's code is this one's.
    pub(super) code: usize,
}

/// The state whose books are on `page`, if there are such. Faults that say that memory is not there say that no
/// state is; those that end the walk are passed on.
pub(super) fn read(reader: &mut Reader<'_>, codes: &[Code], page: u64) -> Result<Option<State>, Fault> {
    let mut reread = 0;
    loop {
        let state = match attempt(reader, codes, page) {
            Err(Fault::Unmapped(_) | Fault::Swapped(_)) => None,
            other => other?,
        };
        // Books are made in three steps, and their bins change two words at a time.
        let is_whole = state.as_ref().is_some_and(|state| state.broken.is_none());
        if is_whole || reread == REREADS || reader.source().is_still() {
            return Ok(state.map(|state| State { reread, ..state }));
        }
        reread += 1;
        reader.refresh();
    }
}

fn attempt(reader: &mut Reader<'_>, codes: &[Code], page: u64) -> Result<Option<State>, Fault> {
    let Some(book) = Book::read(reader, page)? else { return Ok(None) };
    let Some(global) = Global::read(reader, &book)? else { return Ok(None) };
    let is_in = |code: &Code| code.text.iter().any(|text| text.contains(&global.allocf));
    let Some(code) = codes.iter().position(is_in) else { return Ok(None) };
    let (segments, unmapped, broken) = segments(reader, &book)?;
    if !segments.iter().any(|segment| segment.range().contains(&page)) {
        return Ok(None);
    }
    Ok(Some(State { book, global, segments, unmapped, broken, reread: 0, code }))
}

type Segments = (Vec<Segment>, Vec<Range<u64>>, Option<Corruption>);

/// Follows the list of segments that `book` begins.
fn segments(reader: &mut Reader<'_>, book: &Book) -> Result<Segments, Fault> {
    let source = reader.source();
    let (mut segments, mut unmapped): (Vec<Segment>, _) = (Vec::new(), Vec::new());
    let mut broken = None;
    let mut at = book.address();
    let mut segment = book.segment;
    let mut seen = HashSet::from([at]);
    loop {
        if !segment.is_sound() {
            broken = Some(Corruption { address: at, what: "the record of a segment makes no sense".into() });
            break;
        }
        match is_mapped(source, &segment.range()) {
            true => segments.push(segment),
            false => unmapped.push(segment.range()),
        }
        if segment.next == 0 {
            break;
        }
        at = segment.next;
        if !seen.insert(at) || seen.len() > SEGMENTS_MOST {
            broken = Some(Corruption { address: at, what: "the list of segments has no end".into() });
            break;
        }
        match Segment::read(reader, at) {
            Ok(next) => segment = next,
            Err(Fault::Unmapped(_) | Fault::Swapped(_)) => {
                broken =
                    Some(Corruption { address: at, what: "the list of segments leads out of memory".into() });
                break;
            }
            Err(fault) => return Err(fault),
        }
    }
    segments.sort_unstable();
    let before = segments.len();
    let mut end = 0;
    segments.retain(|segment| {
        let is_apart = segment.base >= end;
        end = end.max(segment.end());
        is_apart
    });
    if segments.len() < before && broken.is_none() {
        broken = Some(Corruption { address: book.address(), what: "segments overlap".into() });
    }
    Ok((segments, unmapped, broken))
}

/// Whether all of `range` is memory that lj_alloc may have.
pub(super) fn is_mapped(source: &dyn MemorySource, range: &Range<u64>) -> bool {
    let mut at = range.start;
    while at < range.end {
        match source.area_at(at).filter(|area| is_candidate(area)) {
            Some(area) => at = area.range.end,
            None => return false,
        }
    }
    true
}
