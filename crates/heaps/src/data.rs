//! Writable data of programs and libraries, where allocators have their static books.

use crate::reader::Reader;
use crate::residency::Residency;
use crate::source::{Area, Fault, MemorySource, PageState, there};
use std::ops::Range;

/// What is read at once.
const PAGE: u64 = 4096;

/// Writable data of one file, and the zeroed data behind them.
#[derive(Debug, Clone)]
pub(crate) struct Segment<'a> {
    /// The mapping of the file.
    pub(crate) file: &'a Area,
    /// .bss, but for its first bytes, which may be on the last page of the file; empty where that has them all.
    pub(crate) zeroed: Range<u64>,
}

impl Segment<'_> {
    /// All of it.
    pub(crate) fn range(&self) -> Range<u64> {
        self.file.range.start..self.zeroed.end
    }

    /// The size of the zeroed data.
    pub(crate) fn zeroed_size(&self) -> u64 {
        self.zeroed.end - self.zeroed.start
    }
}

/// The data segments of a process.
pub(crate) fn segments(areas: &[Area]) -> impl Iterator<Item = Segment<'_>> {
    areas.iter().enumerate().filter_map(|(index, file)| {
        let is_data = file.inode != 0 && file.perms.read && file.perms.write && !file.perms.shared;
        let follows = |next: &&Area| next.range.start == file.range.end && next.is_private_anon();
        let end = areas.get(index + 1).filter(follows).map_or(file.range.end, |zeroed| zeroed.range.end);
        is_data.then_some(Segment { file, zeroed: file.range.end..end })
    })
}

/// The first `most` bytes of `range` that are in memory, as runs.
pub(crate) fn present(
    source: &dyn MemorySource,
    range: Range<u64>,
    most: u64,
) -> Result<Vec<Range<u64>>, Fault> {
    let (mut runs, mut size) = (Vec::new(), 0);
    Residency::new(source).each(range, |run, state| {
        if state == PageState::Present && size < most {
            size += run.end - run.start;
            runs.push(run);
        }
    })?;
    Ok(runs)
}

/// Calls `each` with the pages of `runs`, each with its address, until it says to stop with a value.
pub(crate) fn pages<T>(
    reader: &mut Reader<'_>,
    runs: &[Range<u64>],
    mut each: impl FnMut(u64, &[[u8; 8]]) -> Result<Option<T>, Fault>,
) -> Result<Option<T>, Fault> {
    for at in runs.iter().flat_map(|run| run.clone().step_by(PAGE as usize)) {
        let found = match there(reader.bytes(at, PAGE as usize))? {
            Some(bytes) => each(at, bytes.as_chunks().0)?,
            None => None,
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Calls `each` with the words of `runs`, each with its address, until it says to stop with a value.
pub(crate) fn words<T>(
    reader: &mut Reader<'_>,
    runs: &[Range<u64>],
    mut each: impl FnMut(u64, u64) -> Result<Option<T>, Fault>,
) -> Result<Option<T>, Fault> {
    pages(reader, runs, |at, words| {
        for (at, word) in (at..).step_by(8).zip(words) {
            let found = each(at, u64::from_le_bytes(*word))?;
            if found.is_some() {
                return Ok(found);
            }
        }
        Ok(None)
    })
}
