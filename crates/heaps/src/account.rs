//! The books of a walk: blocks in, [`Figures`] and a histogram out.
//!
//! A walker tells each block it meets, in the order of addresses within a mapping. Invariants: neighbouring free
//! blocks are one when it is asked which whole pages they cover; a page counts as returnable only if all of it
//! is free, it is resident, and no link that the allocator follows lies on it; `returnable + pinned_free` is
//! exactly the resident part of `free`.

use crate::model::{Figures, HUGE_BLOCK, HUGE_MOST, SizeClass};
use crate::residency::Residency;
use crate::source::{Fault, MemorySource, PageState};
use ebbtide_observe::{Bytes, page_size};
use std::ops::Range;

/// Size classes: four for each doubling, up to 2^48.
const CLASSES: usize = 4 * 48;

/// The most runs of returnable pages that are collected: 16 MiB of them. Every second page free makes as many of
/// an 8 GiB heap.
pub const RANGES_MOST: usize = 1 << 20;

/// Books being kept.
pub struct Account<'s> {
    residency: Residency<'s>,
    page: u64,
    figures: Figures,
    classes: Vec<SizeClass>,
    /// Free bytes without a gap, not yet entered.
    pending: Range<u64>,
    /// The last of these, from the last link on.
    open: Range<u64>,
    /// The returnable pages, where they were asked for.
    ranges: Option<Vec<Range<u64>>>,
    /// Huge live blocks.
    huge: Vec<Range<u64>>,
}

impl<'s> Account<'s> {
    /// Empty books over `source`.
    pub fn new(source: &'s dyn MemorySource) -> Account<'s> {
        Account {
            residency: Residency::new(source),
            page: page_size().0,
            figures: Figures::default(),
            classes: vec![SizeClass::default(); CLASSES],
            pending: 0..0,
            open: 0..0,
            ranges: None,
            huge: Vec::new(),
        }
    }

    /// Collects the returnable pages too: see [`Account::take_ranges`].
    pub fn with_ranges(self) -> Account<'s> {
        Account { ranges: Some(Vec::new()), ..self }
    }

    /// `range` was taken from the system: counts as mapped, and its resident part as resident.
    pub fn mapped(&mut self, range: Range<u64>) -> Result<(), Fault> {
        self.figures.mapped += Bytes(range.end - range.start);
        self.figures.resident += self.residency.present(range)?;
        Ok(())
    }

    /// A block of `size` bytes lives.
    #[inline]
    pub fn live(&mut self, size: u64) {
        self.live_many(size, 1);
    }

    /// The block `range` lives: its address is remembered if it is huge.
    pub fn live_at(&mut self, range: Range<u64>) {
        let size = range.end - range.start;
        self.live(size);
        if size >= HUGE_BLOCK.0 && self.huge.len() < HUGE_MOST {
            self.huge.push(range);
        }
    }

    /// `count` blocks of `size` bytes each live.
    #[inline]
    pub fn live_many(&mut self, size: u64, count: u64) {
        let class = &mut self.classes[class_of(size)];
        class.live_count += count;
        class.live += Bytes(size * count);
        self.figures.live += Bytes(size * count);
    }

    /// A block of `size` bytes counted as live is in a thread cache: moves it from live to cached.
    pub fn cached_not_live(&mut self, size: u64) {
        let class = &mut self.classes[class_of(size)];
        class.live_count = class.live_count.saturating_sub(1);
        class.live = Bytes(class.live.0.saturating_sub(size));
        self.figures.live = Bytes(self.figures.live.0.saturating_sub(size));
        self.cached(size);
    }

    /// A freed block of `size` bytes is in a thread cache or quick list.
    #[inline]
    pub fn cached(&mut self, size: u64) {
        let class = &mut self.classes[class_of(size)];
        class.free_count += 1;
        class.free += Bytes(size);
        self.figures.cached += Bytes(size);
    }

    /// The block `range` is free. Neighbours told one after the other are one.
    #[inline]
    pub fn free(&mut self, range: Range<u64>) -> Result<(), Fault> {
        self.extend(&range)?;
        if self.open.end == range.start {
            self.open.end = range.end;
        } else {
            self.open = range;
        }
        Ok(())
    }

    /// As [`Account::free`], for a block all of whose pages hold links that the allocator will follow: to give
    /// one back would cut its lists.
    #[inline]
    pub fn free_linked(&mut self, range: Range<u64>) -> Result<(), Fault> {
        self.extend(&range)?;
        self.settle()?;
        self.figures.pinned_free += self.residency.present(range.clone())?;
        self.open = range.end..range.end;
        Ok(())
    }

    /// As [`Account::free`], for a block whose first `links` bytes are the allocator's: a header, and links of its
    /// lists. They are free, but the pages they lie on cannot be given back.
    #[inline]
    pub fn free_behind(&mut self, range: Range<u64>, links: u64) -> Result<(), Fault> {
        self.extend(&range)?;
        self.settle()?;
        let open = range.start.saturating_add(links).min(range.end);
        self.figures.pinned_free += self.residency.present(range.start..open)?;
        self.open = open..range.end;
        Ok(())
    }

    /// The whole pages of `range` that are resident would be returned by the allocator's own trim.
    pub fn trimmable(&mut self, range: Range<u64>) -> Result<(), Fault> {
        let bytes = match self.whole_pages(&range) {
            Some(whole) => self.residency.present(whole)?,
            None => Bytes::ZERO,
        };
        *self.figures.returnable_by_trim.get_or_insert_default() += bytes;
        Ok(())
    }

    /// `size` bytes are the allocator's own books.
    pub fn metadata(&mut self, size: u64) {
        self.figures.metadata += Bytes(size);
    }

    /// What `range` has in memory.
    pub fn present(&mut self, range: Range<u64>) -> Result<Bytes, Fault> {
        self.residency.present(range)
    }

    /// The returnable pages told up to now, in the order they were told, where [`Account::with_ranges`] asked for
    /// them: the first [`RANGES_MOST`] runs. Ends the coalescing of free neighbours.
    pub fn take_ranges(&mut self) -> Result<Option<Vec<Range<u64>>>, Fault> {
        self.enter()?;
        Ok(self.ranges.as_mut().map(std::mem::take))
    }

    /// The huge live blocks told by address up to now.
    pub fn take_huge(&mut self) -> Vec<Range<u64>> {
        std::mem::take(&mut self.huge)
    }

    /// The figures of what was told since the last call: for a heap whose parts are told by turns. Ends the
    /// coalescing of free neighbours.
    pub fn take_figures(&mut self) -> Result<Figures, Fault> {
        self.enter()?;
        let mut figures = std::mem::take(&mut self.figures);
        figures.unused = figures.mapped - (figures.live + figures.cached + figures.free + figures.metadata);
        Ok(figures)
    }

    /// Closes the books: what was mapped and told by no name is unused. The histogram is of everything, the figures
    /// of what [`Account::take_figures`] did not take.
    pub fn close(mut self) -> Result<(Figures, Vec<SizeClass>), Fault> {
        let figures = self.take_figures()?;
        let classes = self.classes.into_iter().enumerate();
        let classes = classes
            .filter(|(_, class)| class.live_count + class.free_count > 0)
            .map(|(index, class)| SizeClass { up_to: Bytes(up_to(index)), ..class });
        Ok((figures, classes.collect()))
    }

    fn whole_pages(&self, range: &Range<u64>) -> Option<Range<u64>> {
        let start = range.start.next_multiple_of(self.page);
        let end = range.end - range.end % self.page;
        (start < end).then_some(start..end)
    }

    /// Adds `range` to the pending free bytes, or begins them anew with it.
    #[inline]
    fn extend(&mut self, range: &Range<u64>) -> Result<(), Fault> {
        let size = range.end - range.start;
        let class = &mut self.classes[class_of(size)];
        class.free_count += 1;
        class.free += Bytes(size);
        if self.pending.end == range.start && !self.pending.is_empty() {
            self.pending.end = range.end;
            return Ok(());
        }
        self.enter()?;
        self.pending = range.clone();
        self.open = range.start..range.start;
        Ok(())
    }

    /// Enters the pending free bytes.
    fn enter(&mut self) -> Result<(), Fault> {
        self.settle()?;
        let size = Bytes(self.pending.end - self.pending.start);
        self.pending = 0..0;
        if size > Bytes::ZERO {
            self.figures.free += size;
            self.figures.free_chunks += 1;
            self.figures.largest_free = self.figures.largest_free.max(size);
        }
        Ok(())
    }

    /// Divides the bytes without a link into what could be given back and what could not.
    fn settle(&mut self) -> Result<(), Fault> {
        let range = std::mem::replace(&mut self.open, 0..0);
        if range.is_empty() {
            return Ok(());
        }
        match self.whole_pages(&range) {
            Some(whole) => {
                self.returnable(whole.clone())?;
                self.figures.pinned_free += self.residency.present(range.start..whole.start)?;
                self.figures.pinned_free += self.residency.present(whole.end..range.end)?;
            }
            None => self.figures.pinned_free += self.residency.present(range)?,
        }
        Ok(())
    }

    /// Enters the resident ones of pages that are all free.
    fn returnable(&mut self, pages: Range<u64>) -> Result<(), Fault> {
        let Some(ranges) = &mut self.ranges else {
            self.figures.returnable += self.residency.present(pages)?;
            return Ok(());
        };
        let mut sum = 0;
        self.residency.each(pages, |run, state| {
            if state == PageState::Present {
                sum += run.end - run.start;
                let count = ranges.len();
                match ranges.last_mut() {
                    Some(last) if last.end == run.start => last.end = run.end,
                    _ if count < RANGES_MOST => ranges.push(run),
                    _ => {}
                }
            }
        })?;
        self.figures.returnable += Bytes(sum);
        Ok(())
    }
}

/// Where blocks of `size` belong.
#[inline]
fn class_of(size: u64) -> usize {
    let size = size.max(8) - 1;
    let log = size.ilog2();
    ((log as usize - 2) * 4 + (size >> (log - 2) & 3) as usize).min(CLASSES - 1)
}

/// The largest size in class `index`.
fn up_to(index: usize) -> u64 {
    let log = index / 4 + 2;
    (5 + (index % 4) as u64) << (log - 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_pin_their_pages_and_ranges_name_the_rest() {
        let (page, at) = (page_size().0, |page: u64| (16 + page) * page_size().0);
        let mut image = crate::Image::default();
        image.put(at(0), vec![0; 3 * page as usize]);
        image.put(at(4), vec![0; 4 * page as usize]);
        image.map(crate::source::Area::anon(at(0)..at(8)));
        let mut account = Account::new(&image).with_ranges();
        account.mapped(at(0)..at(8)).unwrap();
        // The links are on the first page; the fourth is absent.
        account.free_behind(at(0)..at(5) + 8, 64).unwrap();
        account.live(24);
        // The links reach over into the second page.
        account.free_behind(at(5) + 32..at(8), page).unwrap();
        let ranges = account.take_ranges().unwrap().unwrap();
        assert_eq!(ranges, [at(1)..at(3), at(4)..at(5), at(7)..at(8)]);
        let (figures, classes) = account.close().unwrap();
        assert_eq!(figures.returnable, Bytes(4 * page));
        assert_eq!(figures.pinned_free, Bytes(3 * page - 24));
        assert_eq!((figures.free_chunks, figures.free), (2, Bytes(8 * page - 24)));
        assert_eq!(classes.iter().map(|class| class.free_count).sum::<u64>(), 2);
    }

    #[test]
    fn a_size_is_in_the_class_that_reaches_it() {
        for size in (8..70_000).chain([1 << 20, (1 << 20) + 1, 1 << 47]) {
            let class = class_of(size);
            assert!(size <= up_to(class), "{size}");
            assert!(class == 0 || size > up_to(class - 1), "{size}");
        }
        assert_eq!(class_of(u64::MAX), CLASSES - 1);
    }
}
