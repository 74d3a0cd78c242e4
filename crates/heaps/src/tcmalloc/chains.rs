//! Lists of free objects that are linked through the objects, followed all at once: one call reads the next link of
//! each. There are hundreds of them, they lead to and fro over the whole heap, and a call for each link would take
//! longer than all else.
//!
//! Invariants: a list is followed for no more links than its own book says that it has, all of them for no more than
//! [`OBJECTS_MOST`]; no page is read that is not in memory.

use crate::source::{Fault, MemorySource, PageState, there};
use std::collections::HashMap;

/// Links that are read at once.
const LINKS: usize = 512;
/// The most objects that are looked at: 128 MiB of their addresses.
const OBJECTS_MOST: usize = 1 << 24;
/// What is asked at once whether it is in memory, and its pages.
const UNIT: u64 = 2 << 20;
const PAGE: u64 = 4096;

/// A list, or what is left of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chain {
    /// The next object.
    pub(super) at: u64,
    /// How many there are.
    pub(super) left: u32,
    /// Where its book is.
    pub(super) book: u64,
}

/// The objects of lists.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Objects {
    /// Their addresses, ascending.
    pub(super) all: Vec<u64>,
    /// The books of lists that ended before these said.
    pub(super) short: Vec<u64>,
}

/// Follows `chains` to their ends.
pub(super) fn follow(source: &dyn MemorySource, mut chains: Vec<Chain>) -> Result<Objects, Fault> {
    let mut objects = Objects::default();
    let mut pages = Pages { source, units: HashMap::new() };
    chains.retain(|chain| chain.left > 0);
    while !chains.is_empty() && objects.all.len() < OBJECTS_MOST {
        let mut rest = Vec::with_capacity(chains.len());
        for part in chains.chunks(LINKS) {
            step(&mut pages, part, &mut objects, &mut rest)?;
        }
        chains = rest;
    }
    objects.short.extend(chains.iter().map(|chain| chain.book));
    objects.all.sort_unstable();
    objects.all.dedup();
    Ok(objects)
}

/// Takes the next object of each of `chains`, and puts those that go on into `rest`.
fn step(
    pages: &mut Pages<'_>,
    chains: &[Chain],
    objects: &mut Objects,
    rest: &mut Vec<Chain>,
) -> Result<(), Fault> {
    let mut open = Vec::with_capacity(chains.len());
    for chain in chains {
        if chain.at.is_multiple_of(8) && pages.have(chain.at)? {
            open.push(*chain);
        } else {
            objects.short.push(chain.book);
        }
    }
    let mut bytes = [0; 8 * LINKS];
    let mut open = open.as_slice();
    while let Some(first) = open.first() {
        let ranges: Vec<_> = open.iter().map(|chain| chain.at..chain.at.saturating_add(8)).collect();
        let read = there(pages.source.read_ranges(&ranges, &mut bytes[..8 * open.len()]))?.unwrap_or(0) / 8;
        let (taken, others) = open.split_at(read.min(open.len()));
        for (chain, next) in taken.iter().zip(bytes.as_chunks::<8>().0) {
            objects.all.push(chain.at);
            if chain.left > 1 {
                rest.push(Chain { at: u64::from_le_bytes(*next), left: chain.left - 1, ..*chain });
            }
        }
        open = others;
        if taken.is_empty() {
            objects.short.push(first.book);
            open = &others[1..];
        }
    }
    Ok(())
}

/// Which pages are in memory.
struct Pages<'s> {
    source: &'s dyn MemorySource,
    /// A bit for each page of a unit, by its number.
    units: HashMap<u64, [u64; 8]>,
}

impl Pages<'_> {
    /// Whether the page of `address` is in memory, and may be a heap's.
    fn have(&mut self, address: u64) -> Result<bool, Fault> {
        let unit = address / UNIT;
        if let Some(bits) = self.units.get(&unit) {
            return Ok(is_set(bits, address));
        }
        let mut bits = [0; 8];
        let Some(area) = self.source.area_at(address).filter(|area| area.is_private_anon()) else {
            return Ok(false);
        };
        let end = area.range.end.min((unit + 1).saturating_mul(UNIT));
        let start = area.range.start.max(unit * UNIT);
        self.source.pages(start..end, &mut |run, state| {
            for page in run.step_by(PAGE as usize).filter(|_| state == PageState::Present) {
                let index = (page % UNIT / PAGE) as usize;
                bits[index / 64] |= 1 << (index % 64);
            }
        })?;
        let has = is_set(&bits, address);
        // A unit of several areas is asked about again in each.
        if start == unit * UNIT && end - start == UNIT {
            self.units.insert(unit, bits);
        }
        Ok(has)
    }
}

fn is_set(bits: &[u64; 8], address: u64) -> bool {
    let index = (address % UNIT / PAGE) as usize;
    bits[index / 64] >> (index % 64) & 1 == 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Image;
    use crate::source::Area;

    /// Objects of 16 bytes, of which `links` names the next of each; the rest is zero.
    fn image(links: &[(u64, u64)]) -> Image {
        let mut image = Image::default();
        image.map(Area::anon(0x10000..0x14000));
        image.put(0x10000, vec![0; 0x2000]);
        links.iter().for_each(|(at, next)| image.patch(*at, &next.to_le_bytes()));
        image
    }

    fn chain(at: u64, left: u32) -> Chain {
        Chain { at, left, book: at + 1 }
    }

    #[test]
    fn lists_end_where_their_books_say() {
        let image = image(&[(0x10000, 0x11010), (0x11010, 0x10020), (0x10020, 0x10000)]);
        let objects = follow(&image, vec![chain(0x10000, 2), chain(0x10100, 1), chain(0, 0)]).unwrap();
        assert_eq!(objects.all, [0x10000, 0x10100, 0x11010]);
        assert_eq!(objects.short, []);
    }

    #[test]
    fn lists_that_lead_astray_are_short() {
        let image = image(&[(0x10000, 0x10010), (0x10010, 0x13000), (0x10020, 0x10023), (0x10030, 0)]);
        let heads = [0x10000, 0x10020, 0x10030, u64::MAX - 7, 0x12000];
        let objects = follow(&image, heads.map(|at| chain(at, 5)).to_vec()).unwrap();
        assert_eq!(objects.all, [0x10000, 0x10010, 0x10020, 0x10030]);
        let mut short = objects.short;
        short.sort_unstable();
        assert_eq!(short, [0x10001, 0x10021, 0x10031, 0x12001, u64::MAX - 6]);
    }

    #[test]
    fn a_circle_is_left() {
        let image = image(&[(0x10000, 0x10010), (0x10010, 0x10000)]);
        let objects = follow(&image, vec![chain(0x10000, 1000)]).unwrap();
        assert_eq!((objects.all, objects.short), (vec![0x10000, 0x10010], vec![]));
    }
}
