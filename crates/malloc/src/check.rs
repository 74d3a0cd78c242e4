//! What is detected and how it is said: a line on standard error that names the pointer, then SIGABRT.
//!
//! Always on, because the bitmaps tell for next to nothing: a block freed twice in a row (at once), twice with
//! others between (when the magazine is emptied), a pointer inside a block (likewise), a pointer to no block (at
//! once). Blocks hold no links, so writing to freed memory cannot mislead the allocator at any level.
//!
//! `EBBTIDE_MALLOC_CHECK` asks for more:
//! 1. every 1024 slow operations the whole of the bins' and the page heap's invariants are checked;
//! 2. threads get no magazines, so every wrong free is detected at once;
//! 3. freed slots are filled with [`FILL`] and looked at before they are handed out again: a write after free
//!    is detected then.

use crate::bins;
use crate::bits::CHUNK_PAGES;
use crate::class::{CLASSES, Class};
use crate::kept::{self, Extent};
use crate::map::{Chunk, KEPT, Page, TAIL};
use crate::pages::{PAGED, TAKEN};
use crate::{pages, purge, sys};
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// What freed slots are filled with at level 3.
pub(crate) const FILL: u8 = 0xdf;
/// Slow operations between walks at level 1 and above.
const OPS_PER_WALK: u32 = 1024;

static LEVEL: AtomicU32 = AtomicU32::new(0);

/// Sets the level; in the constructor, before other threads exist.
pub(crate) fn set_level(level: u32) {
    LEVEL.store(level, Relaxed);
}

/// Whether invariants are to be checked.
#[inline]
pub(crate) fn is_asked() -> bool {
    LEVEL.load(Relaxed) > 0
}

/// Whether threads go without magazines.
#[inline]
pub(crate) fn direct() -> bool {
    LEVEL.load(Relaxed) >= 2
}

/// Fills a slot or run that is being freed, at level 3.
pub(crate) fn fill(addr: usize, size: usize) {
    if LEVEL.load(Relaxed) >= 3 {
        // SAFETY: the program has just freed these `size` bytes, and they are not free yet for others.
        unsafe { core::ptr::write_bytes(core::ptr::with_exposed_provenance_mut::<u8>(addr), FILL, size) };
    }
}

/// Looks at a slot that is about to be handed out, at level 3.
pub(crate) fn look(addr: usize, class: u8) {
    if LEVEL.load(Relaxed) < 3 {
        return;
    }
    let size = Class::of(class).size as usize;
    // SAFETY: the slot is free and this thread's since it was taken from the bin.
    let bytes = unsafe { core::slice::from_raw_parts(core::ptr::with_exposed_provenance::<u8>(addr), size) };
    // Pages never used or given back read as zeros.
    if let Some(at) = bytes.iter().position(|b| *b != FILL && *b != 0) {
        die("written after it was freed", Some(addr + at));
    }
}

/// At level 1 and above, now and then: every invariant that can be seen under the locks.
#[inline]
pub(crate) fn sometimes() {
    static OPS: AtomicU32 = AtomicU32::new(0);
    if is_asked() && OPS.fetch_add(1, Relaxed).is_multiple_of(OPS_PER_WALK) {
        walk();
    }
}

/// Checks all bins and the page heap; aborts if anything is off.
pub(crate) fn walk() {
    // No claims are open while this is held, so every page is where the bitmaps say.
    let _pass = purge::hold();
    for class in 1..CLASSES as u8 {
        bins::bin(class).each_span(|span, bucket, c| check_span(span, bucket, class, c));
    }
    kept::each(check_extent);
    let _pages = pages::pages();
    let mut at = 0;
    while let Some(n) = PAGED.next(at) {
        check_chunk(n);
        at = n + 1;
    }
}

fn check_span(span: Page, bucket: u32, class: u8, c: &Class) {
    let free = bins::free_slots(span, c);
    demand(free > 0 && free < c.slots, "a listed span is neither full nor empty", span);
    demand(c.bucket(free) == bucket, "a span is in the bucket of its count", span);
    for i in 0..c.pages as usize {
        demand(span.plus(i).class().load(Relaxed) == class, "a span's pages have its class", span);
        let next = span.plus(i).record().next.load(Relaxed);
        demand(i == 0 || next == TAIL | i as u32, "a span's further pages point back", span);
    }
    let next = span.record().next.load(Relaxed);
    if next != 0 {
        let back = Page::at(next as usize - 1).record().prev.load(Relaxed);
        demand(back as usize == span.index() + 1, "lists are linked both ways", span);
    }
}

fn check_extent(extent: Extent) {
    let page = extent.page;
    demand(page.class().load(Relaxed) == KEPT, "what is kept is marked", page);
    demand(
        page.record().bits.load(Relaxed) == extent.len as u64,
        "what is kept has its length beside it",
        page,
    );
    let _pages = pages::pages();
    let end = extent.own_chunks().end;
    // The first of these is the block's before it, if it begins inside one.
    let mut chunks = page.index() / CHUNK_PAGES..end;
    let alone = |n| TAKEN.contains(n) && !PAGED.contains(n);
    demand(chunks.all(alone), "chunks of what is kept are taken, and not cut into pages", page);
    demand(extent.end() <= end * CHUNK_PAGES, "what is kept lies in its chunks", page);
}

fn check_chunk(n: usize) {
    let chunk = Chunk::at(n);
    let page = Page::at(n * CHUNK_PAGES);
    let (mut free, mut dirty) = (0, 0);
    for w in 0..CHUNK_PAGES / 64 {
        let (f, a, b, p) =
            (chunk.free.word(w), chunk.fresh.word(w), chunk.stale.word(w), chunk.purged.word(w));
        demand(a & b == 0 && (a | b) & p == 0, "a free page has one state", page);
        demand((a | b | p) & !f == 0, "only free pages have a state", page);
        (free, dirty) = (free + f.count_ones(), dirty + (a | b).count_ones());
        for i in (0..64).filter(|i| f >> i & 1 != 0) {
            demand(page.plus(w * 64 + i).class().load(Relaxed) == 0, "a free page has no class", page);
        }
    }
    demand(free == chunk.nfree.load(Relaxed), "free pages are counted", page);
    demand(dirty == chunk.ndirty.load(Relaxed), "dirty pages are counted", page);
}

pub(crate) fn demand(holds: bool, rule: &'static str, page: Page) {
    if !holds {
        broken(rule, page.address());
    }
}

#[cold]
fn broken(rule: &'static str, addr: usize) -> ! {
    sys::write(2, b"ebbtide: does not hold: ");
    die(rule, Some(addr))
}

/// A block was freed that is free.
#[cold]
#[inline(never)]
pub(crate) fn double_free(addr: usize) -> ! {
    die("freed twice", Some(addr))
}

/// Something was freed that is no block.
#[cold]
#[inline(never)]
pub(crate) fn invalid_free(addr: usize) -> ! {
    die("freed, but no block begins there", Some(addr))
}

/// Says what is wrong with which address, and aborts.
#[cold]
pub(crate) fn die(what: &str, addr: Option<usize>) -> ! {
    let mut line = [0_u8; 160];
    let mut at = 0;
    let mut put = |bytes: &[u8]| {
        if let Some(room) = line.get_mut(at..at + bytes.len()) {
            room.copy_from_slice(bytes);
            at += bytes.len();
        }
    };
    put(b"ebbtide: ");
    if let Some(addr) = addr {
        put(b"0x");
        let digits = (usize::BITS - addr.leading_zeros()).div_ceil(4).max(1);
        for i in (0..digits).rev() {
            put(&[b"0123456789abcdef"[addr >> (4 * i) & 15]]);
        }
        put(b": ");
    }
    put(what.as_bytes());
    put(b"\n");
    sys::write(2, line.get(..at).unwrap_or_default());
    sys::abort()
}
