//! The keeper: the thread that gives back while the program does something else, or nothing.
//!
//! It starts at a debt worth a thread, never in a constructor, at most one per process, with all signals blocked.
//! It ends when nothing is left to give back, and the next debt starts another. It also ends with the program's
//! last thread: libc ends a process when its last thread does (`pthread_exit` in main, a fork in a thread whose
//! child returns from it), and would wait for this one. A thread that libc does not know would not have that
//! problem, but would keep its credentials when the program drops its own by setuid.
//!
//! Where it may not run (`EBBTIDE_MALLOC_THREAD=off`, no thread to be had), the slow paths of the program's own
//! threads do its turns instead, at most one per delay.

use crate::bits::CHUNK_PAGES;
use crate::pace::{self, Pace, Seen};
use crate::pressure::Pressure;
use crate::stats::COUNT;
use crate::{check, heap, host, large, purge, sync, sys};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

/// Free resident pages at which the thread starts: 256 KiB.
const DEBT_PAGES: u64 = 64;
/// Mapped pages at which it starts whatever is free: partly used spans may be worth a look.
const MAPPED_PAGES: u64 = 8 * CHUNK_PAGES as u64;
/// How long it sleeps at most while threads hold something in their magazines.
const LONG_MS: u64 = 5000;
/// Slow operations between looks at the clock where there is no thread.
const OPS_PER_LOOK: u32 = 64;

/// Before the constructor ran.
const EARLY: u32 = 0;
/// It may start.
const READY: u32 = 1;
/// It is starting or runs.
const RUNS: u32 = 2;
/// It may not run: turns are made by whoever comes by.
const FORBIDDEN: u32 = 3;

static STATE: AtomicU32 = AtomicU32::new(EARLY);
/// The process that may start it: a vfork child shares the memory but must not make threads.
static PROCESS: AtomicU32 = AtomicU32::new(0);
static FIRST_DELAY: AtomicU64 = AtomicU64::new(pace::FIRST_DELAY);

/// The constructor: from now on the thread may start.
pub(crate) fn allow(thread: bool, delay_ms: Option<u64>) {
    PROCESS.store(sys::process_id(), Relaxed);
    FIRST_DELAY.store(delay_ms.unwrap_or(pace::FIRST_DELAY).max(1), Relaxed);
    purge::prepare();
    // Without magazines the thread could not tell when the program's last thread ends.
    STATE.store(if thread && !check::direct() { READY } else { FORBIDDEN }, Relaxed);
}

/// In a forked child: no thread yet.
pub(crate) fn forked() {
    PROCESS.store(sys::process_id(), Relaxed);
    COUNT.keeper.store(0, Relaxed);
    COUNT.asleep.store(0, Relaxed);
    if STATE.load(Relaxed) == RUNS {
        STATE.store(READY, Relaxed);
    }
    if STATE.load(Relaxed) != EARLY {
        purge::prepare();
    }
}

/// Every slow operation ends here, outside all locks.
#[inline]
pub(crate) fn poke() {
    check::sometimes();
    match STATE.load(Relaxed) {
        RUNS if COUNT.asleep.load(Relaxed) == 1 => wake(),
        READY if is_due() => start(),
        FORBIDDEN => turn_inline(),
        _ => {}
    }
}

fn is_due() -> bool {
    COUNT.dirty.get() >= DEBT_PAGES || COUNT.cached.get() > 0 || COUNT.mapped.get() >= MAPPED_PAGES
}

#[cold]
fn wake() {
    if COUNT.asleep.swap(0, SeqCst) == 1 {
        sys::futex_wake(&COUNT.asleep, 1);
    }
}

#[cold]
fn start() {
    if PROCESS.load(Relaxed) != sys::process_id()
        || STATE.compare_exchange(READY, RUNS, SeqCst, Relaxed).is_err()
    {
        return;
    }
    if !host::start_thread(run) {
        STATE.store(FORBIDDEN, Relaxed);
    }
}

/// The thread.
extern "C" fn run(_: *mut core::ffi::c_void) -> *mut core::ffi::c_void {
    heap::none_for_this_thread();
    sys::name_thread(c"ebbtide");
    COUNT.keeper.store(sys::thread_id(), Relaxed);
    let mut keeper = Keeper::new();
    loop {
        sys::futex_wait(&COUNT.asleep, 0, Some(keeper.pace.delay()));
        COUNT.asleep.store(0, SeqCst);
        let before = keeper.slow_operations();
        let last = heap::none_in_use();
        if !last && keeper.turn() {
            continue;
        }
        if last || !keeper.filled {
            STATE.store(READY, SeqCst);
            // Whoever creates a debt from here on starts a thread; was there one before?
            sync::barrier_everywhere();
            if last || keeper.slow_operations() == before || !again() {
                COUNT.keeper.store(0, Relaxed);
                return core::ptr::null_mut();
            }
        } else {
            COUNT.asleep.store(1, SeqCst);
            sync::barrier_everywhere();
            if keeper.slow_operations() == before && !heap::none_in_use() {
                sys::futex_wait(&COUNT.asleep, 1, Some(LONG_MS));
            }
            COUNT.asleep.store(0, SeqCst);
        }
    }
}

/// The thread goes on after all, unless another has started.
fn again() -> bool {
    STATE.compare_exchange(READY, RUNS, SeqCst, Relaxed).is_ok()
}

/// The last thread with a heap ends: the purge thread must not keep the process alive.
pub(crate) fn last_thread_ended() {
    if STATE.load(Relaxed) == RUNS {
        COUNT.asleep.store(2, SeqCst);
        sys::futex_wake(&COUNT.asleep, 1);
    }
}

/// What the turns remember.
struct Keeper {
    pace: Pace,
    pressure: Pressure,
    /// Some thread holds something in its magazines.
    filled: bool,
}

impl Keeper {
    fn new() -> Self {
        Self { pace: Pace::new(FIRST_DELAY.load(Relaxed)), pressure: Pressure::default(), filled: false }
    }

    /// A number that changes with everything that could be a debt.
    fn slow_operations(&self) -> u64 {
        let slots: u64 =
            COUNT.class.iter().map(|c| c.slots_out.get().wrapping_add(c.slots_free.get() << 20)).sum();
        slots.wrapping_add(COUNT.dirty.get() << 40).wrapping_add(COUNT.cached.get())
    }

    /// One turn; whether there is reason for another soon.
    fn turn(&mut self) -> bool {
        let now_ms = sys::now_ms();
        let asked = COUNT.asked.load(Relaxed);
        if asked != COUNT.answered.load(Relaxed) {
            purge::everything();
            COUNT.answered.store(asked, Relaxed);
        }
        let busy_before = self.slow_operations();
        let plan = self.pace.turn(Seen {
            now_ms,
            taken: COUNT.taken.get(),
            refaulted: COUNT.refaulted.get(),
            used: COUNT.mapped.get().saturating_sub(COUNT.dirty.get()),
            pressure: self.pressure.look(now_ms),
        });
        COUNT.delay_ms.set(self.pace.delay());
        large::turn();
        self.filled = purge::drain(plan.drain_all);
        let mut given = purge::purge_holes(plan.all);
        given += purge::purge_pages(plan.all, plan.keep);
        crate::pages::pages().age();
        COUNT.turns.add_shared(1);
        let changed = self.slow_operations() != busy_before;
        given > 0 || changed || COUNT.dirty.get() > 0 || COUNT.cached.get() > 0
    }
}

/// A turn on the program's own thread, for want of the keeper.
#[cold]
fn turn_inline() {
    static OPS: AtomicU32 = AtomicU32::new(0);
    static NEXT_MS: AtomicU64 = AtomicU64::new(0);
    static INSIDE: AtomicBool = AtomicBool::new(false);
    static KEEPER: crate::lock::Mutex<Option<Keeper>> = crate::lock::Mutex::new(None);
    if !OPS.fetch_add(1, Relaxed).is_multiple_of(OPS_PER_LOOK) || COUNT.dirty.get() + COUNT.cached.get() == 0
    {
        return;
    }
    let now = sys::now_ms();
    if now < NEXT_MS.load(Relaxed) || INSIDE.swap(true, SeqCst) {
        return;
    }
    let mut keeper = KEEPER.lock();
    let keeper = keeper.get_or_insert_with(Keeper::new);
    keeper.turn();
    NEXT_MS.store(now + keeper.pace.delay(), Relaxed);
    INSIDE.store(false, SeqCst);
}
