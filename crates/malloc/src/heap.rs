//! Thread heaps: for each size class a magazine, a stack of pointers to free slots, that one thread pushes to
//! and pops from without a lock.
//!
//! Invariants:
//! - a pointer in a magazine is in no bin and not in the program's hands;
//! - a magazine is touched by its thread between `enter` and `leave` of the heap's [`Asym`], or by the holder of
//!   the purge's lock after closing it;
//! - `n <= limit <= the class's magazine size`, and the limit grows by doubling, so that a thread keeps much
//!   only of what it uses much;
//! - heaps live for ever. When a thread ends its heap is emptied and waits in a pool for another.

use crate::asym::Asym;
use crate::bins::{self, BATCH};
use crate::class::{CLASSES, Class};
use crate::lock::Mutex;
use crate::stats::COUNT;
use crate::{host, sys, tls};
use core::num::NonZeroUsize;
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::Release};

/// Pointers in a magazine, at most.
pub(crate) const MAGAZINE_SLOTS: u32 = 63;
/// The limit a magazine begins with.
const FIRST_LIMIT: u32 = 8;

/// A stack of free slots.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Magazine {
    n: AtomicU32,
    limit: AtomicU32,
    slots: [AtomicUsize; MAGAZINE_SLOTS as usize],
}

/// Where in a [`Heap`] the address of the next one is, for readers from outside.
pub(crate) const NEXT_AT: usize = core::mem::offset_of!(Heap, next);
/// Where in a [`Heap`] its magazines are, one for each class.
pub(crate) const MAGAZINES_AT: usize = core::mem::offset_of!(Heap, magazines);

/// What a push found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pushed {
    /// The pointer is in the magazine.
    Done,
    /// There is no room.
    Full,
    /// The pointer was pushed just before.
    Twice,
}

impl Magazine {
    const fn new() -> Self {
        Self {
            n: AtomicU32::new(0),
            limit: AtomicU32::new(0),
            slots: [const { AtomicUsize::new(0) }; MAGAZINE_SLOTS as usize],
        }
    }

    /// Word `i` of the magazine: 0 is the header, `i` the `i`th pointer from the bottom.
    #[inline(always)]
    fn word(&self, i: u32) -> &AtomicUsize {
        debug_assert!(i <= MAGAZINE_SLOTS);
        // SAFETY: the struct is 64 words (tested), `n <= MAGAZINE_SLOTS` is the type's invariant and callers pass
        // `n`, or `n + 1` after comparing `n` with a limit that is at most MAGAZINE_SLOTS.
        unsafe { &*core::ptr::from_ref(self).cast::<AtomicUsize>().add(i as usize) }
    }

    #[inline(always)]
    pub(crate) fn pop(&self) -> Option<NonZeroUsize> {
        let n = self.n.load(Relaxed);
        if n == 0 {
            return None;
        }
        let addr = self.word(n).load(Relaxed);
        self.n.store(n - 1, Relaxed);
        // SAFETY: only addresses of slots are pushed, and no slot begins at 0.
        Some(unsafe { NonZeroUsize::new_unchecked(addr) })
    }

    #[inline(always)]
    pub(crate) fn push(&self, addr: usize) -> Pushed {
        let n = self.n.load(Relaxed);
        if n == self.limit.load(Relaxed) {
            return Pushed::Full;
        }
        // For an empty magazine this compares with the header, which is no address.
        if self.word(n).load(Relaxed) == addr {
            return Pushed::Twice;
        }
        self.word(n + 1).store(addr, Relaxed);
        self.n.store(n + 1, Relaxed);
        Pushed::Done
    }

    /// Raises the limit, for a magazine that ran full or empty.
    fn raise(&self, class: &Class) -> u32 {
        let limit = (self.limit.load(Relaxed) * 2).clamp(FIRST_LIMIT.min(class.magazine), class.magazine);
        self.limit.store(limit, Relaxed);
        limit
    }

    /// Fills an empty magazine about half and pops one pointer; `None` if memory ran out.
    fn refill(&self, class: u8) -> Option<NonZeroUsize> {
        let limit = self.raise(Class::of(class));
        let mut slots = [0; BATCH];
        let want = (limit as usize).div_ceil(2);
        let got = bins::bin(class).take(slots.get_mut(..want)?);
        // The lowest comes out first.
        for (i, addr) in slots.iter().take(got).rev().enumerate() {
            self.word(i as u32 + 1).store(*addr, Relaxed);
        }
        self.n.store(got as u32, Relaxed);
        self.pop()
    }

    /// Moves the older half of a full magazine, or everything, to its bin.
    fn flush(&self, class: u8, everything: bool, old: bool) {
        let n = self.n.load(Relaxed);
        let out = if everything { n } else { n.div_ceil(2) };
        if out == 0 {
            return;
        }
        bins::bin(class).give((1..=out).map(|i| self.word(i).load(Relaxed)), old);
        for i in out + 1..=n {
            self.word(i - out).store(self.word(i).load(Relaxed), Relaxed);
        }
        self.n.store(n - out, Relaxed);
    }
}

/// One thread's magazines.
#[derive(Debug)]
#[repr(C, align(64))]
pub(crate) struct Heap {
    pub(crate) asym: Asym,
    /// The next of all heaps.
    next: AtomicUsize,
    /// The next in the pool of unused heaps.
    pool: AtomicUsize,
    /// The owner's thread id, 0 for none.
    owner: AtomicU32,
    /// What each magazine looked like at the last turn of the purge.
    seen: [AtomicU64; CLASSES],
    magazines: [Magazine; CLASSES],
}

const fn without_magazines() -> Heap {
    Heap {
        asym: Asym::new(),
        next: AtomicUsize::new(0),
        pool: AtomicUsize::new(0),
        owner: AtomicU32::new(0),
        seen: [const { AtomicU64::new(0) }; CLASSES],
        magazines: [const { Magazine::new() }; CLASSES],
    }
}

/// The heap of threads that have none yet: its magazines are empty and full at once.
pub(crate) static EMPTY: Heap = without_magazines();
/// The heap of threads that have given theirs back and still run destructors.
static ENDED: Heap = without_magazines();

static POOL: Mutex<usize> = Mutex::new(0);

/// The pool's lock, for fork.
pub(crate) fn raw_lock() -> &'static crate::lock::Lock {
    POOL.raw()
}

fn heap_at(addr: usize) -> Option<&'static Heap> {
    // SAFETY: only addresses of heaps are ever stored in the lists, and heaps live for ever.
    (addr != 0).then(|| unsafe { &*core::ptr::with_exposed_provenance(addr) })
}

/// All heaps, used and unused.
pub(crate) fn all() -> impl Iterator<Item = &'static Heap> {
    core::iter::successors(heap_at(COUNT.heaps.get() as usize), |h| heap_at(h.next.load(Relaxed)))
}

/// Pointers of one class in all magazines.
pub(crate) fn cached(class: u8) -> u64 {
    all().map(|h| u64::from(h.magazine(class).n.load(Relaxed))).sum()
}

fn new_heap() -> Option<&'static Heap> {
    let mut pool = POOL.lock();
    if let Some(heap) = heap_at(*pool) {
        *pool = heap.pool.load(Relaxed);
        return Some(heap);
    }
    let len = size_of::<Heap>().next_multiple_of(crate::class::PAGE);
    let at = sys::map_anywhere(len).ok()?;
    sys::name_mapping(at, len, c"ebbtide threads");
    // Fresh memory is zeros, which is a heap without limits, that is, with empty magazines of no size.
    let heap = heap_at(at)?;
    heap.next.store(COUNT.heaps.get() as usize, Relaxed);
    core::sync::atomic::fence(Release);
    COUNT.heap_bytes.set(size_of::<Heap>() as u64);
    COUNT.heaps.set(at as u64);
    Some(heap)
}

impl Heap {
    #[inline(always)]
    pub(crate) fn magazine(&self, class: u8) -> &Magazine {
        debug_assert!((class as usize) < CLASSES);
        // SAFETY: class numbers come from the class tables or from a page's class byte below RUN, which only ever
        // holds classes; both are below CLASSES.
        unsafe { self.magazines.get_unchecked(class as usize) }
    }

    /// Whether this is a thread's own heap rather than one of the two stand-ins.
    pub(crate) fn is_real(&self) -> bool {
        !core::ptr::eq(self, &EMPTY) && !core::ptr::eq(self, &ENDED)
    }

    /// Empties every magazine into the bins. By the owner inside, or by another after closing.
    fn flush_all(&self) {
        for class in 1..CLASSES as u8 {
            self.magazine(class).flush(class, true, false);
            self.magazine(class).limit.store(0, Relaxed);
        }
    }

    /// Notes what the magazines look like; whether one of those that are not empty looks as it did at the last
    /// turn (or, with `all`, at all).
    pub(crate) fn look(&self, all: bool) -> Look {
        let mut look = Look { idle: false, filled: false };
        for class in 1..CLASSES as u8 {
            let m = self.magazine(class);
            let n = m.n.load(Relaxed).min(MAGAZINE_SLOTS);
            let mark = if n == 0 { 0 } else { (m.word(n).load(Relaxed) as u64) << 8 | u64::from(n) };
            let before = self.seen.get(class as usize).map_or(0, |s| s.swap(mark, Relaxed));
            look.filled |= n > 0;
            look.idle |= n > 0 && (all || before == mark);
        }
        look
    }

    /// Empties the magazines that [`Heap::look`] found idle; by another, after closing. With `all`, every one.
    pub(crate) fn drain(&self, all: bool) {
        for class in 1..CLASSES as u8 {
            let m = self.magazine(class);
            let n = m.n.load(Relaxed);
            if n == 0 {
                continue;
            }
            let mark = (m.word(n).load(Relaxed) as u64) << 8 | u64::from(n);
            if all || self.seen.get(class as usize).is_some_and(|s| s.load(Relaxed) == mark) {
                m.flush(class, true, true);
                m.limit.store(0, Relaxed);
            }
        }
    }
}

/// What a turn of the purge saw in a heap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Look {
    /// A magazine holds something and has not changed since the last turn.
    pub(crate) idle: bool,
    /// A magazine holds something.
    pub(crate) filled: bool,
}

/// Pops a slot of a class when the fast path could not; `None` if memory ran out.
#[cold]
#[inline(never)]
pub(crate) fn pop_slowly(heap: &'static Heap, class: u8) -> Option<NonZeroUsize> {
    let Some(heap) = own(heap) else {
        let mut one = [0];
        let slot = (bins::bin(class).take(&mut one) == 1).then_some(one[0])?;
        crate::check::look(slot, class);
        return NonZeroUsize::new(slot);
    };
    heap.asym.enter_slowly();
    let m = heap.magazine(class);
    let slot = m.pop().or_else(|| m.refill(class));
    heap.asym.leave();
    slot
}

/// Pushes a slot when the fast path could not.
#[cold]
#[inline(never)]
pub(crate) fn push_slowly(heap: &'static Heap, class: u8, addr: usize) {
    let Some(heap) = own(heap) else {
        crate::check::fill(addr, Class::of(class).size as usize);
        bins::bin(class).give(core::iter::once(addr), false);
        return;
    };
    heap.asym.enter_slowly();
    let m = heap.magazine(class);
    if m.push(addr) != Pushed::Done {
        if m.raise(Class::of(class)) == m.n.load(Relaxed) {
            m.flush(class, false, false);
        }
        if m.push(addr) != Pushed::Done {
            crate::check::double_free(addr);
        }
    }
    heap.asym.leave();
}

/// The thread's own heap, made now if it had none; `None` if it may have none any more or memory ran out.
fn own(heap: &'static Heap) -> Option<&'static Heap> {
    if heap.is_real() {
        return Some(heap);
    }
    heap.asym.leave();
    if core::ptr::eq(heap, &ENDED) || crate::check::direct() {
        return None;
    }
    let heap = new_heap()?;
    heap.owner.store(sys::thread_id(), Relaxed);
    tls::set_heap(heap);
    // May allocate, through the heap that was just set.
    host::on_thread_end(core::ptr::from_ref(heap) as usize);
    Some(heap)
}

/// The running thread ends: its heap is emptied and goes back to the pool.
pub(crate) fn end_thread() {
    let heap = tls::heap();
    if !heap.is_real() {
        return;
    }
    tls::set_heap(&ENDED);
    heap.asym.enter_slowly();
    heap.flush_all();
    heap.asym.leave();
    retire(heap);
}

fn retire(heap: &'static Heap) {
    heap.owner.store(0, Relaxed);
    let mut pool = POOL.lock();
    heap.pool.store(*pool, Relaxed);
    *pool = core::ptr::from_ref(heap) as usize;
}

/// In a forked child: the heaps of threads that do not exist here are emptied, but for those whose thread was
/// inside when the fork came: what they hold is in an unknown state and lost.
pub(crate) fn adopt_after_fork() {
    let mine = tls::heap();
    for heap in all().filter(|h| h.owner.load(Relaxed) != 0 && !core::ptr::eq(*h, mine)) {
        if heap.asym.is_closed() {
            heap.flush_all();
        } else {
            heap.magazines.iter().for_each(|m| {
                m.n.store(0, Relaxed);
                m.limit.store(0, Relaxed);
            });
        }
        heap.asym.reset();
        retire(heap);
    }
    if mine.is_real() {
        mine.owner.store(sys::thread_id(), Relaxed);
    }
}

/// Empties the running thread's magazines.
pub(crate) fn flush_own() {
    let heap = tls::heap();
    if heap.is_real() {
        heap.asym.enter_slowly();
        heap.flush_all();
        heap.asym.leave();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_magazine_is_sixty_four_words() {
        assert_eq!(size_of::<Magazine>(), 64 * size_of::<usize>());
        assert!(MAGAZINE_SLOTS as usize <= BATCH);
        assert_eq!(core::mem::offset_of!(Magazine, slots), size_of::<usize>());
    }

    #[test]
    fn last_in_first_out_and_twice_is_seen() {
        let m = Magazine::new();
        assert_eq!(m.pop(), None);
        assert_eq!(m.push(8), Pushed::Full, "no limit yet");
        m.limit.store(2, Relaxed);
        assert_eq!(m.push(0x1000), Pushed::Done);
        assert_eq!(m.push(0x1000), Pushed::Twice);
        assert_eq!(m.push(0x2000), Pushed::Done);
        assert_eq!(m.push(0x3000), Pushed::Full);
        let pop = || m.pop().map_or(0, NonZeroUsize::get);
        assert_eq!((pop(), pop(), pop()), (0x2000, 0x1000, 0));
    }
}
