//! What is done while the program waits: steps of the collector, and meshing.
//!
//! A worker that has answered its last request holds garbage that LuaJIT will look for only when as much again has been
//! allocated. If it is idle that is never. So when an event loop is about to wait, nothing has come for a moment, and a
//! heap has seen much allocation since its last cycle, a cycle is run, by `lua_gc(LUA_GCSTEP)`, in slices; between any two
//! it is asked whether something has come. A slice is over with the step in which [`SLICE_US`] has passed; the step may be
//! long, where it is one that LuaJIT does not divide: the atomic phase, one large table, a finaliser.
//!
//! # Why the point is safe
//!
//! - No other thread can be running the VM: the process has none ([`lua::alone`], asked of the kernel).
//! - No Lua is on this thread's stack: while Lua runs, or a C function that Lua called, or a trace, the `cframe` of its
//!   `lua_State` says where on the C stack the VM was entered, and is null again when the VM has been left
//!   (vm_x64.dasc, vm_call and vm_resume save and restore it; lib_coroutine.c and lj_api.c rely on it; LuaJIT 2.1,
//!   15f58c96). Every `lua_State` of the heap is looked at: the main one, and all in slots of that size.
//! - Steps are run by a coroutine of our own, within lua_cpcall: an error in a finaliser ends there, and what nginx keeps
//!   with a coroutine (`exdata`: the request) is nobody's, so a finaliser meets no request that is gone.
//! - A collector that the program has stopped stays stopped (LUA_GCISRUNNING).
//! - Where a cycle is cut short, the allocation at which LuaJIT goes on by itself is as far away as it was.
//!
//! Where the layout of `lua_State` is not as expected, which is found out beforehand ([`Layout::find`]), nothing is run.
//!
//! Signals are blocked during a slice and delivered in the wait that follows, as without us: else a handler's word that
//! the loop is to end would come between two waits, and be noticed late. A signal that this wait lets through (by the
//! mask of epoll_pwait, if it has one) ends our slices. Finalisers run with the signals as they were, as
//! they may start programs. No step goes on into a finaliser from what comes before ([`STEP`]); and as a finaliser may
//! make a thread, each is a step by itself, and the kernel is asked again after it.

use super::api::{self, Api, L};
use super::hook;
use super::layout::Layout;
use super::signals::{self, Signals};
use crate::errno;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use ebbtide_malloc::is_set;
use ebbtide_malloc::lua::{self, Notes, State};

/// Milliseconds without an event after which the program counts as resting.
const QUIET_MS: u64 = 20;
/// Milliseconds with work pending after which slices are made between events, too: one in so many milliseconds.
const STARVED_MS: u64 = 2000;
const STARVED_EVERY_MS: u64 = 20;
/// Microseconds after which a slice of the collector makes no further step.
const SLICE_US: u64 = 700;
/// `stepmul` while we run steps. A step goes on until it has cost 10 times that (lj_gc.c: lj_gc_step, GCSTEPSIZE), and
/// sweeping comes to finalisers by a part that costs 400 (GCSWEEPMAX * GCSWEEPCOST), so that such a step ends before them.
/// With what the program has set, a step may be a whole cycle.
const STEP: c_int = 40;
/// The same where finalisers may be run: one costs 100 (GCFINALIZECOST), so a step runs no more than one.
const STEP_OF_FINALIZERS: c_int = 1;
/// Bytes allocated since the last time below which nothing is done.
const LEAST: u64 = 512 << 10;

static OFF: AtomicBool = AtomicBool::new(false);
/// The kernel lets the program wait, but not by epoll_pwait.
static REFUSED: AtomicBool = AtomicBool::new(false);
/// EPERM and ENOSYS, which filters of system calls answer, and no wait.
const REFUSALS: [c_int; 2] = [1, 38];

/// Since when there has been work and no quiet moment, in milliseconds; 0 for not.
static PENDING_MS: AtomicU64 = AtomicU64::new(0);

/// Counts waits in which something is done, or their parts without another thread: no Lua runs between two slices of one.
static WAITS: AtomicU64 = AtomicU64::new(0);

/// Slices for cycles that are due, at most, some ten seconds: a collector that comes to no end is left alone.
const SLICES_MOST: u32 = 20_000;

/// In the constructor.
pub(super) fn prepare() {
    OFF.store(is_set(c"EBBTIDE_LUA_COLLECT", c"off"), Relaxed);
}

/// A state was made, with this heap.
///
/// # Safety
/// Both must be new and the running thread's.
pub(super) unsafe fn begin(state: L, heap: State) {
    // SAFETY: the caller's.
    let notes = unsafe { heap.notes() };
    notes.state = state as usize;
    // SAFETY: as above.
    unsafe { heap.tell_state(state as usize) };
}

/// What [`steps`] is told and tells.
struct Work {
    layout: Layout,
    gc: unsafe extern "C" fn(L, c_int, c_int) -> c_int,
    until_us: u64,
    /// Finalisers may be run.
    finalize: bool,
    /// `stepmul` during our steps, and what it is to be after them.
    own: c_int,
    theirs: c_int,
    outcome: Outcome,
}

impl Work {
    /// Has steps be of our size.
    ///
    /// # Safety
    /// The state must be alive, and nobody else may use it.
    unsafe fn take_stepmul(&mut self, l: L) {
        // SAFETY: the caller's.
        let found = unsafe { (self.gc)(l, api::GC_SETSTEPMUL, self.own) };
        if found != self.own {
            self.theirs = found;
        }
    }

    /// Has steps be of the program's size again: what it was, or what a finaliser has set.
    ///
    /// # Safety
    /// As for [`Work::take_stepmul`].
    unsafe fn restore_stepmul(&mut self, l: L) {
        // SAFETY: the caller's.
        unsafe {
            self.take_stepmul(l);
            (self.gc)(l, api::GC_SETSTEPMUL, self.theirs);
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    /// Time is up.
    Cut,
    /// Finalisers are to be run next.
    Finalizers,
    /// A cycle ended.
    Cycle,
}

/// Runs steps of the collector, in a protected call.
///
/// # Safety
/// As LuaJIT calls it, with the address of a [`Work`].
unsafe extern "C" fn steps(l: L) -> c_int {
    // SAFETY: Lua hands over the two arguments of lua_cpcall; the offsets were found to be right.
    unsafe {
        let Some(api) = hook::api() else { return 0 };
        let work = (api.touserdata)(l, 1).cast::<Work>();
        loop {
            let global = (*work).layout.global;
            if Layout::byte(global + Layout::PHASE) == Layout::FINALIZE && !(*work).finalize {
                (*work).outcome = Outcome::Finalizers;
                return 0;
            }
            // LUA_GCSTEP does not come back before a debt is paid, however long that takes.
            Layout::word(global + Layout::DEBT).write_volatile(0);
            (*work).take_stepmul(l);
            if ((*work).gc)(l, api::GC_STEP, 0) == 1 {
                (*work).outcome = Outcome::Cycle;
                return 0;
            }
            if lua::now_us() >= (*work).until_us || ((*work).finalize && !lua::alone()) {
                return 0;
            }
        }
    }
}

/// Makes a coroutine of our own and anchors it in the registry, in a protected call.
///
/// # Safety
/// As LuaJIT calls it, with the address of a `usize` for the coroutine and then of the C stack frame.
unsafe extern "C" fn make_coroutine(l: L) -> c_int {
    static KEY: u8 = 0;
    let Some(api) = hook::api() else { return 0 };
    // SAFETY: the stack has room for LUA_MINSTACK values; the argument is that of lua_cpcall.
    unsafe {
        let out = (api.touserdata)(l, 1).cast::<[usize; 2]>();
        (api.pushlightuserdata)(l, (&raw const KEY).cast_mut().cast());
        let thread = (api.newthread)(l);
        (api.rawset)(l, api::REGISTRY);
        *out = [thread as usize, Layout::cframe(l as usize) as usize];
    }
    0
}

/// Makes the coroutine, once for each state; whether there is one.
///
/// # Safety
/// As for [`Layout::find`], and no Lua runs.
unsafe fn introduce(api: &Api, layout: Layout, notes: &mut Notes) -> bool {
    if notes.coroutine == 0 {
        let mut made = [0_usize; 2];
        let l = core::ptr::with_exposed_provenance_mut(notes.state);
        let here = (&raw mut made) as usize;
        let threshold = Layout::word(layout.global + Layout::THRESHOLD);
        // lua_newthread makes a step where one is due, with finalisers in it.
        // SAFETY: the offsets were found to be right; no Lua runs, so the main state may be called into.
        let failed = unsafe {
            let due = threshold.read_volatile();
            threshold.write_volatile(u64::MAX);
            let failed = (api.cpcall)(l, make_coroutine, (&raw mut made).cast()) != 0;
            threshold.write_volatile(due);
            failed
        };
        if failed {
            // SAFETY: takes the error off the stack.
            unsafe { (api.settop)(l, -2) };
            return false;
        }
        // During the call `cframe` was on this very stack, and afterwards it is null: so it is what it is taken for.
        // SAFETY: the caller's.
        let known = made[1].abs_diff(here) < 1 << 16 && unsafe { Layout::cframe(notes.state) } == 0;
        notes.unknown = !known;
        notes.coroutine = if known { made[0] } else { 0 };
    }
    notes.coroutine != 0
}

/// What comes after a slice.
enum Next {
    /// Another slice.
    More,
    /// A finaliser is next: it is not to run with the signals blocked.
    Finalizer,
    /// Nothing for so many milliseconds.
    In(u64),
    /// Nothing until something was allocated.
    Nothing,
    /// Nothing while there is another thread.
    Company,
}

/// A slice for one heap.
///
/// # Safety
/// No other thread may run.
unsafe fn slice(api: &Api, heap: State, finalize: bool) -> Next {
    // SAFETY: the caller's.
    let (notes, flow) = unsafe { (heap.notes(), heap.told().flow.get()) };
    if flow.saturating_sub(notes.done.load(Relaxed)) < LEAST {
        return Next::Nothing;
    }
    if notes.rested != flow {
        // SAFETY: the caller's.
        if let Some(next) = unsafe { collect(api, heap, notes, finalize) } {
            return next;
        }
        // SAFETY: the caller's.
        unsafe { heap.rest() };
        // Tidying up takes back what was only held ready.
        // SAFETY: the caller's.
        notes.rested = unsafe { heap.told().flow.get() };
    }
    // SAFETY: the caller's.
    match unsafe { heap.mesh() } {
        Some(0) => Next::More,
        Some(ms) => Next::In(ms),
        None => {
            notes.done.store(notes.rested, Relaxed);
            Next::Nothing
        }
    }
}

/// A slice of the collector; `None` if there is nothing for it to do.
///
/// # Safety
/// As for [`slice`].
unsafe fn collect(api: &Api, heap: State, notes: &mut Notes, finalize: bool) -> Option<Next> {
    if OFF.load(Relaxed) || notes.unknown {
        return None;
    }
    // SAFETY: the caller's.
    let flow = unsafe { heap.told() }.flow.get();
    if notes.cycles == 0 && flow.saturating_sub(notes.collected) < (notes.live / 2).max(LEAST) {
        return None;
    }
    // SAFETY: the caller's.
    let layout = unsafe { Layout::find(api, notes.state, heap) };
    notes.unknown = layout.is_none();
    let layout = layout?;
    let began = lua::now_us();
    let until_us = began + SLICE_US;
    // SAFETY: the caller's.
    match unsafe { layout.nothing_runs(heap, notes, WAITS.load(Relaxed), until_us) } {
        Some(true) => {}
        Some(false) => return None,
        None => return Some(Next::More),
    }
    // SAFETY: no Lua runs.
    if unsafe { !introduce(api, layout, notes) } {
        return None;
    }
    let l = core::ptr::with_exposed_provenance_mut::<c_void>(notes.coroutine);
    // SAFETY: the coroutine is alive.
    if unsafe { (api.gc)(l, api::GC_ISRUNNING, 0) } != 1 {
        return None;
    }
    // SAFETY: the offsets were found to be right.
    let total = || unsafe { Layout::read(layout.global + Layout::TOTAL) };
    if notes.cycles == 0 {
        // A cycle that LuaJIT has begun may have marked already what is garbage now: then one more.
        // SAFETY: the offsets were found to be right.
        let begun = unsafe { Layout::byte(layout.global + Layout::PHASE) } != Layout::BETWEEN;
        (notes.cycles, notes.before, notes.collected) = (1 + u8::from(begun), total(), flow);
        notes.slices = 0;
    }
    notes.slices += 1;
    if notes.slices > SLICES_MOST {
        notes.unknown = true;
        return None;
    }
    let own = if finalize { STEP_OF_FINALIZERS } else { STEP };
    let mut work = Work { layout, gc: api.gc, until_us, finalize, own, theirs: own, outcome: Outcome::Cut };
    // SAFETY: no Lua runs and no other thread; the coroutine is our own and anchored.
    unsafe {
        let threshold = Layout::read(layout.global + Layout::THRESHOLD);
        api.setexdata.inspect(|set| set(l, core::ptr::null_mut()));
        api.setexdata2.inspect(|set| set(l, core::ptr::null_mut()));
        if (api.cpcall)(l, steps, (&raw mut work).cast()) != 0 {
            (api.settop)(l, 0);
        }
        work.restore_stepmul(l);
        if work.outcome != Outcome::Cycle {
            Layout::word(layout.global + Layout::THRESHOLD).write_volatile(threshold);
        }
        heap.tell_slice(lua::now_us() - began);
    }
    match work.outcome {
        Outcome::Cut => return Some(Next::More),
        Outcome::Finalizers => return Some(Next::Finalizer),
        Outcome::Cycle => {}
    }
    notes.cycles -= 1;
    if notes.cycles > 0 {
        // The one that begins now finds whatever was garbage until now.
        notes.collected = flow;
        return Some(Next::More);
    }
    notes.live = total();
    // SAFETY: the caller's.
    unsafe { heap.tell_collected(notes.before.saturating_sub(notes.live)) };
    Some(Next::More)
}

/// Waits by `wait`, which is given milliseconds and signals to block meanwhile, and does what is to be done. Where the
/// program has other signals blocked while it waits than before, `mask` is these, as the kernel counts them.
pub(super) fn while_waiting(
    timeout: c_int,
    mask: Option<u64>,
    wait: impl Fn(c_int, Option<&Signals>) -> c_int,
) -> c_int {
    // Most programs have no Lua, and are not to pay for looking for it.
    if !lua::any_flow(|flow, done| flow.saturating_sub(done) >= LEAST) {
        return wait(timeout, None);
    }
    let Some(api) = hook::api() else { return wait(timeout, None) };
    let began_us = lua::now_us();
    let left = |most: u64| {
        let gone = (lua::now_us() - began_us) / 1000;
        let left = if timeout < 0 { u64::from(u32::MAX) } else { (timeout as u64).saturating_sub(gone) };
        left.min(most).min(c_int::MAX as u64) as c_int
    };
    let rest = |left: c_int| if timeout < 0 { -1 } else { left };
    let began = began_us / 1000;
    let since = match PENDING_MS.load(Relaxed) {
        0 => began,
        since => since,
    };
    PENDING_MS.store(since, Relaxed);
    let mut starved = began.saturating_sub(since) > STARVED_MS;
    let got = wait(left(if starved { 0 } else { QUIET_MS }), None);
    if got != 0 || (timeout >= 0 && left(u64::MAX) == 0) {
        return got;
    }
    if REFUSED.load(Relaxed) || !lua::alone() {
        PENDING_MS.store(0, Relaxed);
        return wait(rest(left(u64::MAX)), None);
    }
    WAITS.fetch_add(1, Relaxed);
    let before = signals::block();
    let mask = mask.unwrap_or(before[0]);
    let (mut done, mut pause, mut patience) = (false, 0, QUIET_MS);
    let got = loop {
        let last = done || signals::is_pending(mask);
        let got = wait(if last { rest(left(u64::MAX)) } else { left(pause) }, Some(&before));
        if last || got != 0 || (timeout >= 0 && left(u64::MAX) == 0) {
            break got;
        }
        pause = match slices(&api, &before) {
            Next::More if starved => {
                starved = false;
                STARVED_EVERY_MS
            }
            Next::More | Next::Finalizer => 0,
            Next::In(ms) => ms,
            Next::Nothing => {
                PENDING_MS.store(0, Relaxed);
                done = true;
                0
            }
            // One that a finaliser has made; or the purge thread, until it has said that it is that.
            Next::Company => {
                WAITS.fetch_add(1, Relaxed);
                patience = patience.saturating_mul(2);
                patience / 2
            }
        };
    };
    signals::restore(&before);
    if got < 0 && REFUSALS.contains(&errno()) {
        REFUSED.store(true, Relaxed);
        return wait(rest(left(u64::MAX)), None);
    }
    got
}

/// A slice for the first heap that has work; else when there will be some.
fn slices(api: &Api, before: &Signals) -> Next {
    if !lua::alone() {
        return Next::Company;
    }
    let mut soonest = None;
    for heap in lua::ours() {
        // SAFETY: the process has no other thread, and this one is about to wait.
        match unsafe { slice(api, heap, false) } {
            Next::More => return Next::More,
            Next::Finalizer => {
                let blocked = signals::restore(before);
                // SAFETY: as above.
                let next = unsafe { slice(api, heap, true) };
                signals::restore(&blocked);
                return next;
            }
            Next::In(ms) => soonest = Some(soonest.unwrap_or(ms).min(ms)),
            Next::Nothing | Next::Company => {}
        }
    }
    soonest.map_or(Next::Nothing, Next::In)
}
