//! Tests on pictures: a libc's file and a heap made by hand in every layout there is, for x86_64 and aarch64, and
//! the same with damage.

use super::layout::{Cache, FAST_BINS, Key, Layout, MMAPPED, PREV_IN_USE};
use super::*;
use crate::image::Image;
use crate::source::{Area, PageState};
use ebbtide_observe::process::{Device, Perms};
use proptest::prelude::*;

const PAGE: u64 = 4096;
const LIBC: u64 = 0x7f00_0000_0000;
/// Addresses in the libc's file.
const DATA: u64 = 0x1000;
const PARAMS: u64 = DATA + 0x200;
const ARENA: u64 = DATA + 0x400;
const HEAP: u64 = 0x5500_0000_0000;
const THREAD: u64 = 0x7e00_0400_0000;
const LARGE: u64 = 0x7e80_0000_0000;
const KEY: u64 = 0x1234_5678_9abc_def1;

/// What a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Is {
    Live,
    Free,
    Quick,
    Cached,
    /// Of the cache's own chunk.
    Cache,
    Top,
}

/// Memory of one stretch of chunks, and what its arena says of them.
struct Stretch {
    base: u64,
    bytes: Vec<u8>,
    chunks: Vec<(u64, u64, Is)>,
}

impl Stretch {
    /// `chunks` from `first` on in memory of `size` bytes at `base`; what is left is the top.
    fn new(base: u64, size: u64, first: u64, chunks: &[(u64, Is)]) -> Stretch {
        let mut stretch = Stretch { base, bytes: vec![0; size as usize], chunks: Vec::new() };
        let mut at = first;
        for &(size, is) in chunks {
            stretch.chunks.push((at, size, is));
            at += size;
        }
        stretch.chunks.push((at, base + size - at, Is::Top));
        let mut before = (0, Is::Live);
        for (at, size, is) in stretch.chunks.clone() {
            let in_use = if before.1 == Is::Free { 0 } else { PREV_IN_USE };
            stretch.put(at + 8, size | in_use);
            if in_use == 0 {
                stretch.put(at, before.0);
            }
            before = (size, is);
        }
        stretch
    }

    fn put(&mut self, at: u64, word: u64) {
        let at = (at - self.base) as usize;
        self.bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }

    fn sum(&self, wanted: Is) -> u64 {
        self.chunks.iter().filter(|(.., is)| *is == wanted).map(|(_, size, _)| size).sum()
    }

    fn top(&self) -> u64 {
        self.chunks.last().unwrap().0
    }

    /// Links the chunks that are `wanted` and of `size`; the head, as an address `into` the chunk.
    fn link(&mut self, layout: &Layout, wanted: Is, size: u64, into: u64, key: Option<u64>) -> (u64, u64) {
        let (mut head, mut count) = (0, 0);
        for (at, ..) in self.chunks.clone().into_iter().filter(|&(_, s, is)| (s, is) == (size, wanted)) {
            self.put(at + 16, layout.link(at + 16, head));
            key.into_iter().for_each(|key| self.put(at + 24, key));
            (head, count) = (at + into, count + 1);
        }
        (head, count)
    }

    /// Fills the cache in the chunk that is one.
    fn fill_cache(&mut self, layout: &Layout, cache: &Cache, count_most: u64) {
        let Some((chunk, ..)) = self.chunks.iter().copied().find(|(.., is)| *is == Is::Cache) else { return };
        let key = match cache.key {
            Key::None => None,
            Key::Address => Some(chunk + 16),
            _ => Some(KEY),
        };
        let mut content = vec![0; cache.size()];
        for bin in 0..cache.bins {
            let size = if bin < 64 { 32 + 16 * bin as u64 } else { 1040 << (bin - 63) };
            let (head, count) = self.link(layout, Is::Cached, size, 16, key);
            let count = if cache.counts_room { count_most - count } else { count };
            content[bin * cache.count..][..cache.count].copy_from_slice(&count.to_le_bytes()[..cache.count]);
            content[cache.bins * cache.count + 8 * bin..][..8].copy_from_slice(&head.to_le_bytes());
        }
        let at = (chunk + 16 - self.base) as usize;
        self.bytes[at..at + content.len()].copy_from_slice(&content);
    }

    /// The arena's books at `address`.
    fn state(&mut self, layout: &Layout, address: u64, next: u64, system: u64) -> Vec<u8> {
        let mut state = vec![0; layout.state_size()];
        let mut put = |at: usize, word: u64| state[at..at + 8].copy_from_slice(&word.to_le_bytes());
        if let Some(fast) = layout.fast {
            for bin in 0..FAST_BINS {
                put(fast + 8 * bin, self.link(layout, Is::Quick, 32 + 16 * bin as u64, 0, None).0);
            }
        }
        put(layout.top, self.top());
        for bin in 0..layout::BINS {
            let at = layout.bins + 16 * bin;
            let bin = address + at as u64 - 16;
            put(at, bin);
            put(at + 8, bin);
        }
        put(layout.next, next);
        put(layout.system, system);
        put(layout.system + 8, system);
        state
    }
}

fn area(start: u64, size: u64, perms: &[u8], path: &[u8], offset: u64) -> Area {
    Area {
        range: start..start + size,
        perms: Perms::parse(perms).unwrap(),
        offset: Bytes(offset),
        dev: Device::default(),
        inode: u64::from(path.starts_with(b"/")),
        path: path.to_vec(),
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// A stripped libc.so.6 of `layout` for `machine`: two segments, one relocation, no sections.
fn libc_file(layout: &Layout, machine: u16, banner: &str) -> Vec<u8> {
    let mut file = vec![0; 0x3000];
    let mut put = |at: u64, bytes: &[u8]| file[at as usize..][..bytes.len()].copy_from_slice(bytes);
    put(0, b"\x7fELF\x02\x01\x01");
    put(0x10, &[3u16, machine].map(u16::to_le_bytes).concat());
    put(0x14, &1u32.to_le_bytes());
    put(0x20, &words(&[64]));
    put(0x34, &[64u16, 56, 3, 64].map(u16::to_le_bytes).concat());
    let segment =
        |kind: u64, flags: u64, at: u64, size: u64| words(&[kind | flags << 32, at, at, at, size, size, 8]);
    put(64, &[segment(1, 5, 0, DATA), segment(1, 6, DATA, 0x2000), segment(2, 6, DATA, 64)].concat());
    put(0x300, banner.as_bytes());
    let relative = if machine == 62 { 8 } else { 1027 };
    put(0x800, &words(&[ARENA + layout.next as u64, relative, ARENA]));
    put(DATA, &words(&[7, 0x800, 8, 24, 0, 0]));
    put(PARAMS, &params(layout, 0, 0, 0));
    file
}

/// `mp_` with these changing fields; with none set, as it is in the file.
fn params(layout: &Layout, n_mmaps: u32, mmapped: u64, sbrk_base: u64) -> Vec<u8> {
    let at = &layout.params;
    let mut params = vec![0; at.size];
    params[..40].copy_from_slice(&words(&[128 << 10, 128 << 10, 128 << 10, 8, 0]));
    params[at.n_mmaps..][..4].copy_from_slice(&n_mmaps.to_le_bytes());
    params[at.n_mmaps + 4..][..4].copy_from_slice(&65536u32.to_le_bytes());
    params[at.mmapped..][..8].copy_from_slice(&mmapped.to_le_bytes());
    params[at.sbrk_base..][..8].copy_from_slice(&sbrk_base.to_le_bytes());
    if let Some(cache) = at.cache {
        params[cache..cache + 24].copy_from_slice(&words(&[64, 1032, 7]));
    }
    params
}

/// A process with a main arena, a thread arena and two large blocks, and the stretches of its arenas.
fn process(layout: &Layout, machine: u16) -> (Image, [Stretch; 2]) {
    use Is::*;
    let cache = layout.caches.first();
    let quick = if layout.fast.is_some() { Quick } else { Live };
    let cached = if cache.is_some() { Cached } else { Live };
    let own = cache.map_or((0x290, Live), |cache| (cache.chunk(), Cache));
    let main = [
        own,
        (0x40, cached),
        (0x40, Live),
        (0x40, cached),
        (0x2f0, cached),
        (0x5000, Free),
        (0x50, quick),
        (0x3000, Free),
        (0x50, Live),
        (0x50, quick),
        (0x20, Live),
        (0x1_0000, Live),
        (0x800, Free),
        (0x30, Live),
    ];
    let mut main = Stretch::new(HEAP, 0x4_0000, HEAP, &main);
    let first = THREAD + (layout.heap_info + layout.state_size() as u64).next_multiple_of(16);
    let mut thread = Stretch::new(THREAD, 0x2_1000, first, &[(0x40, Live), (0x6000, Free), (0x30, quick)]);
    let arena = THREAD + layout.heap_info;

    if let Some(cache) = cache {
        main.fill_cache(layout, cache, 7);
    }
    let state = thread.state(layout, arena, LIBC + ARENA, 0x2_1000);
    let info = words(&[arena, 0, 0x2_1000, 0x2_1000]);
    thread.bytes[..info.len()].copy_from_slice(&info);
    let at = layout.heap_info as usize;
    thread.bytes[at..at + state.len()].copy_from_slice(&state);

    let mut image = Image::default();
    let banner = format!("GNU C Library (Some GLIBC 2.{0}) stable release version 2.{0}.\n", layout.minor);
    let path = b"/usr/lib/libc.so.6";
    let mut data = libc_file(layout, machine, &banner);
    Image::file(&mut image, path, data.clone());
    image.map(area(HEAP, 0x4_0000, b"rw-p", b"[heap]", 0));
    image.map(area(THREAD, 0x2_1000, b"rw-p", b"", 0));
    image.map(area(THREAD + 0x2_1000, (64 << 20) - 0x2_1000, b"---p", b"", 0));
    image.map(area(LARGE, 0x9_0000, b"rw-p", b"", 0));
    image.map(area(LIBC, DATA, b"r-xp", path, 0));
    image.map(area(LIBC + DATA, 0x2000, b"rw-p", path, DATA));

    let state = main.state(layout, LIBC + ARENA, arena, 0x4_0000);
    data[ARENA as usize..][..state.len()].copy_from_slice(&state);
    let params = params(layout, 2, 0x9_0000, HEAP);
    data[PARAMS as usize..][..params.len()].copy_from_slice(&params);
    image.put(LIBC + DATA, data[DATA as usize..].to_vec());
    image.put(HEAP, main.bytes.clone());
    image.put(THREAD, thread.bytes.clone());
    let mut large = vec![0; 0x9_0000];
    let tail = layout.mmapped_tail();
    large[8..16].copy_from_slice(&((0x5_0000 - tail) | MMAPPED).to_le_bytes());
    // Aligned to a page: the header stands before the second page, the old one is left.
    large[0x5_0008..][..8].copy_from_slice(&((0x4_0000 - tail) | MMAPPED).to_le_bytes());
    large[0x5_0ff0..][..16].copy_from_slice(&words(&[0xff0, (0x4_0000 - 0xff0 - tail) | MMAPPED]));
    image.put(LARGE, large);
    (image, [main, thread])
}

fn layouts() -> impl Iterator<Item = Layout> {
    (17..=43).flat_map(Layout::of)
}

#[test]
fn every_layout_on_two_machines() {
    for (layout, machine) in layouts().flat_map(|layout| [(layout, 62), (layout, 183)]) {
        let (image, stretches) = process(&layout, machine);
        let heaps = find(&image).unwrap();
        let [heap] = heaps.as_slice() else { panic!("{heaps:?} {layout:?}") };
        let sum = |is| stretches.iter().map(|stretch| stretch.sum(is)).sum::<u64>();
        let figures = heap.figures;
        let tail = 2 * layout.mmapped_tail();
        assert_eq!(heap.version, Some(format!("2.{}", layout.minor)));
        assert_eq!((&heap.corruptions, &heap.notes), (&Vec::new(), &Vec::new()), "{layout:?}");
        assert_eq!(heap.certainty.unresolved, Bytes::ZERO);
        assert_eq!(figures.live.0, sum(Is::Live) + 0x9_0000 - 0xff0 - tail, "{layout:?}");
        assert_eq!(figures.cached.0, sum(Is::Cached) + sum(Is::Quick), "{layout:?}");
        assert_eq!(figures.free.0, sum(Is::Free) + sum(Is::Top), "{layout:?}");
        assert_eq!(figures.unused, Bytes::ZERO, "{layout:?}");
        assert_eq!(figures.mapped.0, 0x4_0000 + 0x2_1000 + 0x9_0000);
        let names: Vec<_> = heap.arenas.iter().map(|arena| arena.name.as_str()).collect();
        assert_eq!(names, ["main", "thread 1", "mmapped"]);
        let claims = [HEAP..HEAP + 0x4_0000, THREAD..THREAD + (64 << 20), LARGE..LARGE + 0x9_0000];
        assert_eq!(heap.claims, claims);
    }
}

/// By hand: what mtrim and systrim do to the main arena of [`process`].
#[test]
fn trim_merges_quick_lists_and_keeps_headers() {
    let whole = |from: u64, to: u64| (to - to % PAGE).saturating_sub((from + 48).next_multiple_of(PAGE));
    for layout in layouts() {
        let (image, [main, thread]) = process(&layout, 62);
        let heap = find(&image).unwrap().remove(0);
        let at = |index: usize| main.chunks[index].0;
        let freed = match layout.fast {
            Some(_) => whole(at(5), at(8)),
            None => whole(at(5), at(6)) + whole(at(7), at(8)),
        };
        let spare = HEAP + 0x4_0000 - main.top() - 33;
        let of_main = freed + whole(at(12), at(13)) + (spare - spare % PAGE);
        // The quick list's chunk lies between the free one and the top, and makes them one.
        let of_thread = match layout.fast {
            Some(_) => 0,
            None => whole(thread.chunks[1].0, thread.chunks[2].0),
        };
        let found: Vec<_> = heap.arenas.iter().map(|arena| arena.figures.returnable_by_trim).collect();
        assert_eq!(found, [of_main, of_thread, 0].map(|bytes| Some(Bytes(bytes))), "{layout:?}");
    }
}

/// `no_dyn_threshold` by hand, from struct malloc_par of three releases.
#[test]
fn what_malloc_goes_by() {
    for layout in layouts() {
        let (mut image, _) = process(&layout, 62);
        let arenas = Arenas::find(&image).unwrap();
        let [arenas] = arenas.as_slice() else { panic!("{layout:?}") };
        let fresh = Tunables {
            trim_threshold: Bytes(128 << 10),
            mmap_threshold: Bytes(128 << 10),
            is_dynamic: true,
            arena_test: 8,
            arena_max: 0,
            arenas: 2,
        };
        assert_eq!(arenas.tunables(&image).unwrap(), Some(fresh), "{layout:?}");
        let no_dyn = match layout.minor {
            ..=34 => 0x34,
            35..=42 => 0x48,
            _ => 0x50,
        };
        let mut set = params(&layout, 2, 0x9_0000, HEAP);
        set[..40].copy_from_slice(&words(&[60 << 20, 128 << 10, 30 << 20, 8, 5]));
        set[no_dyn] = 1;
        image.put(LIBC + PARAMS, set);
        let risen = Tunables {
            trim_threshold: Bytes::from_mib(60),
            mmap_threshold: Bytes::from_mib(30),
            is_dynamic: false,
            arena_max: 5,
            ..fresh
        };
        assert_eq!(arenas.tunables(&image).unwrap(), Some(risen), "{layout:?}");
    }
}

#[test]
fn a_libc_that_is_not_used_or_not_known() {
    let layout = Layout::of(36)[0];
    let (image, _) = process(&layout, 62);
    // As the file has it: never initialised.
    let mut unused = image.clone();
    unused.patch(LIBC + DATA, &libc_file(&layout, 62, "")[DATA as usize..]);
    unused.patch(LIBC + ARENA + layout.next as u64, &(LIBC + ARENA).to_le_bytes());
    assert_eq!(find(&unused).unwrap(), []);
    // Another version than its structures are of.
    for (banner, notes) in [
        ("GNU C Library (x) stable release version 2.99.", vec!["glibc 2.99: its structures are not known"]),
        ("GNU C Library (x) stable release version 2.17.", vec!["glibc 2.17: its structures are not known"]),
        ("musl libc", vec![]),
    ] {
        let mut other = image.clone();
        Image::file(&mut other, b"/usr/lib/libc.so.6", libc_file(&layout, 62, banner));
        let found: Vec<_> = find(&other).unwrap().into_iter().flat_map(|heap| heap.notes).collect();
        assert_eq!(found, notes);
    }
    // A file that cannot be read is said.
    let mut gone = image.clone();
    Image::file(&mut gone, b"/usr/lib/libc.so.6", Vec::new());
    assert_eq!(find(&gone).unwrap(), []);
}

#[test]
fn damage_is_told_with_its_address() {
    let layout = Layout::of(36)[0];
    let (image, [main, _]) = process(&layout, 62);
    let chunk = |index: usize| main.chunks[index].0;
    for (address, word, told) in [
        (chunk(10) + 8, 0, chunk(10)),
        (chunk(10) + 8, 1 << 63, chunk(10)),
        (chunk(6), 0x123, chunk(6)),
        (chunk(9) + 16, (chunk(9) + 16) >> 12 ^ chunk(9), chunk(9)),
    ] {
        let mut damaged = image.clone();
        damaged.patch(address, &u64::to_le_bytes(word));
        let heap = find(&damaged).unwrap().remove(0);
        let addresses: Vec<_> = heap.corruptions.iter().map(|corruption| corruption.address).collect();
        assert_eq!(addresses, [told], "{address:#x} {word:#x}: {:?}", heap.corruptions);
        let figures = heap.figures;
        let named = figures.live + figures.cached + figures.free + figures.metadata;
        assert_eq!(named + figures.unused, figures.mapped);
    }
}

/// A picture of which some pages are swapped out. Reading them fails the test.
struct Swapped<'i>(&'i Image, Range<u64>);

impl MemorySource for Swapped<'_> {
    fn areas(&self) -> &[Area] {
        self.0.areas()
    }

    fn read_ranges(&self, ranges: &[Range<u64>], buf: &mut [u8]) -> Result<usize, Fault> {
        for range in ranges {
            assert!(range.end <= self.1.start || self.1.end <= range.start, "{range:x?} was faulted in");
        }
        self.0.read_ranges(ranges, buf)
    }

    fn pages(&self, range: Range<u64>, each: &mut dyn FnMut(Range<u64>, PageState)) -> Result<(), Fault> {
        self.0.pages(range, &mut |run, state| {
            let cut = run.start.max(self.1.start).min(run.end)..run.end.min(self.1.end).max(run.start);
            let parts = [
                (run.start..cut.start, state),
                (cut.clone(), PageState::Swapped),
                (cut.end.max(cut.start)..run.end, state),
            ];
            parts
                .into_iter()
                .filter(|(part, _)| !part.is_empty())
                .for_each(|(part, state)| each(part, state));
        })
    }

    fn file(&self, area: &Area) -> Result<Box<dyn crate::source::ReadSeek>, Fault> {
        MemorySource::file(self.0, area)
    }

    fn is_still(&self) -> bool {
        true
    }
}

#[test]
fn what_is_swapped_out_stays_there() {
    let layout = Layout::of(36)[0];
    let (image, [main, _]) = process(&layout, 62);
    let whole = find(&image).unwrap().remove(0);
    let page = |at: u64| at - at % PAGE..at - at % PAGE + PAGE;
    // Within a live block: nothing is missing but from what is resident.
    let heap = find(&Swapped(&image, page(main.chunks[11].0 + 2 * PAGE))).unwrap().remove(0);
    assert_eq!(heap.figures, Figures { resident: whole.figures.resident - Bytes(PAGE), ..whole.figures });
    // Where headers are: what they are of is not known, and is not called damage.
    let heap = find(&Swapped(&image, page(main.chunks[8].0))).unwrap().remove(0);
    let figures = heap.figures;
    assert!(heap.certainty.unresolved >= Bytes(PAGE / 2) && heap.corruptions.is_empty(), "{heap:?}");
    let named = figures.live + figures.cached + figures.free + figures.metadata;
    assert_eq!(named + figures.unused, figures.mapped);
    assert_eq!(figures.mapped, whole.figures.mapped);
    // The books themselves: said, too.
    let heap = find(&Swapped(&image, page(LIBC + DATA))).unwrap().remove(0);
    assert_eq!(
        (heap.figures, heap.notes),
        (Figures::default(), vec!["its books are swapped out".to_owned()])
    );
    let heap = find(&Swapped(&image, page(THREAD))).unwrap().remove(0);
    assert_eq!(heap.arenas.len(), 2);
    assert_eq!(heap.notes, ["an arena is swapped out: it and those behind it are not known"]);
}

/// A running process of which the mappings were listed a while ago.
struct Grown<'i> {
    image: &'i Image,
    then: Vec<Area>,
    now: Vec<Area>,
}

impl MemorySource for Grown<'_> {
    fn areas(&self) -> &[Area] {
        &self.then
    }

    fn areas_now(&self) -> Result<Option<Vec<Area>>, Fault> {
        Ok(Some(self.now.clone()))
    }

    fn read_ranges(&self, ranges: &[Range<u64>], buf: &mut [u8]) -> Result<usize, Fault> {
        self.image.read_ranges(ranges, buf)
    }

    fn pages(&self, range: Range<u64>, each: &mut dyn FnMut(Range<u64>, PageState)) -> Result<(), Fault> {
        self.image.pages(range, each)
    }

    fn file(&self, area: &Area) -> Result<Box<dyn crate::source::ReadSeek>, Fault> {
        MemorySource::file(self.image, area)
    }

    fn is_still(&self) -> bool {
        false
    }
}

#[test]
fn memory_newer_than_the_mappings() {
    let layout = Layout::of(36)[0];
    let (image, _) = process(&layout, 62);
    let now = image.areas().to_vec();
    let whole = find(&Grown { image: &image, then: now.clone(), now: now.clone() }).unwrap().remove(0);
    assert_eq!((whole.certainty.unresolved, whole.arenas.len()), (Bytes::ZERO, 3));
    // The arena's top ends behind what was mapped then, or lies there.
    for (grown, by) in [(HEAP, 0x2_0000), (HEAP, 0x3_0000), (THREAD, 0x1_0000), (THREAD, 0x2_0000)] {
        let mut then = now.clone();
        then.iter_mut().filter(|area| area.range.start == grown).for_each(|area| area.range.end -= by);
        let heap = find(&Grown { image: &image, then: then.clone(), now: now.clone() }).unwrap().remove(0);
        assert_eq!((heap.figures, &heap.notes), (whole.figures, &whole.notes), "{grown:x}");
        // It goes on growing as often as it is asked: never told as if that were all.
        let heap = find(&Grown { image: &image, then: then.clone(), now: then }).unwrap().remove(0);
        assert!(heap.notes.iter().any(|note| note.starts_with("arenas came")), "{:?}", heap.notes);
        let is_whole = heap.figures == whole.figures;
        assert!(is_whole || heap.certainty.unresolved > Bytes::ZERO, "{grown:x}: {:?}", heap.certainty);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever the target holds, the walk ends, and names no byte twice.
    #[test]
    fn any_damage_is_survived(
        minor in prop::sample::select(vec![17u32, 25, 28, 31, 36, 41, 42, 43]),
        damage in prop::collection::vec(
            (0u8..5, 0u64..0x1_0000, prop_oneof![
                any::<u64>(),
                0u64..0x1_0000,
                (0u64..0x4_0000).prop_map(|into| HEAP + into),
                (0u64..0x2_1000).prop_map(|into| THREAD + into),
                (0u64..0x3000).prop_map(|into| LIBC + into),
            ]),
            1..24,
        ),
    ) {
        let layout = Layout::of(minor)[0];
        let (mut image, stretches) = process(&layout, 62);
        for (place, into, word) in damage {
            let at = match place {
                0 => LIBC + ARENA + into % layout.state_size() as u64,
                1 => LIBC + PARAMS + into % layout.params.size as u64,
                2 => THREAD + into % 0x1000,
                3 => LARGE + into,
                _ => {
                    let chunks = &stretches[0].chunks;
                    chunks[into as usize % chunks.len()].0 + into % 5 * 8
                }
            };
            image.patch(at & !7, &word.to_le_bytes());
        }
        for heap in find(&image).unwrap() {
            let figures = heap.figures;
            let named = figures.live + figures.cached + figures.free + figures.metadata;
            prop_assert_eq!(named + figures.unused, figures.mapped);
            prop_assert!(heap.corruptions.len() <= CORRUPTIONS_MOST);
        }
    }

    /// A libc's file is the target's to change, too.
    #[test]
    fn any_file_is_survived(
        damage in prop::collection::vec((0usize..0x3000, any::<u64>()), 1..40),
        length in 0usize..0x3000,
        cut in any::<bool>(),
    ) {
        let layout = Layout::of(36)[0];
        let (mut image, _) = process(&layout, 62);
        let mut file = libc_file(&layout, 62, "GNU C Library (x) stable release version 2.36.");
        for (at, word) in damage {
            let at = if at % 3 == 0 { at % 256 } else { at }.min(0x2ff8);
            file[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        if cut {
            file.truncate(length);
        }
        Image::file(&mut image, b"/usr/lib/libc.so.6", file);
        find(&image).unwrap();
    }
}
