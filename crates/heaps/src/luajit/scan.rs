//! Looks at the first words of resident pages for what lj_alloc begins pages with: its books, and large blocks.
//!
//! Invariants: no page is looked at that is not in memory, none within a segment that is known already, and what is
//! kept is bounded.

use super::layout::{PAGE, heads_book, heads_direct, word};
use crate::source::{Area, Fault, MemorySource, PageState};
use std::collections::BTreeMap;
use std::ops::Range;

/// The pages that one system call looks at (UIO_MAXIOV).
const BATCH: usize = 1024;
/// The two words that are looked at.
const LOOK: u64 = 16;
/// How much is asked for at once, unless the area is huge.
const WINDOW: u64 = 64 << 20;
/// The most candidates of either kind that are kept.
const CANDIDATES_MOST: usize = 1 << 18;

/// The memory that lj_alloc may have: private, without a file and a name.
pub(super) fn is_candidate(area: &Area) -> bool {
    area.is_private_anon() && area.is_unnamed() && !area.perms.exec
}

/// Looks at the pages of `source`. `confirm` is told where books may be, and says which segments they name: these
/// are not looked at any more. Returns the large blocks there may be, in the order of addresses.
pub(super) fn pages(
    source: &dyn MemorySource,
    confirm: impl FnMut(u64) -> Result<Vec<Range<u64>>, Fault>,
) -> Result<Vec<Range<u64>>, Fault> {
    let mut scan = Scan {
        source,
        confirm,
        starts: Vec::with_capacity(BATCH),
        buf: vec![0; BATCH * LOOK as usize],
        known: BTreeMap::new(),
        directs: Vec::new(),
        books: 0,
    };
    // From the top down, as the kernel gives addresses: the books are in the segment that was taken first.
    for area in source.areas().iter().rev().filter(|area| is_candidate(area)) {
        // An address sanitizer's area is 15 TiB, nearly all of it absent.
        let step = (area.size().0 / 1024).max(WINDOW).next_multiple_of(PAGE);
        let mut end = area.range.end;
        while end > area.range.start {
            let start = end.saturating_sub(step).max(area.range.start);
            scan.window(start..end)?;
            end = start;
        }
    }
    scan.directs.sort_unstable_by_key(|range| range.start);
    Ok(scan.directs)
}

struct Scan<'s, C> {
    source: &'s dyn MemorySource,
    confirm: C,
    /// The words that will be looked at next.
    starts: Vec<Range<u64>>,
    buf: Vec<u8>,
    /// The segments that are known, by their base.
    known: BTreeMap<u64, u64>,
    directs: Vec<Range<u64>>,
    books: usize,
}

impl<C: FnMut(u64) -> Result<Vec<Range<u64>>, Fault>> Scan<'_, C> {
    /// Looks at the pages of `window`.
    fn window(&mut self, window: Range<u64>) -> Result<(), Fault> {
        let mut result = Ok(());
        self.source.pages(window, &mut |run, state| {
            if state == PageState::Present && result.is_ok() {
                result = self.run(&run);
            }
        })?;
        result?;
        self.look()
    }

    /// Puts the pages of `run` down to be looked at.
    fn run(&mut self, run: &Range<u64>) -> Result<(), Fault> {
        let mut page = run.start.next_multiple_of(PAGE);
        while page < run.end {
            let segment = self.known.range(..=page).next_back();
            if let Some(&end) = segment.map(|(_, end)| end).filter(|end| page < **end) {
                page = end;
                continue;
            }
            self.starts.push(page..page + LOOK);
            if self.starts.len() == BATCH {
                self.look()?;
            }
            page += PAGE;
        }
        Ok(())
    }

    /// Looks at the pages that were put down.
    fn look(&mut self) -> Result<(), Fault> {
        let starts = std::mem::take(&mut self.starts);
        let mut rest = starts.as_slice();
        while !rest.is_empty() {
            let wanted = rest.len() * LOOK as usize;
            let read = match self.source.read_ranges(rest, &mut self.buf[..wanted]) {
                Ok(read) => (read / LOOK as usize).min(rest.len()),
                // The page went away since it was said to be there.
                Err(Fault::Unmapped(_)) => 0,
                Err(fault) => return Err(fault),
            };
            for (index, page) in rest[..read].iter().enumerate() {
                let at = index * LOOK as usize;
                let (foot, head) = (word(&self.buf, at), word(&self.buf, at + 8));
                self.judge(page.start, foot, head)?;
            }
            rest = rest.get(read + 1..).unwrap_or_default();
        }
        self.starts = starts;
        self.starts.clear();
        Ok(())
    }

    fn judge(&mut self, page: u64, foot: u64, head: u64) -> Result<(), Fault> {
        if heads_book(head) && self.books < CANDIDATES_MOST {
            self.books += 1;
            for segment in (self.confirm)(page)? {
                self.known.insert(segment.start, segment.end);
            }
        } else if let Some(size) = heads_direct(foot, head)
            && self.directs.len() < CANDIDATES_MOST
        {
            self.directs.push(page..page.saturating_add(size));
        }
        Ok(())
    }
}
