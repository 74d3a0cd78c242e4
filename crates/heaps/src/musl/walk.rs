//! Over all groups in the order of addresses, those inside others' slots among them, each byte told once.
//!
//! Invariant: a group is told only if it is settled and every live slot says what it holds; what a running process
//! changes meanwhile is read again, and what still does not add up is unresolved. Groups that came since the metas were
//! read are found by the slot that holds them, or left out.

use super::block::{self, Content};
use super::context::Context;
use super::metas::{AREA, GROUP_HEAD, Group, Metas, split_first};
use crate::account::Account;
use crate::model::{Arena, Corruption, Heap, Kind};
use crate::reader::Reader;
use crate::source::{Area, Fault, MemorySource, covered, there};
use ebbtide_observe::Bytes;
use std::ops::Range;

/// How often a group that a running process changes is read again.
const READS_MOST: usize = 4;
const CORRUPTIONS_MOST: usize = 16;

/// Walks the heap of `context`.
pub(super) fn walk(source: &dyn MemorySource, context: &Context, ranges: bool) -> Result<Heap, Fault> {
    let mut reader = Reader::new(source);
    let metas = Metas::read(&mut reader, context)?;
    let mut heap = Heap::new(Kind::Musl);
    heap.version = Some("1.2.1 or later".to_owned());
    heap.certainty.still = source.is_still();
    heap.requested = Some(Bytes::ZERO);
    let account = Account::new(source);
    let account = if ranges { account.with_ranges() } else { account };
    let (blocks, pages) = (Reader::new(source), metas.pages.as_slice());
    let mut walk = Walk { source, context, reader, blocks, account, heap, pages, end: 0 };
    walk.heap.notes.extend(metas.more.map(str::to_owned));
    if let Some(page) = metas.broken {
        walk.odd(page..page, "the list of metas leads to a page that is none");
    }
    for &page in &metas.pages {
        walk.take(page..page + AREA)?;
        walk.account.metadata(AREA);
    }
    let mut rest = metas.groups.as_slice();
    while let Some((group, inside, others)) = split_first(rest) {
        rest = walk.top(group, inside).map(|whole| if whole { others } else { &rest[1..] })?;
    }
    walk.close(context.address)
}

struct Walk<'s> {
    source: &'s dyn MemorySource,
    context: &'s Context,
    /// Metas are read with one, and blocks with another, which goes on upwards.
    reader: Reader<'s>,
    blocks: Reader<'s>,
    account: Account<'s>,
    heap: Heap,
    /// The pages of metas, in order.
    pages: &'s [u64],
    /// Where the last group ended that had a place of its own.
    end: u64,
}

/// What a slot holds.
#[derive(Debug, Clone, Copy)]
enum Slot {
    Free,
    /// A block, and what was asked for where that can be read.
    Live(Option<u64>),
    /// The same, with a byte behind it that was written to.
    Overrun(u64, u64),
    Group(Group),
    Odd,
}

impl Walk<'_> {
    /// A group in no other one, with those that begin in its memory; whether it was a group and took them all.
    fn top(&mut self, group: &Group, inside: &[Group]) -> Result<bool, Fault> {
        let Some((group, slots)) = self.settled(group, inside)? else { return Ok(false) };
        let range = group.range();
        let has_place = if group.is_mapping() {
            covered(self.source, range.clone(), Area::is_private_anon)
        } else {
            let data = |area: &Area| area.perms.write && !area.perms.shared;
            group.is_donated() && covered(self.source, range.clone(), data)
        };
        let first = self.pages.partition_point(|page| page + AREA <= range.start);
        let is_apart = range.start >= self.end && self.pages.get(first).is_none_or(|page| *page >= range.end);
        if !has_place || !is_apart {
            self.gone(&group, "a group lies where nothing holds it");
            return Ok(false);
        }
        self.take(range.clone())?;
        self.end = range.end;
        self.slots(&group, &slots, inside, range.end)?;
        Ok(true)
    }

    /// Tells the slots of `group`, which has memory up to `end`.
    fn slots(&mut self, group: &Group, slots: &[Slot], mut inside: &[Group], end: u64) -> Result<(), Fault> {
        self.account.metadata(GROUP_HEAD);
        for (index, slot) in (0..).zip(slots) {
            let frame = group.frame(index, end);
            let count = inside.partition_point(|inner| inner.start < frame.end);
            let here;
            (here, inside) = inside.split_at(count);
            if let Slot::Group(inner) = slot {
                self.inner(inner, here, &frame)?;
                continue;
            }
            self.slot(group, *slot, &frame)?;
            here.iter().for_each(|other| self.gone(other, "a group lies in no slot"));
        }
        Ok(())
    }

    /// Tells the group `inner`, which is in the slot with `frame`, as those `here` are.
    fn inner(&mut self, inner: &Group, here: &[Group], frame: &Range<u64>) -> Result<(), Fault> {
        let inside = match here.split_first() {
            Some((first, inside)) if first.start == inner.start => inside,
            _ => here,
        };
        match self.settled(inner, inside)? {
            Some((inner, slots)) if inner.fits(frame) => {
                self.account.metadata(inner.start - frame.start);
                self.slots(&inner, &slots, inside, frame.end)
            }
            Some(_) => {
                self.odd(frame.clone(), "a group is larger than the slot that it is in");
                Ok(())
            }
            // Why, has been said.
            None => {
                self.heap.certainty.unresolved += Bytes(frame.end - frame.start);
                Ok(())
            }
        }
    }

    /// Tells a slot that is no group.
    fn slot(&mut self, group: &Group, slot: Slot, frame: &Range<u64>) -> Result<(), Fault> {
        // Behind the last block of a group is what its mapping has besides.
        let own = frame.start..frame.start + group.stride();
        match slot {
            Slot::Free if group.is_donated() => self.account.free_linked(frame.clone())?,
            Slot::Free => self.account.free(frame.clone())?,
            Slot::Live(asked) => self.live(own, asked),
            Slot::Overrun(asked, at) => {
                self.live(own, Some(asked));
                self.odd(at..at, "something was written behind a block");
            }
            // Not damage: a slot is marked as taken before its header is written, and as free after.
            Slot::Odd | Slot::Group(_) => self.heap.certainty.unresolved += Bytes(group.stride()),
        }
        Ok(())
    }

    /// A block of which so much was asked for.
    fn live(&mut self, frame: Range<u64>, asked: Option<u64>) {
        self.account.live_at(frame);
        self.heap.requested = self.heap.requested.zip(asked).map(|(sum, asked)| sum + Bytes(asked));
    }

    /// `group` as it is once it is settled and its live slots say what they hold, with its slots; nothing if it is gone.
    fn settled(&mut self, group: &Group, inside: &[Group]) -> Result<Option<(Group, Vec<Slot>)>, Fault> {
        let (mut now, mut best) = (*group, None);
        for _ in 0..READS_MOST {
            if now.is_settled(&mut self.blocks)? {
                let slots = self.judge(&now, inside)?;
                let is_whole = !slots.iter().any(|slot| matches!(slot, Slot::Odd | Slot::Overrun(..)));
                best = Some((now, slots));
                if is_whole {
                    return Ok(best);
                }
            }
            if self.heap.certainty.still {
                break;
            }
            self.heap.certainty.reread += 1;
            self.blocks.refresh();
            self.reader.refresh();
            match Group::read(&mut self.reader, self.context, group.meta)? {
                Some(read) if read.start == group.start => now = read,
                _ => return Ok(None),
            }
        }
        if best.is_none() {
            self.gone(group, "a group and its meta disagree");
        }
        Ok(best)
    }

    /// What the slots of `group` hold.
    fn judge(&mut self, group: &Group, inside: &[Group]) -> Result<Vec<Slot>, Fault> {
        let mut slots = Vec::with_capacity(group.slots() as usize);
        for index in 0..group.slots() {
            let start = group.frame(index, 0).start + 4;
            slots.push(if group.is_free(index) {
                Slot::Free
            } else {
                match block::content(&mut self.blocks, group, index)? {
                    None => Slot::Live(None),
                    Some(Content::Block(asked)) => Slot::Live(Some(asked)),
                    Some(Content::Odd) => Slot::Odd,
                    Some(Content::Overrun(asked, at)) => Slot::Overrun(asked, at),
                    Some(Content::Group) => match self.group_at(start, inside)? {
                        Some(inner) => Slot::Group(inner),
                        None => Slot::Odd,
                    },
                }
            });
        }
        Ok(slots)
    }

    /// The group that begins at `start`: one of `known`, or one that came since.
    fn group_at(&mut self, start: u64, known: &[Group]) -> Result<Option<Group>, Fault> {
        if let Ok(at) = known.binary_search_by_key(&start, |group| group.start) {
            return Ok(known.get(at).copied());
        }
        let Some(meta) = there(self.blocks.u64(start))? else { return Ok(None) };
        let read = Group::read(&mut self.reader, self.context, meta)?;
        Ok(read.filter(|group| group.start == start))
    }

    fn take(&mut self, range: Range<u64>) -> Result<(), Fault> {
        self.account.mapped(range.clone())?;
        self.heap.claims.push(range);
        Ok(())
    }

    /// A group that is not where its meta says: the process has moved on, or it is damage.
    fn gone(&mut self, group: &Group, what: &str) {
        self.odd(group.start..group.start, what);
    }

    /// What does not add up is unresolved, and damage where nothing moves.
    fn odd(&mut self, range: Range<u64>, what: &str) {
        self.heap.certainty.unresolved += Bytes(range.end.saturating_sub(range.start));
        if !self.heap.certainty.still {
            self.heap.certainty.reread += 1;
        } else if self.heap.corruptions.len() < CORRUPTIONS_MOST {
            self.heap.corruptions.push(Corruption { address: range.start, what: what.to_owned() });
        }
    }

    fn close(self, address: u64) -> Result<Heap, Fault> {
        let Walk { mut account, mut heap, .. } = self;
        heap.returnable_ranges = account.take_ranges()?;
        heap.huge = account.take_huge();
        (heap.figures, heap.histogram) = account.close()?;
        heap.claims.sort_unstable_by_key(|claim| claim.start);
        if let Some(requested) = heap.requested {
            let live = heap.figures.live;
            heap.notes.push(format!("of the {live} that live the program asked for {requested}"));
        }
        let name = "main".to_owned();
        heap.arenas = vec![Arena { address, name, figures: heap.figures, collector: None }];
        Ok(heap)
    }
}
