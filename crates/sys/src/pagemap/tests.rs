//! Scans of this process's own pages; those of a child are in tests/child.rs.
#![allow(unsafe_code)]

use super::*;
use rustix::mm::{Advice, MapFlags, MprotectFlags, ProtFlags, madvise, mmap_anonymous, mprotect, munmap};
use std::fs::File;

/// Anonymous pages of a test's own, unmapped when dropped.
pub(crate) struct Pages {
    base: *mut u8,
    count: usize,
}

impl Pages {
    pub(crate) fn new(count: usize) -> Pages {
        let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory that is in use.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), count * page(), prot, flags) }.unwrap();
        // A huge page would make neighbours present too; without them in the kernel this is EINVAL.
        // SAFETY: the advice is about the pages just mapped and changes no content.
        let _ = unsafe { madvise(base, count * page(), Advice::LinuxNoHugepage) };
        Pages { base: base.cast(), count }
    }

    pub(crate) fn size(&self) -> usize {
        page()
    }

    pub(crate) fn address(&self, page: usize) -> u64 {
        assert!(page <= self.count);
        (self.base as usize + page * self.size()) as u64
    }

    /// Fills pages with `byte`.
    pub(crate) fn fill(&self, pages: Range<usize>, byte: u8) {
        assert!(pages.end <= self.count);
        // SAFETY: the pages are within the mapping, and nobody has a reference to them.
        unsafe { self.base.add(pages.start * page()).write_bytes(byte, pages.len() * page()) };
    }

    /// Reads a page, which maps the page of zeroes.
    fn read(&self, page: usize) -> u8 {
        assert!(page < self.count);
        // SAFETY: the page is within the mapping, which is readable.
        unsafe { self.base.add(page * self.size()).read_volatile() }
    }

    /// Makes pages unreadable. They stay mapped: another thread's mapping in their place would be unmapped
    /// with them.
    pub(crate) fn forbid(&self, pages: Range<usize>) {
        let start = self.address(pages.start) as usize as *mut rustix::ffi::c_void;
        // SAFETY: the pages are this mapping's, and nobody has a reference to them.
        unsafe { mprotect(start, pages.len() * page(), MprotectFlags::empty()) }.unwrap();
    }

    fn range(&self) -> Range<u64> {
        self.address(0)..self.address(self.count)
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: nobody has a reference to the mapping, and none can be had any more.
        unsafe { munmap(self.base.cast(), self.count * page()) }.unwrap();
    }
}

fn page() -> usize {
    rustix::param::page_size()
}

/// Every other page of 8 written, page 1 read; and the open pagemap.
fn checkered() -> (Pages, File) {
    let pages = Pages::new(8);
    for at in [0, 2, 4, 6] {
        pages.fill(at..at + 1, 1);
    }
    assert_eq!(pages.read(1), 0);
    (pages, File::open("/proc/self/pagemap").unwrap())
}

const PRESENT: Query = Query {
    all_of: Categories::PRESENT,
    any_of: Categories::NONE,
    none_of: Categories::NONE,
    tell: Categories::PRESENT,
};

fn regions(each: impl FnOnce(&mut dyn FnMut(Region)) -> Result<(), Errno>) -> Result<Vec<(u64, u64)>, Errno> {
    let mut regions = Vec::new();
    each(&mut |region| regions.push((region.start, region.end)))?;
    Ok(regions)
}

#[test]
fn both_ways_find_the_same_pages() {
    let (pages, pagemap) = checkered();
    let entries =
        regions(|each| each_from_entries(pagemap.as_fd(), pages.range(), &PRESENT, &mut |r| each(r)))
            .unwrap();
    let at = |page| pages.address(page);
    assert_eq!(entries, [(at(0), at(3)), (at(4), at(5)), (at(6), at(7))]);
    let either = regions(|each| each_region(&pagemap, pages.range(), &PRESENT, each)).unwrap();
    assert_eq!(either, entries);
}

#[test]
fn the_scan_tells_the_page_of_zeroes() {
    let (pages, pagemap) = checkered();
    let query = Query { none_of: Categories::ZERO_PAGE, ..PRESENT };
    match regions(|each| each_scanned(pagemap.as_fd(), pages.range(), &query, &mut |r| each(r))) {
        Err(Errno::NOTTY) => println!("skipped: this kernel has no PAGEMAP_SCAN"),
        found => {
            let at = |page| pages.address(page);
            assert_eq!(found.unwrap(), [(at(0), at(1)), (at(2), at(3)), (at(4), at(5)), (at(6), at(7))]);
        }
    }
}

#[test]
fn a_scan_goes_on_where_its_buffer_was_full() {
    let (pages, pagemap) = checkered();
    let mut buffer = [Region::default(); 2];
    match scan(&pagemap, pages.range(), &PRESENT, &mut buffer) {
        Err(Errno::NOTTY) => println!("skipped: this kernel has no PAGEMAP_SCAN"),
        first => {
            let (found, reached) = first.unwrap();
            assert_eq!((found, buffer[1].start), (2, pages.address(4)));
            let (found, reached) = scan(&pagemap, reached..pages.range().end, &PRESENT, &mut buffer).unwrap();
            assert_eq!((found, buffer[0].start, reached), (1, pages.address(6), pages.range().end));
            let error = scan(&pagemap, pages.address(0) + 1..pages.range().end, &PRESENT, &mut buffer);
            assert_eq!(error, Err(Errno::INVAL));
        }
    }
}

#[test]
fn more_regions_than_one_call_returns() {
    let pages = Pages::new(2048);
    (0..2048).step_by(2).for_each(|at| pages.fill(at..at + 1, 1));
    let pagemap = File::open("/proc/self/pagemap").unwrap();
    let found = regions(|each| each_region(&pagemap, pages.range(), &PRESENT, each)).unwrap();
    assert_eq!(found.len(), 1024);
    assert!(found.is_sorted());
}

#[test]
fn entries_of_pages() {
    let (pages, pagemap) = checkered();
    let mut seen = Vec::new();
    each_entry(&pagemap, pages.range(), |address, entry| seen.push((address, entry))).unwrap();
    assert_eq!(seen.len(), 8);
    assert_eq!(seen[3], (pages.address(3), seen[3].1));
    assert!(seen[0].1.categories().has(Categories::PRESENT) && seen[0].1.exclusive());
    assert!(!seen[0].1.categories().has_any(Categories::FILE | Categories::SWAPPED));
    assert!(!seen[3].1.categories().has(Categories::PRESENT));
}

#[test]
fn a_file_that_is_no_pagemap_is_no_crash() {
    let null = File::open("/dev/null").unwrap();
    assert_eq!(regions(|each| each_region(&null, 0..1 << 20, &PRESENT, each)), Err(Errno::SRCH));
    let backwards = Range { start: 8, end: 4 };
    assert_eq!(regions(|each| each_region(&null, backwards, &PRESENT, each)), Ok(Vec::new()));
}
