//! The free objects that thread caches and transfer caches hold: each is a list through the objects themselves.

use super::books::{Books, CENTRAL_BYTES, Class};
use super::chains::{self, Chain};
use crate::reader::Reader;
use crate::source::{Fault, MemorySource, there};
use std::collections::BTreeSet;

/// Bytes of a thread cache before its list links: 128 lists of 32 bytes.
const LISTS_BYTES: usize = 4096;
/// Where the links to other thread caches are looked for, behind the lists: sampler and thread differ by version.
const LINKS_BYTES: u64 = 192;
/// The most thread caches that are looked at.
const CACHES_MOST: usize = 1 << 16;
/// The most objects of a list that are looked at.
const LIST_MOST: u32 = 1 << 20;
/// Chains that a transfer cache has room for.
const CHAINS_MOST: u32 = 64;

/// Free objects by address, ascending.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// In thread caches.
    pub(super) cached: Vec<u64>,
    /// In transfer caches.
    pub(super) moving: Vec<u64>,
    /// The thread caches.
    pub(super) caches: BTreeSet<u64>,
    /// Lists that ended before their book said.
    pub(super) short: Vec<u64>,
}

impl Lists {
    /// Reads them all.
    pub(super) fn read(source: &dyn MemorySource, books: &Books) -> Result<Lists, Fault> {
        let mut lists = Lists::default();
        let mut reader = Reader::new(source);
        lists.find_caches(&mut reader, books)?;
        let mut chains = Vec::new();
        for cache in &lists.caches {
            for number in 1..books.classes.len() as u64 {
                let book = cache + 32 * number;
                let Some(at) = there(reader.u64(book))? else { break };
                let Some(length) = there(reader.u32(book + 8))? else { break };
                chains.push(Chain { at, left: length.min(LIST_MOST), book });
            }
        }
        let cached = chains::follow(source, chains)?;
        let moving = chains::follow(source, transfers(&mut reader, books)?)?;
        (lists.cached, lists.moving) = (cached.all, moving.all);
        lists.short = [cached.short, moving.short].concat();
        Ok(lists)
    }

    /// Thread caches are what pointers of the static data lead to, and the links of those, if their lists know the
    /// sizes of all classes.
    fn find_caches(&mut self, reader: &mut Reader<'_>, books: &Books) -> Result<(), Fault> {
        let mut asked: BTreeSet<u64> = books.pointers.iter().copied().collect();
        let mut open = books.pointers.clone();
        while let Some(at) = open.pop().filter(|_| self.caches.len() < CACHES_MOST) {
            let private = reader.source().area_at(at).is_some_and(|area| area.is_private_anon());
            let outside = !books.range.contains(&at);
            if !private || !outside || !is_cache(reader, at, &books.classes)? {
                continue;
            }
            self.caches.insert(at);
            for link in (0..LINKS_BYTES).step_by(8) {
                let word = there(reader.u64(at + LISTS_BYTES as u64 + link))?;
                open.extend(word.filter(|word| word.is_multiple_of(8) && *word != 0 && asked.insert(*word)));
            }
        }
        Ok(())
    }
}

/// Whether the lists at `at` are a thread cache's.
fn is_cache(reader: &mut Reader<'_>, at: u64, classes: &[Class]) -> Result<bool, Fault> {
    if there(reader.u32(at.saturating_add(32 + 24)))? != classes.get(1).map(|class| class.size as u32) {
        return Ok(false);
    }
    let Some(bytes) = there(reader.bytes(at, LISTS_BYTES))? else { return Ok(false) };
    let size_of = |list: &[u8]| list.get(24..28)?.try_into().ok().map(u32::from_le_bytes);
    let mut lists = bytes.chunks_exact(32).zip(classes).skip(1);
    Ok(lists.all(|(list, class)| size_of(list).map(u64::from) == Some(class.size)))
}

/// The chains in transfer caches.
fn transfers(reader: &mut Reader<'_>, books: &Books) -> Result<Vec<Chain>, Fault> {
    let mut found = Vec::new();
    for (number, class) in books.classes.iter().enumerate().skip(1) {
        let book = books.central + CENTRAL_BYTES * number as u64;
        let Some(chains) = there(reader.u32(book + 1152))? else { continue };
        for chain in 0..u64::from(chains.min(CHAINS_MOST)) {
            let Some(at) = there(reader.u64(book + 128 + 16 * chain))? else { continue };
            found.push(Chain { at, left: class.moved.min(LIST_MOST), book });
        }
    }
    Ok(found)
}
