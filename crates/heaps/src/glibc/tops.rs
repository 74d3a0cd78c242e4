//! The tops of arenas alone, without a walk: what a stopped process can be asked within microseconds.
//!
//! A top is free by definition, and said by its arena to be the top; so these pages are known to be free from the
//! arena's own books at this moment, and not from a walk that may be of another.

use super::arena::{self, Confirmed, State};
use super::layout::{FLAGS, HEADER};
use super::locate::{self, Claim, Located, word_at};
use crate::reader::Reader;
use crate::source::{Fault, MemorySource};
use ebbtide_observe::page_size;
use std::ops::Range;

/// Where the arenas of a process are.
#[derive(Debug, Clone)]
pub struct Arenas {
    claim: Claim,
    heap_max: u64,
}

/// An arena, as far as its top goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Top {
    /// Where the arena's books are; its lock is their first word.
    pub arena: u64,
    /// Whether a thread is at work in it. That none is says nothing of a program with one thread, which takes no
    /// lock (SINGLE_THREAD_P, 2.26 and later).
    pub is_locked: bool,
    /// The whole pages of the top, behind its header; empty for the main arena's, which malloc_trim cuts.
    pub pages: Range<u64>,
}

impl Arenas {
    /// Of each libc of `source` that was ever asked for memory. Errors as of [`super::find`].
    pub fn find(source: &dyn MemorySource) -> Result<Vec<Arenas>, Fault> {
        let mut found = Vec::new();
        let mut reader = Reader::new(source);
        for located in locate::libcs(source)? {
            let Located::Here(libc) = located else { continue };
            if let Confirmed::Yes(confirmed) = arena::confirm(&mut reader, &libc.claims)? {
                let (claim, _, params) = *confirmed;
                found.push(Arenas { claim, heap_max: claim.layout.heap_max(params.huge_page) });
            }
        }
        Ok(found)
    }

    /// The tops now; nothing if the books do not make sense. `source` stands still.
    pub fn tops(&self, source: &dyn MemorySource) -> Result<Option<Vec<Top>>, Fault> {
        let mut reader = Reader::new(source);
        let Confirmed::Yes(confirmed) = arena::confirm(&mut reader, &[self.claim])? else { return Ok(None) };
        let (_, main, _) = *confirmed;
        let (threads, broken) = arena::ring(&mut reader, &self.claim.layout, &main)?;
        if broken.is_some() {
            return Ok(None);
        }
        let mut tops = vec![Top { arena: main.address, is_locked: main.is_locked, pages: 0..0 }];
        for state in &threads {
            let Some(pages) = self.pages(&mut reader, state)? else { return Ok(None) };
            tops.push(Top { arena: state.address, is_locked: state.is_locked, pages });
        }
        Ok(Some(tops))
    }

    /// The whole pages of a thread arena's top, if heap and top agree on where it ends.
    fn pages(&self, reader: &mut Reader<'_>, state: &State) -> Result<Option<Range<u64>>, Fault> {
        let (spans, broken) = arena::heaps(reader, &self.claim.layout, state, self.heap_max)?;
        let Some(span) = spans.iter().find(|span| span.holds_top && broken.is_none()) else {
            return Ok(None);
        };
        let size = word_at(&reader.array::<16>(state.top)?, 8).unwrap_or(0) & !FLAGS;
        if !(span.first..span.end).contains(&state.top) || state.top.checked_add(size) != Some(span.end) {
            return Ok(None);
        }
        let page = page_size().0;
        let (start, end) = ((state.top + HEADER).next_multiple_of(page), span.end - span.end % page);
        Ok(Some(start.min(end)..end))
    }
}
