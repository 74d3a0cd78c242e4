//! Everything at once: every walker over one process, and what none of them knew.
//!
//! Invariants: no byte is in two heaps (what a walker claims, later ones and the rest leave alone); the rest is
//! `unknown`, named only by what its mappings say themselves; a walker that fails hides no other.

use crate::model::{Figures, Heap, Kind};
use crate::residency::Residency;
use crate::source::{Area, Fault, MemorySource};
use crate::{Live, cpython, ebbtide, glibc, luajit, tcmalloc};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, ReadError, Unread};
use std::collections::BTreeMap;
use std::ops::Range;

/// A walker: the heaps of its allocator that it finds.
type Find = fn(&dyn MemorySource) -> Result<Vec<Heap>, Fault>;

/// Those there are. One whose memory comes from another's goes first.
const WALKERS: &[(&str, Find)] = &[
    ("CPython", cpython::find),
    ("LuaJIT", luajit::find),
    ("Ebbtide", ebbtide::find),
    ("tcmalloc", tcmalloc::find),
    ("glibc", glibc::find),
];

/// Why nothing was seen of a process.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// Its mappings or its pagemap could not be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// Its memory could not be read.
    #[error(transparent)]
    Memory(#[from] Fault),
}

/// What was seen inside a process.
#[derive(Debug, Clone, Default)]
pub struct Look {
    /// Its heaps, the largest resident one first.
    pub heaps: Vec<Heap>,
    /// Walkers that failed, and why.
    pub failed: Vec<(&'static str, Fault)>,
}

impl Look {
    /// Looks inside `process`; `still` says that its threads are all stopped.
    pub fn into(process: &Process, still: bool) -> Result<Look, LookError> {
        let live = Live::new(process, still)?;
        let (stacks, _) = process.stack_pointers().unwrap_or_default();
        Ok(Look::over(&live, &stacks)?)
    }

    /// Looks at `source`, in which no area that one of `stacks` points into is a heap.
    pub fn over(source: &dyn MemorySource, stacks: &[u64]) -> Result<Look, Fault> {
        let mut look = Look::default();
        for &(name, find) in WALKERS {
            match find(source) {
                Ok(heaps) => look.heaps.extend(heaps),
                Err(fault @ (Fault::Ended | Fault::Denied(_))) => return Err(fault),
                Err(fault) => look.failed.push((name, fault)),
            }
        }
        let mut claims: Vec<Range<u64>> = look.heaps.iter().flat_map(|heap| heap.claims.clone()).collect();
        claims.sort_by_key(|claim| claim.start);
        look.heaps.extend(unknown(source, &claims, stacks)?);
        look.heaps.sort_by_key(|heap| std::cmp::Reverse(heap.figures.resident));
        Ok(look)
    }

    /// The heaps in which a walker found its allocator.
    pub fn known(&self) -> impl Iterator<Item = &Heap> {
        self.heaps.iter().filter(|heap| heap.kind != Kind::Unknown)
    }

    /// What is missing, and why.
    pub fn unread(&self) -> Vec<Unread> {
        let unread = |(walker, fault): &(&str, Fault)| Unread {
            what: format!("{walker}'s heap"),
            why: fault.to_string(),
        };
        self.failed.iter().map(unread).collect()
    }

    /// Live blocks and bytes by size class, over all heaps.
    fn classes(&self) -> BTreeMap<Bytes, (u64, Bytes)> {
        let mut sums: BTreeMap<Bytes, (u64, Bytes)> = BTreeMap::new();
        for class in self.heaps.iter().flat_map(|heap| &heap.histogram) {
            let (count, live) = sums.entry(class.up_to).or_default();
            *count += class.live_count;
            *live += class.live;
        }
        sums
    }

    /// The size classes that gained live bytes since `earlier`, most first: (largest size, blocks, bytes).
    pub fn gained_since(&self, earlier: &Look) -> Vec<(Bytes, u64, Bytes)> {
        let before = earlier.classes();
        let gained = self.classes().into_iter().map(|(up_to, (count, live))| {
            let (count_before, live_before) = before.get(&up_to).copied().unwrap_or_default();
            (up_to, count.saturating_sub(count_before), live - live_before)
        });
        let mut gained: Vec<_> = gained.filter(|(_, _, live)| *live > Bytes::ZERO).collect();
        gained.sort_by_key(|(_, _, live)| std::cmp::Reverse(*live));
        gained
    }

    /// Whole free pages of all heaps that are resident now.
    pub fn returnable(&self) -> Bytes {
        self.heaps.iter().map(|heap| heap.figures.returnable).sum()
    }
}

/// Private anonymous memory that nobody claims, by name.
fn unknown(source: &dyn MemorySource, claims: &[Range<u64>], stacks: &[u64]) -> Result<Vec<Heap>, Fault> {
    let mut by_name: BTreeMap<String, (Figures, Vec<Range<u64>>)> = BTreeMap::new();
    let mut residency = Residency::new(source);
    for area in source.areas().iter().filter(|area| area.is_private_anon() && !is_stack(area, stacks)) {
        let (figures, ranges) = by_name.entry(name(area)).or_default();
        for rest in without(area.range.clone(), claims) {
            figures.mapped += Bytes(rest.end - rest.start);
            figures.resident += residency.present(rest.clone())?;
            ranges.push(rest);
        }
    }
    let heaps = by_name.into_iter().filter(|(_, (figures, _))| figures.resident > Bytes::ZERO);
    Ok(heaps
        .map(|(name, (figures, claims))| Heap {
            name: Some(name),
            figures,
            claims,
            ..Heap::new(Kind::Unknown)
        })
        .collect())
}

fn is_stack(area: &Area, stacks: &[u64]) -> bool {
    area.path.starts_with(b"[stack") || stacks.iter().any(|pointer| area.range.contains(pointer))
}

/// What a mapping says of itself.
fn name(area: &Area) -> String {
    match area.path.as_slice() {
        b"" => "anonymous".to_owned(),
        b"[heap]" => "brk heap".to_owned(),
        path => {
            let label = path.strip_prefix(b"[anon:").and_then(|rest| rest.strip_suffix(b"]")).unwrap_or(path);
            String::from_utf8_lossy(label.trim_ascii()).into_owned()
        }
    }
}

/// The parts of `range` that none of `claims`, in order, takes.
pub(crate) fn without(range: Range<u64>, claims: &[Range<u64>]) -> Vec<Range<u64>> {
    let (mut rest, mut at) = (Vec::new(), range.start);
    // Claims may overlap; those that end before the range were passed.
    for claim in claims.iter().filter(|claim| claim.end > range.start && claim.start < range.end) {
        if claim.start > at {
            rest.push(at..claim.start);
        }
        at = at.max(claim.end);
    }
    if at < range.end {
        rest.push(at..range.end);
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_range() {
        let left = |claims: &[Range<u64>]| -> Vec<(u64, u64)> {
            without(10..20, claims).iter().map(|rest| (rest.start, rest.end)).collect()
        };
        assert_eq!(left(&[]), [(10, 20)]);
        assert_eq!(left(&[0..5, 8..12, 11..14, 18..30]), [(14, 18)]);
        assert_eq!(left(&[5..11, 12..13]), [(11, 12), (13, 20)]);
        assert_eq!(left(&[5..12, 10..40]), []);
    }
}
