//! Does resident memory hold anything? A bounded sample of it is read, and its all-zero pages counted.
//!
//! A page that is resident and all zero was never written, or was cleared and can be given back without anybody
//! noticing: the kernel's own shrinker of underused huge pages (6.12, mm/huge_memory.c) decides by the same test.
//! Only pages that pagemap says are present are read, through /proc/PID/mem, so that nothing is faulted in.

use super::Process;
use crate::{Bytes, ReadError, page_size};
use rustix::fd::OwnedFd;
use rustix::io::pread;

/// What is read at a time: a huge page of x86_64 and of arm64 with 4 KiB pages.
pub const WINDOW: u64 = 2 << 20;

/// Windows read of one process: 128 MiB, 25 ms at the 5 GB/s of /proc/PID/mem (measured).
const WINDOWS: usize = 64;

/// What a sample found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ZeroSample {
    /// Windows of 2 MiB looked at.
    pub windows: u64,
    /// Present pages in them.
    pub present: u64,
    /// Of those, all zero.
    pub zero: u64,
}

impl ZeroSample {
    /// The share of present pages that hold nothing; 0 where none was seen.
    pub fn zero_share(&self) -> f64 {
        self.zero as f64 / self.present.max(1) as f64
    }
}

/// Which windows count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// Those present from end to end, as a huge page is.
    Full,
    /// All, by their present pages.
    Any,
}

/// Address ranges to sample from: collected while the mappings are walked.
#[derive(Debug, Clone, Default)]
pub struct Ranges {
    ranges: Vec<(u64, u64)>,
    windows: u64,
}

impl Ranges {
    /// Adds the whole windows of `start..end`.
    pub fn add(&mut self, start: u64, end: u64) {
        let start = start.next_multiple_of(WINDOW);
        if let Some(windows) = end.checked_sub(start).map(|n| n / WINDOW).filter(|&n| n > 0) {
            self.ranges.push((start, windows));
            self.windows += windows;
        }
    }

    /// At most `most` windows, spread evenly over all of them.
    fn spread(&self, most: usize) -> impl Iterator<Item = u64> + '_ {
        let chosen = self.windows.min(most as u64);
        (0..chosen).filter_map(move |i| {
            // The middle of the i-th of `chosen` equal parts.
            let mut at = (u128::from(2 * i + 1) * u128::from(self.windows) / u128::from(2 * chosen)) as u64;
            for &(start, windows) in &self.ranges {
                if at < windows {
                    return Some(start + at * WINDOW);
                }
                at -= windows;
            }
            None
        })
    }
}

impl Process {
    /// Reads a sample of `ranges` and counts zero pages. Needs the right to trace the process.
    pub fn sample_zeros(&self, ranges: &Ranges, which: Windows) -> Result<ZeroSample, ReadError> {
        let memory = self.dir().open_file("mem")?;
        let pagemap = self.dir().open_file("pagemap")?;
        let page = page_size().0;
        let mut present = vec![0u8; (WINDOW / page) as usize * 8];
        let mut content = vec![0u8; WINDOW as usize];
        let mut sample = ZeroSample::default();
        for address in ranges.spread(WINDOWS) {
            if !fill(&pagemap, &mut present, address / page * 8) {
                continue;
            }
            let is_present = |entry: &[u8]| entry[7] & 0x80 != 0;
            let full = present.chunks_exact(8).all(is_present);
            if which == Windows::Full && !full || !present.chunks_exact(8).any(is_present) {
                continue;
            }
            // A window with holes is read page by page: reading a hole would fault it in.
            let pages = content.chunks_exact_mut(page as usize).zip(present.chunks_exact(8));
            if full {
                if !fill(&memory, &mut content, address) {
                    continue;
                }
                sample.present += WINDOW / page;
                sample.zero += content.chunks_exact(page as usize).filter(|p| is_zero(p)).count() as u64;
            } else {
                for (i, (buf, _)) in pages.enumerate().filter(|(_, (_, entry))| is_present(entry)) {
                    if fill(&memory, buf, address + i as u64 * page) {
                        sample.present += 1;
                        sample.zero += u64::from(is_zero(buf));
                    }
                }
            }
            sample.windows += 1;
        }
        Ok(sample)
    }

    /// Resident bytes of `start..end`, by pagemap. At most 64 MiB are looked at.
    pub fn resident(&self, start: u64, end: u64) -> Result<Bytes, ReadError> {
        let pagemap = self.dir().open_file("pagemap")?;
        let page = page_size().0;
        let pages = end.saturating_sub(start).min(64 << 20) / page;
        let mut entries = vec![0u8; pages as usize * 8];
        if !fill(&pagemap, &mut entries, start / page * 8) {
            return Ok(Bytes::ZERO);
        }
        let present = entries.chunks_exact(8).filter(|entry| entry[7] & 0x80 != 0).count();
        Ok(page_size() * present as u64)
    }
}

/// Reads all of `buf` from `offset`; false where that much cannot be had (unmapped meanwhile, or no memory).
fn fill(fd: &OwnedFd, buf: &mut [u8], offset: u64) -> bool {
    let mut done = 0;
    while done < buf.len() {
        match pread(fd, &mut buf[done..], offset + done as u64) {
            Ok(0) => return false,
            Ok(n) => done += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(_) => return false,
        }
    }
    true
}

fn is_zero(page: &[u8]) -> bool {
    // Long chunks let the compiler use wide registers; most pages with data show it in the first one.
    page.chunks(256).all(|chunk| chunk.iter().fold(0, |all, &b| all | b) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Root;

    #[test]
    fn windows_are_spread_over_all_ranges() {
        let mut ranges = Ranges::default();
        ranges.add(1, WINDOW); // no whole window
        ranges.add(WINDOW, WINDOW * 11);
        ranges.add(WINDOW * 100, WINDOW * 110 + 5);
        assert_eq!(ranges.windows, 20);
        let all: Vec<u64> = ranges.spread(64).map(|a| a / WINDOW).collect();
        assert_eq!(all, (1..11).chain(100..110).collect::<Vec<_>>());
        let four: Vec<u64> = ranges.spread(4).map(|a| a / WINDOW).collect();
        assert_eq!(four, [3, 8, 102, 107]);
        assert_eq!(Ranges::default().spread(4).count(), 0);
        let mut huge = Ranges::default();
        huge.add(0, u64::MAX);
        assert_eq!(huge.spread(64).count(), 64);
    }

    #[test]
    fn counts_what_holds_nothing() {
        let mut block = vec![1u8; (WINDOW * 4) as usize];
        let start = (block.as_ptr() as u64).next_multiple_of(WINDOW);
        let offset = (start - block.as_ptr() as u64) as usize;
        let page = page_size().0 as usize;
        for i in (0..WINDOW as usize).step_by(page).skip(1) {
            block[offset + i..offset + i + page].fill(0);
        }
        let process = Process::open(&Root::live().unwrap(), std::process::id()).unwrap();
        let mut ranges = Ranges::default();
        ranges.add(start, start + WINDOW);
        let sample = process.sample_zeros(&ranges, Windows::Full).unwrap();
        let pages = WINDOW / page as u64;
        assert_eq!(sample, ZeroSample { windows: 1, present: pages, zero: pages - 1 });
        assert_eq!(process.resident(start, start + WINDOW).unwrap(), Bytes(WINDOW));
        drop(block);
    }
}
