//! The walk over a stretch of chunks, one after the other by their sizes.
//!
//! Whether a chunk is in use, the next one's header says; a free one's size stands there a second time. Blocks
//! in thread caches and quick lists look like blocks in use: quick lists are known before ([`Marks`]), thread
//! caches are found on the way and taken off afterwards ([`super::cache`]).
//!
//! Invariants: a step of the walk goes up by 32 bytes at least, so it ends; what does not add up is read again
//! when the process runs, and else told as damage, and the walk goes on at the next place where a chain of
//! chunks begins. Bytes in between are counted by no name.

use super::arena::Span;
use super::books::{Books, Findings, Step, field_of, foot_of};
use super::layout::{FLAGS, HEADER, Layout, MIN_CHUNK, MMAPPED, PREV_IN_USE};
use super::marks::Marks;
use crate::account::Account;
use crate::reader::Reader;
use crate::source::{Fault, MemorySource, there};
use ebbtide_observe::Bytes;
use std::ops::Range;

/// A place is where chunks begin if so many follow from it, or all up to the end.
const CHAIN: usize = 32;
/// How often one spot is read again in a process that runs.
const REREADS: usize = 3;
/// How often a stretch may stop adding up before the rest of it is given up.
const ODD_MOST: usize = 1 << 16;
/// Fewer do where the next header is swapped out.
const CHAIN_TO_SWAP: usize = 4;
/// How far chains are looked for in one arena, all in all.
const SEARCH_MOST: u64 = 64 << 20;

/// How a stretch's chunks ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// At its end.
    End,
    /// At a fence, as the main arena's memory has where it is interrupted; the address is behind it.
    Fence(u64),
}

/// What the walk needs to know of the arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Whose {
    pub(super) is_main: bool,
    /// A thread was stopped while at work in it.
    pub(super) is_locked: bool,
}

/// Walks the stretches of one arena.
pub(super) struct Walk<'s, 'a> {
    reader: Reader<'s>,
    books: Books<'s, 'a>,
    whose: Whose,
    /// Two chunks at which windows began, to start from again.
    anchors: [u64; 2],
    /// How far chains may still be looked for.
    search_left: u64,
}

impl<'s, 'a> Walk<'s, 'a> {
    pub(super) fn new(
        reader: Reader<'s>,
        account: Account<'s>,
        layout: &'a Layout,
        whose: Whose,
        quick: &'a Marks,
        findings: &'a mut Findings,
    ) -> Walk<'s, 'a> {
        let books = Books::new(account, quick, layout.caches, findings);
        Walk { reader, books, whose, anchors: [0; 2], search_left: SEARCH_MOST }
    }

    /// The account, with everything told.
    pub(super) fn close(self) -> Result<Account<'s>, Fault> {
        self.books.close()
    }

    /// Walks `span`. `cut` is the unit in which trimming would cut its top; `None` where it would not.
    pub(super) fn span(&mut self, span: &Span, cut: Option<u64>) -> Result<Ending, Fault> {
        let (mut at, mut before) = (span.first, 0);
        (self.anchors, self.books.first) = ([at; 2], at);
        let mut odd = 0;
        loop {
            if at >= span.end {
                return Ok(Ending::End);
            }
            match self.window(&mut at, &mut before, span.end) {
                Ok(Step::On) => self.anchors = [self.anchors[1], at],
                Ok(Step::Last(size)) => {
                    self.last(span, at, size, cut)?;
                    return Ok(Ending::End);
                }
                Ok(Step::Odd) => {
                    if let Some(ending) = self.fence(span, at, before)? {
                        return Ok(ending);
                    }
                    odd += 1;
                    let resume = match odd <= ODD_MOST {
                        true => self.recover(span, at)?,
                        false => span.end,
                    };
                    self.unresolved(at - before, resume);
                    (at, before) = (resume, 0);
                }
                Err(Fault::Swapped(_) | Fault::Unmapped(_)) => {
                    odd += 1;
                    let beyond = (at - at % 4096).saturating_add(4096);
                    let resume = match odd <= ODD_MOST {
                        true => self.next_chain(beyond, span.end)?,
                        false => span.end,
                    };
                    self.unresolved(at - before, resume);
                    (at, before) = (resume, 0);
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    fn unresolved(&mut self, from: u64, to: u64) {
        self.books.findings.certainty.unresolved += Bytes(to.saturating_sub(from));
    }

    /// Counts chunks from `at` on as far as the window at hand reaches.
    fn window(&mut self, at: &mut u64, before: &mut u64, end: u64) -> Result<Step, Fault> {
        let bytes = self.reader.ahead(*at, HEADER as usize)?;
        self.books.chunks(bytes, at, before, end)
    }

    /// The last chunk of a span, at `at`.
    fn last(&mut self, span: &Span, at: u64, size: u64, cut: Option<u64>) -> Result<(), Fault> {
        if !span.holds_top {
            // Without a fence behind it, this was a top when its header was read.
            self.unresolved(at, span.end);
            return Ok(());
        }
        self.books.top(at, at + size, cut)
    }

    /// Whether the odd header at `at` is a fence: two chunks of 16 bytes in the main arena; one, or a size of
    /// 0, at the end of a thread arena's full heap (sysmalloc).
    fn fence(&mut self, span: &Span, at: u64, before: u64) -> Result<Option<Ending>, Fault> {
        let Some(header) = self.header(at)? else { return Ok(None) };
        let field = field_of(&header);
        let size = field & !FLAGS;
        let next = match at + 2 * HEADER <= span.end {
            true => self.header(at + HEADER)?.map(|header| field_of(&header)),
            false => None,
        };
        let found = match (self.whose.is_main, size, next) {
            (true, 16, Some(next)) if next == 16 | PREV_IN_USE => Some(Ending::Fence(at + 2 * HEADER)),
            (false, 16, Some(next)) if next & !FLAGS == 0 && !span.holds_top => Some(Ending::End),
            (false, 0, _) if field == PREV_IN_USE && !span.holds_top && span.end - at <= 64 => {
                Some(Ending::End)
            }
            _ => None,
        };
        let Some(ending) = found else { return Ok(None) };
        if !self.books.settle(&header, at, before)? {
            return Ok(None);
        }
        let to = if let Ending::Fence(behind) = ending { behind } else { span.end };
        self.books.account.metadata(to - at);
        Ok(Some(ending))
    }

    /// Where to go on after the header at `at` turned out to be none.
    fn recover(&mut self, span: &Span, at: u64) -> Result<u64, Fault> {
        if !self.reader.source().is_still() {
            for _ in 0..REREADS {
                self.books.findings.certainty.reread += 1;
                self.reader.refresh();
                // From a chunk further up the chain may lead elsewhere by now: beyond what was odd.
                match self.chain(self.anchors[0], at, span.end)? {
                    Reached::Beyond(next) => return Ok(next),
                    Reached::Broken(_) => {}
                }
            }
        } else if !self.whose.is_locked {
            self.books
                .findings
                .corrupt(at, "the header of a chunk is none, or disagrees with the chunk before");
        }
        self.next_chain(at + HEADER, span.end)
    }

    /// Follows sizes from the chunk at `at` to the first chunk above `past`, counting nothing.
    fn chain(&mut self, mut at: u64, past: u64, end: u64) -> Result<Reached, Fault> {
        let mut before = 0;
        loop {
            match self.valid(at, before, end)? {
                Some(_) if at > past => return Ok(Reached::Beyond(at)),
                Some(size) => (at, before) = (at + size, size),
                None => return Ok(Reached::Broken(at)),
            }
            if at >= end {
                return Ok(Reached::Beyond(end));
            }
        }
    }

    /// The header of the chunk at `at`, where memory can be read.
    fn header(&mut self, at: u64) -> Result<Option<[u8; 16]>, Fault> {
        there(self.reader.array::<16>(at))
    }

    /// The size of the chunk at `at` if it is one that ends at `end` or below, after one of `before` bytes.
    fn valid(&mut self, at: u64, before: u64, end: u64) -> Result<Option<u64>, Fault> {
        let Some(header) = self.header(at)? else { return Ok(None) };
        let field = field_of(&header);
        let size = field & !FLAGS;
        let fits = field & (MMAPPED | 8) == 0 && size >= MIN_CHUNK && size <= end - at;
        let agrees = field & PREV_IN_USE != 0 || before == 0 || foot_of(&header) == before;
        Ok((fits && agrees).then_some(size))
    }

    /// The first place at or above `from` where a chain of chunks begins; `end` if there is none near.
    fn next_chain(&mut self, from: u64, end: u64) -> Result<u64, Fault> {
        let mut place = from.next_multiple_of(HEADER);
        let last = end.min(from.saturating_add(self.search_left));
        self.search_left = self.search_left.saturating_sub(HEADER);
        while place < last {
            self.search_left = self.search_left.saturating_sub(HEADER);
            let (mut at, mut before, mut links) = (place, 0, 0);
            while links < CHAIN && at < end {
                let Some(size) = self.valid(at, before, end)? else { break };
                (at, before, links) = (at + size, size, links + 1);
            }
            if links == CHAIN || at == end || (links >= CHAIN_TO_SWAP && self.is_swapped(at)?) {
                return Ok(place);
            }
            // Most of what is no header is zero: pages that were never touched need no look at every word.
            place = self.skip_zeroes(place + HEADER, last)?;
        }
        Ok(end)
    }

    fn is_swapped(&mut self, at: u64) -> Result<bool, Fault> {
        match self.reader.array::<16>(at) {
            Ok(_) | Err(Fault::Unmapped(_)) => Ok(false),
            Err(Fault::Swapped(_)) => Ok(true),
            Err(fault) => Err(fault),
        }
    }

    /// The first 16 bytes at or above `at` that are not all zero, as far as one window shows.
    fn skip_zeroes(&mut self, at: u64, last: u64) -> Result<u64, Fault> {
        if at >= last {
            return Ok(last);
        }
        match self.reader.ahead(at, HEADER as usize) {
            Ok(bytes) => {
                let zeroes = bytes.as_chunks::<16>().0.iter().take_while(|&&chunk| chunk == [0; 16]).count();
                // A chunk whose header's first word is zero has its size in the second.
                Ok(at + zeroes as u64 * HEADER)
            }
            Err(Fault::Swapped(_) | Fault::Unmapped(_)) => Ok((at - at % 4096).saturating_add(4096)),
            Err(fault) => Err(fault),
        }
    }

    /// How the chunks that begin at `first` end; `None` if they break off.
    pub(super) fn ending(&mut self, first: u64, end: u64) -> Result<Option<Ending>, Fault> {
        match self.chain(first, end, end)? {
            Reached::Beyond(_) => Ok(Some(Ending::End)),
            Reached::Broken(at) if at > first && end - at >= 2 * HEADER => {
                let mut field = |at| Ok(self.header(at)?.map_or(0, |header| field_of(&header)));
                let fence = field(at)? & !FLAGS == 16 && field(at + HEADER)? == 16 | PREV_IN_USE;
                Ok(fence.then_some(Ending::Fence(at + 2 * HEADER)))
            }
            Reached::Broken(_) => Ok(None),
        }
    }

    /// The first place at or above `from` from which chunks lead to a fence or to `end`.
    pub(super) fn next_part(&mut self, mut from: u64, end: u64) -> Result<Option<u64>, Fault> {
        while from < end {
            let place = self.next_chain(from, end)?;
            if place >= end {
                break;
            }
            if self.ending(place, end)?.is_some() {
                return Ok(Some(place));
            }
            from = place + HEADER;
            self.search_left = self.search_left.saturating_sub(HEADER);
        }
        Ok(None)
    }

    /// Whether a part of the main arena may begin at `place`: a chunk that says the one before is in use.
    pub(super) fn may_begin(&mut self, place: u64, end: u64) -> Result<bool, Fault> {
        let chunk = self.valid(place, 0, end)?.is_some();
        let header = self.header(place)?;
        Ok(chunk && header.is_some_and(|header| field_of(&header) & FLAGS == PREV_IN_USE))
    }

    /// What is walked.
    pub(super) fn source(&self) -> &'s dyn MemorySource {
        self.reader.source()
    }

    /// Tells the account of memory taken from the system, and of what in it is books.
    pub(super) fn mapped(&mut self, range: Range<u64>, books: u64) -> Result<(), Fault> {
        self.books.account.metadata(books);
        self.books.account.mapped(range)
    }
}

/// Where a chain led.
enum Reached {
    Beyond(u64),
    Broken(u64),
}
