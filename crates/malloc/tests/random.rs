//! The allocator against a model: threads make random requests, hand blocks to each other, and every block must
//! be where no other is, aligned, and hold what was written into it until it is freed.
//!
//! `EBBTIDE_TEST_SECONDS` makes it run longer than its fixed number of steps; `EBBTIDE_MALLOC_CHECK=1` has the
//! allocator check its own invariants meanwhile.
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Xorshift: the same steps for the same seed.
struct Random(u64);

/// Which sizes a test asks for.
#[derive(Debug, Clone, Copy)]
enum Sizes {
    /// As programs do: mostly small, sometimes large, now and then huge.
    Mixed,
    /// Half a mebibyte to 32, where blocks are cut out of others and grow into them.
    Large,
}

impl Sizes {
    /// Blocks that a thread holds at a time.
    fn most(self) -> usize {
        match self {
            Sizes::Mixed => 2000,
            Sizes::Large => 8,
        }
    }
}

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    fn size(&mut self, sizes: Sizes) -> usize {
        let bits = match (sizes, self.below(1000)) {
            (Sizes::Large, _) => return (1 << 19) + (self.below(1 << 19) << self.below(6)),
            (Sizes::Mixed, 0..700) => 3 + self.below(8),
            (Sizes::Mixed, 700..980) => 10 + self.below(7),
            (Sizes::Mixed, 980..998) => 16 + self.below(5),
            (Sizes::Mixed, _) => 21 + self.below(3),
        };
        self.below(1 << bits)
    }
}

#[derive(Debug)]
struct Block {
    at: usize,
    size: usize,
    tag: u8,
}

impl Block {
    /// Bytes between those that are written: all of a small block, one in 16 pages of a large one, and its last.
    fn step(&self) -> usize {
        if self.size < 1 << 19 { 1 } else { 65_535 }
    }

    fn fill(&self) {
        // SAFETY: the block is this test's and has `size` bytes.
        let bytes = unsafe { std::slice::from_raw_parts_mut(self.at as *mut u8, self.size) };
        bytes.iter_mut().step_by(self.step()).for_each(|b| *b = self.tag);
        bytes.iter_mut().next_back().into_iter().for_each(|b| *b = self.tag);
    }

    /// Whether each `step`th of the first `upto` bytes is what was written there.
    fn holds(&self, upto: usize, step: usize) -> bool {
        // SAFETY: as in `fill`; filled before.
        let bytes = unsafe { std::slice::from_raw_parts(self.at as *const u8, self.size) };
        bytes.iter().take(upto).step_by(step).all(|b| *b == self.tag)
    }
}

/// Where all threads' live blocks are: no two may overlap.
static LIVE: Mutex<BTreeMap<usize, usize>> = Mutex::new(BTreeMap::new());

fn enter(at: usize, size: usize) {
    let mut live = LIVE.lock().unwrap();
    let size = size.max(1);
    if let Some((other, len)) = live.range(..at + size).next_back() {
        assert!(other + len <= at, "{at:x}+{size} overlaps {other:x}+{len}");
    }
    live.insert(at, size);
}

fn leave(at: usize) {
    LIVE.lock().unwrap().remove(&at).expect("live");
}

fn take(random: &mut Random, sizes: Sizes) -> Block {
    let size = random.size(sizes);
    let tag = random.next() as u8 | 1;
    let at = match random.below(8) {
        0 => {
            let align = 1 << random.below(23);
            let at = ebbtide_malloc::aligned(align, size) as usize;
            assert!(at.is_multiple_of(align), "{at:x} is not aligned to {align}");
            at
        }
        1 => {
            let at = ebbtide_malloc::zeroed(16, size);
            // SAFETY: the block was just taken.
            let bytes = unsafe { std::slice::from_raw_parts(at, size) };
            let step = if size < 1 << 19 { 1 } else { 4095 };
            assert!(bytes.iter().step_by(step).all(|b| *b == 0), "not zeroed");
            at as usize
        }
        2 => ebbtide_malloc::malloc8(size) as usize,
        _ => {
            let at = ebbtide_malloc::malloc(size) as usize;
            assert!(at.is_multiple_of(16));
            at
        }
    };
    assert_ne!(at, 0);
    // SAFETY: the block was just taken.
    assert!(unsafe { ebbtide_malloc::usable_size(at as *const u8) } >= size);
    enter(at, size);
    let block = Block { at, size, tag };
    block.fill();
    block
}

fn give(block: Block) {
    assert!(block.holds(usize::MAX, block.step()), "{block:x?} changed");
    leave(block.at);
    // SAFETY: the block is this test's and forgotten here.
    unsafe { ebbtide_malloc::free(block.at as *mut u8) };
}

fn resize(block: &mut Block, random: &mut Random, sizes: Sizes) {
    let (size, step) = (random.size(sizes).max(1), block.step());
    leave(block.at);
    // SAFETY: the block is this test's; only the result is used from here on.
    block.at = unsafe { ebbtide_malloc::realloc(block.at as *mut u8, 16, size) } as usize;
    assert_ne!(block.at, 0);
    enter(block.at, size);
    let kept = block.size.min(size);
    block.size = size;
    assert!(block.holds(kept, step.max(block.step())), "{block:x?} changed");
    block.fill();
}

/// One thread's steps; blocks left in `shared` may be freed by any thread.
fn steps(seed: u64, sizes: Sizes, count: usize, until: Instant, shared: &Mutex<Vec<Block>>) {
    let mut random = Random((seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut mine: Vec<Block> = Vec::new();
    let mut step = 0;
    while step < count || Instant::now() < until {
        step += 1;
        match random.below(100) {
            0..45 => mine.push(take(&mut random, sizes)),
            45..80 if !mine.is_empty() => {
                let i = random.below(mine.len());
                give(mine.swap_remove(i));
            }
            80..88 if !mine.is_empty() => {
                let i = random.below(mine.len());
                resize(&mut mine[i], &mut random, sizes);
            }
            88..94 if !mine.is_empty() => {
                let i = random.below(mine.len());
                let block = mine.swap_remove(i);
                shared.lock().unwrap().push(block);
            }
            94..99 => {
                let block = shared.lock().unwrap().pop();
                if let Some(block) = block {
                    give(block);
                }
            }
            _ if step.is_multiple_of(500) => drop(ebbtide_malloc::trim()),
            _ => {}
        }
        if mine.len() > sizes.most() {
            mine.drain(..sizes.most() - 1).for_each(give);
        }
    }
    mine.into_iter().for_each(give);
}

fn agree(threads: u64, sizes: Sizes, count: usize) {
    let seconds = std::env::var("EBBTIDE_TEST_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    let until = Instant::now() + Duration::from_secs(seconds);
    let shared = Mutex::new(Vec::new());
    for round in 0..3 {
        std::thread::scope(|scope| {
            for thread in 0..threads {
                let shared = &shared;
                scope.spawn(move || steps(round * threads + thread, sizes, count, until, shared));
            }
        });
        ebbtide_malloc::verify();
    }
    shared.into_inner().unwrap().into_iter().for_each(give);
    ebbtide_malloc::verify();
    ebbtide_malloc::trim();
    ebbtide_malloc::verify();
}

#[test]
fn sixteen_threads_agree_with_the_model() {
    agree(16, Sizes::Mixed, 3000);
}

#[test]
fn large_blocks_agree_with_the_model() {
    agree(8, Sizes::Large, 2000);
}
