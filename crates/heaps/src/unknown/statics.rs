//! Static data that begins as zeroes (.bss): anonymous memory right above a file's writable mapping, as far as the
//! file itself says it goes. What was mapped next to it later may be one mapping with it.

use super::Scene;
use crate::source::{Area, Fault, there};
use object::LittleEndian;
use object::elf::{FileHeader64, PT_LOAD};
use object::read::ReadCache;
use object::read::elf::{FileHeader, ProgramHeader};
use std::ops::Range;

/// A page of a mapping's offset; segments are aligned to it or more.
const PAGE: u64 = 4096;

/// The parts of `ranges` that are a program's or library's own.
pub(super) fn find(scene: &mut Scene, ranges: &[Range<u64>]) -> Result<Vec<Range<u64>>, Fault> {
    let mut found = Vec::new();
    let areas = scene.source.areas();
    for pair in areas.windows(2) {
        let [data, next] = pair else { continue };
        let writable = data.inode != 0 && data.perms.write && !data.perms.shared;
        if !writable || data.range.end != next.range.start {
            continue;
        }
        let at = ranges.partition_point(|range| range.end <= next.range.start);
        // musl's malloc has pieces of it.
        let parts = || ranges[at..].iter().take_while(|range| range.start < next.range.end);
        if parts().next().is_none() {
            continue;
        }
        if let Some(end) = there(end_of(scene, data))?.flatten() {
            let cut = parts().map(|part| part.start.max(next.range.start)..part.end.min(end));
            found.extend(cut.filter(|part| part.start < part.end));
        }
    }
    Ok(found)
}

/// Where the segment that `data` begins ends in memory, by its file; `None` where that cannot be told.
fn end_of(scene: &Scene, data: &Area) -> Result<Option<u64>, Fault> {
    let file = match scene.source.file(data) {
        Ok(file) => file,
        Err(fault @ (Fault::Ended | Fault::Overdue)) => return Err(fault),
        Err(_) => return Ok(None),
    };
    let cache = ReadCache::new(file);
    let Ok(header) = FileHeader64::<LittleEndian>::parse(&cache) else { return Ok(None) };
    let Ok(headers) = header.program_headers(LittleEndian, &cache) else { return Ok(None) };
    // A part of the segment may have become read-only (RELRO), and a mapping of its own that begins before.
    let segment = headers.iter().filter(|header| header.p_type(LittleEndian) == PT_LOAD).find(|header| {
        let offset = header.p_offset(LittleEndian);
        let file_end = offset.saturating_add(header.p_filesz(LittleEndian));
        (offset - offset % PAGE..file_end.saturating_add(PAGE)).contains(&data.offset.0)
            && header.p_memsz(LittleEndian) > header.p_filesz(LittleEndian)
    });
    Ok(segment.and_then(|segment| {
        // Where the segment's first byte is: as far before the mapping as in the file.
        let offset = segment.p_offset(LittleEndian);
        let start = data.range.start.wrapping_add(offset.wrapping_sub(data.offset.0));
        start.checked_add(segment.p_memsz(LittleEndian))?.checked_next_multiple_of(PAGE)
    }))
}
