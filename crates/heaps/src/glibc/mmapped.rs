//! Large blocks, each a mapping of its own. No list has them: they are looked for where mappings begin, and one
//! behind the other, by the header at their start. `mp_` tells how many there are and how large they are all
//! together; that is the second witness.
//!
//! Invariant: no more is taken than `mp_` tells of, and once count and sum are reached no more is read.

use super::arena::Parameters;
use super::layout::{FLAGS, HEADER, Layout, MMAPPED};
use crate::reader::Reader;
use crate::residency::Residency;
use crate::source::{Area, Fault, PageState};
use std::ops::Range;

/// Binary logarithms of twice the alignments that may have been asked of memalign; each is a place to look at.
const ALIGNMENTS: Range<u32> = 5..31;
/// Those whose header is on the block's first page, the only one that is read where no mapping begins.
const WITHIN_A_PAGE: Range<u32> = 5..14;
/// The most pages that are looked at where no mapping begins.
const PAGES_MOST: usize = 1 << 20;
/// What a page is here: the smallest there is, so that no start is missed.
const PAGE: u64 = 4096;

/// A block that is a mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Block {
    /// All of it.
    pub(super) range: Range<u64>,
    /// What comes before its chunk, for alignment.
    pub(super) lead: u64,
}

/// The large blocks in `free`, which are the parts of anonymous mappings that nobody else has a claim to.
pub(super) fn find(
    reader: &mut Reader<'_>,
    layout: &Layout,
    params: &Parameters,
    free: &[Range<u64>],
) -> Result<Vec<Block>, Fault> {
    let mut search = Search { reader, layout, params, blocks: Vec::new(), sum: 0 };
    let mut rest = Vec::new();
    for range in free {
        let at = search.follow(range.start, range.end, ALIGNMENTS)?;
        if at < range.end {
            rest.push(at..range.end);
        }
    }
    // Mappings that touch are one: a block may begin behind what is none.
    let mut pages = PAGES_MOST;
    for range in rest {
        if search.is_complete() || pages == 0 {
            break;
        }
        search.in_between(range, &mut pages)?;
    }
    let mut blocks = search.blocks;
    blocks.sort_by_key(|block| block.range.start);
    Ok(blocks)
}

/// The parts of `areas` in which such blocks can be, less `taken`, which is in order.
pub(super) fn unclaimed(areas: &[Area], taken: &[Range<u64>]) -> Vec<Range<u64>> {
    let mut free: Vec<Range<u64>> = Vec::new();
    for area in areas.iter().filter(|area| is_possible(area)) {
        let mut start = area.range.start;
        let first = taken.partition_point(|range| range.end <= area.range.start);
        for range in taken[first..].iter().take_while(|range| range.start < area.range.end) {
            if start < range.start {
                free.push(start..range.start);
            }
            start = start.max(range.end);
        }
        if start < area.range.end {
            // A change of flags splits a mapping, not a block.
            match free.last_mut() {
                Some(last) if last.end == start => last.end = area.range.end,
                _ => free.push(start..area.range.end),
            }
        }
    }
    free
}

/// Anonymous, or of huge pages (glibc.malloc.hugetlb=2).
fn is_possible(area: &Area) -> bool {
    let huge = area.path.starts_with(b"/anon_hugepage");
    let kept = area.perms.read && area.perms.write && !area.perms.shared;
    (area.is_private_anon() || (huge && kept)) && !area.path.starts_with(b"[stack") && area.path != b"[heap]"
}

struct Search<'r, 's, 'a> {
    reader: &'r mut Reader<'s>,
    layout: &'a Layout,
    params: &'a Parameters,
    blocks: Vec<Block>,
    sum: u64,
}

impl Search<'_, '_, '_> {
    fn is_complete(&self) -> bool {
        self.blocks.len() as u64 >= self.params.n_mmaps
    }

    /// Takes blocks one behind the other from `at`; returns where there is none.
    fn follow(&mut self, mut at: u64, end: u64, alignments: Range<u32>) -> Result<u64, Fault> {
        while at < end && !self.is_complete() {
            // memalign leaves the header at the start as it was, and puts another one before the content.
            let mut found: Option<Block> = None;
            for log in alignments.clone() {
                let limit = found.as_ref().map_or(end, |block| block.range.end);
                let Some(lead) = lead(at, log, limit) else { continue };
                let block = self.block(at, lead, limit)?;
                found = block.filter(|block| found.is_none() || block.range.end == limit).or(found);
            }
            let Some(block) = found else { break };
            at = block.range.end;
            self.sum += block.range.end - block.range.start;
            self.blocks.push(block);
        }
        Ok(at)
    }

    /// Looks at the start of every page of `range` that is in memory.
    fn in_between(&mut self, range: Range<u64>, pages: &mut usize) -> Result<(), Fault> {
        let mut runs = Vec::new();
        let mut residency = Residency::new(self.reader.source());
        residency.each(range.clone(), |run, state| {
            if state == PageState::Present {
                runs.push(run);
            }
        })?;
        let mut at = range.start;
        for run in runs {
            at = at.max(run.start);
            while at < run.end && *pages > 0 && !self.is_complete() {
                *pages -= 1;
                let next = self.follow(at, range.end, WITHIN_A_PAGE)?;
                at = if next > at { next } else { at + PAGE };
            }
        }
        Ok(())
    }

    /// The block that begins at `start` and whose chunk is `lead` bytes further on.
    fn block(&mut self, start: u64, lead: u64, end: u64) -> Result<Option<Block>, Fault> {
        let header = match self.reader.array::<16>(start + lead) {
            Ok(header) => header,
            Err(Fault::Swapped(_) | Fault::Unmapped(_)) => return Ok(None),
            Err(fault) => return Err(fault),
        };
        let [before, field] = [0, 8].map(|at| super::locate::word_at(&header, at).unwrap_or(0));
        let tail = self.layout.mmapped_tail();
        // From 2.43 the lowest bit says that huge pages are behind it.
        let before = if tail > 0 { before & !1 } else { before };
        let size = (field & !FLAGS).checked_add(lead + tail);
        let found = size.filter(|&size| {
            field & FLAGS == MMAPPED
                && before == lead
                && size % PAGE == 0
                && size >= PAGE
                && size <= end - start
                && self.sum + size <= self.params.mmapped
        });
        Ok(found.map(|size| Block { range: start..start + size, lead }))
    }
}

/// Where the chunk of a block at `start` is, aligned to 2^(`log` - 1), if that is a place of its own: the content
/// is aligned, its header of 16 bytes stands before.
fn lead(start: u64, log: u32, end: u64) -> Option<u64> {
    // A chunk at the start itself; 5 stands for no more alignment than any chunk has.
    let first = start.checked_add(HEADER)?;
    let aligned = |log: u32| first.checked_add(1)?.checked_next_multiple_of(1 << log);
    let content = match log {
        5 => first,
        // Until 2.42 memalign left a chunk's room, 32 bytes, before the one it aligned, so for an alignment of
        // 32 this is one place and that for 64 the other.
        _ => aligned(log - 1)?,
    };
    // The same place as with half the alignment is no new one.
    let new = log <= 6 || Some(content) != aligned(log - 2);
    (new && content < end).then(|| content - HEADER - start)
}
