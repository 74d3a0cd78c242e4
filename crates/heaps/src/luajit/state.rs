//! A Lua state as it was found: its books, the segments they name, what its collector says.
//!
//! Invariant: a state is one only where the books and the global state bear each other out and the allocator's
//! function lies in LuaJIT's own code.

use super::code::Code;
use super::grown::{self, Place};
use super::layout::{Book, Global, Segment};
use crate::model::Corruption;
use crate::reader::Reader;
use crate::source::{Fault, MemorySource};
use std::collections::HashSet;

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
    /// Whether some of them are newer than the list of mappings.
    pub(super) has_new: bool,
    /// What is wrong with the list of segments.
    pub(super) broken: Option<Corruption>,
    /// How often it was read again.
    pub(super) reread: u64,
    /// Which of the files with LuaJIT's code is this one's.
    pub(super) code: usize,
}

impl State {
    /// Whether nothing was taken or given back since `before`.
    pub(super) fn is_as(&self, before: &State) -> bool {
        self.book == before.book && self.global == before.global
    }
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
    let (segments, has_new, broken) = segments(reader.source(), &book)?;
    if !segments.iter().any(|segment| segment.range().contains(&page)) {
        return Ok(None);
    }
    Ok(Some(State { book, global, segments, has_new, broken, reread: 0, code }))
}

type Segments = (Vec<Segment>, bool, Option<Corruption>);

/// Follows the list of segments that `book` begins. Also says whether some lie where nothing was known to be mapped.
fn segments(source: &dyn MemorySource, book: &Book) -> Result<Segments, Fault> {
    let mut segments: Vec<Segment> = Vec::new();
    let mut at = book.address();
    let mut segment = book.segment;
    let (mut seen, mut has_new) = (HashSet::from([at]), false);
    let what = loop {
        match grown::place(source, &segment.range()) {
            _ if !segment.is_sound() => break Some("the record of a segment makes no sense"),
            Place::Nowhere => break Some("the record of a segment names memory that is not lj_alloc's"),
            Place::Known => {}
            Place::New => has_new = true,
        }
        segments.push(segment);
        at = segment.next;
        if at == 0 {
            break None;
        }
        if !seen.insert(at) || seen.len() > SEGMENTS_MOST {
            break Some("the list of segments has no end");
        }
        segment = match grown::peek(source, at) {
            Ok(record) => Segment::parse(&record),
            Err(Fault::Unmapped(_) | Fault::Swapped(_)) => {
                break Some("the list of segments leads out of memory");
            }
            Err(fault) => return Err(fault),
        };
    };
    let mut broken = what.map(|what| Corruption { address: at, what: what.into() });
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
    Ok((segments, has_new, broken))
}
