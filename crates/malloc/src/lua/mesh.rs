//! Meshing: pages of one class whose live slots do not overlap share one frame, each where it was.
//!
//! A page with one survivor cannot be given back; two such pages can be held in the memory of one. It happens in
//! rounds, each cut into steps of some tenths of a millisecond, while the VM stands still: inside the allocator, or
//! while the program waits. Only pages are taken in which no slot was allocated or freed for a while, which are at
//! most half full, and whose memory nobody but the VM writes to ([`super::writers`]).
//!
//! A collector's cycle writes to every object, and by that takes meshed pages apart: each gets a copy of its own. A
//! round looks first which segments have come apart, and gives up those; their pages may be meshed again, the later the
//! more often it was in vain.
//!
//! Invariants: a MESHED page is in the list of its segment, next to those of its frame, and in no other; nothing is
//! allocated from it. At most [`Mesh::most`] pages are mapped from files, so that mappings, two for each, stay below
//! a quarter of what the kernel allows.

use super::entry::{ALIASED, CURRENT, MESHED, slots};
use super::heap::{Heap, Told};
use super::segment::Filling;
use super::writers::Head;
use crate::bits::CHUNK_PAGES;
use crate::class::{Class, PAGE, small_by_eight};
use crate::map::Page;
use crate::sys;

/// The largest slots that are meshed: with fewer than sixteen to a page, pages rarely fit.
const SLOT_MOST: usize = 256;
/// Epochs without a slot allocated or freed after which a page is cold: twenty seconds at least.
const COLD: u16 = 5;
/// Epochs between rounds, and at most.
const WAIT: u16 = 1;
const WAIT_MOST: u16 = 64;
/// A segment found whole after so many epochs shows that meshing lasts here.
const YOUNG: u16 = 12;
/// Pages of a heap below which there is nothing worth a round.
const PAGES_LEAST: u64 = 64;
/// Candidates that are fitted together at a time.
const BATCH: usize = 256;
/// Pages meshed in a step, about: each takes some 6 us.
const STEP_PAGES: usize = 32;
/// Segments at most.
const SEGMENTS: usize = 1024;

/// Pages that share frames of one file.
#[derive(Debug, Clone, Copy, Default)]
struct Segment {
    /// The first of its pages, plus one.
    first: u32,
    members: u16,
    frames: u16,
    born: u16,
}

/// The state of meshing in one heap.
#[derive(Debug)]
pub(crate) struct Mesh {
    /// Pages mapped from files.
    pub(crate) aliased: u32,
    most: u32,
    /// A round is under way, and where: the next segment to look at, then the next class and page.
    running: bool,
    segment: u16,
    class: u8,
    page: u32,
    /// The epoch of the last round's end, and how long to wait from there.
    last: u16,
    wait: u16,
    /// A segment came apart young in this round.
    in_vain: bool,
    /// A segment was found whole in this round.
    lasting: bool,
    /// The kernel refused a file or a mapping: no more.
    refused: bool,
    plan: Plan,
    segments: [Segment; SEGMENTS],
}

/// Candidates of one class and which share a frame.
#[derive(Debug)]
struct Plan {
    count: u16,
    frames: u16,
    /// The next frame to be made.
    next: u16,
    class: u8,
    pages: [u32; BATCH],
    frame: [u16; BATCH],
    /// Slots in use of each frame.
    used: [[u64; 4]; BATCH],
}

fn overlap(a: &[u64; 4], b: &[u64; 4]) -> bool {
    a.iter().zip(b).any(|(a, b)| a & b != 0)
}

fn join(into: &mut [u64; 4], other: &[u64; 4]) {
    into.iter_mut().zip(other).for_each(|(into, other)| *into |= other);
}

fn at(page: u32) -> Page {
    Page::at(page as usize - 1)
}

impl Plan {
    /// Puts a page into the first frame where its live slots fit.
    fn add(&mut self, page: Page, live: &[u64; 4]) {
        let fits = self.used.iter().take(self.frames as usize).position(|used| !overlap(used, live));
        let frame = fits.unwrap_or(self.frames as usize);
        let (Some(used), Some(slot), Some(of)) = (
            self.used.get_mut(frame),
            self.pages.get_mut(self.count as usize),
            self.frame.get_mut(self.count as usize),
        ) else {
            return;
        };
        if fits.is_none() {
            *used = [0; 4];
            self.frames += 1;
        }
        join(used, live);
        (*slot, *of) = (page.index() as u32, frame as u16);
        self.count += 1;
    }

    fn is_full(&self) -> bool {
        self.count as usize == BATCH
    }

    fn of_frame(&self, frame: u16) -> impl Iterator<Item = Page> {
        let pages = self.pages.iter().zip(&self.frame).take(self.count as usize);
        pages.filter(move |(_, of)| **of == frame).map(|(page, _)| Page::at(*page as usize))
    }
}

impl Mesh {
    /// Whether a slice has anything to do.
    pub(crate) fn is_due(&mut self, epoch: u16, pages: u64) -> bool {
        if self.most == 0 {
            self.most = sys::max_map_count() / 8;
            self.wait = WAIT;
        }
        let rested = epoch.wrapping_sub(self.last) >= self.wait && pages >= PAGES_LEAST;
        !self.refused && (self.running || rested)
    }

    /// Whether what was touched in epoch `rested` for the last time is still to be looked at.
    pub(crate) fn is_pending(&self, rested: u16, pages: u64) -> bool {
        let looked = self.last.wrapping_sub(rested) < u16::MAX / 2 && self.last.wrapping_sub(rested) >= COLD;
        !self.refused && pages >= PAGES_LEAST && !looked
    }

    /// A page leaves its segment.
    pub(crate) fn leave(&mut self, page: Page, told: &Told) {
        let entry = page.entry();
        let (next, prev) = (entry.next.get(), entry.prev.get());
        if next != 0 {
            at(next).entry().prev.set(prev);
        }
        let Some(segment) = self.segments.get_mut(entry.segment.get() as usize) else { return };
        if prev != 0 {
            at(prev).entry().next.set(next);
        } else {
            segment.first = next;
        }
        segment.members -= 1;
        told.meshed.sub(1);
        entry.set(MESHED, false);
        if segment.members == 0 {
            told.frames.sub(u64::from(segment.frames));
            segment.frames = 0;
        }
    }

    /// A page joins a segment, next to the last one that did.
    fn join(&mut self, segment: usize, frame: usize, page: Page, told: &Told) {
        let Some(to) = self.segments.get_mut(segment) else { return };
        let entry = page.entry();
        entry.segment.set(segment as u16);
        entry.frame.set(frame as u16);
        entry.prev.set(0);
        entry.next.set(to.first);
        if to.first != 0 {
            at(to.first).entry().prev.set(page.index() as u32 + 1);
        }
        to.first = page.index() as u32 + 1;
        to.members += 1;
        told.meshed.add(1);
        entry.set(MESHED, true);
    }
}

/// Whether two pages hold the same bytes.
fn same(a: Page, b: Page) -> bool {
    // SAFETY: both pages are their heap's, which stands still, and mapped.
    let [a, b] = [a, b].map(|page| unsafe {
        core::slice::from_raw_parts(core::ptr::with_exposed_provenance::<u8>(page.address()), PAGE)
    });
    a == b
}

/// Whether nobody but the VM writes to a page's live slots.
fn is_the_vms(page: Page, class: &Class, live: [u64; 4]) -> bool {
    slots(live).all(|slot| {
        let start = page.address() + (slot * class.size) as usize;
        let byte = |off: u32| {
            let at = core::ptr::with_exposed_provenance::<u8>(start + off.min(class.size - 1) as usize);
            // SAFETY: a byte of the slot, which lies in a page of the heap.
            unsafe { at.read_volatile() }
        };
        let word = |off: usize| {
            // SAFETY: a slot has 16 bytes at least and is aligned to 8.
            unsafe { core::ptr::with_exposed_provenance::<u64>(start + off).read_volatile() }
        };
        Head { first: word(0), second: word(8) }.is_the_vms(class.size, byte)
    })
}

impl Heap {
    /// Meshes for so many microseconds, about; whether there is more to do.
    pub(crate) fn mesh_slice(&mut self, budget_us: u64) -> bool {
        let began = sys::now_us();
        let mut more = true;
        while more && sys::now_us() - began < budget_us {
            more = self.mesh_step();
        }
        self.told.longest_us.set(self.told.longest_us.get().max(sys::now_us() - began));
        more
    }

    fn mesh_step(&mut self) -> bool {
        if !self.mesh.running {
            self.begin_round();
        } else if self.mesh.plan.next < self.mesh.plan.frames {
            self.carry_out();
        } else if (self.mesh.segment as usize) < SEGMENTS {
            self.examine();
        } else if usize::from(self.mesh.class) <= usize::from(small_by_eight(SLOT_MOST)) {
            self.search();
        } else {
            self.end_round();
            return false;
        }
        if self.mesh.refused {
            self.mesh.running = false;
        }
        self.mesh.running
    }

    fn begin_round(&mut self) {
        let mesh = &mut self.mesh;
        (mesh.running, mesh.in_vain, mesh.lasting) = (true, false, false);
        (mesh.segment, mesh.class, mesh.page) = (0, 1, 0);
        (mesh.plan.count, mesh.plan.frames, mesh.plan.next) = (0, 0, 0);
    }

    fn end_round(&mut self) {
        let mesh = &mut self.mesh;
        mesh.running = false;
        mesh.last = self.epoch;
        if mesh.in_vain {
            mesh.wait = (mesh.wait * 2).min(WAIT_MOST);
        } else if mesh.lasting {
            mesh.wait = (mesh.wait / 2).max(WAIT);
        }
    }

    /// Looks at the next segment; gives it up if more than a quarter of its frames have come apart.
    fn examine(&mut self) {
        let used = |s: &Segment| s.members > 0;
        let from = self.mesh.segment as usize;
        let found = self.mesh.segments.iter().enumerate().skip(from).find(|(_, s)| used(s));
        let Some((index, &segment)) = found else {
            self.mesh.segment = SEGMENTS as u16;
            return;
        };
        self.mesh.segment = index as u16 + 1;
        let (mut apart, mut last_apart) = (0, None);
        let mut page = segment.first;
        while page != 0 {
            let entry = at(page).entry();
            let next = entry.next.get();
            let frame = entry.frame.get();
            let together = next == 0 || at(next).entry().frame.get() != frame || same(at(page), at(next));
            if !together && last_apart != Some(frame) {
                (apart, last_apart) = (apart + 1, Some(frame));
            }
            page = next;
        }
        let age = self.epoch.wrapping_sub(segment.born);
        if apart * 4 > segment.frames {
            self.mesh.in_vain |= age < YOUNG;
            self.give_up(segment);
        } else {
            self.mesh.lasting |= age >= YOUNG;
        }
    }

    /// Ends a segment: its pages are ordinary ones again, mapped from a file as they are.
    fn give_up(&mut self, segment: Segment) {
        self.told.unmeshed.add(u64::from(segment.members));
        let mut page = segment.first;
        while page != 0 {
            let this = at(page);
            page = this.entry().next.get();
            self.mesh.leave(this, &self.told);
            if let Some(class) = self.class_of(this) {
                self.list(this, class);
            }
        }
    }

    /// Collects candidates of the round's class, in the order of addresses, and fits them together.
    fn search(&mut self) {
        let class = self.mesh.class;
        let plan = &mut self.mesh.plan;
        (plan.count, plan.frames, plan.next, plan.class) = (0, 0, 0, class);
        while let Some(chunk) = super::next_paged(self.mesh.page as usize / CHUNK_PAGES) {
            let first = (self.mesh.page as usize).max(chunk * CHUNK_PAGES);
            for n in first..(chunk + 1) * CHUNK_PAGES {
                let page = Page::at(n);
                if let Some(live) = self.candidate(page, class) {
                    self.mesh.plan.add(page, &live);
                }
                if self.mesh.plan.is_full() {
                    self.mesh.page = n as u32 + 1;
                    return;
                }
            }
            self.mesh.page = ((chunk + 1) * CHUNK_PAGES) as u32;
        }
        (self.mesh.class, self.mesh.page) = (class + 1, 0);
    }

    /// The live slots of a page that may be meshed.
    fn candidate(&self, page: Page, class: u8) -> Option<[u64; 4]> {
        if self.class_of(page) != Some(class) {
            return None;
        }
        let (entry, shape) = (page.entry(), Class::of(class));
        let cold = self.epoch.wrapping_sub(entry.touched.get()) >= COLD;
        let sparse = u32::from(entry.count.get()) * 2 >= shape.slots;
        if !cold || !sparse || entry.is(CURRENT) || entry.is(MESHED) {
            return None;
        }
        let live = entry.live(shape);
        is_the_vms(page, shape, live).then_some(live)
    }

    /// Makes the plan's next frames, all in one segment.
    fn carry_out(&mut self) {
        let class = self.mesh.plan.class;
        let Some(segment) = self.mesh.segments.iter().position(|s| s.members == 0) else {
            self.mesh.plan.next = self.mesh.plan.frames;
            return;
        };
        let first = self.mesh.plan.next;
        let (mut last, mut pages) = (first, 0);
        while last < self.mesh.plan.frames && pages < STEP_PAGES {
            pages += self.mesh.plan.of_frame(last).count();
            last += 1;
        }
        self.mesh.plan.next = last;
        if self.mesh.aliased as usize + pages > self.mesh.most as usize {
            return;
        }
        let Ok(mut filling) = Filling::new((last - first) as usize) else {
            self.mesh.refused = true;
            return;
        };
        let mut made = 0;
        for frame in first..last {
            made += u16::from(self.make_frame(&mut filling, segment, made, frame, class));
        }
        if let Some(segment) = self.mesh.segments.get_mut(segment) {
            (segment.frames, segment.born) = (made, self.epoch);
        }
        self.told.frames.add(u64::from(made));
    }

    /// Makes frame `planned` of the plan frame `made` of a segment; whether at least two pages share it.
    fn make_frame(&mut self, filling: &mut Filling, segment: usize, made: u16, planned: u16, class: u8) -> bool {
        let shape = Class::of(class);
        let (mut used, mut pages, mut count) = ([0; 4], [0_u32; BATCH], 0);
        // Time may have gone by since the plan was made.
        for page in self.mesh.plan.of_frame(planned) {
            let Some(live) = self.candidate(page, class).filter(|live| !overlap(&used, live)) else { continue };
            join(&mut used, &live);
            if let Some(slot) = pages.get_mut(count) {
                *slot = page.index() as u32;
                count += 1;
            }
        }
        if count < 2 {
            return false;
        }
        let pages = || pages.iter().take(count).map(|page| Page::at(*page as usize));
        for page in pages() {
            for slot in slots(page.entry().live(shape)) {
                filling.copy(made as usize, page, (slot * shape.size) as usize, shape.size as usize);
            }
        }
        for page in pages() {
            if filling.alias(page, made as usize).is_err() {
                self.mesh.refused = true;
                continue;
            }
            self.unlist(page, class);
            self.mesh.aliased += u32::from(!page.entry().is(ALIASED));
            page.entry().set(ALIASED, true);
            self.mesh.join(segment, made as usize, page, &self.told);
            page.entry().set_due(shape);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlapping_pages_get_frames_of_their_own() {
        assert!(overlap(&[0, 4, 0, 0], &[0, 6, 0, 0]));
        assert!(!overlap(&[1, 4, 0, 0], &[2, 2, 0, 0]));
    }
}
