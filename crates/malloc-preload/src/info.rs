//! glibc's functions that ask about the heap or tune it.

use core::ffi::{CStr, c_char, c_int, c_void};
use ebbtide_malloc as heap;
use heap::COUNT;

unsafe extern "C" {
    fn fputs(text: *const c_char, stream: *mut c_void) -> c_int;
    fn write(fd: c_int, bytes: *const c_void, len: usize) -> isize;
}

/// Gives back everything that can be; 1 if there was anything. Every thread's magazines are emptied and every
/// page that holds nothing is given back, not only those at the top, so the bytes to keep there mean nothing.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_trim(_pad: usize) -> c_int {
    c_int::from(heap::trim())
}

/// glibc's `struct mallinfo2`.
#[derive(Debug, Default, Clone, Copy)]
#[repr(C)]
pub struct MallInfo2 {
    arena: usize,
    ordblks: usize,
    smblks: usize,
    hblks: usize,
    hblkhd: usize,
    usmblks: usize,
    fsmblks: usize,
    uordblks: usize,
    fordblks: usize,
    keepcost: usize,
}

/// glibc's `struct mallinfo`: as [`MallInfo2`], with fields too small for today's heaps.
#[derive(Debug, Default, Clone, Copy)]
#[repr(C)]
pub struct MallInfo {
    fields: [c_int; 10],
}

/// The heap in glibc's terms: arena is what is mapped for slots and runs, hblkhd what large blocks occupy,
/// keepcost what malloc_trim would give back at least.
#[unsafe(no_mangle)]
pub extern "C" fn mallinfo2() -> MallInfo2 {
    let arena = (COUNT.mapped.get() * 4096) as usize;
    let large = (COUNT.large.get() + COUNT.cached.get()) as usize;
    let live = COUNT.live_bytes() as usize;
    let free_slots: u64 = COUNT.class.iter().map(|c| c.slots_free.get()).sum();
    MallInfo2 {
        arena,
        ordblks: free_slots as usize,
        hblkhd: large,
        uordblks: live,
        fordblks: (arena + large).saturating_sub(live),
        keepcost: (COUNT.dirty.get() * 4096 + COUNT.cached.get()) as usize,
        ..MallInfo2::default()
    }
}

/// As [`mallinfo2`], cut to `int`s as glibc cuts them.
#[unsafe(no_mangle)]
pub extern "C" fn mallinfo() -> MallInfo {
    let i = mallinfo2();
    let all = [
        i.arena, i.ordblks, i.smblks, i.hblks, i.hblkhd, i.usmblks, i.fsmblks, i.uordblks, i.fordblks,
        i.keepcost,
    ];
    MallInfo { fields: all.map(|n| n as c_int) }
}

/// Tuning that glibc knows is accepted and has no counterpart here; what glibc does not know is refused.
#[unsafe(no_mangle)]
pub extern "C" fn mallopt(param: c_int, _value: c_int) -> c_int {
    // M_MXFAST 1, M_TRIM_THRESHOLD -1 .. M_CHECK_ACTION -5, M_PERTURB -6, M_ARENA_TEST -7, M_ARENA_MAX -8.
    c_int::from(param == 1 || (-8..=-1).contains(&param))
}

/// Text built in place: nothing here may allocate.
struct Text {
    bytes: [u8; 16 * 1024],
    len: usize,
}

impl core::fmt::Write for Text {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        // The last byte stays zero, for C.
        let room = self.bytes.len() - 1 - self.len;
        let text = text.as_bytes().get(..text.len().min(room)).unwrap_or_default();
        if let Some(to) = self.bytes.get_mut(self.len..self.len + text.len()) {
            to.copy_from_slice(text);
            self.len += text.len();
        }
        Ok(())
    }
}

impl Text {
    fn new() -> Self {
        Self { bytes: [0; 16 * 1024], len: 0 }
    }

    fn number(&mut self, before: &str, mut n: u64, after: &str) {
        use core::fmt::Write as _;
        let mut digits = [0_u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            if let Some(d) = digits.get_mut(at) {
                *d = b'0' + (n % 10) as u8;
            }
            n /= 10;
            if n == 0 || at == 0 {
                break;
            }
        }
        let digits = core::str::from_utf8(digits.get(at..).unwrap_or_default()).unwrap_or_default();
        let _ = self.write_str(before);
        let _ = self.write_str(digits);
        let _ = self.write_str(after);
    }
}

/// Writes the statistics to standard error.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_stats() {
    let mut text = Text::new();
    let page = 4096;
    text.number("ebbtide malloc\nlive bytes      ", COUNT.live_bytes(), "\n");
    text.number("mapped bytes    ", COUNT.mapped_bytes(), "\n");
    text.number("free, resident  ", COUNT.dirty.get() * page + COUNT.cached.get(), "\n");
    text.number("given back      ", COUNT.purged.get() * page, "\n");
    text.number("refaulted       ", COUNT.refaulted.get() * page, "\n");
    text.number("delay ms        ", COUNT.delay_ms.get(), "\n");
    text.number("turns           ", COUNT.turns.get(), "\nsize: live, in magazines, free slots, pages\n");
    for (i, c) in COUNT.class.iter().enumerate().filter(|(_, c)| c.pages.get() > 0) {
        let kept = COUNT.magazines(i as u8);
        text.number("", c.slot_bytes.get(), ": ");
        text.number("", c.slots_out.get().saturating_sub(kept), ", ");
        text.number("", kept, ", ");
        text.number("", c.slots_free.get(), ", ");
        text.number("", c.pages.get(), "\n");
    }
    // SAFETY: writes initialised bytes to standard error.
    unsafe { write(2, text.bytes.as_ptr().cast(), text.len) };
}

/// Writes the statistics as XML, in the elements glibc's version 1 has. -1 if `options` is not 0.
///
/// # Safety
/// `stream` must be an open stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_info(options: c_int, stream: *mut c_void) -> c_int {
    use core::fmt::Write as _;
    if options != 0 {
        // SAFETY: libc's errno of the running thread.
        unsafe { *crate::__errno_location() = crate::EINVAL };
        return -1;
    }
    let i = mallinfo2();
    let mut text = Text::new();
    let _ = text.write_str("<malloc version=\"1\">\n<heap nr=\"0\">\n<sizes>\n");
    for c in COUNT.class.iter().filter(|c| c.slots_free.get() > 0) {
        let (size, free) = (c.slot_bytes.get(), c.slots_free.get());
        text.number("<size from=\"", size, "\" ");
        text.number("to=\"", size, "\" ");
        text.number("total=\"", size * free, "\" ");
        text.number("count=\"", free, "\"/>\n");
    }
    let _ = text.write_str("</sizes>\n");
    text.number(
        "<total type=\"fast\" count=\"0\" size=\"0\"/>\n<total type=\"rest\" count=\"",
        i.ordblks as u64,
        "\" ",
    );
    text.number("size=\"", i.fordblks as u64, "\"/>\n");
    text.number("<system type=\"current\" size=\"", i.arena as u64, "\"/>\n");
    text.number("<aspace type=\"total\" size=\"", i.arena as u64, "\"/>\n</heap>\n");
    text.number("<total type=\"mmap\" count=\"0\" size=\"", i.hblkhd as u64, "\"/>\n</malloc>\n");
    let Ok(text) = CStr::from_bytes_until_nul(&text.bytes) else { return -1 };
    // SAFETY: the caller's stream; the text ends with a zero byte.
    if unsafe { fputs(text.as_ptr(), stream) } < 0 { -1 } else { 0 }
}
