//! What is free by the arenas' own books, without a walk: what a stopped process can be asked within microseconds.
//!
//! A top is free by definition, and said by its arena to be the top. A chunk that was in a bin a moment ago
//! ([`Arenas::chunks`]) is still free if its header and the one behind it still say so: whatever the allocator does with
//! it writes to one of them (malloc/malloc.c, 2.17 to 2.43). Handing it out marks it in use in the header behind, or cuts
//! it and changes its size; merging it into the chunk before changes its size in the header behind; merging the chunk
//! behind into it changes its own. So these pages are known to be free now, and not from a look at another moment.

use super::arena::{self, Confirmed, State, writable};
use super::layout::{FLAGS, HEADER, PREV_IN_USE};
use super::locate::{self, Claim, Located, word_at};
use crate::free::Free;
use crate::reader::Reader;
use crate::source::{Fault, MemorySource, there};
use ebbtide_observe::page_size;
use std::ops::Range;

/// Bins whose chunks can have a whole page: the unsorted one, and those from 3072 bytes on (bin_at(97) to
/// bin_at(126)), by their index in `bins`.
const UNSORTED: std::ops::RangeInclusive<usize> = 0..=0;
const LARGE: std::ops::RangeInclusive<usize> = 96..=125;
/// What malloc_trim keeps of a chunk, and what its lists need.
const LINKS: u64 = 48;
/// More chunks of one bin than that are not looked for.
const CHUNKS_MOST: usize = 1 << 20;

/// Where the arenas of a process are.
#[derive(Debug, Clone)]
pub struct Arenas {
    claim: Claim,
    heap_max: u64,
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

    /// Where they are.
    pub(super) fn claim(&self) -> &Claim {
        &self.claim
    }

    /// Their books now; nothing if they do not make sense. `source` stands still.
    pub fn now<'s>(&'s self, source: &'s dyn MemorySource) -> Result<Option<ArenasNow<'s>>, Fault> {
        let mut reader = Reader::new(source);
        let Confirmed::Yes(confirmed) = arena::confirm(&mut reader, &[self.claim])? else { return Ok(None) };
        let (_, main, _) = *confirmed;
        let (threads, broken) = arena::ring(&mut reader, &self.claim.layout, &main)?;
        let states = std::iter::once(main).chain(threads).collect();
        Ok(broken.is_none().then_some(ArenasNow { arenas: self, source, states }))
    }

    /// The chunks in bins now that have whole pages, as far as the bins can be followed in a process that runs on.
    /// Nothing of it is certain.
    pub fn chunks(&self, source: &dyn MemorySource) -> Result<Vec<Range<u64>>, Fault> {
        let mut chunks = Vec::new();
        let Some(now) = self.now(source)? else { return Ok(chunks) };
        for state in &now.states {
            for &(first, _, head) in UNSORTED.chain(LARGE).filter_map(|bin| state.bins.get(bin)) {
                let (mut at, most) = (first, chunks.len() + CHUNKS_MOST);
                while at != head && at.is_multiple_of(HEADER) && chunks.len() < most {
                    let mut bytes = [0; 32];
                    let node = at..at.saturating_add(32);
                    let read = there(source.read_ranges(std::slice::from_ref(&node), &mut bytes))?;
                    if read != Some(bytes.len()) {
                        break;
                    }
                    let word = |index: usize| word_at(&bytes, 8 * index).unwrap_or(0);
                    let size = word(1) & !FLAGS;
                    if size > page_size().0 {
                        chunks.push(at..at.saturating_add(size));
                    }
                    at = word(2);
                }
            }
        }
        chunks.sort_by_key(|chunk| chunk.start);
        chunks.dedup();
        Ok(chunks)
    }
}

/// The arenas' books at one moment.
pub struct ArenasNow<'s> {
    arenas: &'s Arenas,
    source: &'s dyn MemorySource,
    /// The main arena first.
    states: Vec<State>,
}

impl ArenasNow<'_> {
    /// Where each arena's lock is: the first word of its books.
    pub fn locks(&self) -> impl Iterator<Item = u64> + '_ {
        self.states.iter().map(|state| state.address)
    }

    /// Whether a thread is at work in one of them. That none is says nothing of a program with one thread, which takes
    /// no lock (SINGLE_THREAD_P, 2.26 and later).
    pub fn is_locked(&self) -> bool {
        self.states.iter().any(|state| state.is_locked)
    }

    /// The whole pages of the tops of thread arenas, which malloc_trim does not cut, and with `main` of the main
    /// arena's, which it does. Nothing if the books do not make sense.
    pub fn tops(&self, main: bool) -> Result<Option<Free>, Fault> {
        let mut free = Free { pages: Vec::new(), is_all: true };
        let mut reader = Reader::new(self.source);
        for (index, state) in self.states.iter().enumerate().skip(usize::from(!main)) {
            let top = match index {
                0 => self.main_top(&mut reader, state)?,
                _ => self.thread_top(&mut reader, state)?,
            };
            let Some(top) = top else { return Ok(None) };
            free.add(top, HEADER);
        }
        Ok(Some(free))
    }

    /// The whole pages of those of `chunks` that are free now. To read a chunk's two headers takes about 3 us.
    pub fn free(&self, chunks: &[Range<u64>]) -> Result<Free, Fault> {
        let mut free = Free { pages: Vec::new(), is_all: true };
        // Headers lie in the memory that their chunks do.
        let is_there = |chunk: &&Range<u64>| {
            writable(self.source, chunk.start).is_some_and(|area| chunk.end + HEADER <= area.range.end)
        };
        let chunks: Vec<&Range<u64>> = chunks.iter().filter(is_there).collect();
        let header = |at: u64| at..at + HEADER;
        let headers: Vec<Range<u64>> =
            chunks.iter().flat_map(|chunk| [header(chunk.start), header(chunk.end)]).collect();
        let mut bytes = vec![0; headers.len() * HEADER as usize];
        let read = there(self.source.read_ranges(&headers, &mut bytes))?.unwrap_or(0);
        for (chunk, bytes) in chunks.into_iter().zip(bytes[..read].chunks_exact(2 * HEADER as usize)) {
            let word = |index: usize| word_at(bytes, 8 * index).unwrap_or(0);
            let (own, foot, behind) = (word(1), word(2), word(3));
            let size = chunk.end - chunk.start;
            // Two free chunks are never neighbours: the one before this is in use.
            let is_whole = own & !FLAGS == size && own & PREV_IN_USE != 0;
            if is_whole && foot == size && behind & PREV_IN_USE == 0 {
                free.add(chunk.clone(), LINKS);
            }
        }
        Ok(free)
    }

    /// A thread arena's top, if heap and top agree on where it ends.
    fn thread_top(&self, reader: &mut Reader<'_>, state: &State) -> Result<Option<Range<u64>>, Fault> {
        let Arenas { claim, heap_max } = self.arenas;
        let (spans, broken) = arena::heaps(reader, &claim.layout, state, *heap_max)?;
        let Some(span) = spans.iter().find(|span| span.holds_top && broken.is_none()) else {
            return Ok(None);
        };
        let end = top_end(reader, state)?;
        let agrees = (span.first..span.end).contains(&state.top) && end == Some(span.end);
        Ok(agrees.then_some(state.top..span.end))
    }

    /// The main arena's top, if its mapping holds it.
    fn main_top(&self, reader: &mut Reader<'_>, state: &State) -> Result<Option<Range<u64>>, Fault> {
        if state.is_unused() {
            return Ok(Some(0..0));
        }
        let Some(area) = writable(self.source, state.top) else { return Ok(None) };
        let end = top_end(reader, state)?.filter(|end| *end <= area.range.end);
        Ok(end.map(|end| state.top..end))
    }
}

/// Where the top ends by its own size.
fn top_end(reader: &mut Reader<'_>, state: &State) -> Result<Option<u64>, Fault> {
    let size = word_at(&reader.array::<16>(state.top)?, 8).unwrap_or(0) & !FLAGS;
    Ok(state.top.checked_add(size))
}
