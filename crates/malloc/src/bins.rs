//! The bins: for each size class the spans that have free slots, under one lock. Threads come here only to fill
//! or empty a magazine, some dozens of slots at a time.
//!
//! Whoever frees a slot sets its bit; nobody owns a span, so memory freed by another thread needs no queue and
//! comes back at once. Slots are taken from the fullest span first and there from the lowest, so that the emptier
//! spans drain and their pages can be given back.
//!
//! Invariants, under a bin's lock: a span's free bits are set for slots in no magazine and not in the program's
//! hands; a span with no free bit is in no list; one with some is in the bucket of its count; one with all of
//! them free has gone back to the page heap. For spans with holes (see [`Class::has_holes`]) the second page's
//! record keeps in `bits` which of the pages were given back (low half) and which were found empty at the last
//! turn (high half).

use crate::bits::mask;
use crate::check;
use crate::class::{BUCKETS, CLASSES, Class, PAGE};
use crate::lock::{Lock, Mutex};
use crate::map::{Page, TAIL};
use crate::pages::pages;
use crate::stats::COUNT;
use crate::sys;
use core::sync::atomic::Ordering::Relaxed;

/// Slots moved at a time, at most.
pub(crate) const BATCH: usize = 64;
/// Spans got from the page heap at a time, at most.
const GROWTH: usize = 16;

/// One class's spans.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct Bin(Mutex<Spans>);

#[derive(Debug)]
struct Spans {
    /// Per bucket the first span, plus one.
    head: [u32; BUCKETS as usize],
    /// Which buckets have spans.
    filled: u32,
    class: u8,
}

const fn bins() -> [Bin; CLASSES] {
    let mut all =
        [const { Bin(Mutex::new(Spans { head: [0; BUCKETS as usize], filled: 0, class: 0 })) }; CLASSES];
    let mut i = 0;
    while i < CLASSES {
        all[i] = Bin(Mutex::new(Spans { head: [0; BUCKETS as usize], filled: 0, class: i as u8 }));
        i += 1;
    }
    all
}

static BINS: [Bin; CLASSES] = bins();

/// The bin of a class.
pub(crate) fn bin(class: u8) -> &'static Bin {
    BINS.get(class as usize).unwrap_or(&BINS[0])
}

/// All the bins' locks in their order, for fork.
pub(crate) fn raw_locks() -> impl DoubleEndedIterator<Item = &'static Lock> {
    BINS.iter().map(|b| b.0.raw())
}

/// Spans that became wholly free, on their way to the page heap.
struct Emptied {
    spans: [u32; BATCH],
    count: usize,
}

/// Where a slot lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Slot {
    /// The first page of its span.
    pub(crate) span: Page,
    /// Its number in the span.
    pub(crate) index: u32,
}

/// The slot of class `class` that begins at `addr`; `None` if none begins there.
#[inline]
pub(crate) fn slot_at(addr: usize, page: Page, class: &Class) -> Option<Slot> {
    let span = if class.pages > 1 { first_page(page) } else { page };
    let off = addr - span.address();
    let index = ((off as u64 * u64::from(class.magic)) >> 32) as u32;
    (index * class.size == off as u32 && index < class.slots).then_some(Slot { span, index })
}

/// The first page of the span that a page of a longer span belongs to.
#[inline]
pub(crate) fn first_page(page: Page) -> Page {
    let next = page.record().next.load(Relaxed);
    if next & TAIL != 0 { page.minus((next & !TAIL) as usize) } else { page }
}

/// Word `i` of a span's free bits.
#[inline]
fn word(span: Page, i: u32) -> &'static core::sync::atomic::AtomicU64 {
    match i {
        0 => &span.record().bits,
        _ => span.wide().get(i as usize - 1).unwrap_or(&span.record().bits),
    }
}

/// How many slots of a span are free.
#[inline]
pub(crate) fn free_slots(span: Page, class: &Class) -> u32 {
    (0..class.slots.div_ceil(64)).map(|i| word(span, i).load(Relaxed).count_ones()).sum()
}

impl Bin {
    /// Takes up to `out.len()` slots; how many. Fewer only if memory ran out.
    pub(crate) fn take(&self, out: &mut [usize]) -> usize {
        let mut spans = self.0.lock();
        let class = Class::of(spans.class);
        let mut got = 0;
        while got < out.len() {
            let Some(span) = spans.fullest() else {
                let missing = (out.len() - got) as u32;
                if spans.grow(class, missing.div_ceil(class.slots) as usize) == 0 {
                    break;
                }
                continue;
            };
            let Some(rest) = out.get_mut(got..) else { break };
            got += spans.take_from(span, class, rest);
        }
        let count = COUNT.class(spans.class);
        count.slots_out.add(got as u64);
        count.slots_free.sub(got as u64);
        got
    }

    /// Takes slots back. Aborts the process on a pointer that is no slot of this class, or free already. With
    /// `old`, pages that become empty may be given back at the next turn.
    pub(crate) fn give(&self, slots: impl Iterator<Item = usize>, old: bool) {
        let mut emptied = Emptied { spans: [0; BATCH], count: 0 };
        let mut spans = self.0.lock();
        let class = Class::of(spans.class);
        let (mut n, mut group): (u64, Option<(Page, u32, u64)>) = (0, None);
        for addr in slots {
            // A slot freed twice may have left this class together with its span.
            let page = Page::of(addr).filter(|page| page.class().load(Relaxed) == spans.class);
            let Some(page) = page else { check::double_free(addr) };
            let Some(slot) = slot_at(addr, page, class) else { check::invalid_free(addr) };
            let (w, bit) = (slot.index / 64, 1_u64 << (slot.index % 64));
            group = match group {
                Some((span, word, bits)) if span == slot.span && word == w => {
                    if bits & bit != 0 {
                        check::double_free(addr);
                    }
                    Some((span, word, bits | bit))
                }
                other => {
                    spans.put_group(other, class, &mut emptied);
                    Some((slot.span, w, bit))
                }
            };
            n += 1;
            if emptied.count == BATCH {
                spans.return_emptied(&mut emptied, old);
            }
        }
        spans.put_group(group, class, &mut emptied);
        let count = COUNT.class(spans.class);
        count.slots_out.sub(n);
        count.slots_free.add(n);
        spans.return_emptied(&mut emptied, old);
    }

    /// Gives back the pages of one span that hold nothing and were found so at the last turn too (or, with
    /// `all`, whether or not); how many. Nothing happens if no span of this bin begins at `span` any more.
    pub(crate) fn purge_span(&self, span: Page, all: bool) -> u64 {
        let mut spans = self.0.lock();
        let still = span.class().load(Relaxed) == spans.class && span.record().next.load(Relaxed) & TAIL == 0;
        let class = Class::of(spans.class);
        if still { spans.purge_span(span, class, all) } else { 0 }
    }

    /// Calls `f` with every span that has free slots, under the lock: for invariant checks.
    pub(crate) fn each_span(&self, mut f: impl FnMut(Page, u32, &Class)) {
        let spans = self.0.lock();
        for (bucket, head) in spans.head.iter().enumerate() {
            let mut at = *head;
            while at != 0 {
                let span = Page::at(at as usize - 1);
                f(span, bucket as u32, Class::of(spans.class));
                at = span.record().next.load(Relaxed);
            }
        }
    }
}

impl Spans {
    #[inline]
    fn fullest(&self) -> Option<Page> {
        let head = *self.head.get(self.filled.trailing_zeros() as usize)?;
        Some(Page::at(head as usize - 1))
    }

    /// Takes the lowest free slots of a span.
    fn take_from(&mut self, span: Page, class: &Class, out: &mut [usize]) -> usize {
        let before = free_slots(span, class);
        let (base, size) = (span.address(), class.size as usize);
        let mut got = 0;
        for w in 0..class.slots.div_ceil(64) {
            let word = word(span, w);
            let mut bits = word.load(Relaxed);
            let first = base + w as usize * 64 * size;
            for slot in out.iter_mut().skip(got) {
                if bits == 0 {
                    break;
                }
                *slot = first + bits.trailing_zeros() as usize * size;
                bits &= bits - 1;
                got += 1;
            }
            word.store(bits, Relaxed);
        }
        if class.has_holes() {
            out.iter().take(got).for_each(|&addr| touch(span, addr - base, size));
        }
        self.moved(span, class, before, before - got as u32);
        got
    }

    /// Sets free bits of one word of a span's.
    fn put_group(&mut self, group: Option<(Page, u32, u64)>, class: &Class, emptied: &mut Emptied) {
        let Some((span, w, bits)) = group else { return };
        let word = word(span, w);
        let old = word.load(Relaxed);
        if old & bits != 0 {
            let index = w * 64 + (old & bits).trailing_zeros();
            check::double_free(span.address() + (index * class.size) as usize);
        }
        let others = if class.wide() { free_slots(span, class) - old.count_ones() } else { 0 };
        word.store(old | bits, Relaxed);
        let (before, after) = (others + old.count_ones(), others + (old | bits).count_ones());
        if after == class.slots {
            self.unlink(span, class, before);
            if let Some(slot) = emptied.spans.get_mut(emptied.count) {
                *slot = span.index() as u32;
                emptied.count += 1;
            }
        } else {
            self.moved(span, class, before, after);
        }
    }

    /// A span's count of free slots has changed: into the right bucket with it.
    fn moved(&mut self, span: Page, class: &Class, before: u32, after: u32) {
        let same = before > 0 && after > 0 && class.bucket(before) == class.bucket(after);
        if !same {
            self.unlink(span, class, before);
            self.link(span, class, after);
        }
    }

    fn link(&mut self, span: Page, class: &Class, free: u32) {
        if free == 0 {
            return;
        }
        let bucket = class.bucket(free);
        let Some(head) = self.head.get_mut(bucket as usize) else { return };
        let this = span.index() as u32 + 1;
        let record = span.record();
        record.prev.store(0, Relaxed);
        record.next.store(*head, Relaxed);
        if *head != 0 {
            Page::at(*head as usize - 1).record().prev.store(this, Relaxed);
        }
        *head = this;
        self.filled |= 1 << bucket;
    }

    fn unlink(&mut self, span: Page, class: &Class, free: u32) {
        if free == 0 {
            return;
        }
        let bucket = class.bucket(free);
        let record = span.record();
        let (prev, next) = (record.prev.load(Relaxed), record.next.load(Relaxed));
        if next != 0 {
            Page::at(next as usize - 1).record().prev.store(prev, Relaxed);
        }
        if prev != 0 {
            Page::at(prev as usize - 1).record().next.store(next, Relaxed);
        } else if let Some(head) = self.head.get_mut(bucket as usize) {
            *head = next;
            if next == 0 {
                self.filled &= !(1 << bucket);
            }
        }
        record.next.store(0, Relaxed);
    }

    /// Gets up to `count` new spans; how many.
    fn grow(&mut self, class: &Class, count: usize) -> usize {
        let mut new = [0; GROWTH];
        let Some(new) = new.get_mut(..count.min(GROWTH)) else { return 0 };
        let got = pages().spans(class.pages as usize, new);
        // The last one linked is taken from first: the lowest.
        for &first in new.iter().take(got).rev() {
            let span = Page::at(first as usize);
            for i in 0..class.pages as usize {
                let page = span.plus(i);
                page.class().store(self.class, Relaxed);
                if i > 0 {
                    page.record().next.store(TAIL | i as u32, Relaxed);
                    page.record().bits.store(0, Relaxed);
                }
            }
            for w in 0..class.slots.div_ceil(64) {
                word(span, w).store(mask(0, (class.slots - w * 64) as usize), Relaxed);
            }
            self.link(span, class, class.slots);
        }
        let count = COUNT.class(self.class);
        count.slot_bytes.set(u64::from(class.size));
        count.pages.add(got as u64 * u64::from(class.pages));
        count.slots_free.add(got as u64 * u64::from(class.slots));
        got
    }

    fn return_emptied(&mut self, emptied: &mut Emptied, old: bool) {
        if emptied.count == 0 {
            return;
        }
        let class = Class::of(self.class);
        let mut heap = pages();
        for &first in emptied.spans.iter().take(emptied.count) {
            let span = Page::at(first as usize);
            for i in 0..class.pages as usize {
                span.plus(i).class().store(0, Relaxed);
            }
            heap.give(span, class.pages as usize, old);
        }
        let count = COUNT.class(self.class);
        count.pages.sub(emptied.count as u64 * u64::from(class.pages));
        count.slots_free.sub(emptied.count as u64 * u64::from(class.slots));
        emptied.count = 0;
    }

    /// Gives back the pages of one span that hold no slot in use. The bin's lock keeps them so meanwhile.
    fn purge_span(&mut self, span: Page, class: &Class, all: bool) -> u64 {
        let state = &span.plus(1).record().bits;
        let (gone, seen) = (state.load(Relaxed) & 0xffff_ffff, state.load(Relaxed) >> 32);
        let empty = empty_pages(span.record().bits.load(Relaxed), class);
        let mut due = empty & !gone & if all { u64::MAX } else { seen };
        let (mut now_gone, mut given) = (gone, 0);
        while due != 0 {
            let first = due.trailing_zeros();
            let run = (due >> first).trailing_ones();
            let these = mask(first as usize, run as usize);
            let at = span.address() + first as usize * PAGE;
            // SAFETY: the pages are the span's; every slot that touches them is free, and stays so under the lock.
            if unsafe { sys::give_back(at, run as usize * PAGE) }.is_ok() {
                now_gone |= these;
                given += u64::from(run);
            }
            due &= !these;
        }
        state.store(now_gone | empty << 32, Relaxed);
        COUNT.holes.add_shared(given);
        COUNT.purged.add_shared(given);
        given
    }
}

/// A slot at `off` is used from now on: its pages are resident again.
fn touch(span: Page, off: usize, size: usize) {
    let state = &span.plus(1).record().bits;
    let pages = page_mask(off, size);
    let old = state.load(Relaxed);
    let back = u64::from((old & pages).count_ones());
    state.store(old & !(pages | pages << 32), Relaxed);
    if back > 0 {
        COUNT.holes.sub_shared(back);
        COUNT.refaulted.add_shared(back);
    }
}

/// The pages of a span, as bits, that `size` bytes at `off` lie in.
fn page_mask(off: usize, size: usize) -> u64 {
    let (first, last) = (off / PAGE, (off + size - 1) / PAGE);
    (u64::MAX >> (63 - (last - first))) << first
}

/// The pages of a span that no used slot touches.
fn empty_pages(free: u64, class: &Class) -> u64 {
    let used = (0..class.slots)
        .filter(|i| free >> i & 1 == 0)
        .fold(0, |pages, i| pages | page_mask((i * class.size) as usize, class.size as usize));
    !used & mask(0, class.pages as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_under_slots() {
        assert_eq!(page_mask(0, 1), 1);
        assert_eq!(page_mask(4095, 2), 3);
        assert_eq!(page_mask(5120, 5120), 0b110);
        assert_eq!(page_mask(0, 65536), 0xffff);
    }

    #[test]
    fn a_page_is_empty_when_no_used_slot_touches_it() {
        let class = (1..CLASSES as u8).map(Class::of).find(|c| c.size == 5120).unwrap();
        assert_eq!(empty_pages(0b1111, class), 0b11111);
        assert_eq!(empty_pages(0b1110, class), 0b11100);
        assert_eq!(empty_pages(0b1101, class), 0b11001);
        assert_eq!(empty_pages(0b0111, class), 0b00111);
        assert_eq!(empty_pages(0, class), 0);
    }
}
