//! A live process as a [`MemorySource`]: process_vm_readv, pagemap, maps, map_files. Nothing is stopped.

use crate::source::{Area, Fault, MemorySource, PageState, ReadSeek};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, ReadError};
use ebbtide_sys::pagemap::{self, Categories, Query};
use ebbtide_sys::remote::{self, RemoteError};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::process::Pid;
use std::ops::Range;

/// The most mappings that are looked at; vm.max_map_count is 65,530 unless raised.
const MAPPINGS_MOST: usize = 1 << 20;

/// A live process.
pub struct Live<'p> {
    process: &'p Process,
    pid: Pid,
    pagemap: OwnedFd,
    areas: Vec<Area>,
    still: bool,
}

impl<'p> Live<'p> {
    /// Takes down the mappings of `process`. `still` says that its threads are all stopped.
    pub fn new(process: &'p Process, still: bool) -> Result<Live<'p>, ReadError> {
        let pagemap = process.dir().open_file("pagemap")?;
        let areas = areas(process)?;
        let pid = i32::try_from(process.pid()).ok().and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| ReadError::Vanished { path: process.dir().path("maps") })?;
        Ok(Live { process, pid, pagemap, areas, still })
    }

    /// Its address space in all.
    pub fn size(&self) -> Bytes {
        self.areas.iter().map(Area::size).sum()
    }
}

/// Its mappings as they are now.
fn areas(process: &Process) -> Result<Vec<Area>, ReadError> {
    let mut areas = Vec::new();
    process.each_mapping(|mapping| {
        areas.push(Area::of(mapping));
        areas.len() < MAPPINGS_MOST
    })?;
    Ok(areas)
}

impl MemorySource for Live<'_> {
    fn areas(&self) -> &[Area] {
        &self.areas
    }

    fn areas_now(&self) -> Result<Option<Vec<Area>>, Fault> {
        if self.still {
            return Ok(None);
        }
        match areas(self.process) {
            Ok(areas) => Ok(Some(areas)),
            Err(ReadError::Vanished { .. }) => Err(Fault::Ended),
            Err(ReadError::Denied { .. }) => Err(Fault::Denied("mappings")),
            Err(_) => Err(Fault::Os("mappings", Errno::IO)),
        }
    }

    fn read_ranges(&self, ranges: &[Range<u64>], buf: &mut [u8]) -> Result<usize, Fault> {
        let first = ranges.first().map_or(0, |range| range.start);
        remote::read_ranges(self.pid, ranges, buf).map_err(|error| match error {
            RemoteError::Ended => Fault::Ended,
            RemoteError::Denied => Fault::Denied("memory"),
            RemoteError::Unmapped => Fault::Unmapped(first),
            RemoteError::Os(errno) => Fault::Os("process_vm_readv", errno),
        })
    }

    fn pages(&self, range: Range<u64>, each: &mut dyn FnMut(Range<u64>, PageState)) -> Result<(), Fault> {
        let query = Query {
            any_of: Categories::PRESENT | Categories::SWAPPED,
            none_of: Categories::ZERO_PAGE,
            tell: Categories::SWAPPED,
            ..Query::default()
        };
        let found = pagemap::each_region(&self.pagemap, range, &query, |region| {
            let swapped = region.categories.has(Categories::SWAPPED);
            each(region.start..region.end, if swapped { PageState::Swapped } else { PageState::Present });
        });
        found.map_err(|errno| match errno {
            Errno::SRCH => Fault::Ended,
            Errno::PERM | Errno::ACCESS => Fault::Denied("pagemap"),
            errno => Fault::Os("pagemap", errno),
        })
    }

    fn file(&self, area: &Area) -> Result<Box<dyn ReadSeek>, Fault> {
        let link = format!("map_files/{:x}-{:x}", area.range.start, area.range.end);
        let open = self.process.dir().open_file(&link).or_else(|error| {
            // map_files wants CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN; the process's own root does not.
            match std::str::from_utf8(&area.path) {
                Ok(path) if path.starts_with('/') => self.process.dir().open_file(&format!("root{path}")),
                _ => Err(error),
            }
        });
        match open {
            Ok(fd) => Ok(Box::new(std::fs::File::from(fd))),
            Err(ReadError::Vanished { .. }) => Err(Fault::Ended),
            Err(ReadError::Denied { .. }) => Err(Fault::Denied("a mapped file")),
            Err(_) => Err(Fault::Os("a mapped file", Errno::NOENT)),
        }
    }

    fn is_still(&self) -> bool {
        self.still
    }
}
