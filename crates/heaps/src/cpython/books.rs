//! Finding obmalloc's books without symbols: `usedpools`, which refers to itself, then the array of
//! arena_objects, which must know the arenas of the pools that `usedpools` lists.
//!
//! `usedpools[2i]` and `[2i + 1]` are the ends of a ring of pools of class `i` through a header that is not there,
//! 16 bytes before them; an empty ring's ends are that header's own address. 32 such pairs in a row, each an
//! empty ring or one whose pools lead back and have class `i`, are no accident. A pool names its arena's number;
//! the array is where the arena_object of that number covers that pool.
//!
//! Up to 3.11 the array's address is a static anywhere in the binary's data; from 3.12 on all is in one structure,
//! `usedpools` first.

use super::layout::{
    Arena, CLASSES, FIRST_OBJECTS, Geometry, Header, OBJECT, OBJECTS_MOST, Object, USED_BYTES, word,
};
use crate::reader::Reader;
use crate::source::{Fault, MemorySource, there};
use std::ops::Range;

/// How often a ring that is being changed is looked at.
const TRIES: usize = 5;
/// How many rings may be seen to be in motion all the time: the others are proof enough.
const MOVING_MOST: u32 = 4;
/// How many arenas may be seen in the midst of being made, which a thread that does not get the processor is for long.
const CHANGING_MOST: u32 = 2;
/// What is read of a binary's data at once; a part in swap costs no more than itself.
const PART: u64 = 64 << 10;

/// From 3.12 on: `mgmt.arenas`, counted from `usedpools`.
const ARENAS_AT: u64 = USED_BYTES;
/// `mgmt.maxarenas`.
const MAX_AT: u64 = ARENAS_AT + 8;
/// `usage.arena_map_root`, behind `nfp2lasta[65]` and four counters.
pub(super) const ROOT_AT: u64 = ARENAS_AT + 4 * 8 + 65 * 8 + 4 * 8;

/// A piece of memory, copied.
#[derive(Debug)]
pub(super) struct Words {
    /// Where it was.
    pub(super) start: u64,
    bytes: Vec<u8>,
}

impl Words {
    /// Copies `range`; what is in swap or gone reads as zeroes.
    pub(super) fn copy(reader: &mut Reader<'_>, range: Range<u64>) -> Result<Words, Fault> {
        let mut bytes = Vec::with_capacity((range.end - range.start) as usize);
        let mut part = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at.saturating_add(PART));
            match reader.copy(at..end, &mut part) {
                Ok(()) => bytes.extend_from_slice(&part),
                Err(Fault::Swapped(_) | Fault::Unmapped(_)) => {
                    bytes.resize(bytes.len() + (end - at) as usize, 0)
                }
                Err(fault) => return Err(fault),
            }
            at = end;
        }
        Ok(Words { start: range.start, bytes })
    }

    /// Each word and its address.
    pub(super) fn each(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        let words = self.bytes.as_chunks::<8>().0.iter();
        words.enumerate().map(|(index, bytes)| (self.start + 8 * index as u64, u64::from_le_bytes(*bytes)))
    }

    /// Where `usedpools` could be: 32 pairs that could be rings' ends.
    fn could_be_used(&self) -> Vec<u64> {
        let mut found = Vec::new();
        for phase in [0, 8] {
            let mut run = 0;
            let pairs = self.bytes.get(phase..).unwrap_or_default().as_chunks::<16>().0;
            for (index, pair) in pairs.iter().enumerate() {
                let at = self.start + (phase + 16 * index) as u64;
                let (first, last) = (word(pair, 0), word(pair, 8));
                // A ring that is being linked has one end of each kind.
                let is_end = |end: u64| end == at.wrapping_sub(16) || (end != 0 && end.is_multiple_of(4096));
                run = if is_end(first) && is_end(last) { run + 1 } else { 0 };
                if run >= USED_BYTES / 16 {
                    found.push(at + 16 - USED_BYTES);
                }
            }
        }
        found
    }
}

/// A pool with free blocks, as found through `usedpools`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sample {
    address: u64,
    header: Header,
}

/// The books of one obmalloc; an interpreter with a GIL of its own has its own.
#[derive(Debug)]
pub(super) struct Books {
    /// Where `usedpools` is.
    pub(super) used: u64,
    /// The sizes it was built with.
    pub(super) geometry: Geometry,
    /// The array of arena_objects.
    pub(super) array: u64,
    /// How many there are.
    pub(super) len: u32,
    /// Whether all is in one structure, as from 3.12 on.
    pub(super) is_one: bool,
    /// Where the array's address was found.
    slots: Vec<u64>,
}

impl Books {
    /// Whether the array is still the one in use. It moves when it grows, and what it was stays readable.
    pub(super) fn is_current(&self, reader: &mut Reader<'_>) -> Result<bool, Fault> {
        reader.refresh();
        for slot in &self.slots {
            if there(reader.u64(*slot))? == Some(self.array) {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Where in a binary's data `usedpools` could be.
pub(super) fn places(data: &[Words]) -> Vec<u64> {
    data.iter().flat_map(Words::could_be_used).collect()
}

/// The books whose `usedpools` is at `used`, if one is there. The array is looked for behind it, and in `data`.
pub(super) fn at(reader: &mut Reader<'_>, used: u64, data: &[Words]) -> Result<Option<Books>, Fault> {
    for _ in 0..TRIES {
        let samples = samples(reader, used)?;
        let geometry = samples.first().and_then(|sample| sample.header.geometry());
        let Some(geometry) = geometry else { return Ok(None) };
        if samples.iter().any(|sample| sample.header.geometry() != Some(geometry)) {
            reader.refresh();
            continue;
        }
        let behind = there(reader.u64(used + ARENAS_AT))?.unwrap_or(0);
        if knows(reader, behind, &samples, geometry)? {
            let len = there(reader.u32(used + MAX_AT))?.unwrap_or(0);
            let doubled = (FIRST_OBJECTS..=OBJECTS_MOST).contains(&len) && len.is_power_of_two();
            if doubled && entries(reader, behind, len, geometry)?.is_some() {
                let slots = vec![used + ARENAS_AT];
                return Ok(Some(Books { used, geometry, array: behind, len, is_one: true, slots }));
            }
        }
        for array in pointers(reader.source(), data) {
            if knows(reader, array, &samples, geometry)?
                && let Some(len) = extent(reader, array, geometry)?
                && samples.iter().all(|sample| sample.header.arena < len)
            {
                let words = data.iter().flat_map(Words::each);
                let slots = words.filter(|(_, word)| *word == array).map(|(slot, _)| slot).collect();
                return Ok(Some(Books { used, geometry, array, len, is_one: false, slots }));
            }
        }
        reader.refresh();
    }
    Ok(None)
}

/// The first pool of each class's ring, if `used` is `usedpools`; else none.
fn samples(reader: &mut Reader<'_>, used: u64) -> Result<Vec<Sample>, Fault> {
    let (mut samples, mut moving) = (Vec::new(), 0);
    for class in 0..CLASSES {
        let ring = steady_ring(reader, used, class)?;
        match ring {
            Ring::Empty => {}
            Ring::Pools(sample) => samples.push(sample),
            Ring::Odd if moving < MOVING_MOST => moving += 1,
            Ring::Odd => return Ok(Vec::new()),
        }
    }
    Ok(samples)
}

/// What a class's ring is seen to be.
enum Ring {
    Empty,
    Pools(Sample),
    /// It does not close, or its pools are of another class.
    Odd,
}

/// Looks at a ring until it closes, or it is not to be thought one.
fn steady_ring(reader: &mut Reader<'_>, used: u64, class: u64) -> Result<Ring, Fault> {
    for attempt in 0..TRIES {
        match there(ring(reader, used, class))? {
            Some(Ring::Odd) | None if attempt == 0 && reader.source().is_still() => break,
            Some(Ring::Odd) | None => reader.refresh(),
            Some(ring) => return Ok(ring),
        }
    }
    Ok(Ring::Odd)
}

fn ring(reader: &mut Reader<'_>, used: u64, class: u64) -> Result<Ring, Fault> {
    let ends: [u8; 16] = reader.array(used.saturating_add(16 * class))?;
    let (first, last) = (word(&ends, 0), word(&ends, 8));
    let head = used.wrapping_add(16 * class).wrapping_sub(16);
    if first == head && last == head {
        return Ok(Ring::Empty);
    }
    let front = Header::parse(&reader.array(first)?);
    let back = Header::parse(&reader.array(last)?);
    let closes = front.prev == head && back.next == head;
    let fits = u64::from(front.class) == class && u64::from(back.class) == class;
    if closes && fits && front.geometry().is_some() {
        Ok(Ring::Pools(Sample { address: first, header: front }))
    } else {
        Ok(Ring::Odd)
    }
}

/// Whether the array at `array` has for the samples the arenas that the pools lie in: for every one of them, or in
/// a running process for all but a few, whose arenas may be gone by now.
fn knows(reader: &mut Reader<'_>, array: u64, samples: &[Sample], geometry: Geometry) -> Result<bool, Fault> {
    if array == 0 || !array.is_multiple_of(16) || samples.is_empty() {
        return Ok(false);
    }
    let mut may_miss = if reader.source().is_still() { 0 } else { samples.len() / 4 };
    for sample in samples {
        let index = sample.header.arena;
        let at = array.checked_add(u64::from(index) * OBJECT).filter(|_| index < OBJECTS_MOST);
        let Some(at) = at else { return Ok(false) };
        let Some(bytes) = there(reader.array::<{ OBJECT as usize }>(at))? else { return Ok(false) };
        let covers = match Object::parse(&bytes, index, geometry) {
            Some(Object::Arena(arena)) => arena.address <= sample.address && sample.address < arena.unused,
            _ => false,
        };
        match (covers, may_miss) {
            (true, _) => {}
            (false, 0) => return Ok(false),
            (false, _) => may_miss -= 1,
        }
    }
    Ok(true)
}

/// The words of `data` that point into private memory, lowest first, each once: read in this order they cost one
/// question to the kernel for each 64 MiB.
pub(super) fn pointers(source: &dyn MemorySource, data: &[Words]) -> Vec<u64> {
    let aligned = data.iter().flat_map(Words::each).map(|(_, word)| word);
    let mut pointers: Vec<u64> = aligned.filter(|word| *word != 0 && word.is_multiple_of(16)).collect();
    pointers.sort_unstable();
    pointers.dedup();
    pointers.retain(|pointer| source.area_at(*pointer).is_some_and(|area| area.is_private_anon()));
    pointers
}

/// How many arena_objects the array has: the number doubles, unused ones are chained within the array, and only
/// the last of the chain ends it, so what lies behind the array does not pass for a part of it.
fn extent(reader: &mut Reader<'_>, array: u64, geometry: Geometry) -> Result<Option<u32>, Fault> {
    let mut scan = Scan::new(reader, array);
    let (mut found, mut len) = (None, FIRST_OBJECTS);
    let mut done = 0;
    while len <= OBJECTS_MOST && scan.go_on(reader, done..len, geometry)? {
        if scan.is_whole(len) {
            found = Some(len);
        }
        done = len;
        len *= 2;
    }
    Ok(found)
}

/// The arenas of an array of `len`, and how many more were in the midst of being made; `None` if that is not what is
/// there.
pub(super) fn entries(
    reader: &mut Reader<'_>,
    array: u64,
    len: u32,
    geometry: Geometry,
) -> Result<Option<(Vec<Arena>, u32)>, Fault> {
    let mut scan = Scan::new(reader, array);
    let may_be_odd = scan.may_be_odd;
    let good = scan.go_on(reader, 0..len, geometry)? && scan.is_whole(len);
    Ok(good.then(|| (scan.arenas, may_be_odd - scan.may_be_odd)))
}

/// An array being read.
struct Scan {
    array: u64,
    arenas: Vec<Arena>,
    /// How many unused entries end the chain.
    ends: u32,
    /// The highest address in the chain.
    chained: u64,
    /// How many entries more may be seen in the midst of a change.
    may_be_odd: u32,
}

impl Scan {
    fn new(reader: &Reader<'_>, array: u64) -> Scan {
        let may_be_odd = if reader.source().is_still() { 0 } else { CHANGING_MOST };
        Scan { array, arenas: Vec::new(), ends: 0, chained: array, may_be_odd }
    }

    /// Reads the entries `part`; false if one is none.
    fn go_on(
        &mut self,
        reader: &mut Reader<'_>,
        part: Range<u32>,
        geometry: Geometry,
    ) -> Result<bool, Fault> {
        for index in part {
            let at = self.array.saturating_add(u64::from(index) * OBJECT);
            let Some(bytes) = there(reader.array::<{ OBJECT as usize }>(at))? else { return Ok(false) };
            match Object::parse(&bytes, index, geometry) {
                Some(Object::Arena(arena)) => self.arenas.push(arena),
                Some(Object::Unused(0)) => self.ends += 1,
                Some(Object::Unused(next)) => {
                    let into = next.checked_sub(self.array);
                    if !into.is_some_and(|into| into.is_multiple_of(OBJECT)) {
                        return Ok(false);
                    }
                    self.chained = self.chained.max(next);
                }
                None if self.may_be_odd > 0 => self.may_be_odd -= 1,
                None => return Ok(false),
            }
            if self.ends > 1 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Whether the array may end after `len` entries: its chain does not leave it.
    fn is_whole(&self, len: u32) -> bool {
        self.chained < self.array.saturating_add(u64::from(len) * OBJECT)
    }
}
