//! The walk over arenas and pools: what lives, what is free, and what free memory has no link on it.
//!
//! In a pool the free blocks are chained through their first words, so every page of it up to the last block ever
//! handed out may hold a link. That goes on when the pool is free as a whole: taken for the same class again, it
//! is used with the list it has. So only what was never handed out since the pool got its class can be given
//! back, and pools that never had one.
//!
//! A running process changes pools under the reader and maps other arenas where some were. So what looks like damage
//! is read again, and again when the walk is done; only what never changed meanwhile is called damage.
//!
//! Invariants: a pool's figures come from its header alone (`ref.count`); the chain is followed to say which
//! blocks are free and to find damage, never for more steps than the pool has blocks.

use super::layout::{Arena, Geometry, HEADER, Header, OBJECT, Object, word};
use crate::account::Account;
use crate::model::{Certainty, Corruption};
use crate::reader::Reader;
use crate::source::{Area, Fault, MemorySource, covered, there};
use ebbtide_observe::Bytes;
use std::ops::Range;

/// How often a pool that does not add up is read again.
const REREADS: u32 = 3;
/// How many corruptions are told.
const CORRUPTIONS_MOST: usize = 16;
/// Words of a map of a pool's blocks: up to 1,021 of 16 bytes.
const MAP: usize = 16;

/// What a pool's bytes say.
struct Pool {
    header: Header,
    size: u64,
    /// Blocks handed out at least once since the pool got its class.
    carved: u64,
    /// A bit for each block in the chain of free ones.
    free: [u64; MAP],
}

/// Why a pool's bytes say nothing.
enum Odd {
    /// Something no running program leaves there, and where.
    Damage(u64, &'static str),
    /// Counts that disagree: it was changed while it was read, or damaged.
    Mismatch,
}

/// What the walk counts beside the figures.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Arenas walked.
    pub(super) arenas: u64,
    /// Of these, those with less than a quarter of their pools in use.
    pub(super) sparse: u64,
    /// Pools that are free as a whole and were used before.
    pub(super) free_pools: u64,
    /// What of them is in memory.
    pub(super) free_pools_resident: Bytes,
    /// Pools of which no more is known than their header, the rest being in swap.
    pub(super) swapped: u64,
    /// Arenas that were not yet, or no longer, mapped when the mappings were read.
    pub(super) unmapped: u64,
}

impl std::ops::AddAssign for Tally {
    fn add_assign(&mut self, other: Tally) {
        self.arenas += other.arenas;
        self.sparse += other.sparse;
        self.free_pools += other.free_pools;
        self.free_pools_resident += other.free_pools_resident;
        self.swapped += other.swapped;
        self.unmapped += other.unmapped;
    }
}

/// A walk over the arenas of one obmalloc.
pub(super) struct Walk<'s> {
    reader: Reader<'s>,
    /// The array of arena_objects.
    array: u64,
    /// Pools of a running process that looked damaged, and what they held.
    suspects: Vec<(u64, Arena, Vec<u8>)>,
    pub(super) account: Account<'s>,
    geometry: Geometry,
    pub(super) tally: Tally,
    pub(super) certainty: Certainty,
    pub(super) corruptions: Vec<Corruption>,
    pub(super) claims: Vec<Range<u64>>,
}

impl<'s> Walk<'s> {
    pub(super) fn new(source: &'s dyn MemorySource, array: u64, geometry: Geometry) -> Walk<'s> {
        Walk {
            reader: Reader::new(source),
            array,
            suspects: Vec::new(),
            account: Account::new(source),
            geometry,
            tally: Tally::default(),
            certainty: Certainty { still: source.is_still(), ..Certainty::default() },
            corruptions: Vec::new(),
            claims: Vec::new(),
        }
    }

    /// Walks an arena; tell them in the order of addresses.
    pub(super) fn arena(&mut self, arena: &Arena) -> Result<(), Fault> {
        let range = arena.range(self.geometry);
        if !covered(self.reader.source(), range.clone(), Area::is_private_anon) {
            self.tally.unmapped += 1;
            return Ok(());
        }
        self.account.mapped(range.clone())?;
        let pools = arena.pools(self.geometry);
        let used = pools.start..arena.unused.clamp(pools.start, pools.end);
        let mut free = 0;
        for pool in used.clone().step_by(self.geometry.pool as usize) {
            free += u64::from(self.pool(pool, arena)?);
        }
        let rest = used.end..pools.end;
        for pool in rest.clone().step_by(self.geometry.pool as usize) {
            self.account.free(pool..pool + self.geometry.pool)?;
        }
        let total = u64::from(arena.ntotal);
        let unused = free + (rest.end - rest.start) / self.geometry.pool;
        if self.certainty.still && unused != u64::from(arena.nfree) {
            self.damaged(
                range.start,
                format!("arena {} counts {} free pools, it has {unused}", arena.index, arena.nfree),
            );
        }
        self.tally.arenas += 1;
        self.tally.sparse += u64::from(unused * 4 > total * 3);
        self.tally.free_pools += free;
        self.claims.push(range);
        Ok(())
    }

    /// Walks a pool that was used; whether it is free as a whole.
    fn pool(&mut self, at: u64, arena: &Arena) -> Result<bool, Fault> {
        for attempt in 0..=REREADS {
            if attempt > 0 {
                self.reader.refresh();
                self.certainty.reread += 1;
            }
            let bytes = match self.reader.bytes(at, self.geometry.pool as usize) {
                Ok(bytes) => bytes,
                Err(Fault::Swapped(_)) => return self.swapped_pool(at, arena.index),
                Err(Fault::Unmapped(_)) => break,
                Err(fault) => return Err(fault),
            };
            match Pool::parse(bytes, at, arena.index, self.geometry) {
                Ok(pool) => return self.told(at, &pool),
                Err(Odd::Damage(address, what)) if self.certainty.still => {
                    self.damaged(address, format!("{what}, in the pool at {at:#x}"));
                    break;
                }
                Err(Odd::Damage(..)) if attempt == REREADS && self.suspects.len() < CORRUPTIONS_MOST => {
                    let bytes = bytes.to_vec();
                    self.suspects.push((at, *arena, bytes));
                }
                Err(_) => {}
            }
            if self.certainty.still {
                break;
            }
        }
        self.certainty.unresolved += Bytes(self.geometry.pool);
        Ok(false)
    }

    /// Looks at what seemed damaged again, when all else has been read.
    pub(super) fn look_again(&mut self) -> Result<(), Fault> {
        self.reader.refresh();
        for (at, arena, before) in std::mem::take(&mut self.suspects) {
            let entry = self.array.saturating_add(u64::from(arena.index) * OBJECT);
            let entry = there(self.reader.array::<{ OBJECT as usize }>(entry))?;
            let entry = entry.and_then(|bytes| Object::parse(&bytes, arena.index, self.geometry));
            let stays =
                matches!(entry, Some(Object::Arena(now)) if now.address == arena.address && at < now.unused);
            let Some(now) = there(self.reader.bytes(at, self.geometry.pool as usize))? else { continue };
            if stays
                && now == before
                && let Err(Odd::Damage(address, what)) = Pool::parse(now, at, arena.index, self.geometry)
            {
                self.damaged(address, format!("{what}, in the pool at {at:#x}"));
            }
        }
        Ok(())
    }

    /// Tells the account what is in a pool.
    fn told(&mut self, at: u64, pool: &Pool) -> Result<bool, Fault> {
        let whole = at..at + self.geometry.pool;
        let carved = at + HEADER + pool.carved * pool.size;
        if pool.header.count == 0 {
            self.account.free_linked(at..carved)?;
            self.account.free(carved..whole.end)?;
            self.tally.free_pools_resident += self.account.present(whole)?;
            return Ok(true);
        }
        self.account.metadata(HEADER);
        self.account.live_many(pool.size, u64::from(pool.header.count));
        for (index, word) in pool.free.iter().enumerate() {
            let mut left = *word;
            while left != 0 {
                let block = 64 * index as u64 + u64::from(left.trailing_zeros());
                left &= left - 1;
                let block = at + HEADER + block * pool.size;
                self.account.free_linked(block..block + pool.size)?;
            }
        }
        for block in pool.carved..self.geometry.blocks(pool.size) {
            let block = at + HEADER + block * pool.size;
            self.account.free(block..block + pool.size)?;
        }
        Ok(false)
    }

    /// A pool some of whose memory is in swap: its header may tell its figures all the same.
    fn swapped_pool(&mut self, at: u64, arena: u32) -> Result<bool, Fault> {
        let mut bytes = Vec::new();
        let header = match self.reader.copy(at..at + HEADER, &mut bytes) {
            Ok(()) => bytes.as_slice().try_into().ok().map(Header::parse),
            Err(Fault::Swapped(_) | Fault::Unmapped(_)) => None,
            Err(fault) => return Err(fault),
        };
        self.tally.swapped += 1;
        let good = header.and_then(|header| Some((header, header.size()?)));
        let good = good.filter(|(header, size)| {
            header.arena == arena && u64::from(header.count) <= self.geometry.blocks(*size)
        });
        let Some((header, size)) = good else {
            self.certainty.unresolved += Bytes(self.geometry.pool);
            return Ok(false);
        };
        if header.count == 0 {
            self.account.free_linked(at..at + self.geometry.pool)?;
            return Ok(true);
        }
        self.account.metadata(HEADER);
        self.account.live_many(size, u64::from(header.count));
        // Which blocks are free is not known; as many as are, at the end, and none to be given back.
        let end = at + HEADER + self.geometry.blocks(size) * size;
        for block in u64::from(header.count)..self.geometry.blocks(size) {
            let start = end - (block + 1 - u64::from(header.count)) * size;
            self.account.free_linked(start..start + size)?;
        }
        Ok(false)
    }

    fn damaged(&mut self, address: u64, what: String) {
        if self.corruptions.len() < CORRUPTIONS_MOST {
            self.corruptions.push(Corruption { address, what });
        }
    }
}

impl Pool {
    fn parse(bytes: &[u8], at: u64, arena: u32, geometry: Geometry) -> Result<Pool, Odd> {
        let header = bytes.first_chunk().ok_or(Odd::Mismatch)?;
        let header = Header::parse(header);
        let size = match header.size() {
            Some(size) => size,
            None if header.is_new() => return Err(Odd::Mismatch),
            None => return Err(Odd::Damage(at + 36, "a size class that there is not")),
        };
        if header.arena != arena {
            return Err(Odd::Damage(at + 32, "another arena's number"));
        }
        if header.geometry() != Some(geometry) {
            return Err(Odd::Damage(at + 44, "blocks that do not end where the pool does"));
        }
        let blocks = geometry.blocks(size);
        let into = u64::from(header.carved).checked_sub(HEADER).filter(|into| into.is_multiple_of(size));
        let carved = into.map(|into| into / size).filter(|carved| *carved <= blocks);
        let Some(carved) = carved else {
            return Err(Odd::Damage(at + 40, "a next block that is none"));
        };
        if u64::from(header.count) > carved {
            return Err(Odd::Damage(at, "more blocks in use than were handed out"));
        }
        let free = chain(bytes, &header, at, size, carved)?;
        Ok(Pool { header, size, carved, free })
    }
}

/// Follows the chain of free blocks.
fn chain(bytes: &[u8], header: &Header, at: u64, size: u64, carved: u64) -> Result<[u64; MAP], Odd> {
    let mut free = [0_u64; MAP];
    let (mut link, mut link_at, mut found) = (header.free, at + 8, 0);
    while link != 0 {
        let into = link.checked_sub(at + HEADER).filter(|into| into.is_multiple_of(size));
        let block = into.map(|into| into / size).filter(|block| *block < carved);
        let Some(block) = block else {
            return Err(Odd::Damage(link_at, "a chain of free blocks that leads to no block of it"));
        };
        let (slot, bit) = ((block / 64) as usize, 1 << (block % 64));
        let Some(seen) = free.get_mut(slot).filter(|seen| **seen & bit == 0) else {
            return Err(Odd::Damage(link_at, "a chain of free blocks that goes in a circle"));
        };
        *seen |= bit;
        found += 1;
        link_at = link;
        link = word(bytes, (link - at) as usize);
    }
    if found + u64::from(header.count) != carved { Err(Odd::Mismatch) } else { Ok(free) }
}
