//! A Lua state's heap against a model: random requests as LuaJIT makes them, meshing and tidying in between, forks.
//! Every block holds what was written into it, in parent and child, whatever shares a frame with what.
//!
//! `EBBTIDE_TEST_SECONDS` makes the random part run longer than its fixed number of steps.
#![allow(unsafe_code, clippy::unwrap_used, clippy::expect_used)]

use ebbtide_malloc::Ebbtide;
use ebbtide_malloc::lua::{State, lua_alloc, ours};
use std::alloc::GlobalAlloc;
use std::collections::HashSet;
use std::io::{BufRead, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

unsafe extern "C" {
    fn fork() -> i32;
    fn waitpid(process: i32, status: *mut i32, options: i32) -> i32;
    fn _exit(status: i32) -> !;
    fn mmap(at: *mut u8, len: usize, access: i32, flags: i32, file: i32, offset: i64) -> *mut u8;
    fn munmap(at: *mut u8, len: usize) -> i32;
    fn close(file: i32) -> i32;
    fn setrlimit(what: i32, limit: *const u64) -> i32;
}

/// Xorshift: the same steps for the same seed.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }

    fn size(&mut self) -> usize {
        match self.below(100) {
            0..90 => 1 + self.below(260),
            90..98 => 1 + self.below(4000),
            _ => 1 + self.below(1 << 18),
        }
    }
}

/// A block as the VM has it: the head of a table or string, and bytes that tell it from others.
#[derive(Debug, Clone, Copy)]
struct Block {
    at: *mut u8,
    size: usize,
    mark: u8,
}

impl Block {
    fn byte(self, i: usize) -> u8 {
        // The link of an object is null; its type is that of a table.
        match i {
            0..=7 => 0,
            9 => 11,
            _ => self.mark.wrapping_add(i as u8),
        }
    }

    /// Which bytes are looked at: of large blocks one in some.
    fn places(self, bytes: usize) -> impl Iterator<Item = usize> {
        (0..bytes.min(self.size)).step_by(if self.size > 4096 { 509 } else { 1 })
    }

    fn write(self) {
        for i in self.places(self.size) {
            // SAFETY: the block has that many bytes.
            unsafe { self.at.add(i).write(self.byte(i)) };
        }
    }

    fn holds(self, bytes: usize) {
        for i in self.places(bytes) {
            // SAFETY: as above.
            let found = unsafe { self.at.add(i).read() };
            assert_eq!(found, self.byte(i), "byte {i} of {self:?}");
        }
    }
}

struct Model {
    state: State,
    blocks: Vec<Block>,
    random: Random,
}

impl Model {
    fn new(seed: u64) -> Model {
        Model { state: State::new().unwrap(), blocks: Vec::new(), random: Random(seed) }
    }

    fn call(&self, at: *mut u8, old: usize, new: usize) -> *mut u8 {
        // SAFETY: this heap's block, used by this thread alone.
        unsafe { lua_alloc(self.state.data(), at.cast(), old, new).cast() }
    }

    fn alloc(&mut self, size: usize) {
        assert!(self.alloc_if_there_is(size));
    }

    fn alloc_if_there_is(&mut self, size: usize) -> bool {
        let at = self.call(std::ptr::null_mut(), 0, size);
        assert!(at.addr().is_multiple_of(8) && at.addr() < 1 << 47);
        if !at.is_null() {
            let block = Block { at, size, mark: self.random.below(256) as u8 };
            block.write();
            self.blocks.push(block);
        }
        !at.is_null()
    }

    fn free(&mut self, i: usize) {
        let block = self.blocks.swap_remove(i);
        block.holds(block.size);
        // LuaJIT is wrong about the size after some failures.
        let said = if self.random.below(50) == 0 { block.size / 2 } else { block.size };
        assert!(self.call(block.at, said, 0).is_null());
    }

    fn resize(&mut self, i: usize) {
        let (old, size) = (self.blocks[i], self.random.size());
        let at = self.call(old.at, old.size, size);
        assert!(!at.is_null());
        Block { at, ..old }.holds(size);
        self.blocks[i] = Block { at, size, mark: self.random.below(256) as u8 };
        self.blocks[i].write();
    }

    fn step(&mut self, most: usize) {
        let n = self.blocks.len();
        match self.random.below(100) {
            _ if n == 0 => self.alloc(64),
            0..45 if n < most => {
                let size = self.random.size();
                self.alloc(size);
            }
            0..85 => {
                let i = self.random.below(n);
                self.free(i);
            }
            _ => {
                let i = self.random.below(n);
                self.resize(i);
            }
        }
    }

    /// A slice of meshing, with everything cold; whether there is more to do.
    fn mesh_some(&self) -> bool {
        // SAFETY: this thread alone uses the heap.
        unsafe {
            self.state.age();
            self.state.mesh() == Some(0)
        }
    }

    /// Whatever can be meshed is.
    fn mesh(&self) -> u64 {
        // SAFETY: this thread alone uses the heap.
        unsafe {
            self.state.rest();
            self.state.age();
            while self.state.mesh() == Some(0) {}
            self.state.told().meshed.get()
        }
    }

    fn check(&self) {
        self.blocks.iter().for_each(|block| block.holds(block.size));
    }

    /// Writes to every block, as the collector does to every object.
    fn write_all(&mut self) {
        for block in &mut self.blocks {
            block.mark = block.mark.wrapping_add(1);
            block.write();
        }
    }

    fn free_all(&mut self) {
        while !self.blocks.is_empty() {
            self.free(0);
        }
    }

    /// One survivor of each `each` of `n` blocks of these sizes.
    fn sparse(&mut self, n: usize, each: usize, sizes: &[usize]) {
        let first = self.blocks.len();
        (0..n).for_each(|i| self.alloc(sizes[i % sizes.len()]));
        for i in (first..self.blocks.len()).rev().filter(|i| !(i / sizes.len()).is_multiple_of(each)) {
            self.free(i);
        }
    }
}

impl Drop for Model {
    fn drop(&mut self) {
        // SAFETY: nobody uses the heap or its blocks any more.
        unsafe { self.state.close() };
    }
}

#[test]
fn random_requests_agree_with_the_model() {
    let seconds = std::env::var("EBBTIDE_TEST_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(0);
    let start = Instant::now();
    let mut seed = 1;
    while seed <= 2 || start.elapsed() < Duration::from_secs(seconds) {
        let mut model = Model::new(seed);
        for round in 0..6 {
            let most = [3000, 300][round % 2];
            (0..10_000).for_each(|_| model.step(most));
            model.mesh();
            model.check();
            model.write_all();
            model.check();
        }
        seed += 1;
    }
}

#[test]
fn sparse_pages_share_frames_and_keep_what_they_hold() {
    // In a process of its own: a fork by another test would part what is counted.
    in_child(|| {
        let mut model = Model::new(7);
        model.sparse(200_000, 100, &[64, 96, 24, 112]);
        // SAFETY: the heap is not closed.
        let told = unsafe { model.state.told() };
        let before = told.pages.get();
        let meshed = model.mesh();
        let frames = told.frames.get();
        assert!(meshed > before / 2 && frames * 4 < meshed, "{meshed} of {before} pages in {frames} frames");
        model.check();
        model.write_all();
        model.check();
        assert_eq!(told.meshed.get(), meshed, "writing takes nothing apart");
        model.free_all();
        model.mesh();
        assert_eq!((told.meshed.get(), told.frames.get()), (0, 0));
    });
}

#[test]
fn memory_that_others_may_write_to_is_left_alone() {
    let mut model = Model::new(8);
    (0..100_000).for_each(|_| model.alloc(96));
    for i in (0..100_000).rev().filter(|i| i % 100 != 0) {
        model.free(i);
    }
    for block in &model.blocks {
        // cdata
        // SAFETY: a byte of the block.
        unsafe { block.at.add(9).write(10) };
    }
    assert_eq!(model.mesh(), 0);
    model.blocks.clear();
}

/// In a child: what it holds, and may write, is its own. Tells by its status.
fn in_child(f: impl FnOnce()) {
    beside(f, || ());
}

/// In a child, and meanwhile here. Each drops what is the other's: a socket's end closes where its side fails.
fn beside(f: impl FnOnce(), here: impl FnOnce()) {
    // SAFETY: the child does nothing but look at memory and end.
    let child = unsafe { fork() };
    assert!(child >= 0);
    if child == 0 {
        drop(here);
        let failed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f)).is_err();
        // SAFETY: ends the child at once.
        unsafe { _exit(failed.into()) };
    }
    drop(f);
    here();
    let mut status = 0;
    // SAFETY: libc writes the status.
    let waited = unsafe { waitpid(child, &raw mut status, 0) };
    assert_eq!((waited, status), (child, 0));
}

#[test]
fn parent_and_child_do_not_see_each_others_writes() {
    let mut model = Model::new(9);
    for round in 0..3 {
        model.sparse(60_000, 60, &[64, 32, 104]);
        assert!(model.mesh() > 0, "in round {round}");
        let copy = Model { state: model.state, blocks: model.blocks.clone(), random: Random(3) };
        let mut copy = std::mem::ManuallyDrop::new(copy);
        in_child(|| {
            copy.check();
            copy.write_all();
            (0..5000).for_each(|_| copy.step(4000));
            copy.mesh();
            copy.check();
        });
        model.check();
        model.write_all();
        in_child(|| model.check());
        (0..5000).for_each(|_| model.step(4000));
        model.check();
    }
    // SAFETY: the heap is not closed.
    assert!(unsafe { model.state.told() }.parted.get() > 0);
}

#[test]
fn parent_and_child_do_not_share_what_is_meshed_later() {
    let mut model = Model::new(10);
    model.sparse(60_000, 60, &[64, 32, 104]);
    assert!(model.mesh() > 0);
    model.free_all();
    let (mut here, mut there) = UnixStream::pair().unwrap();
    let meshed = |seed, blocks| {
        let mut model = Model { state: model.state, blocks: Vec::new(), random: Random(seed) };
        model.sparse(blocks, 60, &[64, 32, 104]);
        assert!(model.mesh() > 0);
        std::mem::ManuallyDrop::new(model)
    };
    let child = move || {
        let own = meshed(20, 60_000);
        there.write_all(b"x").unwrap();
        there.read_exact(&mut [0]).unwrap();
        own.check();
    };
    beside(child, move || {
        here.read_exact(&mut [0]).unwrap();
        let own = meshed(21, 50_000);
        here.write_all(b"x").unwrap();
        own.check();
    });
}

#[test]
fn a_fork_in_the_midst_of_a_round_takes_nothing_apart_wrongly() {
    let mut model = Model::new(11);
    model.sparse(300_000, 40, &[64, 32, 104, 48]);
    let mut forks = 0;
    for _ in 0..12 {
        forks += u32::from(model.mesh_some());
        in_child(|| model.check());
        // What was planned goes on, or is given up.
        // SAFETY: this thread alone uses the heap.
        unsafe { model.state.mesh() };
        in_child(|| model.check());
        model.write_all();
        (0..3000).for_each(|_| model.step(8000));
        model.check();
    }
    assert!(forks > 0, "every round ended within a slice");
    model.mesh();
    model.check();
}

/// Descriptors of frames that this process has.
fn files() -> Vec<i32> {
    let all = std::fs::read_dir("/proc/self/fd").unwrap().map(Result::unwrap);
    let ours = all.filter(|fd| std::fs::read_link(fd.path()).is_ok_and(|to| is_frames(&to)));
    ours.map(|fd| fd.file_name().to_str().unwrap().parse().unwrap()).collect()
}

fn is_frames(path: &Path) -> bool {
    path.to_string_lossy().contains("memfd:ebbtide lua")
}

#[test]
fn a_heap_that_is_closed_leaves_no_descriptor() {
    in_child(|| {
        let before = files().len();
        for seed in 0..3 {
            let mut model = Model::new(30 + seed);
            model.sparse(60_000, 60, &[64, 32, 104]);
            assert!(model.mesh() > 0);
            assert_eq!(files().len(), before + 1);
        }
        assert_eq!(files().len(), before);
    });
}

#[test]
fn a_heap_in_which_nothing_is_meshed_has_no_descriptor() {
    in_child(|| {
        let before = files().len();
        let mut model = Model::new(33);
        for lost in [false, true, false] {
            model.sparse(60_000, 60, &[64, 32, 104]);
            assert!(model.mesh() > 0);
            assert_eq!(files().len(), before + 1);
            for fd in files().into_iter().filter(|_| lost) {
                // SAFETY: nobody relies on the descriptor.
                assert_eq!(unsafe { close(fd) }, 0);
            }
            model.free_all();
            assert_eq!(files().len(), before);
        }
    });
}

/// Files of frames that some page is mapped from, by their numbers.
fn mapped_files() -> HashSet<String> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let frames = maps.lines().filter(|line| is_frames(Path::new(line)));
    frames.filter_map(|line| line.split_whitespace().nth(4)).map(String::from).collect()
}

#[test]
fn files_of_before_a_fork_are_not_kept_by_single_pages() {
    in_child(|| {
        // Those of other tests' heaps are here, too.
        let before = mapped_files();
        let mut model = Model::new(34);
        for _ in 0..4 {
            model.sparse(60_000, 60, &[64, 32, 104]);
            assert!(model.mesh() > 0);
            in_child(|| model.check());
            // What the fork has parted are pages as others, and some are filled before they can share a frame again.
            model.mesh_some();
            (0..20_000).for_each(|i| model.alloc([64, 32, 104][i % 3]));
            // The purge thread may just be about to begin or end, and be taken for one that could be reading.
            let gone = || {
                model.mesh();
                mapped_files().difference(&before).count() <= 1
            };
            assert!((0..20).any(|_| gone()), "{:?} after {before:?}", mapped_files());
            model.check();
        }
    });
}

/// Says so when it is dropped, also by a panic.
struct Ends<'a>(&'a AtomicBool);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// Pages are replaced under the eyes of whoever reads what Lua keeps, as C does with a string.
#[test]
fn another_thread_reads_what_is_there_whatever_becomes_of_its_page() {
    in_child(|| {
        let mut model = Model::new(37);
        model.sparse(60_000, 60, &[64, 32, 104]);
        let last = |block: &Block| (block.at.addr() + block.size - 1, block.byte(block.size - 1));
        let kept: Vec<(usize, u8)> = model.blocks.iter().map(last).collect();
        let end = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let ends = Ends(&end);
            let reader = scope.spawn(|| {
                let mut wrong = 0;
                while !end.load(Relaxed) {
                    let read = |at: usize| {
                        let at = std::ptr::with_exposed_provenance::<u8>(at);
                        // SAFETY: a byte of a block that is not freed before the end.
                        unsafe { at.read_volatile() }
                    };
                    wrong += kept.iter().filter(|(at, byte)| read(*at) != *byte).count();
                }
                wrong
            });
            for _ in 0..4 {
                assert!(model.mesh() > 0);
                in_child(|| ());
                model.mesh_some();
                (0..20_000).for_each(|i| model.alloc([64, 32, 104][i % 3]));
                model.mesh();
                model.sparse(60_000, 60, &[64, 32, 104]);
            }
            drop(ends);
            assert_eq!(reader.join().unwrap(), 0);
        });
        model.check();
    });
}

#[test]
fn under_lasting_pressure_rounds_come_to_an_end() {
    let mut model = Model::new(35);
    (0..1_000_000).for_each(|_| model.alloc(32));
    model.sparse(100_000, 100, &[104]);
    // SAFETY: the heap is not closed.
    let told = unsafe { model.state.told() };
    let meshed = || {
        model.mesh_some();
        told.meshed.get() > 0
    };
    assert!((0..1000).any(|_| meshed()));
}

#[test]
fn a_heap_of_a_thread_that_did_not_come_along_is_the_childs_once_it_goes_on_with_it() {
    in_child(|| {
        let mut model = Model::new(36);
        let (ready, go) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || go.recv());
        in_child(|| {
            assert!(ours().all(|state| state != model.state));
            (0..100_000).for_each(|_| model.alloc(64));
            assert!(ours().any(|state| state == model.state));
        });
        drop(ready);
        assert!(other.join().unwrap().is_err());
    });
}

#[test]
fn what_a_child_did_not_get_is_not_copied_at_its_forks() {
    in_child(|| {
        let mut model = Model::new(40);
        model.sparse(60_000, 60, &[64, 32, 104]);
        assert!(model.mesh() > 0);
        // As a program that becomes a daemon does; the pages can only be copied then, which takes that nobody writes.
        for fd in files() {
            // SAFETY: nobody relies on the descriptor.
            assert_eq!(unsafe { close(fd) }, 0);
        }
        let (ready, go) = std::sync::mpsc::channel::<()>();
        let other = std::thread::spawn(move || go.recv());
        in_child(|| in_child(|| ()));
        drop(ready);
        assert!(other.join().unwrap().is_err());
        model.check();
    });
}

#[test]
fn a_limit_on_files_that_comes_later_is_no_signal() {
    in_child(|| {
        let mut model = Model::new(50);
        model.sparse(60_000, 60, &[64, 32, 104]);
        assert!(model.mesh() > 0);
        const FSIZE: i32 = 1;
        // SAFETY: two words, of which the kernel reads the limit.
        assert_eq!(unsafe { setrlimit(FSIZE, [4096_u64, 4096].as_ptr()) }, 0);
        model.sparse(60_000, 60, &[64, 32, 104]);
        model.mesh();
        model.check();
    });
}

/// What a server loads before it forks its workers stays shared with them: nothing of it is due to be collected or tidied.
#[test]
fn a_child_has_nothing_to_do_for_what_was_there() {
    in_child(|| {
        let mut model = Model::new(70);
        (0..50_000).for_each(|_| model.alloc(64));
        in_child(|| {
            // SAFETY: this thread is the only one, and the heap is not closed.
            let (notes, told) = unsafe { (model.state.notes(), model.state.told()) };
            let flow = told.flow.get();
            assert!(flow > 3 << 20);
            assert_eq!((notes.done.load(Relaxed), notes.collected), (flow, flow));
            assert!(notes.live > 3 << 20);
        });
    });
}

/// The purge thread that is just being started, or is about to end, is not somebody who may be using the heap.
#[test]
fn a_child_keeps_its_heaps_whatever_the_purge_thread_does() {
    for round in 0..60 {
        in_child(|| {
            let mut model = Model::new(60 + round);
            (0..100).for_each(|_| model.alloc(64));
            let layout = std::alloc::Layout::from_size_align(4000, 8).unwrap();
            // SAFETY: freed with the layout they were made with.
            unsafe {
                let blocks: Vec<_> = (0..2000).map(|_| Ebbtide.alloc(layout)).collect();
                blocks.into_iter().for_each(|block| Ebbtide.dealloc(block, layout));
            }
            in_child(|| assert!(ours().any(|state| state == model.state)));
        });
    }
}

/// Mappings that each differ from their neighbours, until the kernel refuses all but a few.
fn nearly_all_mappings() -> Vec<*mut u8> {
    const PRIVATE_ANONYMOUS: i32 = 0x22;
    let limit: usize = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap().trim().parse().unwrap();
    let mut taken = Vec::with_capacity(limit + 1);
    for n in 0.. {
        // SAFETY: memory of nobody else's.
        let at = unsafe { mmap(std::ptr::null_mut(), 4096, n & 1, PRIVATE_ANONYMOUS, -1, 0) };
        if at.addr() == usize::MAX {
            break;
        }
        taken.push(at);
    }
    release(taken.drain(taken.len() - 8..));
    taken
}

fn release(mappings: impl IntoIterator<Item = *mut u8>) {
    for at in mappings {
        // SAFETY: made by `nearly_all_mappings`.
        assert_eq!(unsafe { munmap(at, 4096) }, 0);
    }
}

fn mapped_shared() -> usize {
    let maps = std::io::BufReader::new(std::fs::File::open("/proc/self/maps").unwrap());
    let lines = maps.lines().map(Result::unwrap);
    lines.filter(|line| line.contains(" rw-s ") && line.contains("ebbtide lua")).count()
}

#[test]
fn where_mappings_run_out_at_a_fork_what_stays_shared_is_not_used() {
    // In a process of its own, as there are then no mappings for anybody.
    in_child(|| {
        let mut model = Model::new(13);
        model.sparse(300_000, 40, &[64, 32, 104, 48]);
        assert!(model.mesh() > 1000);
        model.blocks.reserve(400_000);
        let taken = nearly_all_mappings();
        in_child(|| ());
        let stuck = mapped_shared();
        assert!(stuck > 0, "the kernel refused nothing");
        // Taken over while they cannot be copied either.
        model.mesh();
        for size in [64, 32, 104, 48] {
            while model.alloc_if_there_is(size) {}
        }
        model.check();
        release(taken);
        (0..20_000).for_each(|_| model.step(100_000));
        model.check();
        model.write_all();
        model.check();
        model.mesh();
        in_child(|| model.check());
        model.free_all();
    });
}
