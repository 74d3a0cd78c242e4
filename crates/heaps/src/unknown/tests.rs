//! The rest of made-up processes.

use super::*;
use crate::Image;
use ebbtide_observe::process::{Device, Perms};

const PAGE: u64 = 4096;

fn area(range: Range<u64>, perms: &str, path: &str) -> Area {
    Area {
        range,
        perms: Perms::parse(perms.as_bytes()).unwrap(),
        offset: Bytes::ZERO,
        dev: Device::default(),
        inode: u64::from(path.starts_with('/')),
        path: path.as_bytes().to_vec(),
    }
}

/// A source that answers as the kernel does: of pages, and from the beginning of one.
struct Pages(Image);

impl MemorySource for Pages {
    fn areas(&self) -> &[Area] {
        self.0.areas()
    }

    fn read_ranges(&self, ranges: &[Range<u64>], buf: &mut [u8]) -> Result<usize, Fault> {
        self.0.read_ranges(ranges, buf)
    }

    fn pages(&self, range: Range<u64>, each: &mut dyn FnMut(Range<u64>, PageState)) -> Result<(), Fault> {
        if !range.start.is_multiple_of(PAGE) {
            return Err(Fault::Os("pagemap", rustix::io::Errno::INVAL));
        }
        self.0.pages(range.start..range.end.next_multiple_of(PAGE), each)
    }

    fn file(&self, area: &Area) -> Result<Box<dyn crate::ReadSeek>, Fault> {
        self.0.file(area)
    }

    fn is_still(&self) -> bool {
        true
    }
}

/// A process with these mappings, of each the first page present.
fn process(areas: &[(Range<u64>, &str, &str)]) -> Image {
    let mut image = Image::default();
    for (range, perms, path) in areas {
        image.map(area(range.clone(), perms, path));
        image.put(range.start, vec![0; PAGE as usize]);
    }
    image
}

fn put(image: &mut Image, address: u64, words: &[u64]) {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    image.patch(address, &bytes);
}

fn named(image: &Image, claims: &[Range<u64>], around: &Around) -> Vec<(String, u64, u64)> {
    let rest = rest(image, claims, around).unwrap();
    let figures = |heap: &Heap| (heap.figures.mapped.0 / PAGE, heap.figures.resident.0 / PAGE);
    let named = rest.heaps.iter().map(|heap| (heap.name.clone().unwrap(), figures(heap)));
    named.map(|(name, (mapped, resident))| (name, mapped, resident)).collect()
}

#[test]
fn what_is_left_of_a_range() {
    let left = |claims: &[Range<u64>]| -> Vec<(u64, u64)> {
        without(10..20, &merged(claims.to_vec())).iter().map(|rest| (rest.start, rest.end)).collect()
    };
    assert_eq!(left(&[]), [(10, 20)]);
    assert_eq!(left(&[18..30, 11..14, 0..5, 8..12]), [(14, 18)]);
    assert_eq!(left(&[5..11, 12..13, 25..30]), [(11, 12), (13, 20)]);
    assert_eq!(left(&[5..12, 10..40]), []);
}

#[test]
fn a_claim_ends_anywhere() {
    let image = process(&[(0x10_0000..0x20_0000, "rw-p", "")]);
    let asked = Pages(image);
    for claim in [0x10_0008..0x10_0010, 0x10_0ff8..0x10_1008, 0x10_0000..0x10_0001, 0x1f_ffff..u64::MAX] {
        let claimed = claim.end.min(0x20_0000) - claim.start;
        let first = claim.end.min(0x10_1000).saturating_sub(claim.start);
        let rest = rest(&asked, std::slice::from_ref(&claim), &Around::default()).unwrap();
        let figures = &rest.heaps[0].figures;
        assert_eq!((figures.mapped.0, figures.resident.0), (0x10_0000 - claimed, PAGE - first), "{claim:x?}");
    }
}

#[test]
fn every_byte_is_in_one_place() {
    let image = process(&[
        (0x1_0000..0x1_2000, "rw-p", "/bin/program"),
        (0x2_0000..0x2_4000, "rw-p", "[heap]"),
        (0x7f00_0000_0000..0x7f00_0000_8000, "rw-p", ""),
        (0x7f00_0001_0000..0x7f00_0001_2000, "rw-p", "[anon: name]"),
        (0x7f00_0002_0000..0x7f00_0002_3000, "rwxp", ""),
        (0x7f00_0002_3000..0x7f00_0002_4000, "r-xp", ""),
        (0x7f00_0003_0000..0x7f00_0003_2000, "rw-s", ""),
        (0x7f00_0004_0000..0x7f00_0004_2000, "---p", ""),
        (0x7f00_0004_2000..0x7f00_0004_9000, "rw-p", ""),
        (0x7f00_0005_0000..0x7f00_0005_1000, "r--p", ""),
        (0x7ffe_0000_0000..0x7ffe_0000_5000, "rw-p", "[stack]"),
        (0x7ffe_0001_0000..0x7ffe_0001_2000, "r-xp", "[vdso]"),
    ]);
    let hints = Hints { stack_pointers: vec![0x7f00_0004_8000], complete: true, ..Hints::default() };
    let around = Around { hints, jvm: None };
    let found = rest(&image, &[], &around).unwrap();
    let pages = |extent: Extent| (extent.mapped.0 / PAGE, extent.resident.0 / PAGE);
    assert_eq!((pages(found.stacks), pages(found.code)), ((12, 2), (4, 2)));
    let all = [("anonymous", 9, 2), ("brk heap", 4, 1), ("name", 2, 1)];
    assert_eq!(
        named(&image, &[], &around),
        all.map(|(name, mapped, there)| (name.to_owned(), mapped, there))
    );
    // Of what others claim nothing is told, and of what is not in memory neither.
    let claims = [0x2_0000..0x2_1000, 0x7f00_0000_1000..0x7f00_0000_3000, 0x7f00_0001_0000..0x7f00_0001_2000];
    assert_eq!(named(&image, &claims, &around), [("anonymous".to_owned(), 7, 2)]);
}

#[test]
fn labels_are_names() {
    for (path, name) in [("[anon: Go: heap]", "Go heap"), ("[anon:libc_malloc]", "libc_malloc"), ("[x", "[x")]
    {
        assert_eq!(label(path.as_bytes()), name);
    }
}

const CHUNK: u64 = 2 << 20;

#[test]
fn zend_chunks_are_a_ring() {
    let at = 0x7f00_0000_0000;
    let mut image = process(&[
        (0x40_0000..0x40_1000, "r-xp", "/usr/bin/php8.2"),
        (at..at + 2 * CHUNK, "rw-p", ""),
        (at + 4 * CHUNK..at + 5 * CHUNK, "rw-p", ""),
    ]);
    let (first, second, books) = (at + CHUNK, at + 4 * CHUNK, at + CHUNK + 0x40);
    image.put(first, vec![0; PAGE as usize]);
    put(&mut image, first, &[books, second, second]);
    put(&mut image, second, &[books, first, first]);
    let around = Around::default();
    let pages = CHUNK / PAGE;
    let php = ("PHP heap".to_owned(), 2 * pages, 2);
    assert_eq!(named(&image, &[], &around), [php, ("anonymous".to_owned(), pages, 1)]);
    // A ring that does not close is none.
    put(&mut image, second, &[books, first, second]);
    assert_eq!(named(&image, &[], &around), [("anonymous".to_owned(), 3 * pages, 3)]);
}

#[test]
fn ruby_pages_are_known_by_their_books() {
    let (page, at, books) = (64 << 10, 0x7f00_0000_0000, 0x2_0000);
    let mut image = process(&[
        (0x1_0000..0x1_1000, "r-xp", "/usr/lib/libruby-3.1.so.3.1.2"),
        (books..books + PAGE, "rw-p", "[heap]"),
        (at..at + 3 * page, "rw-p", ""),
    ]);
    image.put(at + page, vec![0; PAGE as usize]);
    put(&mut image, at, &[books]);
    put(&mut image, books, &[40, 1, 0, 0, at + 0x28]);
    // Another's books.
    put(&mut image, at + page, &[books]);
    let pages = page / PAGE;
    let expected = [("Ruby heap", pages, 1), ("anonymous", 2 * pages, 1), ("brk heap", 1, 1)];
    assert_eq!(
        named(&image, &[], &Around::default()),
        expected.map(|(name, mapped, there)| (name.to_owned(), mapped, there))
    );
}

#[test]
fn v8_pages_tell_their_size_and_heap() {
    let (page, at) = (256u64 << 10, 0x10_0000_0000u64);
    let mut image = process(&[
        (0x1_0000..0x1_1000, "r-xp", "/usr/bin/node"),
        (at..at + page, "rw-p", ""),
        (at + 2 * page..at + 2 * page + 0x5000, "rw-p", ""),
        (at + 4 * page..at + 5 * page, "rw-p", ""),
    ]);
    let head = |at: u64, size: u64, heap: u64| [size, 4, heap, at + 0x1148, at + size - 8];
    let heap = 0x3e0_ecfb0;
    put(&mut image, at, &head(at, page, heap));
    put(&mut image, at + 2 * page, &head(at + 2 * page, 0x5000, heap));
    // One that says it is larger than its mapping.
    put(&mut image, at + 4 * page, &head(at + 4 * page, 2 * page, heap));
    let found = named(&image, &[], &Around::default());
    let pages = page / PAGE;
    assert_eq!(found, [("V8 heap".to_owned(), pages + 5, 2), ("anonymous".to_owned(), pages, 1)]);
    // Alone it is none.
    put(&mut image, at + 2 * page, &[0]);
    assert_eq!(named(&image, &[], &Around::default()), [("anonymous".to_owned(), 2 * pages + 5, 3)]);
}

#[test]
fn a_jvms_heap_is_what_it_says_it_has_committed() {
    let at = 0x7_0000_0000;
    let areas = |committed: u64| {
        process(&[
            (at..at + committed, "rw-p", ""),
            (at + committed..at + 0x10_0000, "---p", ""),
            (0x7f00_0000_0000..0x7f00_0008_0000, "rw-p", ""),
        ])
    };
    let mut jvm = Jvm::default();
    (jvm.heap.committed, jvm.heap.max, jvm.heap.used) = (Bytes(0x4_0000), Bytes(0x10_0000), Bytes(0x1000));
    let around = Around { jvm: Some(jvm), ..Around::default() };
    let found = rest(&areas(0x4_0000), &[], &around).unwrap().heaps;
    assert_eq!(found[0].name.as_deref(), Some("JVM heap"));
    assert_eq!((found[0].figures.mapped, found[0].notes.len()), (Bytes(0x4_0000), 1));
    assert!(found[1].notes.is_empty());
    // Resized since: which part is the heap is not sure any more; what the JVM counts is told all the same.
    let found = rest(&areas(0x5_0000), &[], &around).unwrap().heaps;
    assert_eq!((found.len(), found[0].name.as_deref()), (1, Some("anonymous")));
    assert!(found[0].notes[0].contains("256 KiB committed"), "{:?}", found[0].notes);
}

#[test]
fn gos_arenas_need_gos_program() {
    let image = process(&[
        (0x40_0000..0x40_1000, "r-xp", "/usr/bin/program"),
        (0xc0_0000_0000..0xc0_0400_0000, "rw-p", ""),
    ]);
    assert_eq!(named(&image, &[], &Around::default())[0].0, "anonymous");
}
