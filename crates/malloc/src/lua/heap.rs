//! A Lua state's heap: slots of single pages, for the one thread that runs the VM at a time. No lock, no atomic
//! instruction; pages come from the page heap and go back to it.
//!
//! A slot is taken from the bits of one word of one page, the lowest first; when they are used up, from the page's
//! other words, and then from the fullest page of the class. So emptier pages drain.
//!
//! Invariants: every page of the heap has the class byte [`LUA`] and its class, and this heap's number as its owner. A
//! page is one of: its class's current one; listed in the bucket of its count; meshed; full, in no list; empty and kept
//! for later, with class 0. Blocks above [`TABLE_MAX`] bytes are the general malloc's.

use super::entry::{self, ALIASED, CURRENT, LUA, slots};
use super::list;
use super::mesh::Mesh;
use super::told::{Notes, Told};
use crate::class::{self, BUCKETS, CLASSES, Class, PAGE, TABLE_MAX};
use crate::map::Page;
use crate::pages::pages;
use crate::{check, front, purge, sys};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

/// Bins, a power of two so that an index needs no check.
pub(super) const BINS: usize = CLASSES.next_power_of_two();
/// Empty pages kept for the next class that wants one.
pub(super) const SPARE: usize = 32;
/// Refills between looks at the clock.
const OPS_PER_LOOK: u32 = 256;

/// Where one class's next slot comes from.
#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
pub(crate) struct Bin {
    /// Free slots of one word of the current page.
    pub(super) bits: u64,
    /// The address of the slot of the lowest bit.
    pub(super) base: usize,
    /// The current page, plus one.
    pub(super) page: u32,
    /// Bytes of a slot.
    pub(super) size: u32,
    /// Per bucket the first page, plus one.
    pub(super) head: [u32; BUCKETS as usize],
    /// Which buckets have pages.
    pub(super) filled: u8,
    /// Empty pages that are the class's next, and the first of them.
    pub(super) left: u8,
    pub(super) next: u32,
}

/// The heap of one Lua state.
#[derive(Debug)]
#[repr(C)]
pub struct Heap {
    /// What others may read.
    pub told: Told,
    pub(crate) notes: Notes,
    /// Its thread did not come along when the process was forked: nobody knows what it was about, until somebody here
    /// goes on with it.
    pub(crate) orphan: AtomicBool,
    pub(crate) bins: [Bin; BINS],
    /// Never 0, and no other heap's.
    pub(crate) id: u32,
    /// Counts stretches of five seconds, see [`Heap::tick`].
    pub(crate) epoch: u16,
    /// The epoch in which it was last tidied.
    rested: u16,
    pub(super) nspare: u16,
    pub(super) spare: [u32; SPARE],
    ops: u32,
    /// The first block, if it is large: the state itself, freed last. 0 if not.
    whole: usize,
    /// What [`super::PRESSED`] was when last looked at.
    pressed: u32,
    next_look_ms: u64,
    next_epoch_ms: u64,
    pub(crate) mesh: Mesh,
}

/// Where in a [`Heap`] the bins are, for readers from outside.
pub(crate) const BINS_AT: usize = core::mem::offset_of!(Heap, bins);

static NEXT_ID: AtomicU32 = AtomicU32::new(1);

fn pointer(addr: usize) -> *mut u8 {
    core::ptr::with_exposed_provenance_mut(addr)
}

impl Heap {
    /// Begins a heap in memory that is all zeros, which every field may be.
    pub(crate) fn begin(&mut self) {
        self.id = NEXT_ID.fetch_add(1, Relaxed).max(1);
        for (class, bin) in self.bins.iter_mut().enumerate().take(CLASSES) {
            bin.size = Class::of(class as u8).size;
        }
    }

    /// `size` bytes aligned to 8; null if memory ran out or for size 0.
    #[inline(always)]
    pub(crate) fn alloc(&mut self, size: usize) -> *mut u8 {
        if size.wrapping_sub(1) < TABLE_MAX {
            self.slot(class::small_by_eight(size))
        } else {
            self.large(size)
        }
    }

    #[inline(always)]
    fn slot(&mut self, class: u8) -> *mut u8 {
        let bin = &mut self.bins[class as usize % BINS];
        let bits = bin.bits;
        let addr = if bits != 0 {
            bin.bits = bits & (bits - 1);
            bin.base + bits.trailing_zeros() as usize * bin.size as usize
        } else {
            self.slot_slowly(class)
        };
        let at = pointer(addr);
        if addr != 0 {
            // SAFETY: the slot was just taken, has 16 bytes at least and is aligned to 8. For `writers`: nothing
            // stale is to look like an object.
            unsafe { at.cast::<u64>().add(1).write(0) };
        }
        at
    }

    #[cold]
    #[inline(never)]
    fn slot_slowly(&mut self, class: u8) -> usize {
        self.tick();
        let slot = self.refill(class).or_else(|| {
            // Out of memory: what others hold back may be enough.
            purge::everything();
            self.refill(class)
        });
        crate::keeper::poke();
        slot.unwrap_or(0)
    }

    /// Takes up the next word of free slots, and pops one.
    fn refill(&mut self, class: u8) -> Option<usize> {
        loop {
            let bin = &mut self.bins[class as usize % BINS];
            if let Some(page) = list::page(bin.page) {
                if let Some((word, bits)) = page.entry().take_word() {
                    bin.base = page.address() + word * 64 * bin.size as usize;
                    bin.bits = bits & (bits - 1);
                    self.told.flow.add(u64::from(bits.count_ones()) * u64::from(bin.size));
                    return Some(bin.base + bits.trailing_zeros() as usize * bin.size as usize);
                }
                bin.page = 0;
                page.entry().set(CURRENT, false);
                page.entry().set_due(Class::of(class));
            }
            let page = match self.fullest(class) {
                Some(page) => page,
                None => self.new_page(class)?,
            };
            let entry = page.entry();
            entry.touched.set(self.epoch);
            entry.set(CURRENT, true);
            entry.set_due(Class::of(class));
            self.bins[class as usize % BINS].page = list::link(page);
        }
    }

    /// Frees a block that was allocated with `size` bytes: what `size` says is believed of large blocks only. Whether
    /// it was the state itself, so that the heap can be closed.
    ///
    /// # Safety
    /// `at` must be a block of this heap that nobody uses any more.
    #[inline(always)]
    pub(crate) unsafe fn free(&mut self, at: *mut u8, size: usize) -> bool {
        let addr = at.expose_provenance();
        match owned(addr) {
            Some((page, class)) => {
                self.free_slot(addr, page, class);
                false
            }
            // SAFETY: the caller's block; it is no slot, so it came from `large`.
            None => unsafe { self.free_large(at, size) },
        }
    }

    #[inline(always)]
    fn free_slot(&mut self, addr: usize, page: Page, class: u8) {
        let (entry, shape) = (page.entry(), Class::of(class));
        let off = addr % PAGE;
        let index = ((off as u64 * u64::from(shape.magic)) >> 32) as u32;
        let word = &entry.free[index as usize / 64 % 4];
        let bit = 1_u64 << (index % 64);
        if index * shape.size != off as u32 || index >= shape.slots || word.get() & bit != 0 {
            wrong_free(addr, word.get() & bit != 0);
        }
        word.set(word.get() | bit);
        entry.touched.set(self.epoch);
        let count = entry.count.get() + 1;
        entry.count.set(count);
        if count == entry.due.get() {
            self.look(page, class);
        }
    }

    /// A page's count has reached its due mark.
    #[cold]
    #[inline(never)]
    fn look(&mut self, page: Page, class: u8) {
        let (entry, shape) = (page.entry(), Class::of(class));
        if entry.owner.get() != self.id {
            check::die("freed by another Lua state's heap", Some(page.address()));
        }
        self.unlist(page, class);
        if u32::from(entry.count.get()) == shape.slots {
            self.release(page);
        } else {
            self.list(page, class);
        }
    }

    /// A page that holds nothing leaves its class.
    fn release(&mut self, page: Page) {
        page.class().store(LUA, Relaxed);
        // If it cannot be made ordinary memory, nobody may have it.
        if page.entry().is(ALIASED) && !self.mesh.leave(page, &self.told) {
            return;
        }
        self.keep(page);
    }

    #[cold]
    #[inline(never)]
    fn large(&mut self, size: usize) -> *mut u8 {
        if size == 0 || size > isize::MAX as usize {
            return core::ptr::null_mut();
        }
        self.tick();
        let at = front::malloc8(size);
        if !at.is_null() {
            if self.told.flow.get() == 0 {
                self.whole = at.expose_provenance();
            }
            self.told.large.add(size as u64);
            self.told.flow.add(size as u64);
        }
        at
    }

    #[cold]
    #[inline(never)]
    unsafe fn free_large(&mut self, at: *mut u8, size: usize) -> bool {
        self.told.large.set(self.told.large.get().saturating_sub(size as u64));
        let addr = at.expose_provenance();
        // SAFETY: the caller's.
        unsafe { front::free(at) };
        addr == self.whole
    }

    /// Makes a block of `old` bytes one of `new`, keeping what fits of its contents. Null if memory ran out: the block
    /// is then as it was; one that becomes smaller always has room.
    ///
    /// # Safety
    /// As for [`Heap::free`]; if the result is not null, only it may be used from then on.
    #[inline]
    pub(crate) unsafe fn resize(&mut self, at: *mut u8, old: usize, new: usize) -> *mut u8 {
        let addr = at.expose_provenance();
        let held = match owned(addr) {
            Some((_, class)) if new <= TABLE_MAX && class::small_by_eight(new) == class => return at,
            Some((_, class)) => Class::of(class).size as usize,
            // SAFETY: the caller's block; it is no slot, so it came from `large`.
            None if new > TABLE_MAX => return unsafe { self.resize_large(at, old, new) },
            // SAFETY: as above.
            None => unsafe { front::usable_size(at) },
        };
        let to = self.alloc(new);
        if to.is_null() {
            return if new <= held { at } else { to };
        }
        // SAFETY: both blocks have as many bytes as are copied and are not the same; the old one is the caller's.
        unsafe {
            core::ptr::copy_nonoverlapping(at, to, new.min(held));
            self.free(at, old);
        }
        to
    }

    #[cold]
    #[inline(never)]
    unsafe fn resize_large(&mut self, at: *mut u8, old: usize, new: usize) -> *mut u8 {
        if new > isize::MAX as usize {
            return core::ptr::null_mut();
        }
        // SAFETY: the caller's.
        let to = unsafe { front::realloc(at, 8, new) };
        if !to.is_null() {
            self.told.large.set((self.told.large.get() + new as u64).saturating_sub(old as u64));
            self.told.flow.add((new as u64).saturating_sub(old as u64));
        }
        to
    }

    /// Now and then: time goes by, and what is due is done, for less than a millisecond.
    #[inline]
    fn tick(&mut self) {
        self.ops += 1;
        if self.ops.is_multiple_of(OPS_PER_LOOK) {
            self.look_at_the_clock();
        }
    }

    #[cold]
    fn look_at_the_clock(&mut self) {
        // Whoever allocates from it knows.
        if self.orphan.load(Relaxed) && !self.mesh.is_torn() {
            self.orphan.store(false, Relaxed);
            self.begin_anew();
        }
        if check::is_asked() {
            self.verify();
        }
        let now = sys::now_ms();
        if now >= self.next_look_ms {
            // While the program works, at most half a hundredth of a processor.
            let more = self.pass_time(now) && self.mesh_slice(super::BUSY_SLICE_US);
            self.next_look_ms = now + if more { 100 } else { 1000 };
        }
    }

    /// Milliseconds until there is something to mesh, 0 for now; `None` if nothing will be, as long as nothing is
    /// allocated.
    pub(crate) fn until_mesh(&mut self, now_ms: u64) -> Option<u64> {
        if self.pass_time(now_ms) {
            return Some(0);
        }
        let pending = self.mesh.is_pending(self.rested, self.told.pages.get());
        pending.then(|| (self.next_epoch_ms - now_ms).max(1))
    }

    /// Says what time it is; whether there is anything to mesh.
    fn pass_time(&mut self, now_ms: u64) -> bool {
        let pressed = super::PRESSED.load(Relaxed);
        if pressed != self.pressed {
            self.pressed = pressed;
            self.age();
        }
        if now_ms >= self.next_epoch_ms {
            self.epoch = self.epoch.wrapping_add(1);
            self.next_epoch_ms = now_ms + super::EPOCH_MS;
        }
        self.mesh.is_due(self.epoch, self.told.pages.get())
    }

    /// In a forked child: there is nothing to do for what was there before. All of it is the parent's, too, and whatever
    /// the collector or meshing touched would be copied.
    pub(crate) fn begin_anew(&mut self) {
        let flow = self.told.flow.get();
        let live = self.told.pages.get() * PAGE as u64 + self.told.large.get();
        (self.notes.cycles, self.notes.collected, self.notes.live) = (0, flow, live);
        self.notes.done.store(flow, Relaxed);
    }

    /// As if many epochs had gone by.
    pub(crate) fn age(&mut self) {
        self.epoch = self.epoch.wrapping_add(super::mesh::COLD);
        self.mesh.hurry(self.epoch);
    }

    /// The program rests: no class keeps slots in its hand, no empty page is kept.
    pub(crate) fn settle(&mut self) {
        if check::is_asked() {
            self.verify();
        }
        for class in 1..CLASSES as u8 {
            let bin = &mut self.bins[class as usize % BINS];
            if bin.left > 0 {
                let first = Page::at(bin.next as usize);
                (0..bin.left.into()).for_each(|i| first.plus(i).class().store(0, Relaxed));
                pages().give(first, bin.left.into(), false);
                self.told.pages.sub(bin.left.into());
                bin.left = 0;
            }
            let Some(page) = list::page(bin.page) else { continue };
            let word = (bin.base - page.address()) / (64 * bin.size as usize);
            let entry = page.entry();
            if let Some(free) = entry.free.get(word) {
                free.set(free.get() | bin.bits);
                entry.count.set(entry.count.get() + bin.bits.count_ones() as u16);
            }
            self.told.flow.sub(u64::from(bin.bits.count_ones()) * u64::from(bin.size));
            (bin.bits, bin.page) = (0, 0);
            entry.set(CURRENT, false);
            self.look(page, class);
        }
        self.give(SPARE);
        self.rested = self.epoch;
    }

    /// The state is closed: every page goes back, whatever is left in it.
    pub(crate) fn end(&mut self) {
        self.settle();
        let mut pages = entry::pages_of(self.id, 0);
        while self.told.pages.get() > self.nspare.into() {
            let Some((page, class)) = pages.next() else { break };
            self.unlist(page, class);
            self.release(page);
        }
        self.give(SPARE);
    }

    /// Calls `f` with the address of every block of the class that `size` bytes have in pages from `from` on, until it
    /// says false; whether it never did. Where time runs out, `None`, and `from` is where to go on.
    pub(crate) fn each_block(
        &mut self,
        size: usize,
        from: &mut usize,
        until_us: u64,
        mut f: impl FnMut(usize) -> bool,
    ) -> Option<bool> {
        if size == 0 || size > TABLE_MAX {
            return Some(false);
        }
        if *from == 0 {
            self.settle();
        }
        let class = class::small_by_eight(size);
        let shape = Class::of(class);
        for page in entry::pages_in(self.id, class, *from) {
            *from = page.index() + 1;
            let mut live = slots(page.entry().live(shape));
            if !live.all(|slot| f(page.address() + (slot * shape.size) as usize)) {
                return Some(false);
            }
            if sys::now_us() >= until_us {
                return None;
            }
        }
        Some(true)
    }
}

/// The page and class of an address in a slot of a Lua heap; class 0 if the page holds nothing.
#[inline(always)]
fn owned(addr: usize) -> Option<(Page, u8)> {
    let page = Page::of(addr)?;
    let class = page.class().load(Relaxed).wrapping_sub(LUA);
    (class < LUA).then_some((page, class))
}

#[cold]
#[inline(never)]
fn wrong_free(addr: usize, twice: bool) -> ! {
    if twice { check::double_free(addr) } else { check::invalid_free(addr) }
}
