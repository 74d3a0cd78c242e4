//! Metas, one for each group of slots, in pages of their own: struct meta, struct meta_area, struct group (meta.h).
//!
//! Invariant: a group is sound only if its parts fit together, and settled only if it names the meta that names it.

use super::context::Context;
use crate::reader::Reader;
use crate::source::{Fault, there};
use std::collections::BTreeSet;
use std::ops::Range;

/// A page of metas, whatever the system's page size; what it begins with (check, next, nslots), and what a meta takes.
pub(super) const AREA: u64 = 4096;
pub(super) const AREA_HEAD: u64 = 24;
pub(super) const META: u64 = 40;
/// Metas of a page.
pub(super) const METAS: u64 = (AREA - AREA_HEAD) / META;
/// The most metas that are kept: 128 MiB of them, of a heap of 8 GiB at least.
const GROUPS_MOST: usize = 1 << 22;
/// UNIT: what sizes are counted in, and what a group begins with.
pub(super) const UNIT: u64 = 16;
/// IB: a slot's header, at the end of the slot before.
pub(super) const HEADER: u64 = 4;
/// What of a group is in no slot's frame: the meta's address, active_idx and three unused bytes.
pub(super) const GROUP_HEAD: u64 = 12;
/// The class of blocks with a mapping of their own.
const ALONE: usize = 63;
/// size_classes, in units (malloc.c).
const CLASSES: [u64; 48] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 18, 20, 25, 31, 36, 42, 50, 63, 72, 84, 102, 127, 146, 170, 204,
    255, 292, 340, 409, 511, 584, 682, 818, 1023, 1169, 1364, 1637, 2047, 2340, 2730, 3276, 4095, 4680, 5460,
    6552, 8191,
];

/// A group, by its meta.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Group {
    /// Where it begins.
    pub(super) start: u64,
    /// Where its meta is.
    pub(super) meta: u64,
    /// Slots that are free: avail_mask and freed_mask.
    masks: [u32; 2],
    /// last_idx, freeable, sizeclass, maplen.
    bits: u64,
}

impl Group {
    /// The group whose meta, at `meta`, has `words`; nothing if the meta is not in use.
    fn of(meta: u64, words: &[[u8; 8]]) -> Option<Group> {
        let [_, _, start, masks, bits] = words else { return None };
        let [start, masks, bits] = [start, masks, bits].map(|word| u64::from_le_bytes(*word));
        (start != 0).then_some(Group { start, meta, masks: [masks as u32, (masks >> 32) as u32], bits })
    }

    /// The group of the meta at `meta`, if it is in a page of `context`'s and in use.
    pub(super) fn read(
        reader: &mut Reader<'_>,
        context: &Context,
        meta: u64,
    ) -> Result<Option<Group>, Fault> {
        let page = meta - meta % AREA;
        let is_place = meta.checked_sub(page + AREA_HEAD).is_some_and(|into| into.is_multiple_of(META));
        if !is_place || meta + META > page + AREA || there(reader.u64(page))? != Some(context.secret) {
            return Ok(None);
        }
        let bytes = there(reader.array::<{ META as usize }>(meta))?;
        Ok(bytes.and_then(|bytes| Group::of(meta, bytes.as_chunks().0)))
    }

    /// How many slots it has.
    pub(super) fn slots(&self) -> u64 {
        (self.bits & 31) + 1
    }

    fn class(&self) -> usize {
        (self.bits >> 6 & 63) as usize
    }

    /// Bytes of its mapping; 0 if it lies in memory of another group's or donated.
    fn mapping(&self) -> u64 {
        (self.bits >> 12) * AREA
    }

    /// Whether it has a mapping of its own.
    pub(super) fn is_mapping(&self) -> bool {
        self.mapping() > 0
    }

    /// Whether it was donated, and stays for ever.
    pub(super) fn is_donated(&self) -> bool {
        self.bits & 32 == 0
    }

    /// From one slot to the next (get_stride).
    pub(super) fn stride(&self) -> u64 {
        if self.slots() == 1 && self.is_mapping() {
            self.mapping() - UNIT
        } else {
            UNIT * CLASSES.get(self.class()).copied().unwrap_or(0)
        }
    }

    /// All of it: its mapping, or what its slots take.
    pub(super) fn range(&self) -> Range<u64> {
        let size = if self.is_mapping() { self.mapping() } else { UNIT + self.stride() * self.slots() };
        self.start..self.start.saturating_add(size)
    }

    /// Whether slot `index` is free.
    pub(super) fn is_free(&self, index: u64) -> bool {
        (self.masks[0] | self.masks[1]) >> index & 1 == 1
    }

    /// What of slot `index` counts by its name, in a group with memory up to `end`.
    pub(super) fn frame(&self, index: u64, end: u64) -> Range<u64> {
        let start = self.start + GROUP_HEAD + self.stride() * index;
        let is_last = index + 1 == self.slots();
        start..if is_last { end } else { start + self.stride() }
    }

    /// Whether it has no mapping of its own and fits into the slot with `frame`, whose last four bytes are behind that.
    pub(super) fn fits(&self, frame: &Range<u64>) -> bool {
        !self.is_mapping() && self.start == frame.start + HEADER && self.range().end <= frame.end + HEADER
    }

    /// Whether its parts fit together.
    pub(super) fn is_sound(&self) -> bool {
        let [avail, freed] = self.masks;
        let all = (2_u64 << (self.slots() - 1)) - 1;
        let is_known = self.class() < CLASSES.len() || self.class() == ALONE && self.slots() == 1;
        let has_place = if self.is_mapping() {
            let room = self.bits >> 12 <= 1 << 36 && UNIT + self.stride() * self.slots() <= self.mapping();
            self.start.is_multiple_of(AREA) && room && !self.is_donated()
        } else {
            self.class() != ALONE && (!self.is_donated() || self.slots() == 1)
        };
        is_known
            && has_place
            && avail & freed == 0
            && u64::from(avail | freed) <= all
            && self.start.is_multiple_of(UNIT)
            && self.start < 1 << 56
    }

    /// Whether it is sound and names its meta, as far as that is not swapped out.
    pub(super) fn is_settled(&self, reader: &mut Reader<'_>) -> Result<bool, Fault> {
        match reader.u64(self.start) {
            Ok(meta) => Ok(self.is_sound() && meta == self.meta),
            Err(Fault::Swapped(_)) => Ok(self.is_sound()),
            Err(Fault::Unmapped(_)) => Ok(false),
            Err(fault) => Err(fault),
        }
    }
}

/// All metas.
#[derive(Debug, Default)]
pub(super) struct Metas {
    /// Their pages, in order.
    pub(super) pages: Vec<u64>,
    /// The groups of those in use, in order.
    pub(super) groups: Vec<Group>,
    /// The page at which their list ends otherwise than it should.
    pub(super) broken: Option<u64>,
    /// Why those behind them were not read.
    pub(super) more: Option<&'static str>,
}

impl Metas {
    /// Those of `context`.
    pub(super) fn read(reader: &mut Reader<'_>, context: &Context) -> Result<Metas, Fault> {
        let (mut metas, mut known) = (Metas::default(), BTreeSet::new());
        let mut at = context.head;
        while at != 0 {
            if metas.groups.len() + METAS as usize > GROUPS_MOST {
                metas.more = Some("it has more groups than are read");
                break;
            }
            let page = match reader.bytes(at, AREA as usize) {
                Err(Fault::Swapped(_)) => {
                    metas.more = Some("part of its books is swapped out, and what they tell of is not read");
                    break;
                }
                page => there(page)?.map(|page| page.as_chunks::<8>().0),
            };
            let is_ours = |check: &[u8; 8]| u64::from_le_bytes(*check) == context.secret;
            let Some([_, next, _, slots @ ..]) = page.filter(|page| {
                page.first().is_some_and(is_ours) && at.is_multiple_of(AREA) && known.insert(at)
            }) else {
                metas.broken = Some(at);
                break;
            };
            let places = (at + AREA_HEAD..).step_by(META as usize);
            let metas_of = slots.chunks_exact(META as usize / 8).zip(places);
            metas.groups.extend(metas_of.filter_map(|(words, meta)| Group::of(meta, words)));
            at = u64::from_le_bytes(*next);
        }
        metas.pages = known.into_iter().collect();
        metas.groups.sort_unstable_by_key(|group| group.start);
        Ok(metas)
    }
}

/// The first of `groups`, which are in order, and those that begin in its memory; then the others.
pub(super) fn split_first(groups: &[Group]) -> Option<(&Group, &[Group], &[Group])> {
    let (first, rest) = groups.split_first()?;
    let inside = rest.partition_point(|group| group.start < first.range().end);
    let (inside, rest) = rest.split_at(inside);
    Some((first, inside, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A meta's last words.
    fn group(start: u64, free: [u32; 2], last: u64, class: u64, pages: u64) -> Group {
        Group { start, meta: 0x2018, masks: free, bits: last | 32 | class << 6 | pages << 12 }
    }

    #[test]
    fn parts_that_fit_and_parts_that_do_not() {
        // Two slots of 2,032 bytes in one page, as malloc.c makes them.
        let sound = group(0x10000, [2, 0], 1, 23, 1);
        assert!(sound.is_sound());
        assert_eq!((sound.range(), sound.stride()), (0x10000..0x11000, 2032));
        assert_eq!(sound.frame(0, 0x11000), 0x1000c..0x107fc);
        assert_eq!(sound.frame(1, 0x11000), 0x107fc..0x11000);
        assert!(!sound.is_free(0) && sound.is_free(1));
        let alone = group(0x10000, [0, 0], 0, 63, 33);
        assert!(alone.is_sound() && alone.stride() == 33 * 4096 - 16);
        assert!(group(0x10010, [1 << 31, 0], 31, 0, 0).is_sound());
        for odd in [
            group(0x10008, [0, 0], 3, 0, 0),
            group(0x10010, [0, 0], 1, 23, 1),
            group(0x10000, [4, 0], 1, 23, 1),
            group(0x10000, [1, 1], 1, 23, 1),
            group(0x10000, [0, 0], 2, 23, 1),
            group(0x10000, [0, 0], 0, 48, 1),
            group(0x10000, [0, 0], 1, 63, 1),
            group(0x10000, [0, 0], 0, 63, 0),
            group(0x10000, [0, 0], 0, 63, (1 << 52) - 1),
        ] {
            assert!(!odd.is_sound(), "{odd:?}");
        }
    }
}
