//! Messages that overflow: in files of a few MiB, mapped, that exist as long as a message is in them.
//!
//! Invariants: a file has no name and no other opener, so nobody shortens it under the mapping; its blocks are reserved
//! before they are written to, so that a full disk is an error and not a signal (on file systems that write elsewhere,
//! as btrfs does with snapshots, that is not certain).
#![allow(unsafe_code)]

use ebbtide_shrink::{Mapped, Shrink};
use memmap2::MmapMut;
use rustix::fs::{FallocateFlags, fallocate};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;

/// A file's size, unless one message is larger.
const SIZE: usize = 4 << 20;

/// Where a message lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spot {
    segment: u32,
    at: u32,
    len: u32,
}

/// The segments of one queue, by number.
#[derive(Shrink, Default)]
pub(crate) struct Segments {
    files: BTreeMap<u32, Segment>,
    next: u32,
}

#[derive(Shrink)]
struct Segment {
    map: Mapped<MmapMut>,
    filled: usize,
    /// Messages in it.
    live: usize,
}

impl Segments {
    /// Writes a message to the segment that is being filled, or to a new one.
    pub(crate) fn write(&mut self, dir: &Path, body: &[u8]) -> io::Result<Spot> {
        let last = self.files.last_key_value();
        if last.is_none_or(|(_, segment)| segment.room() < body.len()) {
            let segment = Segment::create(dir, body.len().max(SIZE))?;
            self.files.insert(self.next, segment);
            self.next = self.next.wrapping_add(1);
        }
        let Some(mut last) = self.files.last_entry() else { return Err(io::ErrorKind::NotFound.into()) };
        let too_large = |_| io::Error::from(io::ErrorKind::FileTooLarge);
        let (segment, at) = (*last.key(), last.get().filled);
        let (start, len) =
            (u32::try_from(at).map_err(too_large)?, u32::try_from(body.len()).map_err(too_large)?);
        let room = last.get_mut().map.write(at..at + body.len());
        room.ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(body);
        last.get_mut().filled += body.len();
        last.get_mut().live += 1;
        Ok(Spot { segment, at: start, len })
    }

    pub(crate) fn read(&self, spot: Spot) -> &[u8] {
        let range = spot.at as usize..spot.at as usize + spot.len as usize;
        self.files.get(&spot.segment).and_then(|segment| segment.map.read(range)).unwrap_or(&[])
    }

    /// A message is gone; its segment with the last one.
    pub(crate) fn free(&mut self, spot: Spot) {
        let Some(segment) = self.files.get_mut(&spot.segment) else { return };
        segment.live -= 1;
        if segment.live == 0 {
            self.files.remove(&spot.segment);
        }
    }

    /// Files there are now.
    pub(crate) fn count(&self) -> usize {
        self.files.len()
    }
}

impl Segment {
    fn create(dir: &Path, size: usize) -> io::Result<Segment> {
        let file = tempfile::tempfile_in(dir)?;
        fallocate(&file, FallocateFlags::empty(), 0, size as u64)?;
        // SAFETY: the file has no name and this is its only descriptor, closed when this returns: nobody else can
        // write to it or shorten it (short of a debugger's hands in /proc).
        let map = unsafe { MmapMut::map_mut(&file)? };
        Ok(Segment { map: Mapped::new(map), filled: 0, live: 0 })
    }

    fn room(&self) -> usize {
        self.map.get().len() - self.filled
    }
}
