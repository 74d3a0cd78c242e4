//! Lines on standard error, built without allocating; one at the end of the process, if EBBTIDE_SUMMARY is 1.

use crate::PAGE;
use crate::text::Text;
use core::ffi::c_int;
use core::fmt::Write as _;
use core::sync::atomic::{AtomicBool, Ordering::Relaxed};
use ebbtide_malloc::{COUNT, is_set, lua};

unsafe extern "C" {
    fn getpid() -> c_int;
}

/// Bytes that a line has at most.
const LINE: usize = 512;

/// Says these parts as one write.
pub(super) fn line(parts: &[&str]) {
    let mut line = Text::<LINE>::new();
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
    ASKED.store(is_set(c"EBBTIDE_SUMMARY", c"1"), Relaxed);
}

extern "C" fn summary() {
    if !ASKED.load(Relaxed) {
        return;
    }
    let mut line = Text::<LINE>::new();
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
