//! The layouts that the walker reads: lj_alloc's books (lj_alloc.c: struct malloc_state), and the head of the main
//! lua_State and global_State (lj_obj.h, LJ_GC64), as LuaJIT 2.1 has had them since 2017 and OpenResty's branch has
//! them (read in the branch's sources of April 2020 and July 2023, found in Debian 12's of 2022 and 2023).
//!
//! Invariant: a structure is taken for what it seems only if its own parts bear each other out; what a running
//! process may be changing at the moment is no such part.

use crate::model::Collector;
use crate::reader::Reader;
use crate::source::Fault;
use ebbtide_observe::Bytes;
use std::ops::Range;

/// LJ_PAGESIZE: segments and large blocks begin and end on it.
pub(super) const PAGE: u64 = 4096;
/// DEFAULT_GRANULARITY: a segment's size is a multiple of it.
pub(super) const GRANULARITY: u64 = 128 << 10;
/// LJ_ALLOC_MBITS: all of lj_alloc's memory is below, so that a pointer fits into a tagged value.
pub(super) const ADDRESS_END: u64 = 1 << 47;
/// PINUSE_BIT in a chunk's header: the chunk before lives.
pub(super) const PREV_IN_USE: u64 = 1;
/// CINUSE_BIT: this chunk lives.
pub(super) const IN_USE: u64 = 2;
/// What no header has: sizes are multiples of 8.
pub(super) const NEVER: u64 = 4;
/// MIN_CHUNK_SIZE.
pub(super) const MIN_CHUNK: u64 = 32;
/// TOP_FOOT_SIZE: what lj_alloc keeps at a segment's end for a segment's record and fences.
pub(super) const TOP_FOOT: u64 = 64;
/// FENCEPOST_HEAD.
pub(super) const FENCE: u64 = 8 | IN_USE | PREV_IN_USE;
/// DIRECT_FOOT_PAD: behind a large block's chunk.
pub(super) const DIRECT_PAD: u64 = 32;
/// From a chunk to the memory it hands out.
pub(super) const HEADER: u64 = 16;
/// MIN_LARGE_SIZE: free chunks from here on are in trees, not in small bins.
pub(super) const MIN_LARGE: u64 = 256;
/// NSMALLBINS.
const SMALL_BINS: usize = 32;
/// sizeof(struct malloc_state) without and with the pointer to the random numbers' state (since 2.1 of June 2020),
/// as chunks.
const BOOK_CHUNKS: [u64; 2] = [872, 880];
/// sizeof(struct malloc_state) without that pointer.
const BOOK: usize = 864;
const SMALL_BINS_AT: usize = 56;
const TREES_AT: usize = 584;
const SEGMENT_AT: usize = 840;
/// sizeof(GG_State) is 6 to 7 KiB on x86_64 and 5 to 10 KiB elsewhere.
const FIRST_CHUNK: Range<u64> = 4 << 10..32 << 10;
/// sizeof(lua_State), after which global_State begins: 96 in LuaJIT, 104 and 112 in OpenResty's branch.
const LUA_STATE: [u64; 3] = [96, 104, 112];
/// Where in global_State allocf is: behind the string table's three fields until June 2020, then first.
const GLOBAL_START: [usize; 2] = [0, 16];
/// mainthref has moved between versions, but always lay within so much of global_State.
const GLOBAL_HEAD: usize = 400;
/// ~LJ_TTHREAD, the type of a lua_State.
const THREAD: u8 = 6;

/// The little-endian word at `at`; zero beyond the end.
pub(super) fn word(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..at + 8).map_or(0, |word| u64::from_le_bytes(word.try_into().unwrap_or_default()))
}

/// Whether `head`, the second word of a page, is what begins the page with lj_alloc's books on it. The chunk before
/// may be free where a segment below was merged with this one (prepend_alloc).
#[inline]
pub(super) fn heads_book(head: u64) -> bool {
    BOOK_CHUNKS.iter().any(|size| head | PREV_IN_USE == size | IN_USE | PREV_IN_USE)
}

/// The size of the mapping that begins with `foot` and `head`, if that is how direct_alloc begins a large block.
#[inline]
pub(super) fn heads_direct(foot: u64, head: u64) -> Option<u64> {
    let size = (head & !(IN_USE | PREV_IN_USE)).checked_add(DIRECT_PAD)?;
    (foot == 1 && head & 7 == IN_USE && size.is_multiple_of(PAGE) && (PAGE..ADDRESS_END).contains(&size))
        .then_some(size)
}

/// One stretch of memory that lj_alloc took from the system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Segment {
    pub(super) base: u64,
    pub(super) size: u64,
    /// Where the record of the next one is, or 0.
    pub(super) next: u64,
}

impl Segment {
    pub(super) fn parse(bytes: &[u8]) -> Segment {
        Segment { base: word(bytes, 0), size: word(bytes, 8), next: word(bytes, 16) }
    }

    /// Where it ends. Only of those that are sound is it certain not to overflow.
    pub(super) fn end(&self) -> u64 {
        self.base.saturating_add(self.size)
    }

    pub(super) fn range(&self) -> Range<u64> {
        self.base..self.end()
    }

    /// Whether lj_alloc can have taken it.
    pub(super) fn is_sound(&self) -> bool {
        self.base.is_multiple_of(PAGE)
            && self.base > 0
            && self.size > 0
            && self.size.is_multiple_of(GRANULARITY)
            && self.base < ADDRESS_END
            && self.size <= ADDRESS_END - self.base
    }
}

/// lj_alloc's books (`struct malloc_state`, "mstate"), which are in the first segment that it took.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Book {
    /// The page they are on; they are in that page's first chunk.
    pub(super) page: u64,
    /// That chunk's size.
    pub(super) chunk: u64,
    /// The chunk that small blocks are cut off, and its size; 0 for none.
    pub(super) dv: (u64, u64),
    /// The chunk at the end of what was used, and its size.
    pub(super) top: (u64, u64),
    /// The segment that was taken last, first of the list.
    pub(super) segment: Segment,
    /// Which small bins are not empty, a bit for each.
    map: u64,
    /// Of each small bin the first and the last chunk, or the bin itself; what they were, where it was emptied.
    bins: [(u64, u64); SMALL_BINS],
    /// All of it, to tell whether it changed.
    bytes: Vec<u8>,
}

impl Book {
    /// The books on the page `page`, if it begins with such.
    pub(super) fn read(reader: &mut Reader<'_>, page: u64) -> Result<Option<Book>, Fault> {
        Ok(Book::parse(page, reader.bytes(page, HEADER as usize + BOOK + 8)?))
    }

    fn parse(page: u64, bytes: &[u8]) -> Option<Book> {
        let head = word(bytes, 8);
        if !heads_book(head) {
            return None;
        }
        let book = bytes.get(HEADER as usize..)?;
        let bins: Vec<_> = (0..SMALL_BINS)
            .map(|bin| (word(book, SMALL_BINS_AT + 16 * bin + 16), word(book, SMALL_BINS_AT + 16 * bin + 24)))
            .collect();
        let found = Book {
            page,
            chunk: head & !7,
            dv: (word(book, 24), word(book, 8)),
            top: (word(book, 32), word(book, 16)),
            segment: Segment::parse(&book[SEGMENT_AT..]),
            map: word(book, 0) & u64::from(u32::MAX),
            bins: bins.try_into().ok()?,
            bytes: book.to_vec(),
        };
        found.is_sound().then_some(found)
    }

    /// Where the mstate is.
    pub(super) fn address(&self) -> u64 {
        self.page + HEADER
    }

    /// What cannot change while a process runs: no chunk is so small that it would be in the first bins, and the
    /// links of the others always lead somewhere.
    fn is_sound(&self) -> bool {
        let own = |bin: usize| (self.bin(bin as u64), self.bin(bin as u64));
        (0..4).all(|bin| self.bins[bin] == own(bin))
            && self
                .bins
                .iter()
                .all(|&(first, last)| first % 8 == 0 && last % 8 == 0 && first != 0 && last != 0)
            && self.segment.is_sound()
            && self.top.0.is_multiple_of(8)
            && self.dv.0.is_multiple_of(8)
    }

    /// The address by which small bin `bin` is linked, as if it were a chunk.
    fn bin(&self, bin: u64) -> u64 {
        self.address() + SMALL_BINS_AT as u64 + 16 * bin
    }

    /// The small bins that are not empty: the address by which each is linked, and its first and last chunk.
    pub(super) fn bins(&self) -> impl Iterator<Item = (u64, (u64, u64))> {
        let map = self.map;
        (0..).map(|bin| self.bin(bin)).zip(self.bins).enumerate().filter_map(move |(bin, links)| {
            // A bin that was emptied keeps its links; only the map says so.
            (map >> bin & 1 == 1).then_some(links)
        })
    }

    /// The roots of the trees of free chunks from [`MIN_LARGE`] on, 0 where a tree is empty.
    pub(super) fn trees(&self) -> impl Iterator<Item = u64> + '_ {
        (TREES_AT..SEGMENT_AT).step_by(8).map(|at| word(&self.bytes, at))
    }

    /// The first and the last chunk of the bin that is linked as `address`.
    pub(super) fn bin_at(&self, address: u64) -> Option<(u64, u64)> {
        let offset = address.checked_sub(self.bin(0))?;
        if offset % 16 != 0 {
            return None;
        }
        self.bins.get((offset / 16) as usize).copied()
    }
}

/// What the head of a Lua state says: GG_State, the first block that is taken from a new mstate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Global {
    /// The allocator's function.
    pub(super) allocf: u64,
    /// The collector's count.
    pub(super) collector: Collector,
    /// Whether lua_State has the fields that OpenResty's branch added.
    pub(super) is_openresty: bool,
}

impl Global {
    /// The state whose books are `book`, if its parts lead back to each other: the main thread to the global state,
    /// that to the books and back to the main thread, and the books to the global state.
    pub(super) fn read(reader: &mut Reader<'_>, book: &Book) -> Result<Option<Global>, Fault> {
        let chunk = book.page + book.chunk;
        let head = reader.u64(chunk + 8)?;
        if head & 7 != IN_USE | PREV_IN_USE || !FIRST_CHUNK.contains(&(head & !7)) {
            return Ok(None);
        }
        let thread = chunk + HEADER;
        let end = chunk + (head & !7);
        let bytes: [u8; 24] = reader.array(thread)?;
        let global = word(&bytes, 16);
        if bytes[9] != THREAD || !LUA_STATE.contains(&global.wrapping_sub(thread)) {
            return Ok(None);
        }
        let bytes = reader.bytes(global, GLOBAL_HEAD)?;
        let Some(start) = GLOBAL_START.into_iter().find(|start| word(bytes, start + 8) == book.address())
        else {
            return Ok(None);
        };
        let main = bytes.as_chunks::<8>().0.iter().any(|&at| u64::from_le_bytes(at) == thread);
        // global_State.prng, which newer books point to, is in the same block.
        let random = word(&book.bytes, BOOK);
        let random = book.chunk == BOOK_CHUNKS[0] || (global..end).contains(&random);
        let Some(collector) = collector(&bytes[start..]).filter(|_| random && main) else { return Ok(None) };
        let is_openresty = global - thread != LUA_STATE[0];
        Ok(Some(Global { allocf: word(bytes, start), collector, is_openresty }))
    }
}

/// GCSpause to GCSfinalize.
const PHASES: [&str; 6] = ["pause", "propagate", "atomic", "sweep-strings", "sweep", "finalize"];

/// The collector's figures: behind allocf and allocd, which are the first of `bytes`.
fn collector(bytes: &[u8]) -> Option<Collector> {
    Some(Collector {
        total: Bytes(word(bytes, 16)),
        threshold: Bytes(word(bytes, 24)),
        estimate: Some(Bytes(word(bytes, 96))).filter(|estimate| *estimate > Bytes::ZERO),
        phase: PHASES.get(usize::from(*bytes.get(33)?))?,
    })
}
