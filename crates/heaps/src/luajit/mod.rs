//! LuaJIT's own allocator, lj_alloc, in GC64 builds (the default on x86_64 since 2.1, and the only ones elsewhere
//! with 64 bits): every Lua state that was made with it, and the collector's count beside it.
//!
//! The way through: [`code`] finds LuaJIT's code, [`scan`] looks for pages that begin as lj_alloc's books or large
//! blocks do, [`state`] has books and global state bear each other out, [`walk`] goes over the chunks of all segments,
//! [`links`] checks the lists of free ones.
//!
//! lj_alloc is a dlmalloc of 2006. It gives back only the end of its last segment, once that is 2 MiB and more, and
//! segments in which nothing lives any more; it never calls madvise, and no function of it is exported. So
//! `returnable_by_trim` is never known here: nothing in the process could be asked to trim. Its free chunks keep a
//! header and links in their first 16 to 64 bytes; the rest is read by nobody before it is written, so whole pages
//! of it can be dropped under a process that stands still.
//!
//! Not recognised: builds without GC64 (the default on x86_64 before December 2019, LUAJIT_DISABLE_GC64 since; 32-bit
//! programs), whose global state has 32-bit references at other offsets; builds with LUAJIT_USE_SYSMALLOC, and states
//! made with a lua_Alloc of the program's: their objects are in that allocator's heap; programs whose code was copied
//! into anonymous memory, or into which the library "jit" was not linked. The JIT's machine code is mapped apart and
//! not counted.
//!
//! Damage: what does not add up in a process that stands still is told as such. A process may have been stopped in the
//! middle of an allocation, so whoever stopped it should let it run on and look again before calling it damaged.
//!
//! Invariants: nothing is called LuaJIT's on one witness; figures add up to what is mapped.

mod code;
mod grown;
mod layout;
mod links;
mod scan;
mod state;
#[cfg(test)]
mod tests;
mod trees;
mod walk;

use crate::account::Account;
use crate::model::{Arena, Collector, Corruption, Figures, HUGE_MOST, Heap, Kind, SizeClass};
use crate::now::Now;
use crate::ranges::merged;
use crate::reader::Reader;
use crate::source::{Fault, MemorySource, there};
use code::Code;
use ebbtide_observe::Bytes;
use grown::Place;
use layout::DIRECT_PAD;
use links::Links;
use state::State;
use std::collections::BTreeMap;
use std::ops::Range;
pub use trees::States;
use walk::{CORRUPTIONS_MOST, Walk};

/// How often the walk over a state is begun again where too much of it changed.
const PASSES: usize = 3;
/// States that are told in words.
const NOTES_MOST: usize = 8;
/// More states than that are not looked for.
const STATES_MOST: usize = 1 << 14;

/// The Lua states of `source` that use lj_alloc, as one heap with an arena for each; none where there are none.
///
/// A large block (128 KiB and more) is mapped apart, and nothing on it says whose it is. With one state it is that
/// state's; with several, all of them are in an arena of their own.
///
/// Errors: [`Fault::Ended`], [`Fault::Denied`] and what the system says else; memory that is not there, is swapped
/// out or makes no sense is no error but told in the heap.
pub fn find(source: &dyn MemorySource) -> Result<Vec<Heap>, Fault> {
    look(source, false)
}

/// As [`find`], with [`Heap::returnable_ranges`]. While the process stands still, all of these pages can be dropped
/// by madvise(MADV_DONTNEED): neither Lua nor lj_alloc reads them before they are written.
pub fn find_with_ranges(source: &dyn MemorySource) -> Result<Vec<Heap>, Fault> {
    look(source, true)
}

fn look(source: &dyn MemorySource, ranges: bool) -> Result<Vec<Heap>, Fault> {
    let codes = code::find(source)?;
    if codes.is_empty() {
        return Ok(Vec::new());
    }
    match Now::of(source)? {
        Some(now) => look_with(&now, &codes, ranges),
        None => look_with(source, &codes, ranges),
    }
}

fn look_with(source: &dyn MemorySource, codes: &[Code], ranges: bool) -> Result<Vec<Heap>, Fault> {
    let mut reader = Reader::new(source);
    let Scanned { states, directs, mut claims } = scanned(&mut reader, codes)?;
    if states.is_empty() {
        return Ok(Vec::new());
    }
    reader.refresh();
    let mut large = Vec::new();
    for direct in directs {
        if is_direct(&mut reader, &direct)? && claims.take_all(std::slice::from_ref(&direct)) {
            large.push(direct);
        }
    }
    let mut assembly = Assembly { source, codes, ranges, heap: Heap::new(Kind::LuaJit), claims };
    assembly.heap.certainty.still = source.is_still();
    assembly.states(states.into_iter().map(|(_, state)| state).collect(), large)?;
    Ok(Vec::from_iter(assembly.close()))
}

/// What a scan of all pages found.
struct Scanned {
    /// Each with the page that has its books.
    states: Vec<(u64, State)>,
    /// Mappings that begin as large blocks do.
    directs: Vec<Range<u64>>,
    /// The states' segments.
    claims: Claims,
}

fn scanned(reader: &mut Reader<'_>, codes: &[Code]) -> Result<Scanned, Fault> {
    let (mut states, mut claims) = (Vec::new(), Claims::default());
    let directs = scan::pages(reader.source(), |page| {
        let state = state::read(reader, codes, page)?.filter(|_| states.len() < STATES_MOST);
        let Some(state) = state else { return Ok(Vec::new()) };
        let segments: Vec<_> = state.segments.iter().map(|segment| segment.range()).collect();
        if !claims.take_all(&segments) {
            return Ok(Vec::new());
        }
        states.push((page, state));
        Ok(segments)
    })?;
    Ok(Scanned { states, directs, claims })
}

/// Whether the mapping `range`, which begins as a large block, also ends as one.
fn is_direct(reader: &mut Reader<'_>, range: &Range<u64>) -> Result<bool, Fault> {
    if grown::place(reader.source(), range) != Place::Known {
        return Ok(false);
    }
    let foot = range.end - DIRECT_PAD;
    let mut is = |address, wanted| Ok::<_, Fault>(there(reader.u64(address))? == Some(wanted));
    Ok(is(foot + 8, layout::FENCE)? && is(foot + 16, 0)?)
}

/// Addresses that were taken, none twice.
#[derive(Debug, Default)]
struct Claims(BTreeMap<u64, u64>);

impl Claims {
    /// Takes all of `ranges`, or none if one of them is taken in part.
    fn take_all(&mut self, ranges: &[Range<u64>]) -> bool {
        let is_taken = |range: &Range<u64>| {
            let before = self.0.range(..range.end).next_back();
            before.is_some_and(|(_, end)| *end > range.start)
        };
        if ranges.iter().any(is_taken) {
            return false;
        }
        self.0.extend(ranges.iter().map(|range| (range.start, range.end)));
        true
    }

    /// In order, neighbours as one.
    fn merged(self) -> Vec<Range<u64>> {
        merged(self.0.into_iter().map(|(start, end)| start..end).collect())
    }
}

/// What one walk over a state came to.
struct Pass {
    figures: Figures,
    classes: Vec<SizeClass>,
    ranges: Option<Vec<Range<u64>>>,
    huge: Vec<Range<u64>>,
    /// What the collector said at its end.
    collector: Collector,
    corruptions: Vec<Corruption>,
    reread: u64,
    unresolved: u64,
    away: u64,
}

/// A heap being put together.
struct Assembly<'a> {
    source: &'a dyn MemorySource,
    codes: &'a [Code],
    ranges: bool,
    claims: Claims,
    heap: Heap,
}

impl Assembly<'_> {
    fn states(&mut self, states: Vec<State>, large: Vec<Range<u64>>) -> Result<(), Fault> {
        let (own, shared) = if states.len() == 1 { (large, Vec::new()) } else { (Vec::new(), large) };
        let count = states.len();
        for (index, state) in states.into_iter().enumerate() {
            if index == NOTES_MOST {
                self.heap.notes.push(format!("and {} more states", count - NOTES_MOST));
            }
            self.state(index, state, &own)?;
        }
        if let Some(first) = shared.first() {
            let mut account = Account::new(self.source);
            for block in &shared {
                walk::direct(&mut account, block)?;
            }
            self.heap.huge.extend(account.take_huge());
            let (figures, classes) = account.close()?;
            let what = format!(
                "{} in {} blocks of 128 KiB and more are counted apart: nothing says of which state",
                figures.live,
                shared.len()
            );
            self.heap.notes.push(what);
            self.arena(first.start, "large blocks of all states".to_owned(), figures, classes, None);
        }
        Ok(())
    }

    fn state(&mut self, index: usize, mut state: State, large: &[Range<u64>]) -> Result<(), Fault> {
        let mut best = self.pass(&state, large)?;
        let mut wrong = std::mem::take(&mut best.corruptions);
        let mut went_on = 0;
        for _ in 1..PASSES {
            if self.source.is_still() || best.unresolved == 0 && wrong.is_empty() {
                break;
            }
            let Some(now) = state::read(&mut Reader::new(self.source), self.codes, state.book.page)? else {
                break;
            };
            went_on += usize::from(!now.is_as(&state));
            state = now;
            let again = self.pass(&state, large)?;
            wrong.retain(|corruption| again.corruptions.contains(corruption));
            let reread = best.reread + again.reread;
            if again.unresolved <= best.unresolved {
                best = again;
            }
            best.reread = reread;
        }
        self.accuse(index, wrong, self.source.is_still() || went_on == PASSES - 1);
        self.tell(index, &state, best);
        Ok(())
    }

    /// Tells what is wrong with a state: damage, if it is `certain`. A thread that stands in the middle of an
    /// allocation, because another has its processor, leaves the same traces for as long as it stands there; damage is
    /// what is still there after the state went on.
    fn accuse(&mut self, index: usize, wrong: Vec<Corruption>, certain: bool) {
        if certain {
            let room = CORRUPTIONS_MOST.saturating_sub(self.heap.corruptions.len());
            self.heap.corruptions.extend(wrong.into_iter().take(room));
        } else if let Some(Corruption { address, what }) = wrong.first().filter(|_| index < NOTES_MOST) {
            let count = wrong.len();
            self.heap.notes.push(format!(
                "state {}: {count} places do not add up, at {address:#x} {what}: it is damaged, or a thread stands in \
                 the middle of an allocation",
                index + 1
            ));
        }
    }

    /// Walks `state` once.
    fn pass(&self, state: &State, large: &[Range<u64>]) -> Result<Pass, Fault> {
        if state.has_new {
            return self.pass_in(&grown::with(self.source, &state.segments), state, large);
        }
        self.pass_in(self.source, state, large)
    }

    fn pass_in(&self, source: &dyn MemorySource, state: &State, large: &[Range<u64>]) -> Result<Pass, Fault> {
        let mut account = Account::new(source);
        if self.ranges {
            account = account.with_ranges();
        }
        for block in large {
            walk::direct(&mut account, block)?;
        }
        let own = walk::own_chunks(state.book.page, state.segments.iter().copied());
        let mut links = Links::new(&state.book);
        let mut reader = Reader::new(source);
        let mut walk = Walk::new(&mut reader, &mut account, &own, &mut links);
        for segment in &state.segments {
            walk.segment(segment)?;
        }
        let (top, broken) = (walk.top, std::mem::take(&mut walk.broken));
        let (reread, unresolved, away) = (walk.reread + state.reread, walk.unresolved, walk.away);
        let ranges = account.take_ranges()?;
        let huge = account.take_huge();
        let (figures, classes) = account.close()?;
        let after = match source.is_still() {
            true => Some(state.clone()),
            false => state::read(&mut Reader::new(source), self.codes, state.book.page)?,
        };
        let is_quiet = after.as_ref().is_some_and(|after| after.is_as(state));
        let corruptions = match is_quiet {
            true if unresolved == 0 => judge(state, top, links),
            true => broken.into_iter().chain(state.broken.clone()).take(CORRUPTIONS_MOST).collect(),
            // Lists and books are of different moments; chunks were read again until they added up.
            false => broken,
        };
        let collector = after.map_or(state.global.collector, |after| after.global.collector);
        Ok(Pass { figures, classes, ranges, huge, collector, corruptions, reread, unresolved, away })
    }

    /// Tells what a walk over `state` came to.
    fn tell(&mut self, index: usize, state: &State, pass: Pass) {
        let name = format!("state {}", index + 1);
        let certainty = &mut self.heap.certainty;
        certainty.reread += pass.reread;
        certainty.unresolved += Bytes(pass.unresolved);
        if index < NOTES_MOST {
            self.heap.notes.push(format!("{name}: {}", in_words(&pass.collector)));
            if pass.away > 0 {
                let away = Bytes(pass.away);
                self.heap.notes.push(format!(
                    "{name}: {away} with headers on them are swapped out; what they tell is not known"
                ));
            }
        }
        let version = self.codes.get(state.code).map(|code| code.version.as_str()).unwrap_or_default();
        let version = format!("{version}{}", if state.global.is_openresty { " (OpenResty)" } else { "" });
        match &mut self.heap.version {
            None => self.heap.version = Some(version),
            Some(known) if known.split(", ").all(|known| known != version) => {
                known.push_str(", ");
                known.push_str(&version);
            }
            Some(_) => {}
        }
        for segment in &state.segments {
            // Of a process that runs there may be more than there were at first.
            self.claims.take_all(std::slice::from_ref(&segment.range()));
        }
        let room = HUGE_MOST.saturating_sub(self.heap.huge.len());
        self.heap.huge.extend(pass.huge.into_iter().take(room));
        if let Some(ranges) = pass.ranges {
            self.heap.returnable_ranges.get_or_insert_default().extend(ranges);
        }
        self.arena(state.book.address(), name, pass.figures, pass.classes, Some(pass.collector));
    }

    fn arena(
        &mut self,
        address: u64,
        name: String,
        figures: Figures,
        classes: Vec<SizeClass>,
        collector: Option<Collector>,
    ) {
        self.heap.enter(Arena { address, name, figures, collector }, classes);
    }

    fn close(mut self) -> Option<Heap> {
        if let Some(ranges) = &mut self.heap.returnable_ranges {
            ranges.sort_unstable_by_key(|range| range.start);
        }
        self.heap.claims = self.claims.merged();
        (!self.heap.arenas.is_empty()).then_some(self.heap)
    }
}

/// Where the books of a state, whose chunks all add up, say other than these do.
fn judge(state: &State, top: Option<(u64, u64)>, links: Links) -> Vec<Corruption> {
    let book = &state.book;
    if state.broken.is_some() {
        // Segments are missing, and with them what the books name.
        return state.broken.iter().cloned().collect();
    }
    let has_dv = links.has_dv();
    let mut found = links.broken(book);
    if top != Some(book.top) {
        let what = "the books name another chunk as the top than the one at a segment's end";
        found.push(Corruption { address: book.top.0, what: what.into() });
    }
    if !has_dv {
        let what = "the books name a chunk to cut blocks off that is not free";
        found.push(Corruption { address: book.dv.0, what: what.into() });
    }
    found
}

/// What the collector says, for people.
fn in_words(collector: &Collector) -> String {
    let Collector { total, threshold, estimate, phase } = collector;
    let doing = match *phase {
        "pause" => format!("waiting until {threshold}"),
        "propagate" | "atomic" => "marking".to_owned(),
        "finalize" => "running finalizers".to_owned(),
        _ => "sweeping".to_owned(),
    };
    let estimate = match estimate {
        Some(estimate) => format!(", of which it estimates {estimate} in use"),
        None => String::new(),
    };
    format!("the collector counts {total} (gc.total){estimate}; it is {doing}")
}
