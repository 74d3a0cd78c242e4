//! The free chunks that have whole pages, from lj_alloc's trees: what a stopped process can be asked without a walk
//! over all of its heap.
//!
//! A chunk in a tree is free because the books say so at this moment. Chunks below [`MIN_LARGE`] are in other lists
//! and have no page of their own. The trees are read breadth first, many nodes with one system call.

use super::code::{self, Code};
use super::layout::{HEADER, IN_USE, MIN_LARGE};
use super::scanned;
use super::state;
use crate::free::Free;
use crate::reader::Reader;
use crate::source::{Fault, MemorySource};
use std::ops::Range;

/// A tree node up to its index: foot, head, fd, bk, two children, parent.
const NODE: usize = 56;
/// Free chunks behind this much have nothing that lj_alloc reads (struct malloc_tree_chunk).
const LINKS: u64 = 64;
/// Trees below hold chunks of less than a page: tree n has sizes from 2^(8 + n/2) on, or half more for odd n.
const FIRST_TREE: usize = 8;
/// NTREEBINS less those.
const TREES: usize = 32 - FIRST_TREE;
/// A tree is read in branches: a process that stands still shall not do so for as long as the whole would take.
const LEVELS: u32 = 4;
const BRANCHES: usize = 1 << LEVELS;
/// Nodes read with one system call.
const BATCH: usize = 512;
/// More free chunks than that are not looked for.
const CHUNKS_MOST: usize = 1 << 20;

/// Where the Lua states of a process are.
pub struct States {
    codes: Vec<Code>,
    /// The pages with their books.
    pages: Vec<u64>,
}

impl States {
    /// Those of `source` that use lj_alloc. Errors as of [`super::find`].
    pub fn find(source: &dyn MemorySource) -> Result<States, Fault> {
        let codes = code::find(source)?;
        if codes.is_empty() {
            return Ok(States { codes, pages: Vec::new() });
        }
        let states = scanned(&mut Reader::new(source), &codes)?.states;
        Ok(States { codes, pages: states.into_iter().map(|(page, _)| page).collect() })
    }

    /// Into how many parts the free chunks of all states are divided, each to be read on its own.
    pub fn parts(&self) -> usize {
        self.pages.len() * TREES * BRANCHES
    }

    /// The whole pages of what is free now in one part, read as long as `go_on` says so; nothing if the state's books
    /// do not make sense. Some chunks are in more than one part. `source` stands still.
    pub fn free(
        &self,
        source: &dyn MemorySource,
        part: usize,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<Option<Free>, Fault> {
        let (index, tree, branch) = (part / BRANCHES / TREES, part / BRANCHES % TREES, part % BRANCHES);
        let Some(&page) = self.pages.get(index) else { return Ok(None) };
        let mut reader = Reader::new(source);
        let Some(state) = state::read(&mut reader, &self.codes, page)? else { return Ok(None) };
        if state.broken.is_some() {
            return Ok(None);
        }
        let within = |range: &Range<u64>| {
            let after = state.segments.partition_point(|segment| segment.base <= range.start);
            state.segments[..after].last().is_some_and(|segment| range.end <= segment.end())
        };
        let mut free = Free { pages: Vec::new(), is_all: true };
        // The top and the chunk that small blocks are cut off are in no tree; only their headers are read.
        for (at, size) in
            [state.book.top, state.book.dv].into_iter().filter(|(at, size)| *at != 0 && *size != 0)
        {
            let range = at..at.saturating_add(size);
            if !within(&range) {
                return Ok(None);
            }
            free.add(range, HEADER);
        }
        let root = state.book.trees().nth(FIRST_TREE + tree).filter(|at| *at != 0);
        let mut front: Vec<Node> =
            root.map(|at| Node { at, ring: 0, way: Some((branch, 0)) }).into_iter().collect();
        let mut seen = 0;
        while !front.is_empty() {
            if !go_on() {
                free.is_all = false;
                break;
            }
            let rest = front.split_off(front.len().min(BATCH));
            let batch = std::mem::replace(&mut front, rest);
            seen += batch.len();
            if seen > CHUNKS_MOST || !read(source, &batch, &within, &mut free, &mut front)? {
                return Ok(None);
            }
        }
        Ok(Some(free))
    }
}

/// A chunk to be read.
#[derive(Debug, Clone, Copy)]
struct Node {
    at: u64,
    /// The node of the tree whose ring of equal chunks it is in; 0 for one that is in the tree itself.
    ring: u64,
    /// Which way to go from here, while it is above the branches: the branch's number, of which one bit is for each
    /// level, and the level.
    way: Option<(usize, u32)>,
}

/// Reads the nodes of `batch`: enters their pages and puts what they lead to into `front`. False if one of them is no
/// free chunk.
fn read(
    source: &dyn MemorySource,
    batch: &[Node],
    within: &impl Fn(&Range<u64>) -> bool,
    free: &mut Free,
    front: &mut Vec<Node>,
) -> Result<bool, Fault> {
    let node = |node: &Node| node.at..node.at.saturating_add(NODE as u64);
    if !batch.iter().all(|known| known.at % 8 == 0 && within(&node(known))) {
        return Ok(false);
    }
    let ranges: Vec<Range<u64>> = batch.iter().map(node).collect();
    let mut bytes = vec![0; batch.len() * NODE];
    if source.read_ranges(&ranges, &mut bytes)? != bytes.len() {
        return Ok(false);
    }
    for (known, bytes) in batch.iter().zip(bytes.chunks_exact(NODE)) {
        let word = |index: usize| super::layout::word(bytes, 8 * index);
        let (head, next, children) = (word(1), word(2), [word(4), word(5)]);
        let size = head & !7;
        let chunk = known.at..known.at.saturating_add(size);
        if head & IN_USE != 0 || size < MIN_LARGE || !within(&chunk) {
            return Ok(false);
        }
        free.add(chunk, LINKS);
        let ring = if known.ring == 0 { known.at } else { known.ring };
        if next != ring {
            front.push(Node { at: next, ring, way: None });
        }
        if known.ring == 0 {
            let goes = |side: usize| known.way.is_none_or(|(branch, level)| branch >> level & 1 == side);
            let way =
                known.way.map(|(branch, level)| (branch, level + 1)).filter(|(_, level)| *level < LEVELS);
            let children = children.into_iter().enumerate().filter(|(side, at)| *at != 0 && goes(*side));
            front.extend(children.map(|(_, at)| Node { at, ring: 0, way }));
        }
    }
    Ok(true)
}
