//! jemalloc 5.2 and 5.3 with 4 KiB pages, as Debian ships it for amd64 (11, 12 and 13), as Redis brings it and as Rust
//! programs link it: every extent, and what thread caches hold. It is found in a library or in the program itself, and
//! needs no symbols.
//!
//! The way through: [`locate`] finds the table of size classes and the tree of extents in a file's data, [`base`] the
//! memory for jemalloc's own books, [`caches`] the thread caches, and [`walk`] goes over the leaves of the [`tree`].
//!
//! `free` is regions of slabs that are free, and extents that are dirty or muzzy. `returnable_by_trim` is what
//! mallctl("arena.4096.purge") gives back: the resident pages of the latter. malloc_trim does nothing to jemalloc, and
//! jemalloc itself never gives back a page of a slab in which anything lives: such pages are in `returnable`, because
//! madvise could (jemalloc keeps no link in free memory). Retained extents are address space that was given back and
//! kept; they are in `unused`, as are the ends of slabs and the page beside a large block that lets its start vary.
//!
//! `cached` is what lies in thread caches. Where those cannot be recognised (builds without statistics, as Rust's are
//! unless asked for), what they hold counts as live, and a note says so.
//!
//! Not recognised: larger pages (Debian's arm64 build has 64 KiB), more than 512 regions to a slab; jemalloc 5.1 and
//! before, whose table of classes is constant data. With `opt.hpa` the free parts of huge pages are not seen, and a
//! note says so; nor are the guard pages of `opt.san_guard_*`. What jemalloc allocates for itself as programs do counts
//! as live: its profiler's books, and in 5.2 a few bytes for each thread. From 5.3.1 on large blocks are taken to have a
//! page beside them (`cache_oblivious`, as builds have it unless told otherwise).
//!
//! Invariants: figures add up to what is mapped; no byte is called jemalloc's on one witness: its page leads to a book
//! that leads back, in a tree that several such pages bear out, in data that has the table of size classes too.

mod base;
mod caches;
mod layout;
mod locate;
mod tree;
mod walk;

use crate::account::Account;
use crate::data;
use crate::model::{Arena, Heap, Kind};
use crate::now::Now;
use crate::ranges::merged;
use crate::reader::Reader;
use crate::source::{Area, Fault, MemorySource};
use base::Bases;
use caches::Caches;
use ebbtide_observe::Bytes;
use locate::Jemalloc;
use std::collections::BTreeMap;
use std::ops::Range;
use walk::{Findings, Walk};

/// How often a running process is looked at again.
const TRIES: u32 = 3;

/// Each jemalloc of `source` that was ever asked for memory; none where there is none. One whose tree has another
/// structure than the known ones is a heap without figures and with a note.
///
/// Errors: [`Fault::Ended`], [`Fault::Denied`] and what the system says else; memory that is not there, is swapped
/// out or makes no sense is no error but told in the heap.
pub fn find(source: &dyn MemorySource) -> Result<Vec<Heap>, Fault> {
    look(source, false)
}

/// As [`find`], with [`Heap::returnable_ranges`]. While the process stands still, all of these pages can be dropped
/// by madvise(MADV_DONTNEED): jemalloc keeps nothing in free memory, and what it knows to be zeroes stays so.
pub fn find_with_ranges(source: &dyn MemorySource) -> Result<Vec<Heap>, Fault> {
    look(source, true)
}

fn look(source: &dyn MemorySource, ranges: bool) -> Result<Vec<Heap>, Fault> {
    if !locate::may_be(source) {
        return Ok(Vec::new());
    }
    let mut tries = 0;
    loop {
        let now = Now::of(source)?;
        let source = now.as_ref().map_or(source, |now| now);
        let found = locate::find(source)?;
        // Where much is new since the mappings were listed, the tree may not have been recognised.
        let is_in_part = found.iter().any(|jemalloc| jemalloc.tree.is_none());
        if is_in_part && !source.is_still() && tries < TRIES {
            tries += 1;
            continue;
        }
        return found.iter().map(|jemalloc| heap(source, jemalloc, ranges)).collect();
    }
}

fn heap(source: &dyn MemorySource, jemalloc: &Jemalloc, ranges: bool) -> Result<Heap, Fault> {
    let mut heap = Heap::new(Kind::Jemalloc);
    heap.certainty.still = source.is_still();
    heap.version = jemalloc.version.clone();
    let Some(tree) = jemalloc.tree else {
        heap.notes.push(
            "its size classes are here, but no tree of extents as jemalloc 5.2 and 5.3 have it with 4 KiB pages, or \
             nothing was taken from it yet: nothing was counted"
                .to_owned(),
        );
        return Ok(heap);
    };
    heap.version.get_or_insert_with(|| tree.layout.version().to_owned());
    let mut bases = bases(source, jemalloc)?;
    let caches = caches::find(source, tree.layout, &jemalloc.classes, &bases)?;
    let account = if ranges { Account::new(source).with_ranges() } else { Account::new(source) };
    let mut walk = Walk::new(source, tree, &jemalloc.classes, &caches, account, jemalloc.by_pages());
    walk.all()?;
    heap.returnable_ranges = walk.account.take_ranges()?;
    heap.huge = walk.account.take_huge();
    let mut reader = Reader::new(source);
    for place in walk.places() {
        bases.reach_below(&mut reader, place)?;
    }
    let numbers: BTreeMap<u32, u64> =
        bases.arenas().map(|(number, block)| (number, Bases::address(block))).collect();
    let mut blocks: Vec<Range<u64>> = Vec::new();
    for block in bases.blocks() {
        let range = block.range();
        let is_taken = blocks.last().is_some_and(|last| last.end > range.start);
        if is_taken || walk.has_claimed(&range) {
            continue;
        }
        walk.turn_to(block.arena.unwrap_or(0))?;
        walk.account.mapped(range.clone())?;
        walk.account.metadata(block.unused - block.start);
        blocks.push(range);
    }
    let (findings, histogram) = walk.close()?;
    heap.histogram = histogram;
    notes(&mut heap, &findings, &caches);
    for (number, mut figures) in findings.by_arena {
        figures.returnable_by_trim.get_or_insert_default();
        heap.figures += figures;
        let address = numbers.get(&number).copied().unwrap_or(0);
        heap.arenas.push(Arena { address, name: format!("arena {number}"), figures, collector: None });
    }
    heap.certainty = findings.certainty;
    heap.certainty.still = source.is_still();
    heap.corruptions = findings.corruptions;
    heap.claims = merged(findings.claims.into_iter().chain(blocks).collect());
    Ok(heap)
}

/// The memory for books that the program's data leads to: its table of arenas does.
fn bases(source: &dyn MemorySource, jemalloc: &Jemalloc) -> Result<Bases, Fault> {
    let (mut bases, mut reader) = (Bases::default(), Reader::new(source));
    data::words(&mut Reader::new(source), &jemalloc.data, |_, word| {
        // Arenas are at cache lines.
        if word != 0 && word.is_multiple_of(64) && source.area_at(word).is_some_and(Area::is_private_anon) {
            bases.reach(&mut reader, word)?;
        }
        Ok(None::<()>)
    })?;
    Ok(bases)
}

fn notes(heap: &mut Heap, findings: &Findings, caches: &Caches) {
    let Findings { dirty, muzzy, retained, strange, swapped, of_huge, .. } = findings;
    heap.notes.push(format!(
        "{dirty} of its extents are dirty and {muzzy} muzzy: mallctl(\"arena.4096.purge\") gives back what of them is \
         resident, malloc_trim nothing; {retained} of address space was given back and is kept"
    ));
    match (caches.count, caches.is_cut) {
        (0, _) => {
            heap.notes.push("no thread cache was found: what threads' caches hold counts as live".to_owned())
        }
        (_, true) => heap.notes.push(
            "some thread caches could not be read to the end: what they hold more counts as live".to_owned(),
        ),
        (_, false) => {}
    }
    if *of_huge > 0 {
        heap.notes
            .push("it divides huge pages by itself (opt.hpa): their free parts are not counted".to_owned());
    }
    if *swapped > Bytes::ZERO {
        heap.notes.push(format!("{swapped} of its tree is swapped out; what that tells of is not counted"));
    }
    if *strange > 0 && heap.certainty.still {
        heap.notes.push(format!(
            "{strange} of its extents do not add up: it was stopped in the midst of a change, or is damaged"
        ));
    }
}
