//! Lines on standard error, built without allocating; one at the end of the process, if EBBTIDE_SUMMARY is 1.

use core::ffi::{c_int, c_void};
use core::fmt::Write as _;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use ebbtide_malloc::{COUNT, lua};

unsafe extern "C" {
    fn write(fd: c_int, bytes: *const c_void, len: usize) -> isize;
    fn getpid() -> c_int;
}

/// Text of bounded length.
struct Line {
    bytes: [u8; 512],
    len: usize,
}

impl core::fmt::Write for Line {
    fn write_str(&mut self, text: &str) -> core::fmt::Result {
        let room = self.bytes.get_mut(self.len..).unwrap_or_default();
        let len = text.len().min(room.len());
        room.iter_mut().zip(text.bytes()).for_each(|(to, from)| *to = from);
        self.len += len;
        Ok(())
    }
}

impl Line {
    fn new() -> Self {
        Self { bytes: [0; 512], len: 0 }
    }

    fn say(&self) {
        // SAFETY: writes initialised bytes to standard error.
        unsafe { write(2, self.bytes.as_ptr().cast(), self.len) };
    }
}

/// Says these parts as one write.
pub(super) fn line(parts: &[&str]) {
    let mut line = Line::new();
    for part in parts {
        let _ = line.write_str(part);
    }
    line.say();
}

/// Tenths of MiB.
struct Mib(u64);

impl core::fmt::Display for Mib {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let tenths = self.0 / (1024 * 1024 / 10);
        write!(f, "{}.{} MiB", tenths / 10, tenths % 10)
    }
}

/// Run when the process ends by itself.
#[used]
#[unsafe(link_section = ".fini_array")]
static DESTRUCTOR: extern "C" fn() = summary;

/// Whether it is asked for: found out at the beginning, since a program may clear its environment, as nginx does.
static ASKED: AtomicBool = AtomicBool::new(false);

/// In the constructor.
pub(super) fn prepare() {
    ASKED.store(super::is_set(c"EBBTIDE_SUMMARY", c"1"), Relaxed);
}

extern "C" fn summary() {
    if !ASKED.load(Relaxed) {
        return;
    }
    const PAGE: u64 = 4096;
    let mut line = Line::new();
    // SAFETY: takes no arguments.
    let process = unsafe { getpid() };
    let _ = write!(
        line,
        "ebbtide[{process}]: live {}, mapped {}; given back {}, faulted in again {}",
        Mib(COUNT.live_bytes()),
        Mib(COUNT.mapped_bytes()),
        Mib(COUNT.purged.get() * PAGE),
        Mib(COUNT.refaulted.get() * PAGE),
    );
    let lua = lua::total();
    let longest = lua.longest_us.get().max(lua.longest_cycle_us.get());
    if lua.state.get() > 0 {
        let _ = write!(
            line,
            "; Lua: states {}, now in pages {}, pages meshed {}, found by {} collections while waiting {}, \
             longest slice {}.{:03} ms",
            lua.state.get(),
            Mib(lua.pages.get() * PAGE),
            lua.ever_meshed.get(),
            lua.cycles.get(),
            Mib(lua.collected.get()),
            longest / 1000,
            longest % 1000,
        );
    }
    let _ = line.write_str("\n");
    line.say();
}
