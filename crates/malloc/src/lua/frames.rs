//! Frames that several pages share: pages of one file in memory (memfd_create(2)), which is never longer than needed.
//!
//! Pages are mapped from it MAP_SHARED: each slot is one page's alone, so whoever writes to one writes where no other
//! page has anything, and the pages stay together whatever the VM writes; its collector writes to every object in each
//! cycle, and private pages would each get a copy. A forked child must not see the parent's writes, nor the parent the
//! child's. So before a fork the pages are mapped anew, MAP_PRIVATE, from the same frames, and the file is never written
//! to again: parent and child each get copies of what they write to. If no page is mapped from it then, it stays the
//! parent's, and the child closes it. A child made behind libc's back does not get the pages at all (MADV_DONTFORK), nor
//! may it take frames: it cannot do harm.
//!
//! The descriptor may be closed by a program that closes what it does not know, and its number be another file's: it is
//! looked at before a frame is made and before pages are parted.

use crate::class::PAGE;
use crate::map::Page;
use crate::sys::{self, Errno};

/// Frames at most: so many that mappings, two for each page, and two pages at least to a frame, are what bounds.
const FRAMES: usize = 8192;
/// The file grows by so many frames.
const STEP: usize = 256;

/// The file.
#[derive(Debug)]
pub(crate) struct Frames {
    /// The descriptor, plus one; 0 for none.
    fd: u32,
    /// What the descriptor is of.
    identity: (u64, u64),
    /// Whose frames they are: a child made behind libc's back has the file, too.
    process: u32,
    /// Frames that the file is long.
    length: u16,
    /// No frame below is free.
    low: u16,
    /// How many pages share each.
    pages: [u16; FRAMES],
}

/// The file's descriptor, just looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) struct File(i32);

impl Frames {
    /// The file, which is made if there is none.
    pub(crate) fn open(&mut self) -> Result<File, Errno> {
        if self.fd == 0 {
            let fd = sys::memory_file(c"ebbtide lua")?;
            self.identity = sys::identity(fd).inspect_err(|_| sys::close(fd))?;
            self.fd = fd as u32 + 1;
            self.process = sys::process_id();
            (self.length, self.low) = (0, 0);
        }
        self.file()
    }

    /// The file, if it is there as it was made.
    pub(crate) fn file(&self) -> Result<File, Errno> {
        let fd = self.fd.checked_sub(1).ok_or(Errno(9))? as i32;
        if sys::identity(fd)? == self.identity { Ok(File(fd)) } else { Err(Errno(9)) }
    }

    /// Takes a frame nobody uses, with these bytes in it.
    pub(crate) fn take(&mut self, file: File, bytes: &[u8; PAGE]) -> Result<u16, Errno> {
        if sys::process_id() != self.process {
            return Err(Errno(1));
        }
        let free = self.pages.iter().enumerate().skip(self.low as usize).find(|(_, pages)| **pages == 0);
        let Some((frame, _)) = free else { return Err(Errno(12)) };
        let grows = frame >= self.length as usize;
        let length = if grows { (frame + 1).next_multiple_of(STEP) } else { frame + 1 };
        // Making a file longer than the limit, or writing beyond it, would be a signal and not an error.
        if sys::file_size_limit() < (length * PAGE) as u64 {
            return Err(Errno(27));
        }
        if grows {
            sys::set_length(file.0, length * PAGE)?;
            self.length = length as u16;
        }
        sys::write_at(file.0, bytes, frame * PAGE)?;
        self.low = frame as u16;
        Ok(frame as u16)
    }

    /// Maps a frame in place of a page, whose live bytes are all in it.
    pub(crate) fn share(&mut self, file: File, page: Page, frame: u16) -> Result<(), Errno> {
        let at = page.address();
        // SAFETY: the page is its heap's, and reads afterwards as it did, but where it held nothing.
        unsafe { sys::map_file_over(at, PAGE, file.0, frame as usize * PAGE, sys::Sharing::Shared) }?;
        sys::not_for_children(at, PAGE);
        if let Some(pages) = self.pages.get_mut(frame as usize) {
            *pages += 1;
        }
        Ok(())
    }

    /// A page that holds nothing no longer shares a frame: it is ordinary memory again; the last one's frame is given
    /// back. Whether it was the last.
    pub(crate) fn leave(&mut self, page: Page, frame: u16) -> Result<bool, Errno> {
        let Some(pages) = self.pages.get_mut(frame as usize) else { return Ok(false) };
        let last = *pages == 1;
        if last {
            // SAFETY: the page is its heap's and holds nothing, nor does any other that shares the frame.
            unsafe { sys::punch(page.address(), PAGE) };
        }
        restore(page)?;
        *pages -= 1;
        if *pages == 0 {
            self.low = self.low.min(frame);
        }
        Ok(last)
    }

    /// No page is shared any more: nobody here writes to the file, which lives as long as its mappings.
    pub(crate) fn forget(&mut self) {
        if self.fd == 0 {
            return;
        }
        if let Ok(file) = self.file() {
            sys::close(file.0);
        }
        self.fd = 0;
        self.pages = [0; FRAMES];
    }
}

/// Makes a page that holds nothing ordinary memory.
pub(crate) fn restore(page: Page) -> Result<(), Errno> {
    let at = page.address();
    // SAFETY: the page is its heap's and holds nothing.
    unsafe { sys::map_over(at, PAGE) }?;
    // As its neighbours are, so that they become one mapping again.
    sys::no_huge_pages(at, PAGE);
    sys::name_mapping(at, PAGE, c"ebbtide heap");
    Ok(())
}

/// Before a fork: a page is mapped from its frame for itself.
pub(crate) fn part(file: File, page: Page, frame: u16) -> Result<(), Errno> {
    let off = frame as usize * PAGE;
    // SAFETY: the page is its heap's, and reads the same afterwards.
    unsafe { sys::map_file_over(page.address(), PAGE, file.0, off, sys::Sharing::Private) }
}

/// Where the file is gone: makes a page ordinary memory with the bytes it had.
pub(crate) fn copy_out(page: Page) -> Result<(), Errno> {
    let mut bytes = [0_u8; PAGE];
    let at = core::ptr::with_exposed_provenance_mut::<u8>(page.address());
    // SAFETY: the page is its heap's, mapped, and nobody writes to it meanwhile: the VM stands still.
    unsafe { at.copy_to_nonoverlapping(bytes.as_mut_ptr(), PAGE) };
    restore(page)?;
    // SAFETY: as above.
    unsafe { at.copy_from_nonoverlapping(bytes.as_ptr(), PAGE) };
    Ok(())
}
