//! The lists of free chunks, checked without a second look at memory: the links that the walk meets are summed up,
//! forward and backward, and only if the sums differ is it asked where.
//!
//! The lists of small bins go through the bin in lj_alloc's books; those of equal chunks in a tree go round. The
//! trees themselves (children, parent) are not followed.

use super::layout::Book;
use super::walk::CORRUPTIONS_MOST;
use crate::model::Corruption;

/// The most free chunks whose links are kept, to say where a list is broken: 24 MiB. That one is, is known of any
/// number.
const CHUNKS_MOST: usize = 1 << 20;

/// A free chunk.
#[derive(Debug, Clone, Copy)]
struct Link {
    at: u64,
    next: u64,
    last: u64,
}

/// The free chunks of one state.
#[derive(Debug)]
pub(super) struct Links {
    /// The chunk that small blocks are cut off, which is in no list, and whether it was met; 0 for none.
    dv: (u64, bool),
    /// The first of them, in the order of addresses.
    chunks: Vec<Link>,
    /// Sums over all: where every chunk is what its next one comes after, both have the same terms.
    forward: u64,
    backward: u64,
}

impl Links {
    /// No chunk yet of the state with the books `book`.
    pub(super) fn new(book: &Book) -> Links {
        let dv = if book.dv.1 > 0 { book.dv.0 } else { 0 };
        Links { dv: (dv, book.dv.1 == 0), chunks: Vec::new(), forward: 0, backward: 0 }
    }

    /// A free chunk, in the order of addresses.
    pub(super) fn add(&mut self, at: u64, next: u64, last: u64) {
        if at == self.dv.0 {
            self.dv.1 = true;
            return;
        }
        let link = Link { at, next, last };
        self.sum(link);
        if self.chunks.len() < CHUNKS_MOST {
            self.chunks.push(link);
        }
    }

    /// Whether the books name no dv, or one that was met.
    pub(super) fn has_dv(&self) -> bool {
        self.dv.1
    }

    /// The links that do not lead back.
    pub(super) fn broken(mut self, book: &Book) -> Vec<Corruption> {
        for (at, (next, last)) in book.bins() {
            self.sum(Link { at, next, last });
        }
        if self.forward == self.backward {
            return Vec::new();
        }
        let corrupt = |address, what: &str| Corruption { address, what: what.into() };
        if self.chunks.len() == CHUNKS_MOST {
            return vec![corrupt(book.address(), "a list of free chunks does not lead back")];
        }
        let back = |at| self.find(at).map(|link| (link.next, link.last)).or_else(|| book.bin_at(at));
        let is_broken = |link: &&Link| {
            back(link.next).is_none_or(|(_, last)| last != link.at)
                || back(link.last).is_none_or(|(next, _)| next != link.at)
        };
        let what = "a free chunk is not what the chunks it links to link to";
        let mut found: Vec<_> =
            self.chunks.iter().filter(is_broken).map(|link| corrupt(link.at, what)).collect();
        found.truncate(CORRUPTIONS_MOST);
        if found.is_empty() {
            found.push(corrupt(book.address(), "a small bin does not lead to what leads to it"));
        }
        found
    }

    #[inline]
    fn sum(&mut self, link: Link) {
        self.forward = self.forward.wrapping_add(edge(link.at, link.next));
        self.backward = self.backward.wrapping_add(edge(link.last, link.at));
    }

    fn find(&self, at: u64) -> Option<&Link> {
        let index = self.chunks.binary_search_by_key(&at, |link| link.at).ok()?;
        self.chunks.get(index)
    }
}

/// A number for the link from one chunk to another, such that sums of other links hardly ever are the same. (The
/// mixing steps are those of splitmix64.)
fn edge(from: u64, to: u64) -> u64 {
    let mixed = from.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ to;
    let mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ mixed >> 31
}
