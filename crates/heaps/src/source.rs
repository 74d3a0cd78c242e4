//! What a walker sees of a process: its mappings, their content, which pages are in memory, and the files
//! behind them.

use crate::files::Files;
use ebbtide_observe::Bytes;
use ebbtide_observe::process::{Device, Mapping, Perms};
use rustix::io::Errno;
use std::io::{Read, Seek};
use std::ops::Range;

/// Why memory could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The process ended, or became another program by exec.
    #[error("the process ended while it was read")]
    Ended,
    /// Another user's, not dumpable, or forbidden by Yama.
    #[error("{0}: permission denied")]
    Denied(&'static str),
    /// Nothing is mapped there.
    #[error("nothing readable is mapped at {0:#x}")]
    Unmapped(u64),
    /// The page is in swap; to read it would bring it back into memory.
    #[error("the page at {0:#x} is swapped out")]
    Swapped(u64),
    /// The time that there was for it is over.
    #[error("there was no time for it")]
    Overdue,
    /// Another allocator's books say that this address is theirs.
    #[error("it takes {0:#x}, which another allocator has")]
    Claimed(u64),
    /// Anything else that the system said.
    #[error("{0}: {1}")]
    Os(&'static str, Errno),
}

/// What was read, or `None` where memory is not there or is in swap: a walk goes on without. That the process ended or
/// may not be read is an error.
pub(crate) fn there<T>(read: Result<T, Fault>) -> Result<Option<T>, Fault> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(Fault::Unmapped(_) | Fault::Swapped(_)) => Ok(None),
        Err(fault) => Err(fault),
    }
}

/// A mapping, with its path owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Area {
    /// Its addresses.
    pub range: Range<u64>,
    /// What may be done with it.
    pub perms: Perms,
    /// Where in its file it begins.
    pub offset: Bytes,
    /// Its file's device; 0:0 for none.
    pub dev: Device,
    /// Its file's inode; 0 for none.
    pub inode: u64,
    /// Its file's path, or a name in brackets, or nothing. Hostile input.
    pub path: Vec<u8>,
}

impl Area {
    /// The same as `mapping`.
    pub fn of(mapping: &Mapping) -> Area {
        Area {
            range: mapping.start..mapping.end,
            perms: mapping.perms,
            offset: mapping.offset,
            dev: mapping.dev,
            inode: mapping.inode,
            path: mapping.path.to_vec(),
        }
    }

    /// A private mapping of `range` that can be read and written, without a file or a name.
    pub(crate) fn anon(range: Range<u64>) -> Area {
        Area {
            range,
            perms: Perms { read: true, write: true, exec: false, shared: false },
            offset: Bytes::ZERO,
            dev: Device { major: 0, minor: 0 },
            inode: 0,
            path: Vec::new(),
        }
    }

    /// Its address space.
    pub fn size(&self) -> Bytes {
        Bytes(self.range.end - self.range.start)
    }

    /// Private, writable, and no file behind it: where heaps are. The brk heap is such an area too.
    pub fn is_private_anon(&self) -> bool {
        self.inode == 0 && self.perms.read && self.perms.write && !self.perms.shared
    }

    /// Whether no file and no name is behind it.
    pub fn is_unnamed(&self) -> bool {
        self.inode == 0 && self.path.is_empty()
    }
}

/// Content of a file.
pub trait ReadSeek: Read + Seek {}
impl<T: Read + Seek> ReadSeek for T {}

/// What is known of a page that is not simply absent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageState {
    /// In memory; the shared page of zeroes does not count.
    Present,
    /// In swap.
    Swapped,
}

/// Whether areas for which `fits` says yes cover all of `range`.
pub fn covered(source: &dyn MemorySource, range: Range<u64>, fits: fn(&Area) -> bool) -> bool {
    let mut at = range.start;
    while at < range.end {
        match source.area_at(at).filter(|area| fits(area)) {
            Some(area) => at = area.range.end,
            None => return false,
        }
    }
    true
}

/// A process, or the picture of one.
pub trait MemorySource {
    /// Its mappings, in the order of addresses.
    fn areas(&self) -> &[Area];

    /// Copies the first of `ranges`, one after the other, into `buf`; returns how many bytes came: those before
    /// the first that cannot be read. All must be pages that [`MemorySource::pages`] says are present.
    fn read_ranges(&self, ranges: &[Range<u64>], buf: &mut [u8]) -> Result<usize, Fault>;

    /// Calls `each` with the runs of pages in `range` that are present or swapped, in order.
    fn pages(&self, range: Range<u64>, each: &mut dyn FnMut(Range<u64>, PageState)) -> Result<(), Fault>;

    /// The file behind `area`, as the process sees it: also in a container, also when it was deleted.
    fn file(&self, area: &Area) -> Result<Box<dyn ReadSeek>, Fault>;

    /// Whether the process stands still while it is read.
    fn is_still(&self) -> bool;

    /// Its mappings as they are now, where they may be others than [`MemorySource::areas`]: a process that runs takes
    /// and gives back memory, and walkers before this one took their time.
    fn areas_now(&self) -> Result<Option<Vec<Area>>, Fault> {
        Ok(None)
    }

    /// Where what was found in files is kept for looks into other processes.
    fn files(&self) -> Option<&Files> {
        None
    }

    /// The area that `address` lies in.
    fn area_at(&self, address: u64) -> Option<&Area> {
        let areas = self.areas();
        let after = areas.partition_point(|area| area.range.start <= address);
        areas[..after].last().filter(|area| area.range.contains(&address))
    }
}
