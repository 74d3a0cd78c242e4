//! CPython's obmalloc, 3.8 to 3.14: the small objects (up to 512 bytes) of a Python program.
//!
//! What is larger, and what C code takes by PyMem_RawMalloc, comes from malloc and is its walker's; so are
//! obmalloc's own books but for the headers of pools. What the types keep for themselves (the free lists of
//! floats, tuples, dicts, frames) lives, from here.
//!
//! Nothing gives back a part of an arena: obmalloc unmaps one when all its pools are free, at once, and has no
//! trim; so `returnable_by_trim` is `None`. `returnable` is what could be given back from outside without cutting
//! a list, see [`walk`].

mod binary;
mod books;
mod interpreters;
mod layout;
mod requests;
mod tree;
mod walk;

use crate::model::{Arena, Corruption, Heap, Kind};
use crate::reader::Reader;
use crate::source::{Fault, MemorySource};
use binary::Binary;
use books::{Books, Words};
use layout::Geometry;
pub use requests::{Deaf, Inbox, Requests};
use walk::{Tally, Walk};

/// How often array and tree are read when they do not agree in a running process, and everything when the array
/// moved meanwhile.
const TRIES: u64 = 5;

/// The obmalloc heap of each CPython in the process; empty where there is none, or where all objects come from
/// malloc (`PYTHONMALLOC=malloc`, free-threaded builds).
pub fn find(source: &dyn MemorySource) -> Result<Vec<Heap>, Fault> {
    let mut heaps = Vec::new();
    for binary in binary::find(source)? {
        for attempt in 1..=TRIES {
            let (heap, settled) = look_into(source, &binary)?;
            if settled || source.is_still() || attempt == TRIES {
                heaps.extend((!heap.arenas.is_empty()).then_some(heap));
                break;
            }
        }
    }
    Ok(heaps)
}

/// The heap of a binary, and whether its books stayed where they were meanwhile.
fn look_into(source: &dyn MemorySource, binary: &Binary) -> Result<(Heap, bool), Fault> {
    let mut reader = Reader::new(source);
    let data = binary.data.iter().map(|range| Words::copy(&mut reader, range.clone()));
    let data = data.collect::<Result<Vec<_>, _>>()?;
    let mut heap = Heap::new(Kind::CPython);
    heap.version = binary.version.clone();
    heap.certainty.still = source.is_still();
    let mut tally = Tally::default();
    let places = books::places(&data);
    let mut settled = true;
    for &used in &places {
        let Some(books) = books::at(&mut reader, used, &data)? else { continue };
        settled &= walk_books(source, &books, &data, "main".to_owned(), &mut heap, &mut tally)?;
        for (id, books) in interpreters::others(&mut reader, binary.runtime, &data, &books)? {
            settled &= walk_books(source, &books, &[], format!("interpreter {id}"), &mut heap, &mut tally)?;
        }
    }
    heap.claims.sort_unstable_by_key(|range| range.start);
    heap.notes.extend(notes(&tally));
    let found = !heap.arenas.is_empty() || places.is_empty();
    Ok((heap, settled && found))
}

/// What the array says, and whether the tree says the same.
struct Agreed {
    arenas: Vec<layout::Arena>,
    /// Arenas that were in the midst of being made.
    half_made: u32,
    /// The arenas that only one of them has; `None` without a tree.
    differ: Option<Vec<u64>>,
    rereads: u64,
}

/// Reads the array and the tree, again where they disagree; `None` if the array is not there any more.
fn agree(reader: &mut Reader<'_>, books: &Books, data: &[Words]) -> Result<Option<Agreed>, Fault> {
    let still = reader.source().is_still();
    let mut last = None;
    for rereads in 0..TRIES {
        reader.refresh();
        let Some((mut arenas, half_made)) = books::entries(reader, books.array, books.len, books.geometry)?
        else {
            continue;
        };
        arenas.sort_unstable_by_key(|arena| arena.address);
        let first = arenas.first().filter(|_| books.geometry == Geometry::LARGE);
        let tree = first.map(|arena| tree::arenas(reader, books, data, arena)).transpose()?.flatten();
        let differ = tree.map(|tree| difference(arenas.iter().map(|arena| arena.address), tree.into_iter()));
        let done = differ.as_ref().is_none_or(Vec::is_empty) || still;
        last = Some(Agreed { arenas, half_made, differ, rereads });
        if done {
            break;
        }
    }
    Ok(last)
}

/// What is in only one of two ascending sequences.
fn difference(a: impl Iterator<Item = u64>, b: impl Iterator<Item = u64>) -> Vec<u64> {
    let (mut a, mut b) = (a.peekable(), b.peekable());
    let mut only = Vec::new();
    loop {
        match (a.peek(), b.peek()) {
            (Some(x), Some(y)) if x == y => {
                a.next();
                b.next();
            }
            (Some(x), Some(y)) if x > y => only.extend(b.next()),
            (Some(_), _) => only.extend(a.next()),
            (None, Some(_)) => only.extend(b.next()),
            (None, None) => return only,
        }
    }
}

/// Walks what `books` tell of and adds it to `heap`; whether they stayed where they are meanwhile.
fn walk_books(
    source: &dyn MemorySource,
    books: &Books,
    data: &[Words],
    name: String,
    heap: &mut Heap,
    tally: &mut Tally,
) -> Result<bool, Fault> {
    let mut reader = Reader::new(source);
    let Some(agreed) = agree(&mut reader, books, data)? else { return Ok(false) };
    let overlap = agreed.arenas.windows(2).find(|pair| pair[0].range(books.geometry).end > pair[1].address);
    if let Some(pair) = overlap {
        let damage = Corruption { address: pair[1].address, what: "arenas that overlap".to_owned() };
        heap.corruptions.extend(source.is_still().then_some(damage));
        return Ok(false);
    }
    let mut walk = Walk::new(source, books.array, books.geometry);
    for arena in &agreed.arenas {
        walk.arena(arena)?;
    }
    walk.look_again()?;
    let settled = books.is_current(&mut reader)?;
    if !settled {
        walk.corruptions.clear();
    }
    walk.tally.unmapped += u64::from(agreed.half_made);
    *tally += walk.tally;
    say_disagreement(&agreed, books.geometry, heap);
    let (figures, histogram) = walk.account.close()?;
    heap.enter(Arena { address: books.used, name, figures, collector: None }, histogram);
    heap.certainty.reread += walk.certainty.reread + agreed.rereads;
    heap.certainty.unresolved += walk.certainty.unresolved;
    heap.corruptions.append(&mut walk.corruptions);
    heap.claims.append(&mut walk.claims);
    Ok(settled)
}

/// In a process that stands still array and tree agree, or one of them is damaged.
fn say_disagreement(agreed: &Agreed, geometry: Geometry, heap: &mut Heap) {
    let Some(differ) = &agreed.differ else {
        if geometry == Geometry::LARGE {
            heap.notes.push("no radix tree of arenas was found to compare with their array".to_owned());
        }
        return;
    };
    if differ.is_empty() {
        return;
    }
    if heap.certainty.still {
        let what = "an arena that is in only one of the array and the radix tree".to_owned();
        heap.corruptions
            .extend(differ.iter().take(4).map(|&address| Corruption { address, what: what.clone() }));
    } else {
        heap.notes.push(format!("{} arenas came or went while they were read", differ.len()));
    }
}

/// What the figures do not say.
fn notes(tally: &Tally) -> Vec<String> {
    let mut notes = vec![format!(
        "{} arenas; obmalloc returns one only when all of it is free, and {} have more than three quarters free",
        tally.arenas, tally.sparse
    )];
    if tally.free_pools > 0 {
        notes.push(format!(
            "{} free pools with {} in memory wait for reuse; their free lists run through them",
            tally.free_pools, tally.free_pools_resident
        ));
    }
    notes.push("objects on the types' free lists (floats, tuples, dicts, frames) count as live".to_owned());
    if tally.swapped > 0 {
        notes.push(format!("{} pools are partly in swap: counted by their headers", tally.swapped));
    }
    if tally.unmapped > 0 {
        notes.push(format!("{} arenas came or went while they were read", tally.unmapped));
    }
    notes
}
