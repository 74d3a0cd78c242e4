//! Giving back: what a turn of the purge does, and what a full purge (malloc_trim) does.
//!
//! Any thread may purge any page: pages to give back are claimed under a lock (no one can take them then), given
//! back without the lock, and released. [`PASS`] is held for a few claims at a time; fork takes it first, so a
//! child never begins with claims that nobody will release.

use crate::bins;
use crate::bits::CHUNK_PAGES;
use crate::class::{CLASSES, Class, PAGE};
use crate::heap::{self, Heap};
use crate::lock::Mutex;
use crate::map::{self, Page};
use crate::pages::{paged, pages};
use crate::stats::COUNT;
use crate::{kept, sync, sys, tls};
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};

/// Whoever purges holds this.
static PASS: Mutex<()> = Mutex::new(());

/// Whether membarrier works here, so that other threads' magazines may be emptied.
static BARRIER: AtomicBool = AtomicBool::new(false);

/// Claims made at a time; a claim costs some microseconds.
const CLAIMS: usize = 16;
/// Heaps shut at a time: their threads wait if they allocate meanwhile.
const SHUT: usize = 8;

/// Keeps every purge out while it lives.
pub(crate) fn hold() -> crate::lock::Guard<'static, ()> {
    PASS.lock()
}

/// The lock, for fork.
pub(crate) fn raw_lock() -> &'static crate::lock::Lock {
    PASS.raw()
}

/// Finds out whether membarrier works. Again in a forked child, which does not inherit the registration before
/// Linux 4.16's `membarrier_exec_mmap` rules are met; asking twice is harmless.
pub(crate) fn prepare() {
    BARRIER.store(sys::register_barrier(), Relaxed);
}

/// Gives back resident free pages: the stale ones, or all; at least `keep` pages stay. How many pages.
pub(crate) fn purge_pages(all: bool, keep: u64) -> u64 {
    let (mut given, mut end) = (0, usize::MAX);
    loop {
        let _pass = PASS.lock();
        let mut claims = [(0, 0); CLAIMS];
        let (got, next) = pages().claim(all, keep, end, &mut claims);
        let mut refused = false;
        for &(page, count) in claims.iter().take(got) {
            // SAFETY: claimed pages are free and no one else's until released below.
            let done = unsafe { sys::give_back(Page::at(page as usize).address(), count as usize * PAGE) };
            refused |= done.is_err();
            given += u64::from(count);
            match done {
                Ok(()) => pages().purged((page, count)),
                Err(_) => pages().unpurged((page, count)),
            }
        }
        // Refused: the program locked its memory. It wants it resident.
        if got < claims.len() || refused {
            return given;
        }
        end = next;
    }
}

/// Gives back pages that hold nothing inside partly used spans; how many.
pub(crate) fn purge_holes(all: bool) -> u64 {
    let mut given = 0;
    for n in paged(0) {
        let _pass = PASS.lock();
        for i in 0..CHUNK_PAGES {
            let page = Page::at(n * CHUNK_PAGES + i);
            let class = page.class().load(Relaxed);
            let holes = (class as usize) < CLASSES && Class::of(class).has_holes();
            if holes && bins::first_page(page) == page && page.record().bits.load(Relaxed) != 0 {
                given += bins::bin(class).purge_span(page, all);
            }
        }
    }
    given
}

/// Empties magazines that have not changed since the last turn (or, with `all`, every one) of all heaps but the
/// caller's. Whether any magazine still holds something.
pub(crate) fn drain(all: bool, mine: Option<&Heap>) -> bool {
    if !BARRIER.load(Relaxed) {
        return false;
    }
    let mut heaps = heap::all().filter(|h| mine.is_none_or(|mine| !core::ptr::eq(*h, mine)));
    let mut filled = false;
    loop {
        let _pass = PASS.lock();
        let mut shut: [Option<&Heap>; SHUT] = [None; SHUT];
        let mut n = 0;
        for heap in heaps.by_ref() {
            let look = heap.look(all);
            filled |= look.filled;
            if look.idle {
                heap.asym.shut();
                if let Some(slot) = shut.get_mut(n) {
                    *slot = Some(heap);
                }
                n += 1;
                if n == SHUT {
                    break;
                }
            }
        }
        if n == 0 {
            return filled;
        }
        let barrier = sync::barrier_everywhere();
        for heap in shut.iter().flatten() {
            if barrier && heap.asym.is_closed() {
                heap.drain(all);
            }
            heap.asym.open();
        }
    }
}

/// Gives back everything that can be: magazines, freed large blocks, holes, free pages, free chunks. Whether
/// there was anything.
pub(crate) fn everything() -> bool {
    if map::base() == 0 {
        return false;
    }
    heap::flush_own();
    everything_but(Some(tls::heap()))
}

/// As [`everything`], but for the magazines of `mine`, the caller's heap.
pub(crate) fn everything_but(mine: Option<&Heap>) -> bool {
    drain(true, mine);
    let mut any = kept::give_back(0);
    any |= purge_holes(true) > 0;
    any |= purge_pages(true, 0) > 0;
    let mut end = usize::MAX;
    while let Some(n) = pages().shrink(end) {
        (any, end) = (true, n);
    }
    COUNT.turns.add_shared(1);
    any
}
