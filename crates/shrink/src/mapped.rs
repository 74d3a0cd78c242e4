//! Mapped files: pages that were not touched for a while go back to the kernel, those in use stay.
//!
//! The kernel tells no program which of its pages are young. So the wrapper hands out its bytes by range and notes, for
//! each 256 KiB, when. Giving back is MADV_PAGEOUT (Linux 5.4): it loses nothing, whatever the mapping (MADV_DONTNEED
//! would drop what was written to a private one), and leaves alone what is mapped a second time, here or elsewhere. Clean
//! pages of files leave the page cache, too; modified ones leave the process, and the kernel writes and drops them in its
//! own time (measured on 6.18). The rate is the cascade's: each 256 KiB is one step of a slice.
//!
//! Invariant: what was handed out within the idle time is not given back.

use crate::std_impls::{sampled, spread};
use crate::{Bytes, Cascade, Refused, Shrink, ShrinkShared, Site, Way, ffi};
use std::cell::OnceCell;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// What is noted and given back as one.
const CHUNK: usize = 256 << 10;
/// A chunk that nobody touched since it was given back.
const AWAY: u32 = 0;

/// A mapping that gives back pages that were not used for a while.
///
/// ```no_run
/// use ebbtide_shrink::{shrink_now, Mapped, Policy};
/// use std::time::Duration;
///
/// let file = std::fs::File::open("segment")?;
/// // SAFETY: nobody shortens the file.
/// let map = unsafe { memmap2::Mmap::map(&file)? };
/// let mut segment = Mapped::new(map).idle(Duration::from_secs(30));
/// let header = segment.read(0..16).ok_or("a short file")?;
/// // ... at pressure:
/// shrink_now(&mut segment, &Policy::default());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Mapped<M> {
    map: M,
    idle: Duration,
    began: Instant,
    /// For each chunk, the tenth of a second since `began` in which it was last touched, plus one.
    touched: Box<[AtomicU32]>,
}

impl<M: AsRef<[u8]>> Mapped<M> {
    /// Wraps a mapping (`Mmap`, `MmapMut`, or anything else whose bytes lie in whole pages).
    pub fn new(map: M) -> Mapped<M> {
        let chunks = map.as_ref().len().div_ceil(CHUNK);
        let touched = (0..chunks).map(|_| AtomicU32::new(AWAY)).collect();
        Mapped { map, idle: Duration::from_secs(10), began: Instant::now(), touched }
    }

    /// How long a part must not have been handed out to be given back. Default 10 s.
    #[must_use = "it returns the mapping with its time changed"]
    pub fn idle(mut self, idle: Duration) -> Mapped<M> {
        self.idle = idle;
        self
    }

    /// Bytes for reading; `None` where they are not all in the mapping.
    pub fn read(&self, range: Range<usize>) -> Option<&[u8]> {
        let bytes = self.map.as_ref().get(range.clone())?;
        self.touch(range);
        Some(bytes)
    }

    /// Bytes for writing; `None` where they are not all in the mapping.
    pub fn write(&mut self, range: Range<usize>) -> Option<&mut [u8]>
    where
        M: AsMut<[u8]>,
    {
        self.touch(range.clone());
        self.map.as_mut().get_mut(range)
    }

    /// The mapping; bytes read through it are not noted as used.
    pub fn get(&self) -> &M {
        &self.map
    }

    /// The mapping alone.
    pub fn into_inner(self) -> M {
        self.map
    }

    fn touch(&self, range: Range<usize>) {
        let now = self.now();
        let chunks = range.start / CHUNK..range.end.div_ceil(CHUNK).min(self.touched.len());
        for chunk in self.touched.get(chunks).unwrap_or(&[]) {
            // A hint: no order with the access itself is needed.
            if chunk.load(Ordering::Relaxed) != now {
                chunk.store(now, Ordering::Relaxed);
            }
        }
    }

    /// Tenths of a second since the beginning, from 1: for 13 years.
    fn now(&self) -> u32 {
        u32::try_from(self.began.elapsed().as_millis() / 100).unwrap_or(u32::MAX - 1) + 1
    }

    fn chunks<'a>(&'a self, pagemap: Option<&'a File>) -> impl ExactSizeIterator<Item = Chunk<'a>> {
        let (now, idle) = (self.now(), u32::try_from(self.idle.as_millis() / 100).unwrap_or(u32::MAX));
        self.map.as_ref().chunks(CHUNK).zip(&self.touched).map(move |(bytes, touched)| {
            let at = touched.load(Ordering::Relaxed);
            let cold = now.saturating_sub(at) >= idle;
            Chunk { pagemap, bytes, touched, at, cold, resident: OnceCell::new() }
        })
    }
}

/// The process's page table as a file; opened anew for each walk, because one from before a fork tells of the parent.
fn pagemap() -> Option<File> {
    File::open("/proc/self/pagemap").ok()
}

/// How much of these bytes this process has in its page table (`/proc/self/pagemap`, bit 63), which is what its resident
/// set counts; where there is no /proc, how much is in memory at all.
fn resident(pagemap: Option<&File>, bytes: &[u8]) -> Bytes {
    const MOST: usize = 64;
    let Some(pagemap) = pagemap else { return ffi::in_core(bytes) };
    let (start, len, page) = ffi::pages(bytes);
    let (mut next, end) = (start.addr() / page, (start.addr() + len) / page);
    let (mut present, mut entries) = (0, [0_u8; MOST * 8]);
    while next < end {
        let part = &mut entries[..(end - next).min(MOST) * 8];
        if pagemap.read_exact_at(part, next as u64 * 8).is_err() {
            break;
        }
        // The highest bit of each little-endian entry.
        present += part.chunks_exact(8).filter(|entry| entry[7] & 0x80 != 0).count();
        next += MOST;
    }
    Bytes(present * page)
}

struct Chunk<'a> {
    pagemap: Option<&'a File>,
    bytes: &'a [u8],
    touched: &'a AtomicU32,
    at: u32,
    cold: bool,
    /// Asked for when it is looked at: a slice makes those that earlier ones took, too, to pass over them (a cascade
    /// over 8 GiB took 66 s for that, and takes 46 ms without).
    resident: OnceCell<Bytes>,
}

impl Chunk<'_> {
    fn resident(&self) -> Bytes {
        let ask = || if self.at == AWAY { Bytes::ZERO } else { resident(self.pagemap, self.bytes) };
        *self.resident.get_or_init(ask)
    }
}

impl Site for Chunk<'_> {
    fn used(&self) -> usize {
        if self.cold { 0 } else { self.room() }
    }
    fn room(&self) -> usize {
        self.resident().0
    }
    fn bytes(&self, room: usize) -> Bytes {
        Bytes(room)
    }
    fn way(&self) -> Way {
        Way::InPlace
    }
    fn fit(&mut self, _: usize) -> Result<(), Refused> {
        // Touched again since: then it is not marked, and is asked again next time.
        let marked = self.touched.compare_exchange(self.at, AWAY, Ordering::Relaxed, Ordering::Relaxed);
        if marked.is_ok() {
            ffi::page_out(self.bytes);
            self.resident.take();
            if self.resident() > Bytes::ZERO {
                // Mapped elsewhere, too, or locked: another try next time.
                let _ = self.touched.compare_exchange(AWAY, self.at, Ordering::Relaxed, Ordering::Relaxed);
            }
        }
        Ok(())
    }
    fn kind(&self) -> &'static str {
        "Mapped"
    }
}

impl<M: AsRef<[u8]>> ShrinkShared for Mapped<M> {
    fn slack_shared(&self) -> Bytes {
        let pagemap = pagemap();
        sampled(self.touched.len(), spread(self.chunks(pagemap.as_ref())), |chunk| chunk.unused())
    }
    fn shrink_shared(&self, cascade: &mut Cascade<'_>) {
        cascade.sites(self.chunks(pagemap().as_ref()));
    }
}

impl<M: AsRef<[u8]>> Shrink for Mapped<M> {
    fn slack(&self) -> Bytes {
        self.slack_shared()
    }
    fn shrink(&mut self, cascade: &mut Cascade<'_>) {
        self.shrink_shared(cascade);
    }
}
