//! fork: the parent takes every lock in order before, both release them after, and the child takes over the
//! heaps of the threads it does not have.
//!
//! Order of all locks: Lua heaps' list, purge pass, heap pool, kept blocks, bins by class, page heap, Lua heaps' table.
//! libc runs prepare handlers last-registered first and the others first-registered first, so this one, registered
//! with the first allocation, comes last before the fork and first after it: other handlers may allocate.

use crate::lock::Lock;
use crate::{bins, heap, host, keeper, kept, lua, pages, purge};
use core::sync::atomic::{AtomicBool, Ordering::SeqCst};

static REGISTERED: AtomicBool = AtomicBool::new(false);

/// Registers with libc, once.
pub(crate) fn register() {
    if !REGISTERED.swap(true, SeqCst) {
        host::around_fork(prepare, parent, child);
    }
}

fn locks() -> impl DoubleEndedIterator<Item = &'static Lock> {
    let first = [lua::raw_lock(), purge::raw_lock(), heap::raw_lock(), kept::raw_lock()];
    let last = [pages::raw_lock(), lua::raw_table_lock()];
    first.into_iter().chain(bins::raw_locks()).chain(last)
}

extern "C" fn prepare() {
    locks().for_each(Lock::lock);
    lua::part();
}

extern "C" fn parent() {
    lua::after_fork(Lock::unlock);
    locks().rev().for_each(Lock::unlock);
}

extern "C" fn child() {
    lua::after_fork(Lock::reset);
    lua::forked();
    locks().for_each(Lock::reset);
    heap::adopt_after_fork();
    keeper::forked();
}
