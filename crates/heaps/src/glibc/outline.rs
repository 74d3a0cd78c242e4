//! What the arenas' books say before a chunk is looked at: which memory is whose.
//!
//! A running program takes memory between the moment its mappings were listed and the one its books are read: their
//! main arena then ends, or a thread's arena lies, where nothing is known to be mapped. Such an outline is torn, and
//! is drawn again with the mappings of now, which is cheap; a walk that began on it would miss an arena.

use super::arena::{self, Broken, Confirmed, Parameters, Span, State};
use super::locate::{Claim, Libc};
use super::main_arena::Main;
use crate::now::Now;
use crate::reader::Reader;
use crate::source::{Fault, MemorySource, covered};

/// How often the mappings of a running process are listed anew for its books.
const DRAWN_MOST: usize = 8;

/// What a libc's books come to.
pub(super) enum Drawn {
    /// They are no books: another malloc stands in for this one, or it was never used.
    Unused,
    Swapped,
    Here(Box<Outline>),
}

/// Arenas and what memory is theirs.
pub(super) struct Outline {
    pub(super) claim: Claim,
    pub(super) params: Parameters,
    pub(super) main: State,
    /// The main arena's memory; nothing before it has any, and where it cannot be told.
    pub(super) main_memory: Option<Main>,
    pub(super) threads: Vec<Thread>,
    /// What is wrong with the ring of arenas.
    pub(super) broken: Option<Broken>,
    /// Names memory that is newer than the mappings.
    pub(super) is_torn: bool,
}

/// An arena of threads.
pub(super) struct Thread {
    pub(super) state: State,
    pub(super) heaps: Vec<Span>,
    /// What is wrong with the chain of heaps.
    pub(super) broken: Option<Broken>,
}

impl Outline {
    /// The outline of `libc`, whole if that can be had, and handed to `then` with the source that has its mappings.
    pub(super) fn settled<T>(
        source: &dyn MemorySource,
        libc: &Libc,
        then: impl FnOnce(&dyn MemorySource, Drawn) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let mut drawn = Outline::draw(source, libc)?;
        let mut now = None;
        for _ in 1..DRAWN_MOST {
            if !matches!(&drawn, Drawn::Here(outline) if outline.is_torn) {
                break;
            }
            let Some(fresh) = Now::of(source)? else { break };
            drawn = Outline::draw(&fresh, libc)?;
            now = Some(fresh);
        }
        match &now {
            Some(now) => then(now, drawn),
            None => then(source, drawn),
        }
    }

    fn draw(source: &dyn MemorySource, libc: &Libc) -> Result<Drawn, Fault> {
        let mut reader = Reader::new(source);
        let (claim, main, params) = match arena::confirm(&mut reader, &libc.claims)? {
            Confirmed::Yes(found) => *found,
            Confirmed::No => return Ok(Drawn::Unused),
            Confirmed::Swapped => return Ok(Drawn::Swapped),
        };
        let (states, broken) = arena::ring(&mut reader, &claim.layout, &main)?;
        let heap_max = claim.layout.heap_max(params.huge_page);
        let mut threads = Vec::with_capacity(states.len());
        for state in states {
            let (heaps, broken) = arena::heaps(&mut reader, &claim.layout, &state, heap_max)?;
            threads.push(Thread { state, heaps, broken });
        }
        let main_memory = Main::new(&mut reader, &main, &params)?;
        let mut outline = Outline { claim, params, main, main_memory, threads, broken, is_torn: false };
        outline.is_torn = !source.is_still() && !outline.is_within(source);
        let is_unused = outline.main.is_unused() && outline.threads.is_empty() && params.n_mmaps == 0;
        Ok(if is_unused && !outline.is_torn { Drawn::Unused } else { Drawn::Here(Box::new(outline)) })
    }

    /// Whether all memory that is named is mapped, as far as `source` knows.
    fn is_within(&self, source: &dyn MemorySource) -> bool {
        let is_sound = |broken: &Option<Broken>| !broken.as_ref().is_some_and(|broken| broken.is_damage);
        let has_main = match &self.main_memory {
            Some(main) => !main.is_cut_off,
            None => self.main.system == 0,
        };
        let is_mapped = |span: &Span| covered(source, span.base..span.end, |area| area.perms.write);
        has_main
            && is_sound(&self.broken)
            && self
                .threads
                .iter()
                .all(|thread| is_sound(&thread.broken) && thread.heaps.iter().all(is_mapped))
    }
}
