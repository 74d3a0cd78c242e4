//! Frames that several pages share, and how pages come to share them.
//!
//! A segment is a file in memory (memfd_create(2)), written once and then closed: pages are mapped from it MAP_PRIVATE,
//! so whoever writes to one gets a copy of his own, as does a forked child, and nobody ever sees another's write. The
//! file lives as long as something maps it, in this process or a child: nothing is punched out of it, which a child
//! made behind libc's back would see. When its pages have come apart they are meshed anew, into another segment.

use crate::class::PAGE;
use crate::map::Page;
use crate::sys::{self, Errno};

/// A segment that is being filled.
#[derive(Debug)]
pub(crate) struct Filling {
    fd: i32,
    at: usize,
    frames: usize,
}

impl Filling {
    /// A segment of so many frames, all zeros.
    pub(crate) fn new(frames: usize) -> Result<Filling, Errno> {
        let len = frames * PAGE;
        // Making a file longer than the limit would be a signal and not an error.
        if sys::file_size_limit() < len as u64 {
            return Err(Errno(27));
        }
        let fd = sys::memory_file(c"ebbtide lua")?;
        let at = sys::set_length(fd, len).and_then(|()| sys::map_shared(fd, len));
        match at {
            Ok(at) => Ok(Filling { fd, at, frames }),
            Err(e) => {
                sys::close(fd);
                Err(e)
            }
        }
    }

    /// Copies `len` bytes at `off` of a page into a frame.
    pub(crate) fn copy(&mut self, frame: usize, page: Page, off: usize, len: usize) {
        if frame < self.frames && off + len <= PAGE {
            // SAFETY: both ranges are `len` bytes within one page; the frame is mapped here and known to nobody else,
            // the page is its heap's, and the VM that writes to it stands still.
            unsafe {
                core::ptr::copy_nonoverlapping(
                    core::ptr::with_exposed_provenance::<u8>(page.address() + off),
                    core::ptr::with_exposed_provenance_mut::<u8>(self.at + frame * PAGE + off),
                    len,
                );
            }
        }
    }

    /// Maps a frame in place of a page, whose live bytes are all in it.
    pub(crate) fn alias(&self, page: Page, frame: usize) -> Result<(), Errno> {
        // SAFETY: the page is its heap's, and reads afterwards as it did, but where it held nothing.
        unsafe { sys::map_private_over(page.address(), PAGE, self.fd, frame * PAGE) }
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        // SAFETY: mapped by `new` for filling only.
        let _ = unsafe { sys::unmap(self.at, self.frames * PAGE) };
        sys::close(self.fd);
    }
}

/// Makes a page that holds nothing ordinary memory again.
pub(crate) fn restore(page: Page) -> Result<(), Errno> {
    let at = page.address();
    // SAFETY: the page is its heap's and holds nothing.
    unsafe { sys::map_over(at, PAGE) }?;
    // As its neighbours are, so that they become one mapping again.
    sys::no_huge_pages(at, PAGE);
    sys::name_mapping(at, PAGE, c"ebbtide heap");
    Ok(())
}
