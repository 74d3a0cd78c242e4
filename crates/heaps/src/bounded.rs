//! A [`MemorySource`] with a deadline: after it every question is answered with [`Fault::Overdue`].
//!
//! Walkers need not know of time: each of them asks again and again, and ends at the next question. What one says
//! of a heap whose reading was cut short means nothing, so ask [`Bounded::is_overdue`] before believing it.

use crate::files::Files;
use crate::source::{Area, Fault, MemorySource, PageState, ReadSeek};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;
use std::time::Instant;

/// A source until its deadline.
pub struct Bounded<'s> {
    source: &'s dyn MemorySource,
    deadline: Instant,
    files: Option<&'s Files>,
}

impl<'s> Bounded<'s> {
    /// `source`, until `deadline`.
    pub fn new(source: &'s dyn MemorySource, deadline: Instant) -> Bounded<'s> {
        Bounded { source, deadline, files: None }
    }

    /// The same, which keeps in `files` what it finds there.
    pub fn remembering(self, files: &'s Files) -> Bounded<'s> {
        Bounded { files: Some(files), ..self }
    }

    /// Whether the deadline has passed.
    pub fn is_overdue(&self) -> bool {
        Instant::now() >= self.deadline
    }

    fn in_time(&self) -> Result<(), Fault> {
        if self.is_overdue() { Err(Fault::Overdue) } else { Ok(()) }
    }
}

impl MemorySource for Bounded<'_> {
    fn areas(&self) -> &[Area] {
        self.source.areas()
    }

    fn read_ranges(&self, ranges: &[Range<u64>], buf: &mut [u8]) -> Result<usize, Fault> {
        self.in_time()?;
        self.source.read_ranges(ranges, buf)
    }

    fn pages(&self, range: Range<u64>, each: &mut dyn FnMut(Range<u64>, PageState)) -> Result<(), Fault> {
        self.in_time()?;
        self.source.pages(range, each)
    }

    fn file(&self, area: &Area) -> Result<Box<dyn ReadSeek>, Fault> {
        self.in_time()?;
        Ok(Box::new(BoundedFile { file: self.source.file(area)?, deadline: self.deadline }))
    }

    fn is_still(&self) -> bool {
        self.source.is_still()
    }

    fn areas_now(&self) -> Result<Option<Vec<Area>>, Fault> {
        self.in_time()?;
        self.source.areas_now()
    }

    fn files(&self) -> Option<&Files> {
        self.files.or_else(|| self.source.files())
    }
}

/// A file until the deadline.
struct BoundedFile {
    file: Box<dyn ReadSeek>,
    deadline: Instant,
}

impl Read for BoundedFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if Instant::now() >= self.deadline {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.file.read(buf)
    }
}

impl Seek for BoundedFile {
    fn seek(&mut self, pos: SeekFrom) -> io::Result<u64> {
        self.file.seek(pos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Image;
    use std::time::Duration;

    #[test]
    fn after_the_deadline_nothing_is_read() {
        let mut image = Image::default();
        image.put(0x1000, vec![7; 4096]);
        let read = |deadline: Instant| {
            let bounded = Bounded::new(&image, deadline);
            let range = 0x1000..0x1008;
            bounded.read_ranges(std::slice::from_ref(&range), &mut [0; 8])
        };
        let now = Instant::now();
        assert_eq!(read(now + Duration::from_secs(3600)), Ok(8));
        assert_eq!(read(now), Err(Fault::Overdue));
        let bounded = Bounded::new(&image, now);
        assert_eq!(bounded.pages(0..0x2000, &mut |_, _| {}), Err(Fault::Overdue));
        assert!(bounded.is_overdue());
    }
}
