//! Quick lists (fastbins): freed chunks that keep looking like chunks in use until malloc_consolidate merges
//! them. Invariant: a list ends at the first chunk that is not one of its size, or that was met before.

use super::arena::State;
use super::books::Findings;
use super::layout::{FLAGS, HEADER, Layout, MIN_CHUNK};
use super::marks::{Marked, Marks};
use crate::reader::Reader;
use crate::source::Fault;
use std::ops::Range;

/// Marks the chunks in the quick lists of `state`. `heap_at` says which stretch of the heaps an address lies in.
pub(super) fn mark(
    reader: &mut Reader<'_>,
    layout: &Layout,
    state: &State,
    heap_at: impl Fn(u64) -> Option<Range<u64>>,
    marks: &mut Marks,
    findings: &mut Findings,
) -> Result<(), Fault> {
    let mut near = 0..0;
    for (index, &head) in state.fast.iter().enumerate() {
        let size = MIN_CHUNK + HEADER * index as u64;
        let mut chunk = head;
        let mut most = state.system / size;
        while chunk != 0 {
            if !near.contains(&chunk) {
                near = heap_at(chunk).unwrap_or(0..0);
            }
            let broken = match entry(reader, chunk, near.contains(&chunk)) {
                Ok(Some((field, stored))) if field & !FLAGS == size => match marks.mark(chunk) {
                    Marked::New if most > 0 => {
                        most -= 1;
                        chunk = layout.link(chunk + HEADER, stored);
                        continue;
                    }
                    Marked::Full => {
                        findings.certainty.unresolved += ebbtide_observe::Bytes(most * size);
                        break;
                    }
                    _ => "a quick list meets one chunk twice",
                },
                Ok(_) => "a quick list leads to what is no chunk of its size",
                Err(Fault::Swapped(_)) => break,
                Err(fault) => return Err(fault),
            };
            match reader.source().is_still() {
                true => findings.corrupt(chunk, broken),
                false => findings.certainty.reread += 1,
            }
            break;
        }
    }
    Ok(())
}

/// The size and the list pointer of the chunk at `chunk`; nothing where no chunk can be.
fn entry(reader: &mut Reader<'_>, chunk: u64, is_heap: bool) -> Result<Option<(u64, u64)>, Fault> {
    if !is_heap || !chunk.is_multiple_of(HEADER) {
        return Ok(None);
    }
    match reader.array::<24>(chunk) {
        Ok([_, _, _, _, _, _, _, _, words @ ..]) => {
            let (size, link) = words.split_at(8);
            let word = |bytes: &[u8]| bytes.first_chunk().map(|word| u64::from_le_bytes(*word));
            Ok(word(size).zip(word(link)))
        }
        Err(Fault::Unmapped(_)) => Ok(None),
        Err(fault) => Err(fault),
    }
}
