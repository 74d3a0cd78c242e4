//! Size classes: which slot an object gets, and how slots lie in pages.
//!
//! Invariants:
//! - a slot of at most [`PAGE`] / 2 bytes never crosses a page, so one page is the unit of placement and of
//!   giving back; sizes are therefore cut so that they fill a page (448 = nine to a page), not in equal ratios;
//! - a larger slot lies in a *span* of up to 16 pages that slots fill without a rest, or is
//!   whole pages by itself;
//! - a slot whose size is a multiple of 16 is aligned to 16, and one whose size is a multiple of a larger power
//!   of two (up to a page) to that: spans begin at a page;
//! - class 0 means "not a slot".

/// Bytes in a page. aarch64 kernels with 16 or 64 KiB pages are refused at start-up (`map::init`).
pub(crate) const PAGE: usize = 4096;

/// Classes, and class 0.
pub(crate) const CLASSES: usize = 58;

/// The largest slot.
pub(crate) const SLOT_MAX: usize = 65536;

/// Sizes up to this are looked up in steps of 8 or 16, larger ones in steps of 512.
pub(crate) const TABLE_MAX: usize = 2048;

/// Slots per span whose free bits fit into the page record itself (see `map`).
pub(crate) const WORD_SLOTS: u32 = 64;

/// What is to know about a class.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Class {
    /// Bytes in a slot.
    pub(crate) size: u32,
    /// ceil(2^32 / size): `offset * magic >> 32` is `offset / size` for every offset in a span.
    pub(crate) magic: u32,
    /// Slots in a span.
    pub(crate) slots: u32,
    /// Pages in a span.
    pub(crate) pages: u32,
    /// Turns a count of free slots into one of eight buckets, see [`Class::bucket`].
    bucket_magic: u32,
    /// Most pointers a thread's magazine of this class holds.
    pub(crate) magazine: u32,
}

/// Buckets of spans by how full they are.
pub(crate) const BUCKETS: u32 = 8;

/// (bytes in a slot, pages in a span)
const SHAPES: [(u32, u32); CLASSES - 1] = [
    (16, 1),
    (24, 1),
    (32, 1),
    (40, 1),
    (48, 1),
    (56, 1),
    (64, 1),
    (72, 1),
    (80, 1),
    (88, 1),
    (96, 1),
    (104, 1),
    (112, 1),
    (120, 1),
    (128, 1),
    (144, 1),
    (160, 1),
    (176, 1),
    (192, 1),
    (208, 1),
    (224, 1),
    (240, 1),
    (256, 1),
    (272, 1),
    (288, 1),
    (304, 1),
    (336, 1),
    (368, 1),
    (400, 1),
    (448, 1),
    (512, 1),
    (576, 1),
    (672, 1),
    (816, 1),
    (1024, 1),
    (1360, 1),
    (2048, 1),
    (2560, 5),
    (3072, 3),
    (3584, 7),
    (4096, 1),
    (5120, 5),
    (6144, 3),
    (7168, 7),
    (8192, 2),
    (12288, 3),
    (16384, 4),
    (20480, 5),
    (24576, 6),
    (28672, 7),
    (32768, 8),
    (36864, 9),
    (40960, 10),
    (45056, 11),
    (49152, 12),
    (57344, 14),
    (65536, 16),
];

/// Bytes a magazine of one class may hold, at most; two slots at least.
const MAGAZINE_BYTES: u32 = 32 * 1024;

/// All classes.
pub(crate) const fn classes() -> [Class; CLASSES] {
    let none = Class { size: 0, magic: 0, slots: 0, pages: 0, bucket_magic: 0, magazine: 0 };
    let mut all = [none; CLASSES];
    let mut i = 0;
    while i < SHAPES.len() {
        let (size, pages) = SHAPES[i];
        let slots = pages * PAGE as u32 / size;
        let mut magazine = MAGAZINE_BYTES / size;
        if magazine > crate::heap::MAGAZINE_SLOTS {
            magazine = crate::heap::MAGAZINE_SLOTS;
        }
        if magazine < 2 {
            magazine = 2;
        }
        all[i + 1] = Class {
            size,
            magic: ((1_u64 << 32).div_ceil(size as u64)) as u32,
            slots,
            pages,
            bucket_magic: (BUCKETS << 16) / slots,
            magazine,
        };
        i += 1;
    }
    all
}

static ALL: [Class; CLASSES] = classes();

/// The smallest class of at least `size` bytes whose slots are aligned to `align` (a power of two up to a page).
const fn fitting(size: u32, align: u32) -> u8 {
    let mut i = 0;
    while i < SHAPES.len() {
        if SHAPES[i].0 >= size && SHAPES[i].0.is_multiple_of(align) {
            return i as u8 + 1;
        }
        i += 1;
    }
    0
}

const fn table<const N: usize>(step: u32) -> [u8; N] {
    let mut all = [0; N];
    let mut i = 0;
    while i < N {
        let size = if i == 0 { 1 } else { i as u32 * step };
        all[i] = fitting(size, step);
        i += 1;
    }
    all
}

/// By (size + 7) / 8, aligned to 8: what Rust's layouts and LuaJIT need.
static BY_EIGHT: [u8; TABLE_MAX / 8 + 1] = table(8);
/// By (size + 15) / 16, aligned to 16: what malloc promises.
static BY_SIXTEEN: [u8; TABLE_MAX / 16 + 1] = table(16);

/// By (size + 511) / 512: every class above [`TABLE_MAX`] is a multiple of 512.
static BY_512: [u8; SLOT_MAX / 512 + 1] = table(512);

impl Class {
    /// The class with this number; class 0 for a number out of range.
    #[inline]
    pub(crate) fn of(class: u8) -> &'static Class {
        ALL.get(class as usize).unwrap_or(&ALL[0])
    }

    /// How full a span with `free` free slots (at least one) is: 0 the fullest, 7 the emptiest.
    #[inline]
    pub(crate) fn bucket(&self, free: u32) -> u32 {
        ((free - 1) * self.bucket_magic) >> 16
    }

    /// Whether slots of this class need more free bits than a page record has.
    #[inline]
    pub(crate) fn wide(&self) -> bool {
        self.slots > WORD_SLOTS
    }

    /// Whether the span can be partly used and yet have pages that hold nothing.
    #[inline]
    pub(crate) const fn has_holes(&self) -> bool {
        self.pages > 1 && self.slots > 1
    }
}

/// The class of a request of up to [`TABLE_MAX`] bytes, aligned to 16.
#[inline]
pub(crate) fn small(size: usize) -> u8 {
    debug_assert!(size <= TABLE_MAX);
    BY_SIXTEEN.get(size.div_ceil(16)).copied().unwrap_or(0)
}

/// As [`small`], aligned to 8.
#[inline]
pub(crate) fn small_by_eight(size: usize) -> u8 {
    debug_assert!(size <= TABLE_MAX);
    BY_EIGHT.get(size.div_ceil(8)).copied().unwrap_or(0)
}

/// The class of a request above [`TABLE_MAX`] and up to [`SLOT_MAX`], aligned to 512.
#[inline]
pub(crate) fn medium(size: usize) -> u8 {
    debug_assert!(size > TABLE_MAX && size <= SLOT_MAX);
    BY_512.get(size.div_ceil(512)).copied().unwrap_or(0)
}

/// The class of any request up to [`SLOT_MAX`] at any alignment up to a page; 0 if it needs pages of its own.
#[inline]
pub(crate) fn any(size: usize, align: usize) -> u8 {
    if size > SLOT_MAX || align > PAGE {
        return 0;
    }
    let class = match size {
        ..=TABLE_MAX if align <= 8 => return small_by_eight(size),
        ..=TABLE_MAX => small(size),
        _ => medium(size),
    };
    if align <= 16 { class } else { aligned(class, align as u32) }
}

/// The first class from `class` on whose slots are aligned to `align`, up to a page.
fn aligned(class: u8, align: u32) -> u8 {
    (class..CLASSES as u8).find(|&c| Class::of(c).size.is_multiple_of(align)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_up_to_half_a_page_never_cross_one() {
        for (size, pages) in SHAPES {
            if size as usize <= PAGE / 2 {
                assert_eq!(pages, 1, "{size}");
            } else {
                assert_eq!(pages * PAGE as u32 % size, 0, "{size}: a rest would be lost");
            }
        }
    }

    #[test]
    fn division_by_multiplication_is_exact_in_every_span() {
        for class in 1..CLASSES as u8 {
            let c = Class::of(class);
            for off in 0..c.pages as u64 * PAGE as u64 {
                assert_eq!((off * c.magic as u64) >> 32, off / c.size as u64, "{off} / {}", c.size);
            }
        }
    }

    #[test]
    fn every_request_gets_the_tightest_aligned_class() {
        for align in [1, 2, 4, 8, 16, 32, 64, 256, 1024, 4096] {
            for size in (0..=SLOT_MAX).step_by(if align > 16 { 7 } else { 1 }) {
                let class = any(size, align);
                let c = Class::of(class);
                assert!(c.size as usize >= size && (c.size as usize).is_multiple_of(align), "{size} {align}");
                let better = (1..class).find(|&b| {
                    let s = Class::of(b).size as usize;
                    s >= size.max(1) && s.is_multiple_of(align.max(8))
                });
                assert_eq!(better, None, "{size} {align}");
            }
        }
        assert_eq!(any(SLOT_MAX + 1, 8), 0);
        assert_eq!(any(8, 8192), 0);
    }

    #[test]
    fn malloc_promises_sixteen() {
        for size in 0..=TABLE_MAX {
            assert!(Class::of(small(size)).size.is_multiple_of(16));
            assert!(Class::of(small(size)).size as usize >= size);
            assert!(Class::of(small_by_eight(size)).size as usize >= size);
        }
    }

    #[test]
    fn buckets_rise_with_emptiness() {
        for class in 1..CLASSES as u8 {
            let c = Class::of(class);
            let mut last = 0;
            for free in 1..=c.slots {
                let b = c.bucket(free);
                assert!(b >= last && b < BUCKETS);
                last = b;
            }
        }
    }
}
