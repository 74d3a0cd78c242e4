//! Managed heaps by the shape of their memory: not walked, only told from other anonymous memory.
//!
//! Shapes were seen with Go 1.19, JDK 17, PHP 8.2, Ruby 3.1 and Node.js 20, and hold where the sources named below
//! say the same. Others are "anonymous": V8 from 12 on, whose pages keep their books apart; a JVM's heap that
//! was resized while it was looked at.

use super::Scene;
use crate::source::{Area, Fault, MemorySource};
use object::read::ReadCache;
use object::{Object, ObjectSection};
use std::collections::HashMap;
use std::ops::Range;

/// Go asks for its first arena here and lets the others follow (runtime/malloc.go, mallocinit); nothing else
/// begins so low and so round by itself.
const GO: Range<u64> = 0xc0_0000_0000..1 << 40;
/// The size and alignment of Go's arenas on 64-bit Linux.
const GO_ARENA: u64 = 64 << 20;
/// Files looked into for a program in Go: the executable is the first.
const GO_FILES: usize = 4;

/// Go's arenas: mappings that begin at its arena address, in a program whose file has Go's build information, which
/// stripping leaves there.
pub(super) fn go(scene: &mut Scene, ranges: &[Range<u64>]) -> Result<Vec<Range<u64>>, Fault> {
    let inside = |range: &&Range<u64>| GO.contains(&range.start) && range.end <= GO.end;
    let found: Vec<Range<u64>> = ranges.iter().filter(inside).cloned().collect();
    let begins = found.iter().any(|range| range.start.is_multiple_of(GO_ARENA));
    if !begins || !is_go(scene.source)? {
        return Ok(Vec::new());
    }
    Ok(found)
}

fn is_go(source: &dyn MemorySource) -> Result<bool, Fault> {
    let code = source.areas().iter().filter(|area| area.inode != 0 && area.perms.exec);
    for area in code.take(GO_FILES) {
        let file = match source.file(area) {
            Ok(file) => file,
            Err(fault @ (Fault::Ended | Fault::Overdue)) => return Err(fault),
            Err(_) => continue,
        };
        let cache = ReadCache::new(file);
        let Ok(elf) = object::read::elf::ElfFile64::<object::LittleEndian, _>::parse(&cache) else {
            continue;
        };
        if elf.sections().any(|section| section.name() == Ok(".go.buildinfo")) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A JVM's heap: the one reservation in which exactly as much is accessible as the JVM says it has committed, and
/// which is exactly as large as it says that may become. Parts of it may be mapped from its archive of objects.
pub(super) fn jvm(scene: &mut Scene, ranges: &[Range<u64>]) -> Result<Vec<Range<u64>>, Fault> {
    let Some(pool) = scene.around.jvm.as_ref().map(|jvm| jvm.heap) else { return Ok(Vec::new()) };
    // G1 pads what it tells by a few bytes for each generation (G1MonitoringSupport::pad_capacity).
    let [committed, max] = [pool.committed, pool.max].map(|bytes| bytes.0 - bytes.0 % 4096);
    let areas = scene.source.areas();
    let mut fit = None;
    for (at, first) in areas.iter().enumerate().filter(|(_, first)| may_be_jvms(first)) {
        let Some(end) = first.range.start.checked_add(max) else { continue };
        let mut reaches = first.range.start;
        let reserved = areas[at..].iter().take_while(|area| {
            let goes_on = area.range.start == reaches && reaches < end && may_be_jvms(area);
            reaches = area.range.end;
            goes_on
        });
        let (mut accessible, mut covered) = (0, first.range.start);
        for area in reserved {
            covered = area.range.end.min(end);
            accessible += if area.perms.write { covered - area.range.start } else { 0 };
        }
        if covered == end && accessible == committed && committed > 0 {
            // Two that fit are none that is sure.
            if fit.replace(first.range.start..end).is_some() {
                return Ok(Vec::new());
            }
        }
    }
    let Some(heap) = fit else { return Ok(Vec::new()) };
    let within = ranges.iter().map(|range| range.start.max(heap.start)..range.end.min(heap.end));
    Ok(within.filter(|part| part.start < part.end).collect())
}

fn may_be_jvms(area: &Area) -> bool {
    !area.perms.shared && !area.perms.exec && (area.is_unnamed() || area.path.ends_with(b".jsa"))
}

/// Zend's chunks (Zend/zend_alloc.c, struct _zend_mm_chunk): 2 MiB, aligned, beginning with a pointer to the heap's
/// books, which are inside the first chunk, and the next and previous chunk of a ring.
pub(super) fn php(scene: &mut Scene, ranges: &[Range<u64>]) -> Result<Vec<Range<u64>>, Fault> {
    const CHUNK: u64 = 2 << 20;
    if !scene.runs(b"php") {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for chunk in aligned(ranges, CHUNK) {
        let Some([heap, next, previous]) = scene.words(chunk.start)? else { continue };
        let is_chunk = |at: u64| at.is_multiple_of(CHUNK) && at != 0;
        let in_head = heap % CHUNK > 0 && heap % CHUNK < 4096;
        if !in_head || !is_chunk(next) || !is_chunk(previous) {
            continue;
        }
        let Some([next_heap, _, back]) = scene.words(next)? else { continue };
        let Some([_, forth, _]) = scene.words(previous)? else { continue };
        if back == chunk.start && forth == chunk.start && next_heap == heap {
            found.push(chunk);
        }
    }
    Ok(found)
}

/// Ruby's heap pages (gc.c, struct heap_page_body): 64 KiB, aligned, beginning with a pointer to the page's books,
/// in which the address of its first slot is.
pub(super) fn ruby(scene: &mut Scene, ranges: &[Range<u64>]) -> Result<Vec<Range<u64>>, Fault> {
    const PAGE: u64 = 64 << 10;
    /// Slots begin right after the head, at a multiple of their size, which is at most 640 bytes.
    const FIRST_SLOT: u64 = 1024;
    if !scene.runs(b"ruby") {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for page in aligned(ranges, PAGE) {
        let Some(books) = scene.word(page.start)?.filter(|books| books % 8 == 0 && *books != 0) else {
            continue;
        };
        let Some(words) = scene.words::<16>(books)? else { continue };
        if words.iter().any(|&word| word > page.start && word < page.start + FIRST_SLOT) {
            found.push(page);
        }
    }
    Ok(found)
}

/// V8's pages (src/heap/memory-chunk-layout.h, up to V8 11): aligned to 256 KiB, beginning with their size; then
/// the heap they belong to, and where their objects begin and end.
pub(super) fn v8(scene: &mut Scene, ranges: &[Range<u64>]) -> Result<Vec<Range<u64>>, Fault> {
    const ALIGNMENT: u64 = 256 << 10;
    if !scene.runs(b"node") && !scene.runs(b"v8") && !scene.runs(b"chrom") && !scene.runs(b"electron") {
        return Ok(Vec::new());
    }
    let mut heaps: HashMap<u64, Vec<Range<u64>>> = HashMap::new();
    for range in ranges {
        let mut at = range.start.next_multiple_of(ALIGNMENT);
        while at < range.end {
            let page = v8_page(scene, at, range.end)?;
            let next = page.as_ref().map_or(at + 1, |(_, page)| page.end);
            if let Some((heap, page)) = page {
                heaps.entry(heap).or_default().push(page);
            }
            at = next.next_multiple_of(ALIGNMENT);
        }
    }
    // A heap has pages of several spaces; one page alone may be anything.
    Ok(heaps.into_values().filter(|pages| pages.len() > 1).flatten().collect())
}

/// The page at `at`, and its heap.
fn v8_page(scene: &mut Scene, at: u64, limit: u64) -> Result<Option<(u64, Range<u64>)>, Fault> {
    let Some([size, words @ ..]) = scene.words::<8>(at)? else { return Ok(None) };
    let Some(end) = at.checked_add(size).filter(|&end| size > 0 && size % 4096 == 0 && end <= limit) else {
        return Ok(None);
    };
    let found = words.windows(3).find_map(|words| match *words {
        [heap, first, last] if heap != 0 && at < first && first < last && last <= end => Some(heap),
        _ => None,
    });
    Ok(found.map(|heap| (heap, at..end)))
}

/// The ranges of `size`, aligned to it, that lie in `ranges`.
fn aligned(ranges: &[Range<u64>], size: u64) -> impl Iterator<Item = Range<u64>> {
    ranges.iter().flat_map(move |range| {
        let first = range.start.div_ceil(size);
        (first..range.end / size).map(move |index| index * size..(index + 1) * size)
    })
}
