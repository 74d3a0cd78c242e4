//! Mapped files: pages that were not touched for a while go back to the kernel, those in use stay.
//!
//! The kernel tells no program which of its pages are young. So the wrapper hands out its bytes by range and notes, for
//! each 256 KiB, when. Giving back is MADV_PAGEOUT (Linux 5.4): it loses nothing, whatever the mapping (MADV_DONTNEED
//! would drop what was written to a private one), leaves alone what other processes map, and drops clean pages of files
//! at once. Modified ones stay (measured on 6.18) until the kernel has written them, in half a minute, or `flush` has;
//! they are tried again at the next cascade. The rate is the cascade's: each 256 KiB is one step of a slice.
//!
//! Invariant: what was handed out within the idle time is not given back.

use crate::{Bytes, Cascade, Refused, Shrink, ShrinkShared, Site, Way, ffi};
use std::ops::Range;
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

    fn chunks(&self) -> impl Iterator<Item = Chunk<'_>> {
        let (now, idle) = (self.now(), u32::try_from(self.idle.as_millis() / 100).unwrap_or(u32::MAX));
        self.map.as_ref().chunks(CHUNK).zip(&self.touched).map(move |(bytes, touched)| {
            let at = touched.load(Ordering::Relaxed);
            // What nobody touched is not this process's to give back, or was given back.
            let resident = if at == AWAY { Bytes::ZERO } else { ffi::resident(bytes) };
            Chunk { bytes, touched, at, cold: now.saturating_sub(at) >= idle, resident }
        })
    }
}

struct Chunk<'a> {
    bytes: &'a [u8],
    touched: &'a AtomicU32,
    at: u32,
    cold: bool,
    resident: Bytes,
}

impl Site for Chunk<'_> {
    fn used(&self) -> usize {
        if self.cold { 0 } else { self.resident.0 }
    }
    fn room(&self) -> usize {
        self.resident.0
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
            self.resident = ffi::resident(self.bytes);
            if self.resident > Bytes::ZERO {
                // Not all could go: another try next time, unless it was touched since.
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
        let step = crate::std_impls::stride(self.touched.len());
        crate::std_impls::sampled(self.touched.len(), self.chunks().step_by(step), |chunk| chunk.unused())
    }
    fn shrink_shared(&self, cascade: &mut Cascade<'_>) {
        cascade.sites(self.chunks());
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
