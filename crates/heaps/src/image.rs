//! A picture of a process's memory, for tests: made by hand, or saved from any other source.

use crate::source::{Area, Fault, MemorySource, PageState, ReadSeek};
use rustix::io::Errno;
use std::collections::BTreeMap;
use std::io::Cursor;
use std::ops::Range;

/// A picture: mappings, the pages that were present, and the files behind.
#[derive(Debug, Clone, Default)]
pub struct Image {
    areas: Vec<Area>,
    /// By address; no two touch or overlap.
    runs: BTreeMap<u64, Vec<u8>>,
    files: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl Image {
    /// A picture of those areas of `source` for which `keep` says yes; of the others only the mapping is known.
    pub fn of(source: &dyn MemorySource, mut keep: impl FnMut(&Area) -> bool) -> Result<Image, Fault> {
        let mut image = Image::default();
        for area in source.areas() {
            image.areas.push(area.clone());
            if !keep(area) {
                continue;
            }
            let mut runs = Vec::new();
            source.pages(area.range.clone(), &mut |run, state| {
                if state == PageState::Present {
                    runs.push(run);
                }
            })?;
            for run in runs {
                let mut buf = vec![0; (run.end - run.start) as usize];
                let read = source.read_ranges(std::slice::from_ref(&run), &mut buf)?;
                buf.truncate(read);
                image.runs.insert(run.start, buf);
            }
        }
        Ok(image)
    }

    /// Adds a mapping; keep the order of addresses.
    pub fn map(&mut self, area: Area) {
        let at = self.areas.partition_point(|other| other.range.start < area.range.start);
        self.areas.insert(at, area);
    }

    /// Makes `bytes` present at `address`, which must be at a page's start, as must the end.
    pub fn put(&mut self, address: u64, bytes: Vec<u8>) {
        self.runs.insert(address, bytes);
    }

    /// Changes what is present: for corrupting a picture. Nothing happens where nothing is present.
    pub fn patch(&mut self, address: u64, bytes: &[u8]) {
        if let Some((start, run)) = self.runs.range_mut(..=address).next_back() {
            let at = (address - start) as usize;
            let len = run.len().saturating_sub(at).min(bytes.len());
            if len > 0 {
                run[at..at + len].copy_from_slice(&bytes[..len]);
            }
        }
    }

    /// Makes `content` the file behind the areas with `path`.
    pub fn file(&mut self, path: &[u8], content: Vec<u8>) {
        self.files.insert(path.to_vec(), content);
    }
}

impl MemorySource for Image {
    fn areas(&self) -> &[Area] {
        &self.areas
    }

    fn read_ranges(&self, ranges: &[Range<u64>], buf: &mut [u8]) -> Result<usize, Fault> {
        let mut filled = 0;
        for range in ranges {
            let found = self.runs.range(..=range.start).next_back();
            let run = found.and_then(|(start, run)| run.get((range.start - start) as usize..));
            let run = run.filter(|run| !run.is_empty());
            let Some(run) = run else {
                return if filled > 0 { Ok(filled) } else { Err(Fault::Unmapped(range.start)) };
            };
            let wanted = (range.end - range.start) as usize;
            let len = wanted.min(run.len()).min(buf.len() - filled);
            buf[filled..filled + len].copy_from_slice(&run[..len]);
            filled += len;
            if len < wanted {
                break;
            }
        }
        Ok(filled)
    }

    fn pages(&self, range: Range<u64>, each: &mut dyn FnMut(Range<u64>, PageState)) -> Result<(), Fault> {
        let before = self.runs.range(..range.start).next_back().into_iter();
        for (&start, run) in before.chain(self.runs.range(range.start..range.end)) {
            let cut = start.max(range.start)..(start + run.len() as u64).min(range.end);
            if cut.start < cut.end {
                each(cut, PageState::Present);
            }
        }
        Ok(())
    }

    fn file(&self, area: &Area) -> Result<Box<dyn ReadSeek>, Fault> {
        let content = self.files.get(&area.path).ok_or(Fault::Os("a mapped file", Errno::NOENT))?;
        Ok(Box::new(Cursor::new(content.clone())))
    }

    fn is_still(&self) -> bool {
        true
    }
}
