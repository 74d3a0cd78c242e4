//! Reading a source in windows, so that walking a heap costs one system call for each MiB, and a page that is
//! not in memory costs nothing: it reads as zeroes, as it would for the process, and is not faulted in.
//!
//! What a window holds was there when it was read; [`Reader::refresh`] reads it again.

use crate::residency::Residency;
use crate::source::{Fault, MemorySource, PageState};
use std::ops::Range;

/// What is read at once: process_vm_readv is at its fastest from 64 KiB to 1 MiB (6.4-7.3 GB/s, 6.18), and this
/// stays in the second-level cache.
const WINDOW: usize = 256 << 10;
/// Reads elsewhere than the last one take this much.
const SHORT: usize = 4 << 10;

/// A window over a source's memory.
pub struct Reader<'s> {
    source: &'s dyn MemorySource,
    residency: Residency<'s>,
    start: u64,
    buf: Vec<u8>,
    /// How much of `buf` was read; the rest is kept, so that nothing is set to zero to be overwritten.
    filled: usize,
    ranges: Vec<Range<u64>>,
}

impl<'s> Reader<'s> {
    /// Nothing read yet.
    pub fn new(source: &'s dyn MemorySource) -> Reader<'s> {
        Reader {
            source,
            residency: Residency::new(source),
            start: 0,
            buf: Vec::new(),
            filled: 0,
            ranges: Vec::new(),
        }
    }

    /// What it reads.
    pub fn source(&self) -> &'s dyn MemorySource {
        self.source
    }

    /// The `len` bytes at `address`, for `len` up to 4 KiB. Where the last read was just below, a whole window
    /// is read; elsewhere only the pages asked for.
    pub fn bytes(&mut self, address: u64, len: usize) -> Result<&[u8], Fault> {
        let end = address.checked_add(len as u64).ok_or(Fault::Unmapped(address))?;
        if address < self.start || end > self.start + self.filled as u64 {
            self.fill(address, end)?;
        }
        let at = (address - self.start) as usize;
        self.buf[..self.filled].get(at..at + len).ok_or(Fault::Unmapped(address))
    }

    /// What is at hand from `address` on: at least `len` bytes of it, for `len` up to 4 KiB, and more where
    /// reads go on upwards. For loops that do not want a call for each word.
    pub fn ahead(&mut self, address: u64, len: usize) -> Result<&[u8], Fault> {
        self.bytes(address, len)?;
        self.buf[..self.filled].get((address - self.start) as usize..).ok_or(Fault::Unmapped(address))
    }

    /// The little-endian word at `address`.
    pub fn u64(&mut self, address: u64) -> Result<u64, Fault> {
        self.array(address).map(u64::from_le_bytes)
    }

    /// The little-endian half word at `address`.
    pub fn u32(&mut self, address: u64) -> Result<u32, Fault> {
        self.array(address).map(u32::from_le_bytes)
    }

    /// `N` bytes at `address`.
    pub fn array<const N: usize>(&mut self, address: u64) -> Result<[u8; N], Fault> {
        let bytes = self.bytes(address, N)?;
        bytes.try_into().map_err(|_| Fault::Unmapped(address))
    }

    /// Forgets what was read, so that the next read sees the target as it is then.
    pub fn refresh(&mut self) {
        self.filled = 0;
        self.residency.forget();
    }

    /// Copies all of `range` into `into`, without disturbing the window. Absent pages read as zeroes.
    pub fn copy(&mut self, range: Range<u64>, into: &mut Vec<u8>) -> Result<(), Fault> {
        let whole = self.window_of(range.start, range.end)?;
        let skip = (range.start - whole.start) as usize;
        into.resize((whole.end - whole.start) as usize, 0);
        self.read_into(whole, into)?;
        into.drain(..skip);
        into.truncate((range.end - range.start) as usize);
        Ok(())
    }

    /// The pages of `address..end`; foreign memory may ask for the last addresses there are.
    fn window_of(&self, address: u64, end: u64) -> Result<Range<u64>, Fault> {
        let page = SHORT as u64;
        let end = end.checked_next_multiple_of(page).filter(|end| address < *end);
        Ok(address - address % page..end.ok_or(Fault::Unmapped(address))?)
    }

    fn fill(&mut self, address: u64, end: u64) -> Result<(), Fault> {
        let behind = self.start + self.filled as u64;
        let goes_on =
            self.filled > 0 && (self.start..=behind.saturating_add(SHORT as u64)).contains(&address);
        let area = self.source.area_at(address).ok_or(Fault::Unmapped(address))?;
        if !area.perms.read || end > area.range.end {
            return Err(Fault::Unmapped(address));
        }
        // Free lists often lead downwards: what was freed first stands below and comes last.
        let goes_down =
            self.filled > 0 && (self.start.saturating_sub(SHORT as u64)..self.start).contains(&address);
        let least = self.window_of(address, end)?;
        let mut window = least.clone();
        if goes_on {
            window.end = window.end.max((window.start + WINDOW as u64).min(area.range.end));
        } else if goes_down {
            window.start = window.start.min(window.end.saturating_sub(WINDOW as u64).max(area.range.start));
        }
        let mut read = self.read_window(window.clone());
        if let Err(Fault::Swapped(at) | Fault::Unmapped(at)) = read
            && window != least
        {
            // What was read in advance may be out of reach, and it alone.
            window = least.start..if at >= end { at - at % SHORT as u64 } else { least.end };
            read = self.read_window(window);
        }
        read
    }

    fn read_window(&mut self, window: Range<u64>) -> Result<(), Fault> {
        let len = (window.end - window.start) as usize;
        let mut buf = std::mem::take(&mut self.buf);
        if buf.len() < len {
            buf.resize(len, 0);
        }
        let read = self.read_into(window.clone(), &mut buf[..len]);
        (self.start, self.buf) = (window.start, buf);
        self.filled = if read.is_ok() { len } else { 0 };
        read
    }

    /// Reads `window` into `buf`, which has its length.
    fn read_into(&mut self, window: Range<u64>, buf: &mut [u8]) -> Result<(), Fault> {
        self.ranges.clear();
        let (ranges, mut swapped) = (&mut self.ranges, None);
        self.residency.each(window.clone(), |run, state| match state {
            PageState::Present => ranges.push(run),
            PageState::Swapped => swapped = swapped.or(Some(run.start)),
        })?;
        if let Some(address) = swapped {
            return Err(Fault::Swapped(address));
        }
        let len = buf.len();
        if let [run] = self.ranges.as_slice()
            && *run == window
        {
            return whole(self.source.read_ranges(&self.ranges, buf)?, len, window.start);
        }
        buf.fill(0);
        for run in &self.ranges {
            let at = (run.start - window.start) as usize;
            let part = &mut buf[at..at + (run.end - run.start) as usize];
            let len = part.len();
            whole(self.source.read_ranges(std::slice::from_ref(run), part)?, len, run.start)?;
        }
        Ok(())
    }
}

/// A read that ended early met a page that is gone since it was said to be there.
fn whole(read: usize, wanted: usize, start: u64) -> Result<(), Fault> {
    if read == wanted { Ok(()) } else { Err(Fault::Unmapped(start + read as u64)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::Image;

    #[test]
    fn no_address_is_too_high_to_ask_for() {
        let image = Image::default();
        let mut reader = Reader::new(&image);
        let top = u64::MAX - 100;
        assert_eq!(reader.u64(top), Err(Fault::Unmapped(top)));
        assert_eq!(reader.u64(u64::MAX), Err(Fault::Unmapped(u64::MAX)));
        assert_eq!(reader.copy(top..u64::MAX, &mut Vec::new()), Err(Fault::Unmapped(top)));
        assert_eq!(reader.copy(top..top, &mut Vec::new()), Err(Fault::Unmapped(top)));
    }
}
