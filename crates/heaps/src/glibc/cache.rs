//! Thread caches (tcache): blocks a thread has freed and keeps, which look like blocks in use to everybody else.
//!
//! A thread's cache is a structure in a chunk of known size, found on the walk. Two things must agree before it
//! is taken for one: its counts with its lists, where every list leads through chunks of exactly its size and
//! ends after exactly its count; and the key in each block, which is the cache's own address (2.29-2.33) or one
//! number in the whole process (2.34). 2.26 to 2.28 have no key; there each block must be a chunk of its own,
//! in nobody else's list.

use super::layout::{Cache, FLAGS, HEADER, Key, Layout, PREV_IN_USE};
use super::locate::word_at;
use crate::reader::Reader;
use crate::source::{Fault, there};
use std::collections::{HashMap, HashSet};

/// The most blocks that are looked at in all caches together.
const BLOCKS_MOST: usize = 1 << 20;
/// How often the cache of a running thread is read.
const READS_MOST: usize = 3;

impl Cache {
    /// Whether `content` may be a cache: a list has a head exactly where its count says so, and there is one
    /// unless it `may_be_empty`.
    pub(super) fn is_possible(&self, content: &[u8], may_be_empty: bool) -> bool {
        let mut filled = 0;
        for bin in 0..self.bins {
            let Some(head) = self.head(content, bin) else { return false };
            let count = self.raw_count(content, bin);
            // Room for more is 0xffff at most, so counts of that kind say nothing alone.
            if !head.is_multiple_of(16) || (!self.counts_room && (count == 0) != (head == 0)) {
                return false;
            }
            filled += usize::from(head != 0);
        }
        // Room for as many in every list is no block of zeroes.
        let all_room = self.counts_room && self.raw_count(content, 0) > 0;
        filled > 0 || may_be_empty || all_room
    }

    /// Whether a chunk of `size` may hold one: malloc leaves a rest of 16 bytes with the chunk it cuts from.
    pub(super) fn fits(&self, size: u64) -> bool {
        size.wrapping_sub(self.chunk()) <= HEADER
    }

    fn head(&self, content: &[u8], bin: usize) -> Option<u64> {
        word_at(content, self.bins * self.count + 8 * bin)
    }

    fn raw_count(&self, content: &[u8], bin: usize) -> u64 {
        let at = bin * self.count;
        let bytes = content.get(at..at + self.count).unwrap_or_default();
        bytes.iter().rev().fold(0, |count, &byte| count << 8 | u64::from(byte))
    }

    /// How many blocks list `bin` has; `most` is what one may have.
    fn count(&self, content: &[u8], bin: usize, most: u64) -> Option<u64> {
        let count = self.raw_count(content, bin);
        if self.counts_room { most.checked_sub(count) } else { Some(count) }
    }
}

/// A chunk that may hold a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) chunk: u64,
    /// Whether it is the first of its arena, as the cache of the thread that made the arena is. There an empty
    /// cache is known, too; elsewhere, until 2.41, it is any block of zeroes.
    pub(super) is_first: bool,
}

/// A cache found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    /// The chunk of the structure.
    pub(super) chunk: u64,
    /// That chunk's size.
    pub(super) size: u64,
    /// Cached chunks with their sizes.
    pub(super) blocks: Vec<(u64, u64)>,
    key: u64,
}

/// Those of `candidates` that are thread caches. Second, how often one had to be read again.
pub(super) fn find(
    reader: &mut Reader<'_>,
    layout: &Layout,
    count_most: u64,
    candidates: &[Candidate],
    is_heap: impl Fn(u64) -> bool,
) -> Result<(Vec<Found>, u64), Fault> {
    let mut found: Vec<Found> = Vec::new();
    let (mut blocks, mut reread) = (0, 0);
    let attempts = if reader.source().is_still() { 1 } else { READS_MOST };
    for &candidate in candidates {
        for attempt in 0..attempts {
            if attempt > 0 {
                reader.refresh();
                reread += 1;
            }
            if let Some(cache) = read(reader, layout, count_most, candidate, &is_heap)? {
                blocks += cache.blocks.len();
                found.push(cache);
                break;
            }
        }
        if blocks > BLOCKS_MOST {
            break;
        }
    }
    let shared_keys = layout.caches.iter().any(|cache| cache.key == Key::Shared);
    if shared_keys {
        let mut keys: HashMap<u64, usize> = HashMap::new();
        for cache in found.iter().filter(|cache| !cache.blocks.is_empty()) {
            *keys.entry(cache.key).or_default() += cache.blocks.len();
        }
        let key = keys.into_iter().max_by_key(|&(key, blocks)| (blocks, key)).map(|(key, _)| key);
        found.retain(|cache| cache.blocks.is_empty() || Some(cache.key) == key);
    }
    // A block is in one cache; a second claim to it is a leftover's.
    let mut taken = HashSet::new();
    found.retain(|cache| {
        let free = cache.blocks.iter().all(|block| !taken.contains(block));
        if free {
            taken.extend(cache.blocks.iter().copied());
        }
        free
    });
    Ok((found, reread))
}

/// The cache in the chunk at `chunk`, if it is one.
fn read(
    reader: &mut Reader<'_>,
    layout: &Layout,
    count_most: u64,
    candidate: Candidate,
    is_heap: &impl Fn(u64) -> bool,
) -> Result<Option<Found>, Fault> {
    let Candidate { chunk, is_first } = candidate;
    let Some(size) = word(reader, chunk + 8)?.map(|field| field & !FLAGS) else { return Ok(None) };
    let Some(cache) = layout.caches.iter().find(|cache| cache.fits(size)) else { return Ok(None) };
    let structure = chunk + HEADER;
    let mut content = Vec::new();
    match reader.copy(structure..structure + cache.size() as u64, &mut content) {
        Ok(()) if cache.is_possible(&content, is_first) => {}
        Ok(()) | Err(Fault::Swapped(_) | Fault::Unmapped(_)) => return Ok(None),
        Err(fault) => return Err(fault),
    }
    let mut found = Found { chunk, size, blocks: Vec::new(), key: 0 };
    for bin in 0..cache.bins {
        let mut block = cache.head(&content, bin).unwrap_or(0);
        let Some(count) = cache.count(&content, bin, count_most) else { return Ok(None) };
        for _ in 0..count {
            let Some((next, key, size)) = entry(reader, layout, block, is_heap)? else { return Ok(None) };
            let first = found.blocks.is_empty();
            let agrees = match cache.key {
                Key::None => true,
                Key::Address => key == structure,
                Key::Shared => key != 0 && (first || key == found.key),
                Key::Either => key == structure || (key != 0 && (first || key == found.key)),
            };
            if !agrees || !cache.belongs(bin, size) || found.blocks.len() >= BLOCKS_MOST {
                return Ok(None);
            }
            found.key = key;
            found.blocks.push((block - HEADER, size));
            block = next;
        }
        if block != 0 {
            return Ok(None);
        }
    }
    Ok((is_first || cache.counts_room || !found.blocks.is_empty()).then_some(found))
}

/// Where the block at `block` leads, its key, and its chunk's size, if it can be a cached block.
fn entry(
    reader: &mut Reader<'_>,
    layout: &Layout,
    block: u64,
    is_heap: &impl Fn(u64) -> bool,
) -> Result<Option<(u64, u64, u64)>, Fault> {
    let chunk = block.wrapping_sub(HEADER);
    if !block.is_multiple_of(HEADER) || !is_heap(chunk) {
        return Ok(None);
    }
    let fields = (word(reader, chunk + 8)?, word(reader, block)?, word(reader, block + 8)?);
    let (Some(field), Some(link), Some(key)) = fields else { return Ok(None) };
    let size = field & !FLAGS;
    // It is in use as far as its neighbour knows.
    let after = chunk.checked_add(size).filter(|&after| is_heap(after));
    let Some(after) = after else { return Ok(None) };
    let in_use = word(reader, after + 8)?.is_some_and(|field| field & PREV_IN_USE != 0);
    Ok(in_use.then(|| (layout.link(block, link), key, size)))
}

/// The word at `at`, where one can be read.
fn word(reader: &mut Reader<'_>, at: u64) -> Result<Option<u64>, Fault> {
    there(reader.u64(at))
}
