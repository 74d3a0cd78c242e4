//! The GNU C library's malloc, 2.17 to 2.43, on LP64: arenas, thread caches, quick lists, large blocks, and what
//! malloc_trim(0) would give back.
//!
//! The way through: [`locate`] finds `main_arena` and `mp_` in the libc's file, [`arena`] has the process bear
//! it out and reads the arenas' books, [`outline`] sees to it that they and the mappings agree, [`quick`] marks
//! what quick lists hold, [`walk`] goes over every chunk, [`main_arena`] finds the parts of the main arena,
//! [`mmapped`] large blocks, [`cache`] thread caches.
//!
//! malloc_trim(0), read in mtrim and systrim (malloc.c, 2.17 to 2.43): quick lists are merged with what is free
//! around them (thread caches are not); of every free chunk the whole pages behind its first 48 bytes are given
//! back; the main arena's top is cut to between one and two pages' worth where the break is still its end; the
//! tops of thread arenas are left as they are.
//!
//! Invariants: figures add up to what is mapped; nothing is called glibc's on one witness.

mod arena;
mod books;
mod cache;
mod free;
mod layout;
mod locate;
mod main_arena;
mod marks;
mod mmapped;
mod outline;
mod quick;
#[cfg(test)]
mod tests;
mod tunables;
mod walk;

use crate::account::{Account, RANGES_MOST};
use crate::model::{Arena, Figures, HUGE_MOST, Heap, Kind, SizeClass};
use crate::ranges::merged;
use crate::reader::Reader;
use crate::source::{Fault, MemorySource};
use arena::{Broken, Confirmed, Parameters, Span, State};
use books::{CORRUPTIONS_MOST, Findings};
use ebbtide_observe::Bytes;
pub use free::{Arenas, ArenasNow};
use layout::Layout;
pub(crate) use locate::is_libc;
use locate::{Claim, Located};
use main_arena::Main;
use marks::Marks;
use outline::{Drawn, Outline, Thread};
use std::ops::Range;
pub use tunables::Tunables;
use walk::{Walk, Whose};

/// The glibc heaps of `source`: one for each libc in it that was ever asked for memory; none where there is no
/// glibc, or where its malloc was never used because another one stands in for it. A glibc whose structures
/// cannot be read or are not known is a heap without figures and with a note that says why.
///
/// Errors: [`Fault::Ended`], [`Fault::Denied`] and what the system says else; memory that is not there, is
/// swapped out or makes no sense is no error but told in the heap.
pub fn find(source: &dyn MemorySource) -> Result<Vec<Heap>, Fault> {
    every(source, false)
}

/// As [`find`], with [`Heap::returnable_ranges`]. While the process stands still and none of its threads is within
/// malloc, all of these pages can be dropped by madvise(MADV_DONTNEED), the tops of thread arenas among them that
/// malloc_trim leaves alone: sizes and links of free chunks are not on them, and malloc promises no content.
pub fn find_with_ranges(source: &dyn MemorySource) -> Result<Vec<Heap>, Fault> {
    every(source, true)
}

fn every(source: &dyn MemorySource, ranges: bool) -> Result<Vec<Heap>, Fault> {
    let mut heaps = Vec::new();
    for located in locate::libcs(source)? {
        match located {
            Located::Here(libc) => {
                heaps.extend(Outline::settled(source, &libc, |source, drawn| heap(source, drawn, ranges))?);
            }
            Located::Unreadable(why) => heaps.push(unread(why)),
        }
    }
    Ok(heaps)
}

/// A heap of which only this is known.
fn unread(why: String) -> Heap {
    Heap { notes: vec![why], ..Heap::new(Kind::Glibc) }
}

/// An arena's figures and histogram.
type Part = (Arena, Vec<SizeClass>);

/// One libc's heap being looked at.
struct Look<'s> {
    source: &'s dyn MemorySource,
    layout: Layout,
    params: Parameters,
    findings: Findings,
    parts: Vec<Part>,
    /// Which part has which addresses.
    owners: Vec<(Range<u64>, usize)>,
    claims: Vec<Range<u64>>,
    /// Pages that could be dropped, where they were asked for.
    ranges: Option<Vec<Range<u64>>>,
    huge: Vec<Range<u64>>,
    notes: Vec<String>,
}

/// The heap that is `drawn`.
fn heap(source: &dyn MemorySource, drawn: Drawn, ranges: bool) -> Result<Option<Heap>, Fault> {
    let outline = match drawn {
        Drawn::Here(outline) => *outline,
        Drawn::Unused => return Ok(None),
        Drawn::Swapped => return Ok(Some(unread("its books are swapped out".to_owned()))),
    };
    let Outline { claim, params, main, main_memory, threads, broken, is_torn } = outline;
    let mut look = Look {
        source,
        layout: claim.layout,
        params,
        findings: Findings::default(),
        parts: Vec::new(),
        owners: Vec::new(),
        claims: Vec::new(),
        ranges: ranges.then(Vec::new),
        huge: Vec::new(),
        notes: Vec::new(),
    };
    look.broken(&main, broken);
    if source.is_still() && !main.is_locked && !main.is_unused() {
        for bin in main.broken_bins(source).take(CORRUPTIONS_MOST) {
            look.findings.corrupt(bin.wrapping_add(layout::HEADER), "a bin of the main arena is no list");
        }
    }
    if main_memory.is_none() && main.system > 0 {
        look.findings.certainty.unresolved += Bytes(main.system);
        look.notes.push("the main arena's top leads nowhere: its memory is not known".to_owned());
    }
    look.arenas(&main, main_memory, threads)?;
    look.caches()?;
    if !source.is_still() {
        look.is_still_there(&claim)?;
    }
    if is_torn {
        look.notes.push("arenas came while it was read: not all of them are known".to_owned());
    }
    Ok(Some(look.heap()))
}

impl<'s> Look<'s> {
    /// Walks every arena and the large blocks.
    fn arenas(&mut self, main: &State, memory: Option<Main>, mut threads: Vec<Thread>) -> Result<(), Fault> {
        for thread in &mut threads {
            self.broken(&thread.state, thread.broken.take());
            self.claims.extend(thread.heaps.iter().map(|span| span.base..span.claim_end));
        }
        self.claims.extend(memory.iter().map(|memory| memory.first_part(self.source)));
        self.claims = merged(std::mem::take(&mut self.claims));
        let free = mmapped::unclaimed(self.source.areas(), &self.claims);
        let blocks = match self.params.n_mmaps {
            0 => Vec::new(),
            _ => {
                let mut reader = Reader::new(self.source);
                mmapped::find(&mut reader, &self.layout, &self.params, &free)?
            }
        };
        self.claims.extend(blocks.iter().map(|block| block.range.clone()));
        self.claims = merged(std::mem::take(&mut self.claims));
        if let Some(memory) = memory {
            self.main(main, &memory)?;
        }
        for (index, thread) in threads.iter().enumerate() {
            self.thread(&thread.state, &thread.heaps, index + 1)?;
        }
        self.blocks(&blocks)
    }

    /// Tells what breaks off, as damage only where nobody is at work.
    fn broken(&mut self, state: &State, broken: Option<Broken>) {
        match broken {
            Some(broken) if !broken.is_damage => self.notes.push(broken.what.to_owned()),
            Some(broken) if self.source.is_still() && !state.is_locked => {
                self.findings.corrupt(broken.address, broken.what);
            }
            Some(_) => self.findings.certainty.reread += 1,
            None => {}
        }
    }

    fn main(&mut self, state: &State, main: &Main) -> Result<(), Fault> {
        // Scattered parts are known only after the walk: quick lists may lead anywhere in anonymous memory.
        let quick =
            self.quick(state, |address| Some(arena::writable(self.source, address)?.range.clone()))?;
        let free = match state.is_scattered() {
            true => mmapped::unclaimed(self.source.areas(), &self.claims),
            false => Vec::new(),
        };
        let whose = Whose { is_main: true, is_locked: state.is_locked };
        let account = self.account();
        let reader = Reader::new(self.source);
        let mut walk = Walk::new(reader, account, &self.layout, whose, &quick, &mut self.findings);
        let parts = main.walk(&mut walk, &free)?;
        let account = walk.close()?;
        let (start, end) =
            (parts.first().map_or(0, |part| part.start), parts.last().map_or(0, |part| part.end));
        let found = match state.is_scattered() {
            true => parts.iter().map(|part| part.end - part.start).sum(),
            // Other code's brk memory between its parts counts as the arena's.
            false => end - start,
        };
        self.adds_up("main", state, found);
        self.enter(account, "main".to_owned(), state.address, parts)
    }

    fn thread(&mut self, state: &State, spans: &[Span], number: usize) -> Result<(), Fault> {
        let heaps = spans.iter().map(|span| span.base..span.end);
        let heap_at = |address| heaps.clone().find(|heap: &Range<u64>| heap.contains(&address));
        let quick = self.quick(state, heap_at)?;
        let whose = Whose { is_main: false, is_locked: state.is_locked };
        let account = self.account();
        let reader = Reader::new(self.source);
        let mut walk = Walk::new(reader, account, &self.layout, whose, &quick, &mut self.findings);
        for span in spans {
            walk.span(span, None)?;
            walk.mapped(span.base..span.mapped_end, span.first - span.base)?;
        }
        let account = walk.close()?;
        let name = format!("thread {number}");
        self.adds_up(&name, state, spans.iter().map(|span| span.end - span.base).sum());
        self.enter(account, name, state.address, spans.iter().map(|span| span.base..span.end).collect())
    }

    fn quick(&mut self, state: &State, heap_at: impl Fn(u64) -> Option<Range<u64>>) -> Result<Marks, Fault> {
        let mut marks = Marks::default();
        let mut reader = Reader::new(self.source);
        quick::mark(&mut reader, &self.layout, state, heap_at, &mut marks, &mut self.findings)?;
        Ok(marks)
    }

    /// Says so if an arena's own count of its memory is another than `found`. In a process that runs the two
    /// are of different moments.
    fn adds_up(&mut self, name: &str, state: &State, found: u64) {
        if self.source.is_still() && state.system != found {
            let (says, found) = (Bytes(state.system), Bytes(found));
            self.notes
                .push(format!("arena {name} counts {says} from the system, of which {found} were found"));
        }
    }

    /// An account of an arena.
    fn account(&self) -> Account<'s> {
        let account = Account::new(self.source);
        if self.ranges.is_some() { account.with_ranges() } else { account }
    }

    /// Closes an arena's account.
    fn enter(
        &mut self,
        mut account: Account<'s>,
        name: String,
        address: u64,
        owned: Vec<Range<u64>>,
    ) -> Result<(), Fault> {
        // A figure of zero is known, too.
        account.trimmable(0..0)?;
        if let (Some(all), Some(ranges)) = (&mut self.ranges, account.take_ranges()?) {
            all.extend(ranges.into_iter().take(RANGES_MOST.saturating_sub(all.len())));
        }
        let room = HUGE_MOST - self.huge.len();
        self.huge.extend(account.take_huge().into_iter().take(room));
        let (figures, classes) = account.close()?;
        self.claims.extend(owned.iter().cloned());
        self.owners.extend(owned.into_iter().map(|range| (range, self.parts.len())));
        self.parts.push((Arena { address, name, figures, collector: None }, classes));
        Ok(())
    }

    /// Enters the large blocks.
    fn blocks(&mut self, blocks: &[mmapped::Block]) -> Result<(), Fault> {
        let (count, sum) =
            (blocks.len() as u64, blocks.iter().map(|block| block.range.end - block.range.start).sum());
        if count != self.params.n_mmaps || !self.layout.counts_mmapped(self.params.mmapped, sum) {
            let missing = Bytes(self.params.mmapped) - Bytes(sum);
            self.findings.certainty.unresolved += missing;
            let (says, all) = (self.params.n_mmaps, Bytes(self.params.mmapped));
            self.notes.push(format!("{count} of {says} large blocks were found, {} of {all}", Bytes(sum)));
        }
        if blocks.is_empty() {
            return Ok(());
        }
        let mut account = self.account();
        for block in blocks {
            account.mapped(block.range.clone())?;
            let books = block.lead + self.layout.mmapped_tail();
            account.metadata(books);
            account.live_at((block.range.start + books).min(block.range.end)..block.range.end);
        }
        self.enter(account, "mmapped".to_owned(), self.params.address, Vec::new())
    }

    /// Takes thread caches and their blocks off what looked live.
    fn caches(&mut self) -> Result<(), Fault> {
        self.owners.sort_by_key(|(range, _)| range.start);
        let owners = &self.owners;
        let owner = |address: u64| {
            let after = owners.partition_point(|(range, _)| range.start <= address);
            owners[..after].last().filter(|(range, _)| range.contains(&address)).map(|&(_, index)| index)
        };
        let mut reader = Reader::new(self.source);
        let candidates = std::mem::take(&mut self.findings.caches);
        let count_most = self.params.cache_count;
        let is_heap = |address| owner(address).is_some();
        let (found, reread) = cache::find(&mut reader, &self.layout, count_most, &candidates, is_heap)?;
        self.findings.certainty.reread += reread;
        for cache in found {
            let part = owner(cache.chunk).and_then(|index| self.parts.get_mut(index));
            if let Some((arena, classes)) = part
                && not_live(&mut arena.figures, classes, cache.size).is_some()
            {
                arena.figures.metadata += Bytes(cache.size);
            }
            for (chunk, size) in cache.blocks {
                let part = owner(chunk).and_then(|index| self.parts.get_mut(index));
                if let Some((arena, classes)) = part
                    && let Some(class) = not_live(&mut arena.figures, classes, size)
                {
                    class.free_count += 1;
                    class.free += Bytes(size);
                    arena.figures.cached += Bytes(size);
                }
            }
        }
        Ok(())
    }

    /// A process that became another program has other memory at the same addresses: nothing read of it holds.
    fn is_still_there(&self, claim: &Claim) -> Result<(), Fault> {
        let mut reader = Reader::new(self.source);
        match arena::confirm(&mut reader, &[*claim])? {
            Confirmed::Yes(_) | Confirmed::Swapped => Ok(()),
            Confirmed::No => Err(Fault::Ended),
        }
    }

    fn heap(self) -> Heap {
        let mut heap = Heap::new(Kind::Glibc);
        heap.version = Some(self.layout.version());
        for (arena, classes) in self.parts {
            heap.enter(arena, classes);
        }
        heap.certainty = self.findings.certainty;
        heap.certainty.still = self.source.is_still();
        heap.corruptions = self.findings.corruptions;
        heap.notes = self.notes;
        if self.findings.uncut > Bytes::from_mib(1) {
            let uncut = self.findings.uncut;
            heap.notes
                .push(format!("the tops of its arenas hold {uncut} that malloc_trim does not give back"));
        }
        if !heap.certainty.still && heap.certainty.unresolved > Bytes::ZERO {
            heap.notes
                .push("what is unresolved was changing, or is damaged: stop the process to tell".to_owned());
        }
        heap.returnable_ranges = self.ranges.map(merged);
        heap.huge = self.huge;
        heap.claims = merged(self.claims);
        heap
    }
}

/// Takes one live block of `size` off; its class. Nothing where the walk counted no such block, as in a damaged
/// heap.
fn not_live<'c>(figures: &mut Figures, classes: &'c mut [SizeClass], size: u64) -> Option<&'c mut SizeClass> {
    let index = classes.partition_point(|class| class.up_to < Bytes(size));
    let class = classes.get_mut(index).filter(|class| class.live_count > 0 && class.live >= Bytes(size))?;
    class.live_count -= 1;
    class.live -= Bytes(size);
    figures.live -= Bytes(size);
    Some(class)
}
