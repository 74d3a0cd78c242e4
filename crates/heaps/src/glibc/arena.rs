//! Arenas as their books say: `struct malloc_state` of the main arena and of those in the ring behind it, the
//! chains of heaps of thread arenas, and `mp_`.
//!
//! Invariants: a main arena is one only if its bins are lists, whatever the file claimed; a thread arena only
//! if the heap it lies in points back to it. Rings and chains are bounded and end at the first repetition.

use super::layout::{BINS, FAST_BINS, Layout};
use super::locate::{Claim, word_at};
use crate::reader::Reader;
use crate::source::{Area, Fault, MemorySource};
use std::collections::HashSet;

/// More arenas than any limit allows: 8 for each processor unless told otherwise, and told up to this.
const ARENAS_MOST: usize = 4096;
/// More heaps than an arena can have: 47 bits of addresses by 64 MiB, less what else there is.
const HEAPS_MOST: usize = 1 << 16;
/// So many of the 127 bins must be lists: damage to a few shall be found, not hide the heap.
const LISTS_LEAST: usize = 112;
/// More threads than may be allocating large blocks at one moment.
const THREADS_MOST: u64 = 1 << 15;
/// Nothing is mapped below (vm.mmap_min_addr), nor above, with 5 levels of page tables.
const PAGES_BELOW: u64 = 1 << 16;
const USER_END: u64 = 1 << 56;
/// A heap under way is read again this often.
const READS_MOST: usize = 4;

/// An arena's books at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct State {
    pub(super) address: u64,
    /// A thread is at work in it: what does not add up is not damage.
    pub(super) is_locked: bool,
    /// Bit 1: the main arena's memory is not in one piece.
    pub(super) flags: u32,
    /// The heads of the quick lists: chunks.
    pub(super) fast: [u64; FAST_BINS],
    /// The chunk at the end of the newest memory.
    pub(super) top: u64,
    pub(super) next: u64,
    /// Bytes taken from the system.
    pub(super) system: u64,
    /// The most they ever were.
    system_most: u64,
    /// First and last chunk of each bin, with the address both have when it is empty.
    pub(super) bins: Vec<(u64, u64, u64)>,
}

impl State {
    fn parse(layout: &Layout, address: u64, bytes: &[u8]) -> Option<State> {
        let word = |at| word_at(bytes, at);
        let mut fast = [0; FAST_BINS];
        if let Some(first) = layout.fast {
            for (index, head) in fast.iter_mut().enumerate() {
                *head = word(first + 8 * index)?;
            }
        }
        let mut bins = Vec::with_capacity(BINS);
        for index in 0..BINS {
            let at = layout.bins + 16 * index;
            // A bin is a chunk of which only the two list pointers exist.
            bins.push((word(at)?, word(at + 8)?, address.wrapping_add(at as u64).wrapping_sub(16)));
        }
        Some(State {
            address,
            is_locked: word(0)? as u32 != 0,
            flags: (word(0)? >> 32) as u32,
            fast,
            top: word(layout.top)?,
            next: word(layout.next)?,
            system: word(layout.system)?,
            system_most: word(layout.system + 8)?,
            bins,
        })
    }

    /// Reads the arena at `address`.
    pub(super) fn read(reader: &mut Reader<'_>, layout: &Layout, address: u64) -> Result<State, Fault> {
        let mut bytes = Vec::new();
        let end = address.checked_add(layout.state_size() as u64).ok_or(Fault::Unmapped(address))?;
        reader.copy(address..end, &mut bytes)?;
        State::parse(layout, address, &bytes).ok_or(Fault::Unmapped(address))
    }

    /// Whether nothing was ever allocated from it: all bins are zero until the first allocation, and `top` is
    /// a bin until memory is taken from the system.
    pub(super) fn is_unused(&self) -> bool {
        self.system == 0
            && (self.top == 0 || self.bins.first().is_some_and(|(.., bin)| *bin == self.top))
            && self
                .bins
                .iter()
                .all(|&(first, last, bin)| (first, last) == (0, 0) || (first, last) == (bin, bin))
    }

    /// Whether the main arena's memory is not in one piece (NONCONTIGUOUS_BIT).
    pub(super) fn is_scattered(&self) -> bool {
        self.flags & 2 != 0
    }

    /// Bins that are no lists: neither empty nor with two ends in memory that can be written. Of a process that
    /// runs, that may be memory it has taken since its mappings were read.
    pub(super) fn broken_bins<'a>(&'a self, source: &'a dyn MemorySource) -> impl Iterator<Item = u64> + 'a {
        let known = |address| !source.is_still() || writable(source, address).is_some();
        let chunk = move |address: u64| {
            address.is_multiple_of(16) && (PAGES_BELOW..USER_END).contains(&address) && known(address)
        };
        self.bins
            .iter()
            .filter(move |&&(first, last, bin)| match (first == bin, last == bin) {
                (true, true) => false,
                (false, false) => !chunk(first) || !chunk(last),
                _ => true,
            })
            .map(|&(.., bin)| bin)
    }
}

/// The area that `address` may be written in.
pub(super) fn writable(source: &dyn MemorySource, address: u64) -> Option<&Area> {
    source.area_at(address).filter(|area| area.perms.read && area.perms.write && !area.perms.shared)
}

/// `mp_` at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Parameters {
    pub(super) address: u64,
    /// Blocks that are mappings of their own.
    pub(super) n_mmaps: u64,
    /// Their bytes.
    pub(super) mmapped: u64,
    /// Where the main arena's memory began; 0 before the first.
    pub(super) sbrk_base: u64,
    /// The unit in which the main arena's top is cut, if not a page.
    pub(super) thp_page: u64,
    /// The huge pages that arenas are made of, if any.
    pub(super) huge_page: u64,
    /// The most blocks in one of a thread cache's lists; 0 without caches.
    pub(super) cache_count: u64,
}

impl Parameters {
    /// Reads them; `None` if they are none: a size that is no whole pages, or a base that is not in memory.
    pub(super) fn read(reader: &mut Reader<'_>, claim: &Claim) -> Result<Option<Parameters>, Fault> {
        let params = &claim.layout.params;
        let mut bytes = Vec::new();
        let end = claim.params.checked_add(params.size as u64).ok_or(Fault::Unmapped(claim.params))?;
        reader.copy(claim.params..end, &mut bytes)?;
        let word = |at| word_at(&bytes, at).unwrap_or(0);
        let found = Parameters {
            address: claim.params,
            n_mmaps: word(params.n_mmaps) & 0xffff_ffff,
            mmapped: word(params.mmapped),
            sbrk_base: word(params.sbrk_base),
            thp_page: params.huge.map_or(0, word),
            huge_page: params.huge.map_or(0, |huge| word(huge + 8)),
            cache_count: params.cache.map_or(0, |cache| word(cache + 16)),
        };
        let unit = if claim.layout.mmapped_tail() > 0 { 16 } else { 4096 };
        // Blocks are counted before their bytes are.
        let on_their_way = if reader.source().is_still() { 0 } else { THREADS_MOST };
        let plausible = found.mmapped.is_multiple_of(unit)
            && found.n_mmaps <= found.mmapped / 4096 + on_their_way
            && found.mmapped < 1 << 57
            && (found.sbrk_base == 0 || writable(reader.source(), found.sbrk_base).is_some());
        Ok(plausible.then_some(found))
    }
}

/// What a process says to what a file claims.
pub(super) enum Confirmed {
    /// It bears it out, with the main arena and `mp_` as they are.
    Yes(Box<(Claim, State, Parameters)>),
    No,
    /// It cannot be asked without bringing a page back into memory.
    Swapped,
}

/// The first of `claims` that the running process bears out. A process that changes while it is read is asked a
/// few times.
pub(super) fn confirm(reader: &mut Reader<'_>, claims: &[Claim]) -> Result<Confirmed, Fault> {
    let mut swapped = false;
    for _ in 0..READS_MOST {
        for claim in claims {
            let state = match State::read(reader, &claim.layout, claim.arena) {
                Ok(state) => state,
                Err(fault @ (Fault::Unmapped(_) | Fault::Swapped(_))) => {
                    swapped |= matches!(fault, Fault::Swapped(_));
                    continue;
                }
                Err(fault) => return Err(fault),
            };
            let lists = BINS - state.broken_bins(reader.source()).count();
            // No count of threads is taken for a size.
            let sized = (4096..=state.system_most).contains(&state.system);
            let is_arena = state.is_unused() || (lists >= LISTS_LEAST && sized);
            let params = match Parameters::read(reader, claim) {
                Err(Fault::Unmapped(_)) => None,
                Err(Fault::Swapped(_)) => {
                    swapped = true;
                    None
                }
                read => read?,
            };
            if let (true, Some(params)) = (is_arena, params) {
                return Ok(Confirmed::Yes(Box::new((*claim, state, params))));
            }
        }
        if reader.source().is_still() {
            break;
        }
        reader.refresh();
    }
    Ok(if swapped { Confirmed::Swapped } else { Confirmed::No })
}

/// Where a ring or a chain breaks off.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Broken {
    /// The pointer that leads nowhere good.
    pub(super) address: u64,
    pub(super) what: &'static str,
    /// No running program leaves it so; else it cannot be read.
    pub(super) is_damage: bool,
}

impl Broken {
    fn damaged(address: u64, what: &'static str) -> Option<Broken> {
        Some(Broken { address, what, is_damage: true })
    }

    fn swapped(address: u64, what: &'static str) -> Option<Broken> {
        Some(Broken { address, what, is_damage: false })
    }
}

/// The thread arenas in the ring behind `main`, and what is wrong with the ring.
pub(super) fn ring(
    reader: &mut Reader<'_>,
    layout: &Layout,
    main: &State,
) -> Result<(Vec<State>, Option<Broken>), Fault> {
    let mut arenas: Vec<State> = Vec::new();
    let mut seen = HashSet::from([main.address]);
    let (mut pointer, mut next) = (main.address.wrapping_add(layout.next as u64), main.next);
    let broken = loop {
        if next == main.address {
            break None;
        }
        if arenas.len() == ARENAS_MOST || !seen.insert(next) {
            break Broken::damaged(pointer, "the ring of arenas does not close");
        }
        match State::read(reader, layout, next) {
            Ok(state) if writable(reader.source(), next).is_some() => {
                (pointer, next) = (next.wrapping_add(layout.next as u64), state.next);
                arenas.push(state);
            }
            Ok(_) | Err(Fault::Unmapped(_)) => {
                break Broken::damaged(pointer, "the next arena's address leads nowhere");
            }
            Err(Fault::Swapped(_)) => {
                break Broken::swapped(
                    pointer,
                    "an arena is swapped out: it and those behind it are not known",
                );
            }
            Err(fault) => return Err(fault),
        }
    };
    // The newest arenas come first; people count from the oldest.
    arenas.reverse();
    Ok((arenas, broken))
}

/// A stretch of chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    /// Where the memory begins: books come before the first chunk.
    pub(super) base: u64,
    /// The first chunk.
    pub(super) first: u64,
    /// Where chunks end.
    pub(super) end: u64,
    /// Where what may be read ends.
    pub(super) mapped_end: u64,
    /// Whether its last chunk is the arena's top.
    pub(super) holds_top: bool,
    /// The addresses that are taken, readable or not.
    pub(super) claim_end: u64,
}

/// The heaps of thread arena `state`, in the order of addresses, and what is wrong with them.
pub(super) fn heaps(
    reader: &mut Reader<'_>,
    layout: &Layout,
    state: &State,
    heap_max: u64,
) -> Result<(Vec<Span>, Option<Broken>), Fault> {
    let mut spans: Vec<Span> = Vec::new();
    let mut seen = HashSet::new();
    let mut heap = state.top & !(heap_max - 1);
    let broken = loop {
        if spans.len() == HEAPS_MOST || !seen.insert(heap) {
            break Broken::damaged(heap, "the chain of heaps does not end");
        }
        let words = match reader.array::<32>(heap) {
            Ok(bytes) => bytes,
            Err(Fault::Unmapped(_)) => break Broken::damaged(heap, "a heap's address leads nowhere"),
            Err(Fault::Swapped(_)) => {
                break Broken::swapped(
                    heap,
                    "a heap's books are swapped out: it and older ones are not known",
                );
            }
            Err(fault) => return Err(fault),
        };
        let word = |index: usize| word_at(&words, 8 * index).unwrap_or(0);
        let (arena, previous, size, readable) = (word(0), word(1), word(2), word(3));
        if arena != state.address {
            break Broken::damaged(heap, "a heap belongs to another arena than its chain does");
        }
        if size < layout.heap_info || size > readable || readable > heap_max || size % 16 != 0 {
            break Broken::damaged(heap, "a heap's size is none");
        }
        let books = match (heap..heap + size).contains(&state.address) {
            true => state.address - heap + layout.state_size() as u64,
            false => layout.heap_info,
        };
        let first = heap + books.next_multiple_of(16);
        spans.push(Span {
            base: heap,
            first: first.min(heap + size),
            end: heap + size,
            mapped_end: heap + readable,
            holds_top: spans.is_empty(),
            claim_end: heap + heap_max,
        });
        if previous == 0 {
            let known = spans.iter().any(|span| (span.base..span.end).contains(&state.address));
            break if known { None } else { Broken::damaged(heap, "an arena lies in none of its heaps") };
        }
        heap = previous;
    };
    spans.sort_by_key(|span| span.base);
    Ok((spans, broken))
}
