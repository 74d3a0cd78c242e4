//! The walker on forged states: what it must say, what it must not believe, and that nothing makes it panic.

use super::layout::{FENCE, IN_USE, PREV_IN_USE};
use super::*;
use crate::image::Image;
use crate::source::{Area, PageState, ReadSeek};
use ebbtide_observe::process::Perms;
use proptest::prelude::*;
use std::cell::Cell;

const BASE: u64 = 0x7f12_3456_0000;
const CODE: u64 = 0x7f00_0000_0000;
const BOOK: u64 = BASE + 16;
/// The first block behind the books.
const GLOBAL: u64 = BASE + 880 + 16;
const FIRST: u64 = BASE + 880 + 6144;

/// A state's memory.
#[derive(Clone)]
struct Forge {
    base: u64,
    memory: Vec<u8>,
}

impl Forge {
    fn put(&mut self, address: u64, value: u64) {
        let at = (address - self.base) as usize;
        self.memory[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    fn get(&self, address: u64) -> u64 {
        layout::word(&self.memory, (address - self.base) as usize)
    }

    /// A state with one segment of `size` bytes that holds books, global state, `chunks` (size, lives) and the top.
    fn state(size: u64, chunks: &[(u64, bool)]) -> Forge {
        let mut forge = Forge { base: BASE, memory: vec![0; size as usize] };
        forge.put(BASE + 8, 880 | IN_USE | PREV_IN_USE);
        for bin in 0..32 {
            let at = BOOK + 56 + 16 * bin;
            forge.put(at + 16, at);
            forge.put(at + 24, at);
        }
        // A bin that was emptied keeps its links.
        forge.put(BOOK + 56 + 16 * 5 + 16, FIRST);
        forge.put(BOOK + 840, BASE);
        forge.put(BOOK + 848, size);
        forge.put(BOOK + 864, GLOBAL + 500);
        forge.global();
        let mut at = FIRST;
        let mut before = PREV_IN_USE;
        for &(size, lives) in chunks {
            forge.put(at + 8, size | before | if lives { IN_USE } else { 0 });
            if !lives {
                forge.put(at + size, size);
                forge.link(at, size);
            }
            before = if lives { PREV_IN_USE } else { 0 };
            at += size;
        }
        assert_eq!(before, PREV_IN_USE);
        forge.top(at, BASE + size);
        forge
    }

    fn global(&mut self) {
        self.put(BASE + 888, 6144 | IN_USE | PREV_IN_USE);
        let global = GLOBAL + 96;
        self.put(GLOBAL + 8, 6 << 8);
        self.put(GLOBAL + 16, global);
        self.put(global, CODE + 0x1234);
        self.put(global + 8, BOOK);
        self.put(global + 16, 7000);
        self.put(global + 24, 14000);
        self.put(global + 32, 1 << 8);
        self.put(global + 96, 6500);
        self.put(global + 192, GLOBAL);
    }

    /// Puts the free chunk at `at` into its list: a bin's, or one of its own.
    fn link(&mut self, at: u64, size: u64) {
        if size >= layout::MIN_LARGE {
            self.put(at + 16, at);
            self.put(at + 24, at);
            return;
        }
        let bin = BOOK + 56 + 2 * size;
        let is_empty = self.get(BOOK) >> (size / 8) & 1 == 0;
        let first = if is_empty { bin } else { self.get(bin + 16) };
        self.put(BOOK, self.get(BOOK) | 1 << (size / 8));
        self.put(at + 16, first);
        self.put(at + 24, bin);
        self.put(bin + 16, at);
        self.put(first + 24, at);
    }

    fn top(&mut self, at: u64, end: u64) {
        self.put(at + 8, (end - at - 64) | PREV_IN_USE);
        self.put(end - 64 + 8, 64);
        self.put(BOOK + 32, at);
        self.put(BOOK + 16, end - at - 64);
    }

    fn image(self) -> Image {
        let mut image = Image::default();
        image.map(Area {
            range: CODE..CODE + 0x2000,
            perms: Perms { read: true, write: false, exec: true, shared: false },
            inode: 7,
            path: b"/lib/libluajit-5.1.so.2".to_vec(),
            ..Area::anon(0..0)
        });
        Image::file(&mut image, b"/lib/libluajit-5.1.so.2", b"LuaJIT 2.x, LuaJIT 2.1.1700000000\0".to_vec());
        image.map(Area::anon(self.base..self.base + self.memory.len() as u64));
        image.put(self.base, self.memory);
        image
    }
}

/// A usual state: a free chunk of 10 pages among others.
fn usual() -> Forge {
    let mut chunks = vec![(32, true), (48, false), (64, true), (40_960, false), (8000, true)];
    for size in (32..2000).step_by(8) {
        chunks.extend([(size, true), (size % 256 + 32, false), (40, true)]);
    }
    Forge::state(1 << 20, &chunks)
}

fn one(source: &dyn MemorySource) -> Heap {
    let mut heaps = find_with_ranges(source).unwrap();
    assert_eq!(heaps.len(), 1);
    let heap = heaps.pop().unwrap();
    let Figures { mapped, live, cached, free, metadata, unused, .. } = heap.figures;
    assert_eq!(mapped, live + cached + free + metadata + unused);
    heap
}

/// A source that is not said to stand still, and shows something else for the first few reads of one place.
struct Running {
    image: Image,
    torn: Option<(u64, Vec<u8>)>,
    left: Cell<u32>,
    /// Whether the collector's count is another each time it is read.
    works: bool,
    count: Cell<u64>,
}

impl Running {
    fn new(image: Image) -> Running {
        Running { image, torn: None, left: Cell::new(0), works: false, count: Cell::new(0) }
    }
}

impl MemorySource for Running {
    fn areas(&self) -> &[Area] {
        self.image.areas()
    }

    fn read_ranges(&self, ranges: &[Range<u64>], buf: &mut [u8]) -> Result<usize, Fault> {
        let mut other = self.image.clone();
        if self.works {
            self.count.set(self.count.get() + 1);
            other.patch(GLOBAL + 96 + 16, &self.count.get().to_le_bytes());
        }
        if let Some((at, bytes)) = &self.torn
            && ranges.iter().any(|range| range.contains(at))
            && self.left.get() > 0
        {
            self.left.set(self.left.get() - 1);
            other.patch(*at, bytes);
        }
        other.read_ranges(ranges, buf)
    }

    fn pages(&self, range: Range<u64>, each: &mut dyn FnMut(Range<u64>, PageState)) -> Result<(), Fault> {
        self.image.pages(range, each)
    }

    fn file(&self, area: &Area) -> Result<Box<dyn ReadSeek>, Fault> {
        self.image.file(area)
    }

    fn is_still(&self) -> bool {
        false
    }
}

#[test]
fn a_state_to_the_byte() {
    let heap =
        one(&Forge::state(256 << 10, &[(64, true), (48, false), (32, true), (40_960, false), (96, true)])
            .image());
    assert_eq!(heap.version.as_deref(), Some("2.1.1700000000"));
    assert_eq!((heap.corruptions.as_slice(), heap.certainty.unresolved), (&[][..], Bytes::ZERO));
    let figures = heap.figures;
    assert_eq!((figures.mapped, figures.metadata), (Bytes(256 << 10), Bytes(880 + 64)));
    assert_eq!(figures.live, Bytes(6144 + 64 + 32 + 96));
    assert_eq!(figures.free, figures.mapped - figures.live - figures.metadata);
    assert_eq!(figures.free_chunks, 3);
    // Behind the header of the free chunk and of the top come nine pages and the rest of the segment but one.
    let chunk = FIRST + 64 + 48 + 32;
    let first = (chunk + 64).next_multiple_of(4096);
    let top = (chunk + 40_960 + 96 + 16).next_multiple_of(4096);
    let end = BASE + (256 << 10) - 4096;
    assert_eq!(heap.returnable_ranges.unwrap(), [first..first + 9 * 4096, top..end]);
    let collector = heap.arenas[0].collector.unwrap();
    assert_eq!(
        (collector.total, collector.threshold, collector.phase),
        (Bytes(7000), Bytes(14000), "propagate")
    );
    assert_eq!(heap.claims, std::slice::from_ref(&(BASE..BASE + (256 << 10))));
    assert_eq!(find(&usual().image()).unwrap()[0].returnable_ranges, None);
}

#[test]
fn segments_and_large_blocks() {
    // A second segment above, whose end has the record of the first: the top is in the first still.
    let mut forge = usual();
    let (second, end) = (BASE + (1 << 20), BASE + (1 << 20) + (128 << 10));
    forge.memory.resize(forge.memory.len() + (128 << 10), 0);
    let size = (128 << 10) - 64;
    forge.put(second + 8, size | PREV_IN_USE | IN_USE);
    forge.put(end - 64 + 8, 32 | PREV_IN_USE | IN_USE);
    for fence in [24, 16, 8] {
        forge.put(end - fence, FENCE);
    }
    forge.put(BOOK + 856, end - 48);
    forge.put(end - 48, second);
    forge.put(end - 40, 128 << 10);
    // A block of three pages behind, and one that ends as none.
    forge.memory.resize(forge.memory.len() + (5 << 12), 0);
    for (at, pages) in [(end, 3), (end + (3 << 12), 2)] {
        forge.put(at, 1);
        forge.put(at + 8, ((pages << 12) - 32) | IN_USE);
    }
    forge.put(end + (3 << 12) - 24, FENCE);
    let heap = one(&forge.clone().image());
    assert_eq!(heap.corruptions, []);
    assert_eq!(heap.figures.mapped, Bytes((1 << 20) + (128 << 10) + (3 << 12)));
    assert_eq!(heap.figures.metadata, Bytes(880 + 64 + 32 + 32 + 32));
    assert_eq!(heap.claims, std::slice::from_ref(&(BASE..end + (3 << 12))));
    // A list without an end.
    forge.put(end - 32, end - 48);
    let heap = one(&forge.clone().image());
    assert_eq!(heap.corruptions[0].what, "the list of segments has no end");
    // A list that leads astray.
    forge.put(end - 32, 0x5000);
    assert_eq!(one(&forge.image()).corruptions[0].what, "the list of segments leads out of memory");
}

#[test]
fn one_witness_is_not_enough() {
    let global = GLOBAL + 96;
    let lies: [(&str, u64, u64); 9] = [
        ("the chunk of the books", BASE + 8, 888 | IN_USE | PREV_IN_USE),
        ("a small bin", BOOK + 72, BOOK + 64),
        ("the segment's base", BOOK + 840, BASE + 8),
        ("the segment's size", BOOK + 848, 1 << 48),
        ("the first block's type", GLOBAL + 8, 5 << 8),
        ("the way to the global state", GLOBAL + 16, global + 8),
        ("the way to the books", global + 8, BOOK + 8),
        ("the allocator's function", global, BASE + 8),
        ("the way to the main thread", global + 192, GLOBAL + 8),
    ];
    for (lie, at, value) in lies {
        let mut forge = usual();
        forge.put(at, value);
        assert_eq!(find(&forge.image()).unwrap(), [], "{lie}");
    }
    let mut image = usual().image();
    Image::file(&mut image, b"/lib/libluajit-5.1.so.2", b"LuaJIT 2.x is what it is not".to_vec());
    assert_eq!(find(&image).unwrap(), []);
}

#[test]
fn damage_is_told_and_walked_around() {
    let whole = one(&usual().image());
    // The 40 KiB chunk and the 8,000 bytes behind it.
    let chunk = FIRST + 32 + 48 + 64;
    for (at, value) in [
        (chunk + 8, 0),
        (chunk + 8, u64::MAX),
        (chunk + 8, (1 << 63) | 1),
        (chunk + 8, 40_960 | 4),
        (chunk + 40_960, 1 << 20),
        (chunk + 40_960 + 8, 8000 | IN_USE | PREV_IN_USE),
        (chunk + 16, chunk + 8),
        (FIRST + 32 + 24, 0x1_0000_0000),
        (BOOK + 32, FIRST),
        (BOOK + 8, 64),
    ] {
        let mut forge = usual();
        forge.put(at, value);
        let heap = one(&forge.image());
        assert!(!heap.corruptions.is_empty(), "{:#x} {value:#x}", at - BASE);
        let lost = heap.certainty.unresolved;
        assert!(lost <= Bytes(50_000), "{:#x} {value:#x}: {lost}", at - BASE);
        assert_eq!(heap.figures.unused, lost);
        assert_eq!(heap.figures.mapped, whole.figures.mapped);
    }
}

#[test]
fn what_a_running_process_changes_is_read_again() {
    let chunk = FIRST + 32 + 48 + 64;
    let torn = |left| Running {
        torn: Some((chunk + 8, vec![0xff; 8])),
        left: Cell::new(left),
        ..Running::new(usual().image())
    };
    let whole = one(&usual().image());
    for left in [2, 3] {
        let heap = one(&torn(left));
        assert!(heap.certainty.reread > 0 && !heap.certainty.still);
        assert_eq!((heap.figures, heap.certainty.unresolved), (whole.figures, Bytes::ZERO));
    }
    // A process that allocates meanwhile is not accused of damage.
    let dv =
        Running { torn: Some((BOOK + 8, vec![9; 8])), left: Cell::new(1), ..Running::new(usual().image()) };
    assert_eq!(one(&dv).corruptions, []);
    // What stays as it is may be damage, or a thread in the middle of an allocation; if the state went on, damage.
    for (at, bytes) in [(chunk + 8, vec![0xff; 8]), (chunk + 16, vec![7; 8])] {
        let mut damaged =
            Running { torn: Some((at, bytes)), left: Cell::new(u32::MAX), ..Running::new(usual().image()) };
        let heap = one(&damaged);
        assert_eq!(heap.corruptions, []);
        assert!(heap.notes.iter().any(|note| note.contains("places do not add up")), "{:?}", heap.notes);
        damaged.works = true;
        let heap = one(&damaged);
        assert_eq!(heap.corruptions.is_empty(), heap.certainty.unresolved == Bytes::ZERO);
    }
}

#[test]
fn pages_that_are_away() {
    let mut forge = usual();
    let behind = forge.memory.split_off(40 << 12);
    let mut image = forge.image();
    image.put(BASE + (41 << 12), behind[1 << 12..].to_vec());
    image.map(Area::anon(BASE + (40 << 12)..BASE + (1 << 20)));
    // Two mappings that the kernel did not merge, and a page that is absent in the midst of live blocks.
    let heap = one(&image);
    assert_eq!(heap.figures.mapped, Bytes(1 << 20));
    assert!(heap.certainty.unresolved >= Bytes(4096) && heap.certainty.unresolved < Bytes(16_384));
}

/// What a patch may put in.
fn value() -> impl Strategy<Value = u64> {
    prop_oneof![
        any::<u64>(),
        (0..(1_u64 << 21)).prop_map(|offset| BASE + offset),
        (0..(1_u64 << 21)),
        (0..64_u32).prop_map(|shift| 1 << shift),
        Just(0),
        Just(FENCE),
        Just(u64::MAX),
        Just((128 << 10) - 32 + IN_USE),
    ]
}

/// Where: anywhere, or in the books and the global state.
fn place() -> impl Strategy<Value = u64> {
    prop_oneof![0..(1_u64 << 17), 0..900_u64, 900..1300_u64].prop_map(|word| BASE + word / 8 * 8)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_states(patches in prop::collection::vec((place(), value()), 1..12), runs: bool) {
        let mut forge = usual();
        for (at, value) in patches {
            forge.put(at, value);
        }
        let image = forge.image();
        let running = Running::new(image.clone());
        let source: &dyn MemorySource = if runs { &running } else { &image };
        for heap in find_with_ranges(source).unwrap() {
            let Figures { mapped, live, free, metadata, unused, returnable, pinned_free, .. } = heap.figures;
            prop_assert_eq!(mapped, live + free + metadata + unused);
            prop_assert!(returnable + pinned_free <= free);
            // Of one that runs, books may name memory that is newer than the list of mappings.
            prop_assert!(runs || mapped <= Bytes(1 << 20));
            prop_assert!(heap.claims.is_sorted_by(|a, b| a.end <= b.start));
            for range in heap.returnable_ranges.unwrap() {
                prop_assert!(heap.claims.iter().any(|claim| claim.start <= range.start && range.end <= claim.end));
            }
        }
    }

    #[test]
    fn arbitrary_memory(words in prop::collection::vec(value(), 64..256)) {
        let mut forge = usual();
        for (at, word) in (BASE + 8192..BASE + 40_960).step_by(8).zip(words.iter().cycle()) {
            forge.put(at, *word);
        }
        let _ = one(&forge.image());
    }
}
