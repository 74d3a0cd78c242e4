//! The keeper: the thread that gives back while the program does something else, or nothing.
//!
//! It starts at a debt worth a thread, never in a constructor, at most one per process, with all signals blocked
//! (see `spawn`). It ends when nothing is left to give back, or when the process has changed its credentials; the
//! next debt starts another.
//!
//! Where it may not run (`EBBTIDE_MALLOC_THREAD=off`, no thread to be had), the slow paths of the program's own
//! threads do its turns instead, at most one per delay.

use crate::bits::CHUNK_PAGES;
use crate::heap::Heap;
use crate::pace::{self, Pace, Plan, Seen};
use crate::pressure::Pressure;
use crate::stats::COUNT;
use crate::{check, kept, lua, purge, spawn, sync, sys, tls};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};

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
/// What the turns have learnt, while no thread makes any. A program that rests again and again ends the thread each
/// time, and would otherwise pay for the same lesson again.
static KEEPER: crate::lock::Mutex<Option<Keeper>> = crate::lock::Mutex::new(None);

/// The constructor: from now on the thread may start.
pub(crate) fn allow(thread: bool, delay_ms: Option<u64>) {
    PROCESS.store(sys::process_id(), Relaxed);
    FIRST_DELAY.store(delay_ms.unwrap_or(pace::FIRST_DELAY).max(1), Relaxed);
    purge::prepare();
    STATE.store(if thread { READY } else { FORBIDDEN }, Relaxed);
}

/// In a forked child: no thread yet.
pub(crate) fn forked() {
    PROCESS.store(sys::process_id(), Relaxed);
    COUNT.keeper.store(0, Relaxed);
    COUNT.asleep.store(0, Relaxed);
    spawn::forked();
    KEEPER.raw().reset();
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
    if !spawn::start(run) {
        // The last thread may not have quite gone: the next debt tries again. Meanwhile, as without a thread.
        STATE.store(READY, SeqCst);
        turn_inline();
    }
}

/// The thread.
extern "C" fn run() {
    sys::name_thread(c"ebbtide");
    COUNT.keeper.store(sys::thread_id(), Relaxed);
    let mut keeper = KEEPER.lock().take().unwrap_or_else(Keeper::new);
    let born = credentials();
    loop {
        sys::futex_wait(&COUNT.asleep, 0, Some(keeper.pace.delay()));
        let before = keeper.slow_operations();
        let foreign = credentials() != born;
        if !foreign && keeper.turn(None) {
            continue;
        }
        if !foreign && keeper.filled {
            COUNT.asleep.store(1, SeqCst);
            sync::barrier_everywhere();
            if keeper.slow_operations() == before {
                sys::futex_wait(&COUNT.asleep, 1, Some(LONG_MS));
            }
            COUNT.asleep.store(0, SeqCst);
            continue;
        }
        COUNT.keeper.store(0, Relaxed);
        *KEEPER.lock() = Some(keeper);
        STATE.store(READY, SeqCst);
        // Whoever creates a debt from here on starts a thread. Was there one before?
        sync::barrier_everywhere();
        let again = !foreign && keeper.slow_operations() != before;
        if !again || STATE.compare_exchange(READY, RUNS, SeqCst, Relaxed).is_err() {
            return spawn::end();
        }
        COUNT.keeper.store(sys::thread_id(), Relaxed);
    }
}

/// The user and group ids of the process's first thread, as /proc shows them; `None` without /proc.
fn credentials() -> Option<[u8; 160]> {
    let mut text = [0; 1024];
    let len = sys::read_file(c"/proc/self/status", &mut text)?;
    let mut ids = [0; 160];
    let lines = text.get(..len)?.split(|b| *b == b'\n');
    let mut at = 0;
    for line in lines.filter(|l| l.starts_with(b"Uid:") || l.starts_with(b"Gid:")) {
        ids.get_mut(at..at + line.len())?.copy_from_slice(line);
        at += line.len();
    }
    Some(ids)
}

/// What the turns remember.
#[derive(Debug, Clone, Copy)]
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

    /// One turn, by a thread whose heap is `mine`; whether there is reason for another soon.
    fn turn(&mut self, mine: Option<&Heap>) -> bool {
        let now_ms = sys::now_ms();
        let asked = COUNT.asked.load(Relaxed);
        if asked != COUNT.answered.load(Relaxed) {
            purge::everything_but(mine);
            COUNT.answered.store(asked, Relaxed);
        }
        let busy_before = self.slow_operations();
        let pressure = self.pressure.look(now_ms);
        if pressure {
            lua::press();
        }
        let plan = self.pace.turn(Seen {
            now_ms,
            taken: COUNT.taken.get(),
            refaulted: COUNT.refaulted.get(),
            used: COUNT.mapped.get().saturating_sub(COUNT.dirty.get()),
            pressure,
        });
        COUNT.delay_ms.set(self.pace.delay());
        kept::turn();
        self.filled = purge::drain(plan == Plan::Everything, mine);
        let all = matches!(plan, Plan::All | Plan::Everything);
        let mut given = 0;
        if plan != Plan::Wait {
            let keep = if let Plan::Stale(keep) = plan { keep } else { 0 };
            given = purge::purge_holes(all) + purge::purge_pages(all, keep);
            crate::pages::pages().age();
        }
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
    if !OPS.fetch_add(1, Relaxed).is_multiple_of(OPS_PER_LOOK) || COUNT.dirty.get() + COUNT.cached.get() == 0
    {
        return;
    }
    let now = sys::now_ms();
    if now < NEXT_MS.load(Relaxed) {
        return;
    }
    // Held: by another thread, or further up by this one.
    let Some(mut keeper) = KEEPER.try_lock() else { return };
    let keeper = keeper.get_or_insert_with(Keeper::new);
    keeper.turn(Some(tls::heap()));
    NEXT_MS.store(now + keeper.pace.delay(), Relaxed);
}
