//! Where everything lies: one range of addresses for all memory handed out, and beside it the side tables that
//! say what each page is. Nothing about a block is ever kept in the block.
//!
//! ```text
//! BASE                +4 TiB    +1 GiB      +16 GiB     +24 GiB
//! | pages handed out .. | classes | records | wide bits | chunks |
//!                         1 B      16 B      24 B        512 B
//!                         per page per page  per page    per chunk of 2 MiB
//! ```
//!
//! The range is a convention, not a reservation: chunks are mapped one by one where they belong, never over
//! anything (`MAP_FIXED_NOREPLACE`), and tables follow the highest chunk in steps of 64 MiB of heap. A reserved
//! range would count against RLIMIT_AS, also one that the program sets later for itself, when every further
//! mmap and thread would fail; so nothing is reserved, and the fast path still finds a page's class with one
//! subtraction and one load.
//!
//! Invariants: a [`Page`] below [`limit`] has its tables mapped, for ever; the limit only grows.

use crate::bits::{Bits, CHUNK_PAGES};
use crate::class::PAGE;
use crate::stats::COUNT;
use crate::sys::{self, Errno, Use};
use core::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering};

/// Bytes in a chunk: what the page heap gets from the kernel at a time, and the grain of large blocks.
pub(crate) const CHUNK: usize = CHUNK_PAGES * PAGE;
/// Bytes of the range.
pub(crate) const RANGE: usize = 1 << 42;
const PAGES: usize = RANGE / PAGE;
/// Chunks of the range.
pub(crate) const CHUNKS: usize = RANGE / CHUNK;

pub(crate) const CLASS_AT: usize = RANGE;
pub(crate) const RECORD_AT: usize = CLASS_AT + PAGES;
pub(crate) const WIDE_AT: usize = RECORD_AT + PAGES * size_of::<Record>();
pub(crate) const CHUNK_AT: usize = WIDE_AT + PAGES * size_of::<Wide>();
/// Tables grow by what this many chunks need.
const STEP: usize = 32;

/// A class byte that says: the first page of what was freed of large blocks and waits to be unmapped.
pub(crate) const KEPT: u8 = 0xfd;
/// A class byte that says: the first page of a run of pages.
pub(crate) const RUN: u8 = 0xfe;
/// A class byte that says: the first page of a large block, which has chunks of its own.
pub(crate) const LARGE: u8 = 0xff;

/// Beside each other, for the fast path.
struct Range {
    base: AtomicUsize,
    limit: AtomicUsize,
}

static MAP: Range = Range { base: AtomicUsize::new(0), limit: AtomicUsize::new(0) };

/// A page of the range, counted from its beginning, below [`limit`] (so that its tables may be read).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Page(u32);

/// What the tables keep of a page beside its class. The first page of a span has the span's record.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Record {
    /// A span: bits of the free slots (the first 64). A run: its pages. A large block: its bytes.
    pub(crate) bits: AtomicU64,
    /// A span: the next span of its bucket, plus one. A span's further pages: [`TAIL`] and how many pages back
    /// the span begins.
    pub(crate) next: AtomicU32,
    /// A span: the one before it in its bucket, plus one.
    pub(crate) prev: AtomicU32,
}

/// Free bits of slots 64 to 255, for classes below 64 bytes.
pub(crate) type Wide = [AtomicU64; 3];

/// Marks a further page of a span in [`Record::next`].
pub(crate) const TAIL: u32 = 1 << 31;

/// What the tables keep of a chunk.
#[derive(Debug)]
#[repr(C, align(512))]
pub(crate) struct Chunk {
    /// Pages nobody uses.
    pub(crate) free: Bits,
    /// Of these, the ones used since the last turn of the purge, and so resident.
    pub(crate) fresh: Bits,
    /// Of these, the ones that were fresh at the last turn and have not been used since.
    pub(crate) stale: Bits,
    /// Pages given back and not used since: an allocation of one is a refault.
    pub(crate) purged: Bits,
    /// How many are free.
    pub(crate) nfree: AtomicU32,
    /// How many are fresh or stale.
    pub(crate) ndirty: AtomicU32,
    /// No free run is longer than this.
    pub(crate) longest: AtomicU32,
    /// Chunks that belong to the large block beginning here.
    pub(crate) held: AtomicU32,
}

/// Finds a place for the range and maps the first tables. Called once, under the page heap's lock.
pub(crate) fn init() -> Result<(), Errno> {
    if MAP.base.load(Ordering::Relaxed) != 0 {
        return Ok(());
    }
    // 40 to 72 TiB: above the fixed heaps of ZGC (4 to 32 TiB), below position-independent executables (85 TiB)
    // and the kernel's own choices. The last place is for valgrind, which keeps programs below 16 TiB.
    const LOW: usize = 40 << 40;
    let random = (sys::random() as usize % (1 << 14)) << 31;
    let places = [LOW + random, LOW + (random ^ (1 << 44)), 8 << 40, 12 << 40];
    let mut last = Errno(12);
    for base in places {
        MAP.base.store(base, Ordering::Relaxed);
        if cfg!(target_arch = "aarch64") && !pages_are_small(base) {
            crate::check::die("this kernel's pages are not of 4 KiB", None);
        }
        match extend(STEP) {
            Ok(()) => {
                COUNT.tables.paged.set(crate::pages::PAGED.address() as u64);
                COUNT.range_bytes.set(RANGE as u64);
                COUNT.range_address.set(base as u64);
                return Ok(());
            }
            Err(e) => last = e,
        }
    }
    MAP.base.store(0, Ordering::Relaxed);
    Err(last)
}

/// Whether the kernel maps at 4 KiB boundaries. With larger pages, giving back 4 KiB would wipe what is beside.
fn pages_are_small(base: usize) -> bool {
    let fine = sys::map_at(base + PAGE, PAGE, Use::Place).is_ok();
    if fine {
        // SAFETY: mapped on the line above, used by nobody.
        let _ = unsafe { sys::unmap(base + PAGE, PAGE) };
    }
    fine
}

/// The first address of the range; 0 before there is one.
#[inline]
pub(crate) fn base() -> usize {
    MAP.base.load(Ordering::Relaxed)
}

/// Pages whose tables are mapped.
#[inline]
pub(crate) fn limit() -> usize {
    MAP.limit.load(Ordering::Acquire)
}

/// Makes sure that the tables of the first `chunks` chunks are mapped. Called under the page heap's lock.
pub(crate) fn extend(chunks: usize) -> Result<(), Errno> {
    let have = limit() / CHUNK_PAGES;
    if chunks <= have {
        return Ok(());
    }
    let want = chunks.next_multiple_of(STEP);
    if want > CHUNKS {
        return Err(Errno(12));
    }
    let base = base();
    let tables = [
        (CLASS_AT, CHUNK_PAGES),
        (RECORD_AT, CHUNK_PAGES * size_of::<Record>()),
        (WIDE_AT, CHUNK_PAGES * size_of::<Wide>()),
        (CHUNK_AT, size_of::<Chunk>()),
    ];
    for (i, (at, per_chunk)) in tables.into_iter().enumerate() {
        let (addr, len) = (base + at + have * per_chunk, (want - have) * per_chunk);
        if let Err(e) = sys::map_at(addr, len, Use::Table) {
            for &(at, per_chunk) in tables.iter().take(i) {
                // SAFETY: mapped by this call, and not yet below the limit, so nobody has seen it.
                let _ = unsafe { sys::unmap(base + at + have * per_chunk, (want - have) * per_chunk) };
            }
            return Err(e);
        }
        sys::no_huge_pages(addr, len);
        sys::name_mapping(addr, len, c"ebbtide tables");
    }
    MAP.limit.store(want * CHUNK_PAGES, Ordering::Release);
    COUNT.tables.pages.set((want * CHUNK_PAGES) as u64);
    Ok(())
}

/// Gives back what the tables keep of the pages of a chunk that was unmapped: zeros say the same, that there is nothing.
/// Called under the page heap's lock.
pub(crate) fn forget(chunk: usize) {
    for (at, per_chunk) in
        [(RECORD_AT, CHUNK_PAGES * size_of::<Record>()), (WIDE_AT, CHUNK_PAGES * size_of::<Wide>())]
    {
        // SAFETY: whole pages of a table (tested) that tell of pages nobody uses. A refusal leaves what is as good.
        let _ = unsafe { sys::give_back(base() + at + chunk * per_chunk, per_chunk) };
    }
    crate::lua::forget(chunk);
}

impl Page {
    /// The page an address lies in, if it is one of the range's.
    #[inline]
    pub(crate) fn of(addr: usize) -> Option<Page> {
        let page = addr.wrapping_sub(MAP.base.load(Ordering::Relaxed)) / PAGE;
        (page < MAP.limit.load(Ordering::Relaxed)).then_some(Page(page as u32))
    }

    /// Page number `n`, which must have come from a `Page` ([`Page::index`]) or be below the limit.
    #[inline]
    pub(crate) fn at(n: usize) -> Page {
        debug_assert!(n < limit());
        Page(n as u32)
    }

    /// Its number.
    #[inline]
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }

    /// Its first address.
    #[inline]
    pub(crate) fn address(self) -> usize {
        base() + self.index() * PAGE
    }

    /// The page `n` further on, in the same chunk or block.
    #[inline]
    pub(crate) fn plus(self, n: usize) -> Page {
        Page(self.0 + n as u32)
    }

    /// The page `n` before, in the same chunk.
    #[inline]
    pub(crate) fn minus(self, n: usize) -> Page {
        Page(self.0 - n as u32)
    }

    /// Its class: 0, a class of slots, [`RUN`] or [`LARGE`].
    #[inline]
    pub(crate) fn class(self) -> &'static AtomicU8 {
        let at = base() + CLASS_AT + self.index();
        // SAFETY: a page's tables are mapped for ever (the type's invariant); any byte is a valid AtomicU8.
        unsafe { &*core::ptr::with_exposed_provenance(at) }
    }

    /// Its record.
    #[inline]
    pub(crate) fn record(self) -> &'static Record {
        let at = base() + RECORD_AT + self.index() * size_of::<Record>();
        // SAFETY: as for the class; tables begin at page boundaries, so the record is aligned.
        unsafe { &*core::ptr::with_exposed_provenance(at) }
    }

    /// The rest of its free bits.
    #[inline]
    pub(crate) fn wide(self) -> &'static Wide {
        let at = base() + WIDE_AT + self.index() * size_of::<Wide>();
        // SAFETY: as for the record.
        unsafe { &*core::ptr::with_exposed_provenance(at) }
    }
}

impl Chunk {
    /// Chunk number `n`, which must be below the limit.
    #[inline]
    pub(crate) fn at(n: usize) -> &'static Chunk {
        debug_assert!(n < limit() / CHUNK_PAGES);
        let at = base() + CHUNK_AT + n * size_of::<Chunk>();
        // SAFETY: the tables of chunks below the limit are mapped; all zeros is a valid chunk.
        unsafe { &*core::ptr::with_exposed_provenance(at) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_have_the_sizes_the_layout_says() {
        assert_eq!(size_of::<Record>(), 16);
        assert_eq!(size_of::<Wide>(), 24);
        assert_eq!(size_of::<Chunk>(), 512);
        for at in [CLASS_AT, RECORD_AT, WIDE_AT, CHUNK_AT] {
            assert_eq!(at % CHUNK, 0);
        }
        assert_eq!(STEP * CHUNK_PAGES % PAGE, 0, "a step of the smallest table is whole pages");
        for entry in [size_of::<Record>(), size_of::<Wide>()] {
            assert_eq!(CHUNK_PAGES * entry % PAGE, 0, "a chunk's part is whole pages");
        }
        assert!(u32::try_from(PAGES).is_ok_and(|p| p < TAIL));
    }

    #[test]
    fn foreign_addresses_have_no_page() {
        for addr in [0, 1, usize::MAX, core::ptr::from_ref(&MAP) as usize] {
            assert_eq!(Page::of(addr), None);
        }
    }
}
