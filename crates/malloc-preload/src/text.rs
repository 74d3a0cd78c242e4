//! Text built in place: nothing here may allocate.

use core::ffi::{CStr, c_int, c_void};

unsafe extern "C" {
    fn write(fd: c_int, bytes: *const c_void, len: usize) -> isize;
}

/// Fewer than `N` bytes, as one at least stays zero, for C; what does not fit is left out.
pub(crate) struct Text<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> core::fmt::Write for Text<N> {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = self.bytes.get_mut(self.len..N - 1).unwrap_or_default();
        let len = text.len().min(room.len());
        room.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        self.len += len;
        Ok(())
    }
}

impl<const N: usize> Text<N> {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    pub(crate) fn for_c(&self) -> Option<&CStr> {
        CStr::from_bytes_until_nul(&self.bytes).ok()
    }

    /// Writes it to standard error at once.
    pub(crate) fn say(&self) {
        // SAFETY: writes initialised bytes to standard error.
        unsafe { write(2, self.bytes.as_ptr().cast(), self.len) };
    }
}
