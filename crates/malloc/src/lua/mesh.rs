//! Meshing: pages of one class whose live slots do not overlap share one frame, each where it was.
//!
//! A page with one survivor cannot be given back; two such pages can be held in the memory of one. It happens in
//! rounds, each cut into steps of some tenths of a millisecond, while the VM stands still: inside the allocator, or
//! while the program waits. Only pages are taken in which no slot was allocated or freed for a while, which are at
//! most half full, and whose memory nobody but the VM writes to ([`super::writers`]).
//!
//! Invariants: a MESHED page is in the list of [`Shared`] and in no other; all in that list are shared, or, after a fork,
//! all are parted but for the STUCK; nothing is allocated from them, and their links and flags are touched under that
//! lock only, which a fork takes. Mappings made by it stay below half of what the kernel allows a process. (Neighbours
//! that share neighbouring frames are one mapping.)

use super::entry::{ALIASED, CURRENT, MESHED, STUCK, pages_in, slots};
use super::frames::{self, Frames};
use super::heap::Heap;
use super::list;
use super::told::Told;
use super::writers;
use crate::bits::CHUNK_PAGES;
use crate::class::{Class, PAGE, small_by_eight};
use crate::lock::{Lock, Mutex};
use crate::map::Page;
use crate::sys::{self, Errno};
use core::cmp::Ordering;
use core::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// The largest slots that are meshed: with fewer than sixteen to a page, pages rarely fit.
const SLOT_MOST: usize = 256;
/// Epochs without a slot allocated or freed after which a page is cold: twenty seconds at least.
pub(crate) const COLD: u16 = 5;
/// Epochs between rounds: as a rule, and at most, where forks take apart what was meshed.
const WAIT: u16 = 1;
const WAIT_MOST: u16 = 64;
/// Pages of a heap below which there is nothing worth a round.
const PAGES_LEAST: u64 = 64;
/// Candidates that are fitted together at a time.
const BATCH: usize = 256;
/// Neighbours are put into neighbouring frames, up to so many.
const STRIPE: usize = 16;
/// Pages meshed in a step, about: each takes some 6 us.
const STEP_PAGES: usize = 32;
/// Pages looked at in a step: each takes up to 1 us.
const SEARCH_PAGES: usize = 256;

/// Mappings made by pages of a heap that are mapped from files; counted in [`MAPPINGS`], too.
#[derive(Debug)]
struct Mappings(u32);

/// Those of all heaps: the kernel's limit is the process's.
static MAPPINGS: AtomicU32 = AtomicU32::new(0);

impl Mappings {
    fn change(&mut self, made: u32, gone: u32) {
        let now = (self.0 + made).saturating_sub(gone);
        MAPPINGS.fetch_add(now.wrapping_sub(self.0), Relaxed);
        self.0 = now;
    }
}

/// The state of meshing in one heap.
#[derive(Debug)]
pub(crate) struct Mesh {
    mappings: Mappings,
    /// Mappings that those of all heaps may be.
    most: u32,
    /// A round is under way, and another is due behind it.
    running: bool,
    again: bool,
    /// Where it is.
    class: u8,
    page: u32,
    /// The epoch of the last round's end, and how long to wait from there.
    last: u16,
    wait: u16,
    plan: Plan,
    /// A frame's bytes, while they are put together.
    bytes: [u8; PAGE],
    shared: Mutex<Shared>,
}

/// What a fork in another thread may come upon.
#[derive(Debug)]
struct Shared {
    frames: Frames,
    /// The first of the meshed pages, plus one.
    first: u32,
    /// They have been parted for a fork, and are ordinary pages mapped from a file.
    parted: bool,
    /// This process did not get all pages.
    torn: bool,
}

/// Candidates of one class and which share a frame.
#[derive(Debug)]
struct Plan {
    /// No more candidates come; before it was carried out.
    ready: bool,
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

/// How many mappings end between a page and its neighbours in its chunk, because one of them is mapped from a file.
fn boundaries(page: Page) -> u32 {
    let i = page.index() % CHUNK_PAGES;
    let before = i > 0 && boundary(page.minus(1), page);
    let behind = i + 1 < CHUNK_PAGES && boundary(page, page.plus(1));
    u32::from(before) + u32::from(behind)
}

fn boundary(a: Page, b: Page) -> bool {
    let (a, b) = (a.entry(), b.entry());
    let one = a.is(MESHED) && b.is(MESHED) && a.owner == b.owner && a.frame.get() + 1 == b.frame.get();
    (a.is(ALIASED) || b.is(ALIASED)) && !one
}

impl Plan {
    /// Puts a page into a frame where its live slots fit: the one behind its neighbour's, or the first.
    fn add(&mut self, page: Page, live: &[u64; 4]) {
        let fits = |used: &[u64; 4]| !overlap(used, live);
        let last = (self.count as usize).checked_sub(1);
        let behind = last.and_then(|last| {
            let neighbour = *self.pages.get(last)? as usize + 1 == page.index();
            let frame = *self.frame.get(last)? as usize + 1;
            let there = match frame.cmp(&(self.frames as usize)) {
                Ordering::Less => self.used.get(frame).is_some_and(fits),
                Ordering::Equal => frame < STRIPE,
                Ordering::Greater => false,
            };
            (neighbour && there).then_some(frame)
        });
        let first = || self.used.iter().take(self.frames as usize).position(fits);
        let frame = behind.or_else(first).unwrap_or(self.frames as usize);
        let (Some(used), Some(slot), Some(of)) = (
            self.used.get_mut(frame),
            self.pages.get_mut(self.count as usize),
            self.frame.get_mut(self.count as usize),
        ) else {
            return;
        };
        if frame == self.frames as usize {
            *used = [0; 4];
            self.frames += 1;
        }
        join(used, live);
        (*slot, *of) = (page.index() as u32, frame as u16);
        self.count += 1;
    }

    fn begin(&mut self, class: u8) {
        (self.ready, self.count, self.frames, self.next, self.class) = (false, 0, 0, 0, class);
    }

    fn is_full(&self) -> bool {
        self.count as usize == BATCH
    }

    fn of_frame(&self, frame: u16) -> impl Iterator<Item = Page> {
        let pages = self.pages.iter().zip(&self.frame).take(self.count as usize);
        pages.filter(move |(_, of)| **of == frame).map(|(page, _)| Page::at(*page as usize))
    }
}

impl Shared {
    fn link(&mut self, page: Page, frame: u16) {
        list::insert(&mut self.first, page);
        page.entry().frame.set(frame);
        page.entry().set(MESHED, true);
    }

    fn unlink(&mut self, page: Page) {
        list::remove(&mut self.first, page);
        page.entry().set(MESHED | STUCK, false);
    }

    /// Has each page a frame for itself. What the kernel refuses, for want of mappings, stays shared, is no child's, and
    /// is tried again as long as there is the file. Whether nothing is left of that.
    fn part(&mut self) -> bool {
        let (mut refused, file) = (false, self.frames.file());
        for page in list::each(self.first).filter(|page| !self.parted || page.entry().is(STUCK)) {
            let done = match file {
                Ok(file) => frames::part(file, page, page.entry().frame.get()),
                // A child does not have the page that it would copy.
                Err(gone) if self.parted => Err(gone),
                Err(_) => frames::copy_out(page),
            };
            page.entry().set(STUCK, done.is_err());
            refused |= done.is_err();
        }
        if !refused {
            self.frames.forget();
        }
        self.parted = true;
        !refused
    }
}

impl Mesh {
    /// Whether a slice has anything to do.
    pub(crate) fn is_due(&mut self, epoch: u16, pages: u64) -> bool {
        if self.most == 0 {
            self.most = sys::max_map_count() / 2;
            self.wait = WAIT;
        }
        let rested = epoch.wrapping_sub(self.last) >= self.wait && pages >= PAGES_LEAST;
        self.running || rested
    }

    /// Another round is due, at once or behind the one under way: begun anew each time, it would come to no end.
    pub(crate) fn hurry(&mut self, epoch: u16) {
        (self.wait, self.last, self.again) = (WAIT, epoch.wrapping_sub(WAIT), self.running);
    }

    /// Whether what was touched in epoch `rested` for the last time is still to be looked at.
    pub(crate) fn is_pending(&self, rested: u16, pages: u64) -> bool {
        let since = self.last.wrapping_sub(rested);
        pages >= PAGES_LEAST && !(COLD..u16::MAX / 2).contains(&since)
    }

    /// A page that holds nothing is ordinary memory again; false if the kernel refused that.
    pub(crate) fn leave(&mut self, page: Page, told: &Told) -> bool {
        let entry = page.entry();
        let before = boundaries(page);
        let mut shared = self.shared.lock();
        let done = if entry.is(MESHED) {
            shared.unlink(page);
            told.meshed.sub(1);
            let parted = shared.parted;
            let left = if parted {
                frames::restore(page).map(|()| false)
            } else {
                shared.frames.leave(page, entry.frame.get())
            };
            told.frames.sub(u64::from(left == Ok(true)));
            if shared.first == 0 {
                // Of those that a fork has parted nobody counts the frames. And no heap holds a descriptor for nothing.
                told.frames.set(0);
                shared.frames.forget();
            }
            left.is_ok()
        } else {
            frames::restore(page).is_ok()
        };
        entry.set(ALIASED, false);
        self.mappings.change(boundaries(page), before);
        done
    }

    /// Before a fork, in any thread: no page is shared, and no page changes until [`Mesh::lock`] is released.
    pub(crate) fn part(&self) {
        self.shared.raw().lock();
        // SAFETY: the lock is held, until after the fork.
        let shared = unsafe { self.shared.assume_locked() };
        // Without the file, pages are copied, which their owner must not be writing to meanwhile. Where he could, a child
        // does not get them.
        if shared.first != 0 && (shared.frames.file().is_ok() || super::alone()) {
            shared.part();
        }
    }

    /// In a child: the file is the parent's, who goes on writing to it: new frames, and what could not be parted.
    pub(crate) fn forked(&self) {
        let mut shared = self.shared.lock();
        shared.frames.forget();
        if !shared.parted {
            // Another thread's: this process did not get those pages.
            shared.torn |= shared.first != 0;
            shared.first = 0;
        }
    }

    /// Whether pages stayed with the parent.
    pub(crate) fn is_torn(&self) -> bool {
        self.shared.lock().torn
    }

    /// A page that is still mapped as a fork left it is ordinary memory again: a single one would keep the whole file of
    /// before. Not where others than the VM may be writing to it; nor where another thread may be reading, as for a moment
    /// there are zeros. Whether it was such a page.
    fn own(&mut self, page: Page) -> bool {
        let entry = page.entry();
        if !entry.is(ALIASED) || entry.is(MESHED) || !super::seems_alone() {
            return false;
        }
        let Some(class) = page.class_for(entry.owner.get()).map(Class::of) else { return false };
        if !is_the_vms(page, class, entry.live(class)) {
            return false;
        }
        let before = boundaries(page);
        // No fork comes while the bytes are elsewhere.
        let shared = self.shared.lock();
        let done = frames::copy_out(page);
        drop(shared);
        if done.is_ok() {
            entry.set(ALIASED, false);
            self.mappings.change(boundaries(page), before);
        }
        true
    }

    /// The heap has no page any more.
    pub(crate) fn end(&mut self) {
        self.shared.lock().frames.forget();
        self.mappings.change(0, self.mappings.0);
    }

    /// After a fork.
    pub(crate) fn lock(&self) -> &Lock {
        self.shared.raw()
    }
}

/// Whether nobody but the VM writes to a page's live slots.
fn is_the_vms(page: Page, class: &Class, live: [u64; 4]) -> bool {
    slots(live).all(|slot| {
        let start = page.address() + (slot * class.size) as usize;
        writers::is_the_vms(class.size, |off| {
            let at = start + off.min(class.size - 8) as usize;
            // SAFETY: a word of the slot, which lies in a page of the heap; slots are of 16 bytes at least and of words.
            unsafe { core::ptr::with_exposed_provenance::<u64>(at).read_volatile() }
        })
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
        self.told.longest_us.raise(sys::now_us() - began);
        more
    }

    fn mesh_step(&mut self) -> bool {
        if !self.mesh.running {
            // Under strict overcommit pages might be lost when they are parted.
            if !self.take_over_parted() || sys::overcommit_is_strict() {
                self.put_off();
                return false;
            }
            let mesh = &mut self.mesh;
            (mesh.running, mesh.class, mesh.page) = (true, 1, 0);
            mesh.plan.begin(1);
        } else if self.mesh.plan.ready && self.mesh.plan.next < self.mesh.plan.frames {
            if self.carry_out().is_err() {
                self.put_off();
            }
        } else if self.mesh.class <= small_by_eight(SLOT_MOST) {
            self.search();
        } else {
            self.mesh.wait = (self.mesh.wait / 2).max(WAIT);
            self.end_round();
        }
        self.mesh.running
    }

    /// A file or mapping was refused: there is no use in trying soon.
    fn put_off(&mut self) {
        self.mesh.wait = WAIT_MOST;
        self.end_round();
        let mut shared = self.mesh.shared.lock();
        if shared.first == 0 {
            shared.frames.forget();
        }
    }

    fn end_round(&mut self) {
        let again = core::mem::take(&mut self.mesh.again);
        (self.mesh.running, self.mesh.last) = (false, self.epoch.wrapping_sub(if again { WAIT } else { 0 }));
    }

    /// What a fork took apart are ordinary pages of their classes, to be meshed again later the more often it was so.
    /// False where some could not be taken apart to this day: their free slots are others', and nothing is meshed.
    fn take_over_parted(&mut self) -> bool {
        let first = {
            let mut shared = self.mesh.shared.lock();
            if !shared.parted {
                return true;
            }
            if !shared.part() {
                return false;
            }
            shared.parted = false;
            core::mem::take(&mut shared.first)
        };
        for page in list::each(first) {
            let before = boundaries(page);
            page.entry().set(MESHED, false);
            self.mesh.mappings.change(boundaries(page), before);
            if let Some(class) = page.class_for(self.id) {
                self.list(page, class);
            }
        }
        self.told.parted.add(self.told.meshed.get());
        self.told.meshed.set(0);
        self.told.frames.set(0);
        self.mesh.wait = (self.mesh.wait * 4).min(WAIT_MOST);
        true
    }

    /// Collects candidates of the round's class, in the order of addresses, and fits them together.
    fn search(&mut self) {
        let class = self.mesh.class;
        if self.mesh.plan.ready {
            self.mesh.plan.begin(class);
        }
        let mut work = 0;
        for page in pages_in(self.id, class, self.mesh.page as usize) {
            work += match self.candidate(page, class) {
                Some(live) => {
                    self.mesh.plan.add(page, &live);
                    1
                }
                None if self.mesh.own(page) => SEARCH_PAGES / STEP_PAGES,
                None => 1,
            };
            self.mesh.plan.ready = self.mesh.plan.is_full();
            if self.mesh.plan.ready || work >= SEARCH_PAGES {
                self.mesh.page = page.index() as u32 + 1;
                return;
            }
        }
        self.mesh.plan.ready = true;
        (self.mesh.class, self.mesh.page) = (class + 1, 0);
    }

    /// The live slots of a page that may be meshed.
    fn candidate(&self, page: Page, class: u8) -> Option<[u64; 4]> {
        if page.class_for(self.id) != Some(class) {
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

    /// Makes the plan's next frames.
    fn carry_out(&mut self) -> Result<(), Errno> {
        // What a fork has parted since is taken over first: with others in the same list nobody could tell which are
        // shared.
        if self.mesh.shared.lock().parted {
            self.end_round();
            return Ok(());
        }
        let mut pages = 0;
        while self.mesh.plan.next < self.mesh.plan.frames && pages < STEP_PAGES {
            pages += self.make_frame(self.mesh.plan.next)?;
            self.mesh.plan.next += 1;
        }
        Ok(())
    }

    /// Makes one frame of the plan; for how many pages there was work.
    fn make_frame(&mut self, planned: u16) -> Result<usize, Errno> {
        let class = self.mesh.plan.class;
        let shape = Class::of(class);
        let (mut used, mut pages, mut count) = ([0; 4], [0_u32; BATCH], 0);
        // Time may have gone by since the plan was made.
        for page in self.mesh.plan.of_frame(planned) {
            let Some(live) = self.candidate(page, class).filter(|live| !overlap(&used, live)) else {
                continue;
            };
            if let Some(slot) = pages.get_mut(count) {
                join(&mut used, &live);
                *slot = page.index() as u32;
                count += 1;
            }
        }
        let pages = || pages.iter().take(count).map(|page| Page::at(*page as usize));
        let more = (2 * count as u32).saturating_sub(pages().map(boundaries).sum());
        if count < 2 || MAPPINGS.load(Relaxed) + more > self.mesh.most {
            return Ok(pages().filter(|page| self.mesh.own(*page)).count());
        }
        for page in pages() {
            for slot in slots(page.entry().live(shape)) {
                let (at, len) = ((slot * shape.size) as usize, shape.size as usize);
                let Some(to) = self.mesh.bytes.get_mut(at..at + len) else { continue };
                // SAFETY: a slot in use of a page of this heap, and nobody writes to it: the VM stands still.
                to.copy_from_slice(unsafe {
                    core::slice::from_raw_parts(core::ptr::with_exposed_provenance(page.address() + at), len)
                });
            }
        }
        pages().for_each(|page| self.unlist(page, class));
        let shared = self.share(pages());
        for page in pages().filter(|page| !page.entry().is(MESHED)) {
            self.list(page, class);
        }
        pages().filter(|page| page.entry().is(MESHED)).for_each(|page| page.entry().set_due(shape));
        shared.map(|()| count)
    }

    /// Has pages, which are in no list, share a frame with the bytes that were put together. Under the lock from
    /// beginning to end: a fork in another thread sees all or none.
    fn share(&mut self, pages: impl Iterator<Item = Page>) -> Result<(), Errno> {
        let mut shared = self.mesh.shared.lock();
        // A fork in another thread has just parted the others, or all that the kernel did not refuse to.
        if shared.parted {
            return Err(Errno(9));
        }
        let file = shared.frames.open()?;
        let frame = shared.frames.take(file, &self.mesh.bytes)?;
        for (i, page) in pages.enumerate() {
            shared.frames.share(file, page, frame)?;
            self.told.frames.add(u64::from(i == 0));
            let before = boundaries(page);
            shared.link(page, frame);
            page.entry().set(ALIASED, true);
            self.mesh.mappings.change(boundaries(page), before);
            self.told.meshed.add(1);
            self.told.ever_meshed.add(1);
        }
        Ok(())
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
