//! How fast a process writes to its private memory, seen from outside.
//!
//! Two ways, both of which leave it running. *By content*: a random sample of its resident private pages is read
//! twice and compared; it needs nothing of the kernel and changes nothing, but a page that is written with what
//! it held already counts as unwritten. *Soft-dirty* (CONFIG_MEM_SOFT_DIRTY, not in every kernel): exact, but it
//! write-protects the target's page tables, so that each first write faults (about 0.5 us). Invariants: at most
//! [`SAMPLE`] pages are read, and only pages that pagemap says are present, so that nothing is faulted in.

use crate::fork::Private;
use crate::process::Process;
use crate::{Bytes, ReadError, page_size};
use ebbtide_sys::remote;
use rustix::fd::OwnedFd;
use rustix::io::{Errno, pread};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::{Duration, Instant};

/// Pages compared: a share of 1 % is then known to 0.3 percentage points (two standard deviations). 16 MiB,
/// read in 4 to 6 ms.
pub const SAMPLE: usize = 4096;

/// Mappings may be resident here and there: so many places are tried for each page wanted.
const TRIES: usize = 16;

/// pagemap's bits (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SOFT_DIRTY: u64 = 1 << 55;

/// What part of the sampled pages were written by when.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Written {
    /// Since the beginning.
    pub after: Duration,
    /// Pages looked at.
    pub pages: u64,
    /// Of those, different from what they were.
    pub written: u64,
}

impl Written {
    /// The share that was written.
    pub fn share(&self) -> f64 {
        if self.pages == 0 { 0.0 } else { self.written as f64 / self.pages as f64 }
    }
}

/// A sample of pages and what they held.
#[derive(Debug)]
pub struct PageSample {
    pid: rustix::process::Pid,
    began: Instant,
    pages: Vec<(u64, u64)>,
    buf: Vec<u8>,
}

impl PageSample {
    /// Chooses pages of `mappings` at random, by how much of each is resident, and reads them.
    ///
    /// Errors: [`ReadError::Denied`] without the right to trace the process; it ended.
    pub fn begin(process: &Process, mappings: &[Private]) -> Result<PageSample, ReadError> {
        let pagemap = process.dir().open_file("pagemap")?;
        let gone = || ReadError::Vanished { path: process.dir().path("mem") };
        let pid =
            i32::try_from(process.pid()).ok().and_then(rustix::process::Pid::from_raw).ok_or_else(gone)?;
        let mut sample = PageSample {
            pid,
            began: Instant::now(),
            pages: Vec::with_capacity(SAMPLE),
            buf: vec![0; page_size().0 as usize],
        };
        for address in choose(&pagemap, mappings) {
            match sample.hash(address) {
                Ok(hash) => sample.pages.push((address, hash)),
                Err(Errno::PERM) => return Err(ReadError::Denied { path: process.dir().path("mem") }),
                Err(Errno::SRCH) => return Err(gone()),
                // Unmapped since.
                Err(_) => {}
            }
        }
        Ok(sample)
    }

    /// Compares the pages with what they held at the beginning. Pages that are no longer mapped are left out.
    pub fn compare(&mut self) -> Written {
        let (mut pages, mut written) = (0, 0);
        let after = self.began.elapsed();
        for (address, before) in std::mem::take(&mut self.pages) {
            if let Ok(now) = self.hash(address) {
                pages += 1;
                written += u64::from(now != before);
                self.pages.push((address, before));
            }
        }
        Written { after, pages, written }
    }

    fn hash(&mut self, address: u64) -> Result<u64, Errno> {
        let n = remote::read(self.pid, address, &mut self.buf)?;
        if n < self.buf.len() {
            return Err(Errno::FAULT);
        }
        let words = self.buf.chunks_exact(8).filter_map(|w| w.first_chunk().map(|&w| u64::from_ne_bytes(w)));
        // Multiply and rotate: 0.5 us a page; a chance of 2^-64 to miss a write is no matter here.
        Ok(words.fold(0, |hash: u64, word| (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)))
    }
}

/// Addresses of present pages, spread over `mappings` by what is resident of each.
fn choose(pagemap: &OwnedFd, mappings: &[Private]) -> Vec<u64> {
    let page = page_size().0;
    let resident: u64 = mappings.iter().map(|m| m.resident.0 / page).sum();
    let mut random = Random::new();
    let mut chosen = std::collections::BTreeSet::new();
    for mapping in mappings {
        let pages = mapping.end.saturating_sub(mapping.start) / page;
        let share = mapping.resident.0 / page;
        // Small processes are read as a whole, all others by their share of the sample, but at least once.
        let wanted =
            (share as u128 * SAMPLE as u128).div_ceil(u128::from(resident.max(1))).min(share.into()) as usize;
        let mut found = 0;
        for _ in 0..wanted.saturating_mul(TRIES) {
            if found == wanted || chosen.len() == SAMPLE || pages == 0 {
                break;
            }
            let address = mapping.start + random.below(pages) * page;
            if entry(pagemap, address).is_some_and(|entry| entry & PRESENT != 0) && chosen.insert(address) {
                found += 1;
            }
        }
    }
    chosen.into_iter().collect()
}

fn entry(pagemap: &OwnedFd, address: u64) -> Option<u64> {
    let mut entry = [0; 8];
    let n = pread(pagemap, &mut entry, address / page_size().0 * 8).ok()?;
    (n == entry.len()).then(|| u64::from_ne_bytes(entry))
}

/// Numbers that need not be good, only spread: xorshift64 (Marsaglia, 2003).
struct Random(u64);

impl Random {
    fn new() -> Random {
        Random(RandomState::new().build_hasher().finish() | 1)
    }

    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

/// Whether this kernel marks written pages (CONFIG_MEM_SOFT_DIRTY): tried on a page of this process.
pub fn soft_dirty_works(process_self: &Process) -> bool {
    let mut probe = vec![0u8; 2 * page_size().0 as usize];
    let address = (probe.as_ptr() as u64).next_multiple_of(page_size().0);
    let offset = (address - probe.as_ptr() as u64) as usize;
    let dirty = |pagemap: &OwnedFd| entry(pagemap, address).is_some_and(|entry| entry & SOFT_DIRTY != 0);
    let Ok(pagemap) = process_self.dir().open_file("pagemap") else { return false };
    probe[offset] = 1;
    if clear_soft_dirty(process_self).is_err() || dirty(&pagemap) {
        return false;
    }
    probe[offset] = 2;
    std::hint::black_box(&probe);
    dirty(&pagemap)
}

/// `echo 4 > clear_refs`: write-protects all of the process's pages, so that its next write to each is marked.
///
/// Errors: [`ReadError::Denied`] without the right to trace it.
pub fn clear_soft_dirty(process: &Process) -> Result<(), ReadError> {
    crate::referenced::write(process, b"4")
}

/// How many bytes of `mappings` were written since [`clear_soft_dirty`], of those resident. Reads all of their
/// pagemap: 2.5-3.7 ms per GiB.
pub fn soft_dirty(process: &Process, mappings: &[Private]) -> Result<Bytes, ReadError> {
    const ENTRIES: usize = 64 << 10;
    let pagemap = process.dir().open_file("pagemap")?;
    let page = page_size().0;
    let mut buf = vec![0u8; ENTRIES * 8];
    let mut written = 0;
    for mapping in mappings {
        let mut at = mapping.start / page;
        let end = mapping.end / page;
        while at < end {
            let want = ((end - at) as usize).min(ENTRIES) * 8;
            let n = match pread(&pagemap, &mut buf[..want], at * 8) {
                Ok(0) => break,
                Ok(n) => n,
                Err(Errno::INTR) => continue,
                Err(e) => return Err(ReadError::new(process.dir().path("pagemap"), e)),
            };
            let entries =
                buf[..n].chunks_exact(8).filter_map(|e| e.first_chunk()).map(|&e| u64::from_ne_bytes(e));
            let is_written = |entry: &u64| entry & PRESENT != 0 && entry & SOFT_DIRTY != 0;
            written += entries.filter(is_written).count() as u64;
            at += (n / 8).max(1) as u64;
        }
    }
    Ok(crate::Pages(written).bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Root;

    fn own() -> Process {
        Process::open(&Root::live().unwrap(), std::process::id()).unwrap()
    }

    fn block(pages: usize) -> (Vec<u8>, Private) {
        let page = page_size().0 as usize;
        let block = vec![1u8; (pages + 1) * page];
        let start = (block.as_ptr() as u64).next_multiple_of(page_size().0);
        let end = start + (pages * page) as u64;
        (block, Private { start, end, resident: Bytes(end - start) })
    }

    #[test]
    fn written_pages_are_seen() {
        let (mut block, mapping) = block(1000);
        let mut sample = PageSample::begin(&own(), &[mapping]).unwrap();
        assert!(sample.pages.len() > 900, "{} of 1000 pages", sample.pages.len());
        assert_eq!(sample.compare().written, 0);
        let page = page_size().0 as usize;
        let offset = (mapping.start - block.as_ptr() as u64) as usize;
        for at in (0..500).map(|n| offset + n * page + 17) {
            block[at] = 2;
        }
        std::hint::black_box(&block);
        let share = sample.compare().share();
        assert!((0.4..0.6).contains(&share), "{share}");
    }

    #[test]
    fn a_large_process_is_sampled() {
        let (_block, mapping) = block(3 * SAMPLE);
        assert_eq!(PageSample::begin(&own(), &[mapping]).unwrap().pages.len(), SAMPLE);
        // Claims of a file nobody checked: no more pages than there are, and no panic.
        let wrong = Private { start: 8, end: 4, resident: Bytes(u64::MAX) };
        assert_eq!(PageSample::begin(&own(), &[wrong]).unwrap().pages.len(), 0);
    }

    #[test]
    fn soft_dirty_counts_exactly_where_the_kernel_has_it() {
        let process = own();
        if !soft_dirty_works(&process) {
            return println!("skipped: soft-dirty: this kernel has none");
        }
        let (mut block, mapping) = block(100);
        clear_soft_dirty(&process).unwrap();
        assert_eq!(soft_dirty(&process, &[mapping]).unwrap(), Bytes::ZERO);
        let offset = (mapping.start - block.as_ptr() as u64) as usize;
        for n in 0..30 {
            block[offset + n * page_size().0 as usize] = 2;
        }
        std::hint::black_box(&block);
        assert_eq!(soft_dirty(&process, &[mapping]).unwrap(), page_size() * 30);
    }
}
