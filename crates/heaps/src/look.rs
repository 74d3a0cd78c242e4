//! Everything at once: every walker over one process, and what none of them knew.
//!
//! Invariants: no byte is in two heaps (of two walkers that claim the same address the later one is not believed, and
//! the rest is what nobody claims); a walker that fails hides no other; what was not finished in time is not told at
//! all.

use crate::bounded::Bounded;
use crate::files::Files;
use crate::model::{Extent, Heap, Kind};
use crate::ranges::{merged, without};
use crate::source::{Fault, MemorySource};
use crate::unknown::{self, Around};
use crate::{Live, cpython, ebbtide, glibc, jemalloc, luajit, mimalloc, musl, tcmalloc};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, ReadError, Unread};
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::{Duration, Instant};

/// A walker: the heaps of its allocator that it finds.
type Find = fn(&dyn MemorySource) -> Result<Vec<Heap>, Fault>;

/// Those there are. One whose memory comes from another's goes first.
const WALKERS: &[(&str, Find)] = &[
    ("CPython", cpython::find),
    ("LuaJIT", luajit::find),
    ("Ebbtide", ebbtide::find),
    ("jemalloc", jemalloc::find),
    ("tcmalloc", tcmalloc::find),
    ("mimalloc", mimalloc::find),
    ("musl", musl::find),
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
    /// Its threads' stacks, which are no heap.
    pub stacks: Extent,
    /// Code that it compiled itself, which is none either.
    pub code: Extent,
    /// Walkers that failed, and why.
    pub failed: Vec<(&'static str, Fault)>,
}

impl Look {
    /// Looks inside `process`; `still` says that its threads are all stopped.
    pub fn into(process: &Process, still: bool) -> Result<Look, LookError> {
        let live = Live::new(process, still)?;
        Ok(Look::over(&live, &around(process, &live)?)?)
    }

    /// Looks inside `process` for no longer than `budget`, give or take one question to the kernel. Where that is
    /// not enough: [`Fault::Overdue`]. What is found in its files is kept in `files`, for the next process.
    pub fn within(process: &Process, budget: Duration, files: &Files) -> Result<Look, LookError> {
        let deadline = Instant::now() + budget;
        let live = Live::new(process, false)?;
        let bounded = Bounded::new(&live, deadline).remembering(files);
        let look = Look::over(&bounded, &around(process, &live)?);
        // A walker may take a question that is not answered for memory that is not there.
        if bounded.is_overdue() { Err(Fault::Overdue.into()) } else { Ok(look?) }
    }

    /// Looks at `source`, a process of which `around` is known besides.
    pub fn over(source: &dyn MemorySource, around: &Around) -> Result<Look, Fault> {
        let mut look = Look::default();
        let mut claims: Vec<Range<u64>> = Vec::new();
        for &(name, find) in WALKERS {
            match find(source) {
                Ok(heaps) => {
                    for heap in heaps {
                        match claimed(&heap, &claims) {
                            Some(address) => look.failed.push((name, Fault::Claimed(address))),
                            None => {
                                claims.extend(heap.claims.iter().cloned());
                                claims = merged(claims);
                                look.heaps.push(heap);
                            }
                        }
                    }
                }
                Err(fault @ (Fault::Ended | Fault::Denied(_) | Fault::Overdue)) => return Err(fault),
                Err(fault) => look.failed.push((name, fault)),
            }
        }
        let mut rest = unknown::rest(source, &claims, around)?;
        if musl::is_old(source.areas(), &look.heaps) {
            let heaps = rest.heaps.iter_mut().filter(|heap| unknown::may_be_mallocs(heap));
            heaps.for_each(|heap| heap.notes.push(musl::OLD.to_owned()));
        }
        look.heaps.extend(rest.heaps);
        (look.stacks, look.code) = (rest.stacks, rest.code);
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

    /// The huge live blocks whose addresses are known, in order.
    pub fn huge(&self) -> Vec<Range<u64>> {
        let mut huge: Vec<Range<u64>> = self.known().flat_map(|heap| heap.huge.clone()).collect();
        huge.sort_by_key(|block| block.start);
        huge
    }

    /// Whole free pages of all heaps that are resident now.
    pub fn returnable(&self) -> Bytes {
        self.heaps.iter().map(|heap| heap.figures.returnable).sum()
    }
}

/// What is known of `process` beside its memory.
fn around(process: &Process, live: &Live) -> Result<Around, ReadError> {
    let hints = match process.hints() {
        Err(error @ ReadError::Vanished { .. }) => return Err(error),
        hints => hints.unwrap_or_default(),
    };
    // To look for a JVM's counters in a world-writable directory is not worth it for every process.
    let is_jvm = live.areas().iter().any(|area| area.path.ends_with(b"/libjvm.so"));
    let jvm = if is_jvm { process.jvm().ok().flatten() } else { None };
    Ok(Around { hints, jvm })
}

/// The first address of `heap` that `claims`, which are in order, have already.
fn claimed(heap: &Heap, claims: &[Range<u64>]) -> Option<u64> {
    heap.claims.iter().find_map(|claim| {
        let free = without(claim.clone(), claims);
        match free.first() {
            Some(first) if first.start > claim.start => Some(claim.start),
            Some(first) if *first != *claim => Some(first.end),
            None if !claim.is_empty() => Some(claim.start),
            _ => None,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_two_walkers_claim() {
        let others = [10..20, 30..40];
        let first = |claims: [Range<u64>; 2]| {
            claimed(&Heap { claims: claims.to_vec(), ..Heap::new(Kind::Glibc) }, &others)
        };
        assert_eq!(first([0..10, 20..30]), None);
        assert_eq!(first([0..5, 15..25]), Some(15));
        assert_eq!(first([5..5, 25..50]), Some(30));
        assert_eq!(first([20..21, 32..33]), Some(32));
    }
}
