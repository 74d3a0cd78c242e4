//! Which pages of a process are in memory: `ioctl(PAGEMAP_SCAN)` (6.7), and reading /proc/PID/pagemap.
//!
//! Source: Documentation/admin-guide/mm/pagemap.rst, fs/proc/task_mmu.c (6.18). Measured there: the scan takes
//! 1.6 ms per GiB of 4 KiB pages and 0.03 ms with huge pages, reading pagemap 2.5-3.7 ms.

use rustix::fd::{AsFd, BorrowedFd};
use rustix::io::Errno;
use rustix::ioctl::{IoctlOutput, Opcode, opcode};
use std::ops::{BitOr, Range};

/// A set of properties of a page.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Categories(u64);

impl Categories {
    /// Nothing.
    pub const NONE: Categories = Categories(0);
    /// A file's or shmem's, not anonymous.
    pub const FILE: Categories = Categories(1 << 2);
    /// In memory and mapped.
    pub const PRESENT: Categories = Categories(1 << 3);
    /// Swapped out, or under migration.
    pub const SWAPPED: Categories = Categories(1 << 4);
    /// The shared page of zeroes: read, never written. Scan only.
    pub const ZERO_PAGE: Categories = Categories(1 << 5);
    /// Mapped by a huge entry. Scan only.
    pub const HUGE: Categories = Categories(1 << 6);
    /// Written since the bit was cleared; needs CONFIG_MEM_SOFT_DIRTY, else never set.
    pub const SOFT_DIRTY: Categories = Categories(1 << 7);

    /// Whether all of `others` are in this set.
    pub fn has(self, others: Categories) -> bool {
        self.0 & others.0 == others.0
    }

    /// Whether one of `others` is in this set.
    pub fn has_any(self, others: Categories) -> bool {
        self.0 & others.0 != 0
    }
}

impl BitOr for Categories {
    type Output = Categories;
    fn bitor(self, other: Categories) -> Categories {
        Categories(self.0 | other.0)
    }
}

/// Neighbouring pages with the same properties (`struct page_region`).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Region {
    /// The first address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// Those of the properties asked for that its pages have.
    pub categories: Categories,
}

/// Which pages to find.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Query {
    /// Pages that have all of these ...
    pub all_of: Categories,
    /// ... and one of these, if any are named ...
    pub any_of: Categories,
    /// ... and none of these.
    pub none_of: Categories,
    /// Which properties to tell of those found; pages that differ in these only are different regions.
    pub tell: Categories,
}

impl Query {
    fn finds(&self, page: Categories) -> bool {
        page.has(self.all_of)
            && (self.any_of == Categories::NONE || page.has_any(self.any_of))
            && !page.has_any(self.none_of)
    }
}

/// `struct pm_scan_arg`.
#[repr(C)]
#[derive(Debug, Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `ioctl(pagemap, PAGEMAP_SCAN)`: finds the pages in `range` that answer `query`, and fills `regions` with
/// them. Returns how many regions that are and up to which address they reach: where it is less than the
/// range's end, `regions` was full; go on from there.
///
/// `pagemap` is an open /proc/PID/pagemap; `range` begins at a page. Errors: ENOTTY (before 6.7), EINVAL (the
/// range begins within a page, or the kernel does not know a category), EFAULT (the range is beyond what a
/// process may have).
pub fn scan(
    pagemap: impl AsFd,
    range: Range<u64>,
    query: &Query,
    regions: &mut [Region],
) -> Result<(usize, u64), Errno> {
    let mut arg = ScanArg {
        size: size_of::<ScanArg>() as u64,
        start: range.start,
        end: range.end,
        vec: regions.as_mut_ptr() as u64,
        vec_len: regions.len() as u64,
        category_inverted: query.none_of.0,
        category_mask: query.all_of.0 | query.none_of.0,
        category_anyof_mask: query.any_of.0,
        return_mask: query.tell.0,
        ..ScanArg::default()
    };
    // SAFETY: `Scan` names the structure that PAGEMAP_SCAN takes, and `arg.vec` and `arg.vec_len` are those of
    // `regions`, which is borrowed mutably for the whole call and in which any bytes are valid.
    #[allow(unsafe_code)]
    let found = unsafe { rustix::ioctl::ioctl(pagemap, Scan(&mut arg)) }?;
    // The kernel never says more, but an index must not depend on that.
    Ok((found.min(regions.len()), arg.walk_end))
}

/// The call to PAGEMAP_SCAN with its argument.
struct Scan<'a>(&'a mut ScanArg);

// SAFETY: the opcode is that of linux/fs.h, _IOWR('f', 16, struct pm_scan_arg); the pointer is to such a
// structure, valid for reading and writing while `self` lives; the result is a count.
#[allow(unsafe_code)]
unsafe impl rustix::ioctl::Ioctl for Scan<'_> {
    type Output = usize;
    const IS_MUTATING: bool = true;

    fn opcode(&self) -> Opcode {
        opcode::read_write::<ScanArg>(b'f', 16)
    }

    fn as_ptr(&mut self) -> *mut rustix::ffi::c_void {
        (self.0 as *mut ScanArg).cast()
    }

    unsafe fn output_from_ptr(result: IoctlOutput, _: *mut rustix::ffi::c_void) -> rustix::io::Result<usize> {
        usize::try_from(result).map_err(|_| Errno::INVAL)
    }
}

/// Bytes of an entry.
const ENTRY: usize = size_of::<u64>();

/// One page's entry in /proc/PID/pagemap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry(u64);

impl Entry {
    /// Those of its properties that an entry tells: all but [`Categories::ZERO_PAGE`] and
    /// [`Categories::HUGE`].
    pub fn categories(self) -> Categories {
        let bit = |bit: u32, category| if self.0 >> bit & 1 == 1 { category } else { Categories::NONE };
        bit(63, Categories::PRESENT)
            | bit(62, Categories::SWAPPED)
            | bit(61, Categories::FILE)
            | bit(55, Categories::SOFT_DIRTY)
    }

    /// Mapped by this process only (4.2).
    pub fn exclusive(self) -> bool {
        self.0 >> 56 & 1 == 1
    }
}

/// Calls `each` with the entry of every page in `range`, in order; pages above the process's memory have none.
///
/// `pagemap` is an open /proc/PID/pagemap. ESRCH after the process has ended.
pub fn each_entry(
    pagemap: impl AsFd,
    range: Range<u64>,
    mut each: impl FnMut(u64, Entry),
) -> Result<(), Errno> {
    let page = rustix::param::page_size() as u64;
    let mut at = range.start / page;
    let end = range.end.div_ceil(page);
    let mut buf = [0; 4096 * ENTRY];
    while at < end {
        let wanted =
            usize::try_from(end - at).map_or(buf.len(), |left| buf.len().min(left.saturating_mul(ENTRY)));
        let n = match rustix::io::pread(&pagemap, &mut buf[..wanted], at * ENTRY as u64) {
            Ok(0) => return still_there(pagemap),
            Ok(n) => n,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        for entry in buf[..n].as_chunks::<ENTRY>().0 {
            each(at * page, Entry(u64::from_ne_bytes(*entry)));
            at += 1;
        }
    }
    Ok(())
}

/// ESRCH if the process has ended: its pagemap has no entries any more, not even that of address 0, where each
/// process that runs has one. Without an error, a scan finds nothing then (seen on 6.18.44).
fn still_there(pagemap: impl AsFd) -> Result<(), Errno> {
    match rustix::io::pread(&pagemap, &mut [0; ENTRY], 0) {
        Ok(0) => Err(Errno::SRCH),
        result => result.map(drop),
    }
}

/// Calls `each` with every region of `range` that answers `query`, in order: by [`scan`], and on kernels
/// without it from the entries, in which no page is known as [`Categories::ZERO_PAGE`] or
/// [`Categories::HUGE`]. ESRCH after the process has ended.
pub fn each_region(
    pagemap: impl AsFd,
    range: Range<u64>,
    query: &Query,
    mut each: impl FnMut(Region),
) -> Result<(), Errno> {
    match each_scanned(pagemap.as_fd(), range.clone(), query, &mut each) {
        // The first call answers so, before `each` was called.
        Err(Errno::NOTTY) => each_from_entries(pagemap.as_fd(), range, query, &mut each),
        result => result,
    }
}

fn each_scanned(
    pagemap: BorrowedFd<'_>,
    mut range: Range<u64>,
    query: &Query,
    each: &mut impl FnMut(Region),
) -> Result<(), Errno> {
    let mut regions = [Region::default(); 512];
    let mut nothing = !range.is_empty();
    while range.start < range.end {
        let (found, reached) = match scan(pagemap, range.clone(), query, &mut regions) {
            Err(Errno::INTR) => continue,
            result => result?,
        };
        regions[..found].iter().for_each(|&region| each(region));
        nothing &= found == 0;
        if reached <= range.start {
            break;
        }
        range.start = reached;
    }
    if nothing { still_there(pagemap) } else { Ok(()) }
}

fn each_from_entries(
    pagemap: BorrowedFd<'_>,
    range: Range<u64>,
    query: &Query,
    each: &mut impl FnMut(Region),
) -> Result<(), Errno> {
    let page = rustix::param::page_size() as u64;
    let mut region: Option<Region> = None;
    each_entry(pagemap, range, |address, entry| {
        let all = entry.categories();
        let told = Categories(all.0 & query.tell.0);
        let found = query.finds(all);
        match &mut region {
            Some(region) if found && region.end == address && region.categories == told => region.end += page,
            _ => {
                let next = Region { start: address, end: address + page, categories: told };
                if let Some(done) = std::mem::replace(&mut region, found.then_some(next)) {
                    each(done);
                }
            }
        }
    })?;
    if let Some(done) = region {
        each(done);
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests;
