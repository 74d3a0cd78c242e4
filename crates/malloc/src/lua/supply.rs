//! Where a Lua heap's pages come from and go, and the lists of those that have free slots.

use super::entry::{self, LISTED, LUA};
use super::heap::{BINS, Heap, SPARE};
use super::list;
use crate::class::Class;
use crate::map::Page;
use crate::pages::pages;
use core::sync::atomic::Ordering::Relaxed;

/// A heap of so many pages takes neighbours for a class, so many at a time: pages that lie side by side can be meshed
/// side by side, which takes fewer mappings.
const LARGE_HEAP: u64 = 512;
const NEIGHBOURS: usize = 8;

impl Heap {
    /// Takes the fullest page of a class that has free slots out of its list.
    pub(super) fn fullest(&mut self, class: u8) -> Option<Page> {
        let bin = &self.bins[class as usize % BINS];
        let page = list::page(*bin.head.get(bin.filled.trailing_zeros() as usize)?)?;
        self.unlist(page, class);
        Some(page)
    }

    pub(super) fn new_page(&mut self, class: u8) -> Option<Page> {
        let page = self.neighbour(class).or_else(|| self.spare_page())?;
        if entry::ensure(page).is_err() {
            self.keep(page);
            return None;
        }
        page.entry().begin(Class::of(class), self.id);
        page.class().store(LUA | class, Relaxed);
        Some(page)
    }

    /// The next of the pages that were taken for a class together.
    fn neighbour(&mut self, class: u8) -> Option<Page> {
        let bin = &mut self.bins[class as usize % BINS];
        if bin.left == 0 {
            if self.nspare > 0 || self.told.pages.get() < LARGE_HEAP {
                return None;
            }
            let first = pages().run(NEIGHBOURS, 1)?.page;
            (0..NEIGHBOURS).for_each(|i| first.plus(i).class().store(LUA, Relaxed));
            bin.next = first.index() as u32;
            bin.left = NEIGHBOURS as u8;
            self.told.pages.add(NEIGHBOURS as u64);
        }
        bin.left -= 1;
        bin.next += 1;
        Some(Page::at(bin.next as usize - 1))
    }

    fn spare_page(&mut self) -> Option<Page> {
        if self.nspare == 0 {
            // More at a time the larger the heap is.
            let want = (self.told.pages.get() as usize / 8).clamp(1, SPARE / 2);
            let got = pages().spans(1, self.spare.get_mut(..want)?);
            self.spare.iter().take(got).for_each(|page| Page::at(*page as usize).class().store(LUA, Relaxed));
            self.nspare = got as u16;
            self.told.pages.add(got as u64);
            // The lowest comes out first.
            self.spare.get_mut(..got)?.reverse();
        }
        let last = self.nspare.checked_sub(1)?;
        self.nspare = last;
        Some(Page::at(*self.spare.get(last as usize)? as usize))
    }

    /// Keeps an empty page for the next class that wants one.
    pub(super) fn keep(&mut self, page: Page) {
        if self.nspare as usize == SPARE {
            self.give(SPARE / 2);
        }
        if let Some(slot) = self.spare.get_mut(self.nspare as usize) {
            *slot = page.index() as u32;
            self.nspare += 1;
        }
    }

    /// Gives spare pages back to the page heap, the longest kept first.
    pub(super) fn give(&mut self, count: usize) {
        let count = count.min(self.nspare as usize);
        let mut heap = pages();
        for page in self.spare.iter().take(count).map(|page| Page::at(*page as usize)) {
            page.class().store(0, Relaxed);
            heap.give(page, 1, false);
        }
        drop(heap);
        self.spare.copy_within(count..self.nspare as usize, 0);
        self.nspare -= count as u16;
        self.told.pages.sub(count as u64);
        crate::keeper::poke();
    }

    pub(super) fn list(&mut self, page: Page, class: u8) {
        let (entry, shape) = (page.entry(), Class::of(class));
        let count = u32::from(entry.count.get());
        entry.set_due(shape);
        if count == 0 {
            return;
        }
        let bucket = shape.bucket(count);
        let bin = &mut self.bins[class as usize % BINS];
        let Some(head) = bin.head.get_mut(bucket as usize) else { return };
        entry.set(LISTED, true);
        entry.bucket.set(bucket as u8);
        list::insert(head, page);
        bin.filled |= 1 << bucket;
    }

    pub(super) fn unlist(&mut self, page: Page, class: u8) {
        let entry = page.entry();
        if !entry.is(LISTED) {
            return;
        }
        let bin = &mut self.bins[class as usize % BINS];
        let Some(head) = bin.head.get_mut(entry.bucket.get() as usize) else { return };
        entry.set(LISTED, false);
        list::remove(head, page);
        if *head == 0 {
            bin.filled &= !(1 << entry.bucket.get());
        }
    }
}
