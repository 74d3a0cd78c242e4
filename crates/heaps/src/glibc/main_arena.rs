//! The main arena's memory: the brk heap, in parts where other code took brk memory between, and mappings where
//! brk had no more room (sysmalloc_mmap_fallback). No list has the parts: the first begins at `mp_.sbrk_base`,
//! all but the newest end in a fence of two empty chunks, and the last ends with the top.
//!
//! Invariant: a part that is found, not told of, is one only if its chunks lead to such a fence at a page's end
//! or to the top.

use super::arena::{Parameters, Span, State, writable};
use super::layout::{FLAGS, HEADER};
use super::walk::{Ending, Walk};
use crate::reader::Reader;
use crate::source::{Fault, MemorySource};
use ebbtide_observe::page_size;
use std::ops::Range;

/// The most parts; each is at least a page, and brk is interrupted by a person's code.
const PARTS_MOST: usize = 4096;
/// The most pages at which a part is looked for.
const PAGES_MOST: usize = 1 << 20;

/// What is known of the main arena before its walk.
pub(super) struct Main {
    /// Where its memory began.
    start: u64,
    /// Where the top ends.
    top_end: u64,
    top: u64,
    /// The unit in which trimming cuts the top; nothing where the break is not the top's end.
    cut: Option<u64>,
    scattered: bool,
    /// Whether the top says that it goes on where nothing is known to be mapped.
    pub(super) is_cut_off: bool,
}

impl Main {
    /// The main arena of which `state` and `params` tell; `None` before it has memory.
    pub(super) fn new(
        reader: &mut Reader<'_>,
        state: &State,
        params: &Parameters,
    ) -> Result<Option<Main>, Fault> {
        let source = reader.source();
        if state.system == 0 || params.sbrk_base == 0 || writable(source, state.top).is_none() {
            return Ok(None);
        }
        let size = match reader.array::<16>(state.top) {
            Ok(header) => super::locate::word_at(&header, 8).unwrap_or(0) & !FLAGS,
            Err(Fault::Swapped(_) | Fault::Unmapped(_)) => 0,
            Err(fault) => return Err(fault),
        };
        let (says, mapped_end) = (state.top.saturating_add(size), piece_end(source, state.top));
        let top_end = says.min(mapped_end);
        let heap_end = source.areas().iter().rev().find(|area| area.path == b"[heap]");
        // systrim: only if the break is where the top ends.
        let ours = heap_end.is_some_and(|area| area.range.end == top_end);
        let unit = if params.thp_page.is_power_of_two() { params.thp_page } else { page_size().0 };
        Ok(Some(Main {
            start: params.sbrk_base,
            top: state.top,
            top_end,
            cut: ours.then_some(unit),
            scattered: state.is_scattered(),
            is_cut_off: says > mapped_end,
        }))
    }

    /// The part that is known: from the first memory up to the top, or to where it is interrupted.
    pub(super) fn first_part(&self, source: &dyn MemorySource) -> Range<u64> {
        let end = piece_end(source, self.start);
        self.start..if (self.start..end).contains(&self.top) { self.top_end } else { end }
    }

    /// Walks all of it; `free` are the parts of anonymous mappings that nobody else has a claim to. Returns
    /// the parts.
    pub(super) fn walk(
        &self,
        walk: &mut Walk<'_, '_>,
        free: &[Range<u64>],
    ) -> Result<Vec<Range<u64>>, Fault> {
        let mut parts = Vec::new();
        let whole = self.first_part(walk.source());
        let mut first = whole.start.next_multiple_of(HEADER);
        let mut base = whole.start;
        while base < whole.end && parts.len() < PARTS_MOST {
            let end = self.part(walk, base, first, whole.end, &mut parts)?;
            // Other code's memory lies between a fence and the next part.
            match walk.next_part(end, whole.end)? {
                Some(next) => (base, first) = (next, next),
                None => break,
            }
        }
        if self.scattered {
            for range in free.iter().filter(|range| !range.contains(&self.start)) {
                self.scattered(walk, range.clone(), &mut parts)?;
            }
        }
        parts.sort_by_key(|part| part.start);
        Ok(parts)
    }

    /// Walks the part at `first`; returns where it ends.
    fn part(
        &self,
        walk: &mut Walk<'_, '_>,
        base: u64,
        first: u64,
        limit: u64,
        parts: &mut Vec<Range<u64>>,
    ) -> Result<u64, Fault> {
        let span = Span {
            base,
            first,
            end: limit,
            mapped_end: limit,
            holds_top: limit == self.top_end,
            claim_end: limit,
        };
        let end = match walk.span(&span, self.cut)? {
            Ending::End => limit,
            Ending::Fence(end) => end,
        };
        walk.mapped(base..end, first.min(end) - base)?;
        parts.push(base..end);
        Ok(end)
    }

    /// Finds and walks the parts in `range`, which begin at pages.
    fn scattered(
        &self,
        walk: &mut Walk<'_, '_>,
        range: Range<u64>,
        parts: &mut Vec<Range<u64>>,
    ) -> Result<(), Fault> {
        let page = page_size().0;
        // Newer parts lie below older ones, so there may be some behind the top.
        let limit_from = |at: u64| match (at..range.end).contains(&self.top) {
            true => self.top_end.min(range.end),
            false => range.end,
        };
        let mut at = range.start.next_multiple_of(page);
        let mut pages = PAGES_MOST;
        while at < range.end && pages > 0 && parts.len() < PARTS_MOST {
            pages -= 1;
            let limit = limit_from(at);
            let is_part = walk.may_begin(at, limit)?
                && match walk.ending(at, limit)? {
                    Some(Ending::Fence(end)) => end % page == 0,
                    Some(Ending::End) => limit == self.top_end,
                    None => false,
                };
            at = match is_part {
                true => self.part(walk, at, at, limit, parts)?.next_multiple_of(page),
                false => at + page,
            };
        }
        Ok(())
    }
}

/// Where the mappings that adjoin the one `address` lies in, and may be written too, end.
fn piece_end(source: &dyn MemorySource, address: u64) -> u64 {
    let areas = source.areas();
    let from = areas.partition_point(|area| area.range.end <= address);
    let mut end = address;
    for area in &areas[from..] {
        let kept = area.perms.read && area.perms.write && !area.perms.shared && area.inode == 0;
        if !kept || area.range.start > end {
            break;
        }
        end = area.range.end;
    }
    end
}
