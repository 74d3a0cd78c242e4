//! The walk over one state's segments, chunk by chunk.
//!
//! A chunk's header has its size, whether it lives, and whether the one before it lives; behind a free chunk its size
//! stands a second time. So each header is borne out by the one before.
//!
//! Invariants: a step goes up by 32 bytes at least, so the walk ends. Chunks are told to the account only once the
//! walk is [`LAG`] further; where headers stop adding up, it goes back to there and reads again. What does not add up
//! even so is told by no name, and the walk goes on where a chain of chunks begins again.

use super::layout::{
    DIRECT_PAD, FENCE, HEADER, IN_USE, MIN_CHUNK, MIN_LARGE, NEVER, PAGE, PREV_IN_USE, Segment, TOP_FOOT,
    word,
};
use super::links::Links;
use crate::account::Account;
use crate::model::Corruption;
use crate::reader::Reader;
use crate::source::Fault;
use std::ops::Range;

/// How far the walk is ahead of what it has told.
const LAG: u64 = 64 << 10;
/// How many chunks are told at once: as many as fit into [`LAG`].
const STAGE: usize = (LAG / MIN_CHUNK) as usize;
/// How often one spot of a running process is read again.
const REREADS: u64 = 3;
/// A place is taken for a chunk's if so many follow from it, or all up to the segment's end.
const CHAIN: usize = 32;
/// How many places are tried in one walk where chains broke off.
const TRIES_MOST: u64 = 1 << 22;
/// Damage that is kept.
pub(super) const CORRUPTIONS_MOST: usize = 16;
/// Bytes at the end of a segment that is not the top's: a fence for each word from the record on.
const FENCES_MOST: u64 = 128;

/// What the chunk before says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Before {
    Used,
    Free(u64),
    /// The walk begins here.
    Unknown,
}

/// A chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Chunk {
    at: u64,
    size: u64,
    what: What,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Live,
    /// Linked to the next and the one before.
    Free(u64, u64),
    /// The last one, which no list has.
    Top,
}

/// What is at an address.
#[derive(Debug, Clone, Copy)]
enum Step {
    Chunk(Chunk),
    /// Only fences from here on.
    Fences,
    Broken(&'static str),
    /// Not in memory, from this address's page on.
    Away(u64),
}

/// Walks one state's segments; what it finds is in its fields.
pub(super) struct Walk<'w, 's> {
    pub(super) reader: &'w mut Reader<'s>,
    pub(super) account: &'w mut Account<'s>,
    /// The chunks that hold the allocator's own books and records, in the order of addresses.
    pub(super) books: &'w [u64],
    /// The free chunks' links.
    pub(super) links: &'w mut Links,
    /// The chunk that a walk found at its end, and how large it is.
    pub(super) top: Option<(u64, u64)>,
    /// Where chunks did not add up.
    pub(super) broken: Vec<Corruption>,
    pub(super) reread: u64,
    pub(super) unresolved: u64,
    /// Bytes on pages that are swapped out, or went away.
    pub(super) away: u64,
    pub(super) tries: u64,
}

impl<'w, 's> Walk<'w, 's> {
    pub(super) fn new(
        reader: &'w mut Reader<'s>,
        account: &'w mut Account<'s>,
        books: &'w [u64],
        links: &'w mut Links,
    ) -> Walk<'w, 's> {
        Walk {
            reader,
            account,
            books,
            links,
            top: None,
            broken: Vec::new(),
            reread: 0,
            unresolved: 0,
            away: 0,
            tries: 0,
        }
    }

    /// Walks `segment`.
    pub(super) fn segment(&mut self, segment: &Segment) -> Result<(), Fault> {
        self.account.mapped(segment.range())?;
        let end = segment.end();
        let mut stage: Vec<Chunk> = Vec::with_capacity(STAGE);
        let mut start = (segment.base, Before::Used);
        let (mut at, mut before) = start;
        let mut rereads = 0;
        loop {
            let wrong = match self.step(at, before, end)? {
                Step::Chunk(chunk) => {
                    stage.push(chunk);
                    if chunk.what == What::Top {
                        self.top = Some((chunk.at, chunk.size));
                        self.account.metadata(TOP_FOOT);
                        return self.tell(&stage);
                    }
                    at += chunk.size;
                    before = behind(&chunk);
                    if stage.len() == STAGE {
                        let told = stage.partition_point(|chunk| chunk.at + LAG < at);
                        self.tell(&stage[..told])?;
                        rereads = if told > 0 { 0 } else { rereads };
                        start = stage.get(told).map_or((at, before), |next| {
                            (next.at, told.checked_sub(1).map_or(start.1, |last| behind(&stage[last])))
                        });
                        stage.drain(..told);
                    }
                    continue;
                }
                Step::Fences => {
                    self.account.metadata(end - at);
                    return self.tell(&stage);
                }
                wrong => wrong,
            };
            if rereads < REREADS && !self.reader.source().is_still() {
                rereads += 1;
                self.reread += 1;
                self.reader.refresh();
                stage.clear();
                (at, before) = start;
                continue;
            }
            let (from, search) = self.note(at, &mut stage, wrong);
            self.tell(&stage)?;
            stage.clear();
            rereads = 0;
            at = self.resync(search, end)?;
            self.unresolved += at - from;
            before = Before::Unknown;
            start = (at, before);
            if at == end {
                return Ok(());
            }
        }
    }

    /// Takes down that at `at` the chain of chunks breaks off. Returns from where on nothing is known, and where the
    /// search for more begins.
    fn note(&mut self, at: u64, stage: &mut Vec<Chunk>, wrong: Step) -> (u64, u64) {
        match wrong {
            Step::Away(page) => {
                let next = page - page % PAGE + PAGE;
                self.away += PAGE;
                (at, next.max(at + 8))
            }
            Step::Broken(what) => {
                // The header before may as well be the one that is wrong.
                let led = stage.pop();
                if self.broken.len() < CORRUPTIONS_MOST {
                    let what = match led {
                        Some(led) => format!("{what}; the chunk at {:#x} leads there", led.at),
                        None => what.to_owned(),
                    };
                    self.broken.push(Corruption { address: at, what });
                }
                let from = led.map_or(at, |led| led.at);
                (from, from + 8)
            }
            Step::Chunk(_) | Step::Fences => (at, at + 8),
        }
    }

    /// The chunk at `at`.
    fn step(&mut self, at: u64, before: Before, end: u64) -> Result<Step, Fault> {
        match self.chunk(at, before, end) {
            Err(Fault::Unmapped(page) | Fault::Swapped(page)) => Ok(Step::Away(page)),
            other => other,
        }
    }

    fn chunk(&mut self, at: u64, before: Before, end: u64) -> Result<Step, Fault> {
        if at + HEADER > end {
            return Ok(Step::Broken("a chunk reaches beyond its segment"));
        }
        let (foot, head) = self.pair(at)?;
        match before {
            Before::Free(size) if head & PREV_IN_USE != 0 || foot != size => {
                return Ok(Step::Broken("a header denies the free chunk before it"));
            }
            Before::Used if head & PREV_IN_USE == 0 => {
                return Ok(Step::Broken("a header denies that the chunk before it lives"));
            }
            _ => {}
        }
        if head == FENCE {
            return self.fences(at, end);
        }
        let (size, room) = (head & !7, end - at);
        if head & NEVER != 0 || size == 0 || size > room - DIRECT_PAD.min(room) {
            return Ok(Step::Broken("a header is none"));
        }
        // The top may be smaller than any other chunk: what is cut off it may leave 8 bytes.
        let is_free = head & IN_USE == 0;
        if is_free && size + TOP_FOOT == room && self.reader.u64(at + size + 8)? == TOP_FOOT {
            return Ok(Step::Chunk(Chunk { at, size, what: What::Top }));
        }
        if size < MIN_CHUNK {
            return Ok(Step::Broken("a chunk is too small"));
        }
        if !is_free {
            return Ok(Step::Chunk(Chunk { at, size, what: What::Live }));
        }
        if head & PREV_IN_USE == 0 {
            return Ok(Step::Broken("two free chunks are not merged"));
        }
        let links = self.reader.bytes(at + HEADER, 16)?;
        Ok(Step::Chunk(Chunk { at, size, what: What::Free(word(links, 0), word(links, 8)) }))
    }

    /// Whether all from `at` to `end` is fences.
    fn fences(&mut self, at: u64, end: u64) -> Result<Step, Fault> {
        let mut all = end - at <= FENCES_MOST;
        let mut head = at + 8;
        while all && head < end {
            all = self.reader.u64(head)? == FENCE;
            head += 8;
        }
        Ok(if all { Step::Fences } else { Step::Broken("a fence stands within a segment") })
    }

    /// The two words at `at`. They may lie on two mappings that the kernel did not merge.
    #[inline]
    fn pair(&mut self, at: u64) -> Result<(u64, u64), Fault> {
        match self.reader.bytes(at, HEADER as usize) {
            Ok(bytes) => Ok((word(bytes, 0), word(bytes, 8))),
            Err(Fault::Unmapped(_)) => Ok((self.reader.u64(at)?, self.reader.u64(at + 8)?)),
            Err(fault) => Err(fault),
        }
    }

    /// Tells `chunks` to the account.
    fn tell(&mut self, chunks: &[Chunk]) -> Result<(), Fault> {
        for chunk in chunks {
            let range = chunk.at..chunk.at + chunk.size;
            match chunk.what {
                What::Live if self.books.binary_search(&chunk.at).is_ok() => {
                    self.account.metadata(chunk.size)
                }
                What::Live => self.account.live_at(range),
                What::Free(next, last) => {
                    self.links.add(chunk.at, next, last);
                    self.account.free_behind(range, links_len(chunk.size))?;
                }
                What::Top => self.account.free_behind(range, HEADER)?,
            }
        }
        Ok(())
    }

    /// The first place from `from` on from which a chain of chunks follows; `end` if there is none, or the search
    /// has taken long enough.
    fn resync(&mut self, from: u64, end: u64) -> Result<u64, Fault> {
        let mut at = from;
        while at < end && self.tries < TRIES_MOST {
            self.tries += 1;
            match self.is_chain(at, end)? {
                Ok(()) => return Ok(at),
                // Nothing can be read up to there.
                Err(next) => at = next,
            }
        }
        Ok(end)
    }

    /// Whether a chain of chunks follows from `at`; if not, where to try next.
    fn is_chain(&mut self, at: u64, end: u64) -> Result<Result<(), u64>, Fault> {
        let (mut place, mut before) = (at, Before::Unknown);
        for _ in 0..CHAIN {
            match self.step(place, before, end)? {
                Step::Chunk(chunk) if chunk.what == What::Top => break,
                Step::Chunk(chunk) => (place, before) = (place + chunk.size, behind(&chunk)),
                Step::Fences => break,
                Step::Away(page) if place == at => return Ok(Err((page - page % PAGE + PAGE).max(at + 8))),
                Step::Broken(_) | Step::Away(_) => return Ok(Err(at + 8)),
            }
        }
        Ok(Ok(()))
    }
}

/// What the chunk behind `chunk` must say of it.
fn behind(chunk: &Chunk) -> Before {
    match chunk.what {
        What::Live => Before::Used,
        What::Free(..) | What::Top => Before::Free(chunk.size),
    }
}

/// How much of a free chunk's start lj_alloc reads again: header and links, of a tree's chunks (struct
/// malloc_tree_chunk) also children, parent and index.
fn links_len(size: u64) -> u64 {
    if size < MIN_LARGE { HEADER + 16 } else { HEADER + 48 }
}

/// The chunks of a state's segments that are lj_alloc's own: its books, and the records of all segments but the first.
pub(super) fn own_chunks(page: u64, segments: impl Iterator<Item = Segment>) -> Vec<u64> {
    let mut own = vec![page];
    own.extend(segments.filter(|segment| segment.next != 0).map(|segment| segment.next.wrapping_sub(HEADER)));
    own.sort_unstable();
    own
}

/// Cuts `range` out of the walk's account: for large blocks.
pub(super) fn direct(account: &mut Account<'_>, range: &Range<u64>) -> Result<(), Fault> {
    account.mapped(range.clone())?;
    account.live_at(range.start..range.end - DIRECT_PAD);
    account.metadata(DIRECT_PAD);
    Ok(())
}
