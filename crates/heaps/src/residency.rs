//! Which pages are in memory, asked for 64 MiB at a time and kept until another window is needed.
//!
//! Invariants: memory stays below half a MiB whatever the target's size (a window has at most 16,384 pages);
//! questions in the order of addresses ask the kernel once for each window.

use crate::source::{Fault, MemorySource, PageState};
use ebbtide_observe::Bytes;
use std::ops::Range;

/// What is asked for at once: with 4 KiB pages 0.1 ms of PAGEMAP_SCAN.
const WINDOW: u64 = 64 << 20;

/// A window over a source's pages.
pub struct Residency<'s> {
    source: &'s dyn MemorySource,
    window: Range<u64>,
    runs: Vec<(Range<u64>, PageState)>,
    /// The first run that ends after the last question's start.
    cursor: usize,
    asked: u64,
}

impl<'s> Residency<'s> {
    /// Nothing asked yet.
    pub fn new(source: &'s dyn MemorySource) -> Residency<'s> {
        Residency { source, window: 0..0, runs: Vec::new(), cursor: 0, asked: 0 }
    }

    /// Calls `each` with the runs of pages in `range` that are present or swapped, cut to `range`.
    pub fn each(
        &mut self,
        range: Range<u64>,
        mut each: impl FnMut(Range<u64>, PageState),
    ) -> Result<(), Fault> {
        let mut at = range.start;
        while at < range.end {
            self.load(at)?;
            let end = range.end.min(self.window.end);
            self.seek(at);
            for (run, state) in &self.runs[self.cursor..] {
                if run.start >= end {
                    break;
                }
                each(run.start.max(at)..run.end.min(end), *state);
            }
            at = end;
        }
        Ok(())
    }

    /// How much of `range` is present.
    #[inline]
    pub fn present(&mut self, range: Range<u64>) -> Result<Bytes, Fault> {
        // Nearly every question of a walk is about the run that the last one was about.
        if let Some((run, state)) = self.runs.get(self.cursor)
            && run.start <= range.start
            && range.end <= run.end
            && self.window.contains(&range.start)
        {
            self.asked = range.start;
            return Ok(if *state == PageState::Present {
                Bytes(range.end - range.start)
            } else {
                Bytes::ZERO
            });
        }
        self.present_in_runs(range)
    }

    fn present_in_runs(&mut self, range: Range<u64>) -> Result<Bytes, Fault> {
        let mut sum = 0;
        self.each(range, |run, state| {
            sum += if state == PageState::Present { run.end - run.start } else { 0 }
        })?;
        Ok(Bytes(sum))
    }

    /// Forgets what was asked, so that the next question sees the target as it is then.
    pub fn forget(&mut self) {
        self.window = 0..0;
    }

    fn load(&mut self, address: u64) -> Result<(), Fault> {
        if self.window.contains(&address) {
            return Ok(());
        }
        let start = address - address % WINDOW;
        let window = start..start.saturating_add(WINDOW);
        self.window = 0..0;
        self.runs.clear();
        // A stack may lie in the last window below the end of user space, and to ask beyond that is EFAULT; so it is
        // for [vsyscall], which is listed but lies in the kernel's half.
        let areas = self.source.areas();
        let user = window.end.min(1 << 63);
        let below = areas.partition_point(|area| area.range.start < user);
        let end = areas[..below].last().map_or(window.start, |area| area.range.end.min(window.end));
        if window.start < end {
            let runs = &mut self.runs;
            self.source.pages(window.start..end, &mut |run, state| runs.push((run, state)))?;
        }
        self.window = window;
        self.cursor = 0;
        self.asked = 0;
        Ok(())
    }

    fn seek(&mut self, address: u64) {
        if address < self.asked {
            self.cursor = self.runs.partition_point(|(run, _)| run.end <= address);
        } else {
            let past =
                self.runs[self.cursor..].iter().take(8).take_while(|(run, _)| run.end <= address).count();
            self.cursor += past;
            if past == 8 {
                self.cursor += self.runs[self.cursor..].partition_point(|(run, _)| run.end <= address);
            }
        }
        self.asked = address;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{Area, ReadSeek};
    use ebbtide_observe::process::{Device, Perms};
    use rustix::io::Errno;

    /// User space ends here on x86_64 with four levels of page tables.
    const END: u64 = 0x7fff_ffff_f000;

    /// A stack that ends where user space does; every page is present.
    struct Edge(Vec<Area>);

    impl MemorySource for Edge {
        fn areas(&self) -> &[Area] {
            &self.0
        }

        fn read_ranges(&self, _: &[Range<u64>], _: &mut [u8]) -> Result<usize, Fault> {
            Ok(0)
        }

        fn pages(&self, range: Range<u64>, each: &mut dyn FnMut(Range<u64>, PageState)) -> Result<(), Fault> {
            if range.end > END {
                return Err(Fault::Os("pagemap", Errno::FAULT));
            }
            each(range.start.max(self.0[0].range.start)..range.end, PageState::Present);
            Ok(())
        }

        fn file(&self, _: &Area) -> Result<Box<dyn ReadSeek>, Fault> {
            Err(Fault::Os("a mapped file", Errno::NOENT))
        }

        fn is_still(&self) -> bool {
            true
        }
    }

    #[test]
    fn nothing_is_asked_beyond_user_space() {
        let perms = Perms::parse(b"rw-p").unwrap();
        let (offset, dev) = (Bytes::ZERO, Device::default());
        let stack =
            Area { range: END - (1 << 20)..END, perms, offset, dev, inode: 0, path: b"[stack]".to_vec() };
        let vsyscall = u64::MAX - 0x9f_ffff;
        let vsyscall =
            Area { range: vsyscall..vsyscall + 4096, path: b"[vsyscall]".to_vec(), ..stack.clone() };
        let edge = Edge(vec![stack, vsyscall.clone()]);
        let mut residency = Residency::new(&edge);
        assert_eq!(residency.present(END - 8192..END), Ok(Bytes(8192)));
        assert_eq!(residency.present(END - (64 << 20)..END), Ok(Bytes(1 << 20)));
        assert_eq!(residency.present(vsyscall.range), Ok(Bytes::ZERO));
        assert_eq!(residency.present(u64::MAX - 4096..u64::MAX), Ok(Bytes::ZERO));
    }
}
