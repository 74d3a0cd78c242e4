//! The lists of free chunks, checked without a second look at memory: each link is taken down as the walk meets it,
//! and at the end every chunk must be what the next and the one before it link to.
//!
//! The lists of small bins go through the bin in lj_alloc's books; those of equal chunks in a tree go round. The
//! trees themselves (children, parent) are not followed.

use super::layout::Book;
use super::walk::CORRUPTIONS_MOST;
use crate::model::Corruption;

/// The most free chunks whose links are kept: 24 MiB.
const CHUNKS_MOST: usize = 1 << 20;

/// A free chunk.
#[derive(Debug, Clone, Copy)]
struct Link {
    at: u64,
    next: u64,
    last: u64,
}

/// The free chunks of one state, in the order of addresses.
#[derive(Debug, Default)]
pub(super) struct Links {
    chunks: Vec<Link>,
    missed: bool,
}

impl Links {
    /// A free chunk, in the order of addresses.
    pub(super) fn add(&mut self, at: u64, next: u64, last: u64) {
        if self.chunks.len() < CHUNKS_MOST {
            self.chunks.push(Link { at, next, last });
        } else {
            self.missed = true;
        }
    }

    /// Whether `dv` is one of them.
    pub(super) fn has(&self, at: u64) -> bool {
        self.missed || self.find(at).is_some()
    }

    /// The links that do not lead back, those of `book`'s dv aside, which is in no list. Empty where there were more
    /// chunks than are kept.
    pub(super) fn broken(&self, book: &Book) -> Vec<Corruption> {
        let dv = if book.dv.1 > 0 { book.dv.0 } else { 0 };
        let in_lists = self.chunks.iter().filter(|link| link.at != dv && !self.missed);
        let back = |at: u64| self.ends(at, book);
        let is_broken = |link: &&Link| {
            back(link.next).is_none_or(|(_, last)| last != link.at)
                || back(link.last).is_none_or(|(next, _)| next != link.at)
        };
        let broken = in_lists.filter(is_broken).take(CORRUPTIONS_MOST);
        let what = "a free chunk is not what the chunks it links to link to";
        broken.map(|link| Corruption { address: link.at, what: what.into() }).collect()
    }

    /// What the chunk or the bin at `at` links to.
    fn ends(&self, at: u64, book: &Book) -> Option<(u64, u64)> {
        self.find(at).map(|link| (link.next, link.last)).or_else(|| book.bin_at(at))
    }

    fn find(&self, at: u64) -> Option<&Link> {
        let index = self.chunks.binary_search_by_key(&at, |link| link.at).ok()?;
        self.chunks.get(index)
    }
}
