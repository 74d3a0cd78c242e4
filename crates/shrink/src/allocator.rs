//! Asking the allocators in the process to return the pages that a cascade has freed.
//!
//! A process may have several: Rust's global allocator, and glibc's for the C code in it. All that are found are asked;
//! one that has nothing answers at once. An allocator that is linked in under other names is not found: then
//! [`Registry::with_allocator`](crate::Registry::with_allocator) names the call.

use crate::ffi;
use std::cell::Cell;
use std::time::{Duration, Instant};

/// An allocator that was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Allocator {
    /// `malloc_trim`: glibc's, or Ebbtide's malloc when it is preloaded or linked as C's malloc.
    MallocTrim,
    /// jemalloc, also under the prefix that tikv-jemallocator gives it.
    Jemalloc,
    /// mimalloc.
    Mimalloc,
}

/// Asks each allocator in the process that is known to return pages to the kernel, and says which there were. It
/// takes as long as they take (glibc: 0.2 us for each page it returns, with an arena locked): not on a hot path. The
/// registry calls it after a cascade.
pub fn give_back() -> impl Iterator<Item = Allocator> {
    // 4096 is jemalloc's MALLCTL_ARENAS_ALL since 5.0; 4.x answers with an error.
    let jemalloc = ffi::mallctl(c"arena.4096.purge");
    // mimalloc collects the calling thread's heap, what ended threads left, and its free segments.
    let mimalloc = ffi::mi_collect(true);
    let trim = ffi::malloc_trim();
    let found =
        [(trim, Allocator::MallocTrim), (jemalloc, Allocator::Jemalloc), (mimalloc, Allocator::Mimalloc)];
    found.into_iter().filter_map(|(found, allocator)| found.then_some(allocator))
}

/// How long a thread keeps what it has cached after it gave it back: a thread may have a thousand owners.
const APART: Duration = Duration::from_millis(100);

/// Gives what the calling thread has cached back to where [`give_back`] can reach it: an owner's thread calls this
/// after its cascade, because no other thread can for it.
pub(crate) fn thread_idle() {
    thread_local! {
        static LAST: Cell<Option<Instant>> = const { Cell::new(None) };
    }
    if LAST.get().is_none_or(|last| last.elapsed() >= APART) {
        ffi::mallctl(c"thread.tcache.flush");
        ffi::mi_collect(false);
        LAST.set(Some(Instant::now()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_c_library_is_found() {
        let found: Vec<Allocator> = give_back().collect();
        if cfg!(target_env = "gnu") {
            assert_eq!(found, [Allocator::MallocTrim]);
        }
        thread_idle();
    }
}
