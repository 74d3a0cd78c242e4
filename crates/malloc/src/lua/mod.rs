//! Heaps for Lua states: what `lua_newstate` is given as its `lua_Alloc`.
//!
//! | module | does |
//! |---|---|
//! | [`heap`] | slots out of pages, for one owner |
//! | [`entry`] | what is kept of each page |
//! | [`list`] | pages linked by their entries |
//! | [`mesh`] | pages that share a frame: which, and when |
//! | [`frames`] | the same in the kernel, and before a fork |
//! | [`supply`] | where its pages come from and go |
//! | [`told`] | what a heap tells, and what the hook remembers of its state |
//! | [`verify`] | what must hold, if asked to check |
//! | [`writers`] | which memory is left alone, as others than the VM may write to it |
//!
//! Who calls: the VM's thread, through [`lua_alloc`]; and whoever knows that no thread runs the VM, through
//! [`State`]'s methods.

mod entry;
mod frames;
mod heap;
mod list;
mod mesh;
mod supply;
mod told;
mod verify;
mod writers;

pub(crate) use entry::{ENTRY_AT, Entry, LUA, forget, raw_lock as raw_table_lock};
pub use heap::Heap;
pub(crate) use heap::{BINS_AT, Bin};
pub use told::{Notes, Told};

use crate::lock::Mutex;
use crate::spawn;
use crate::stats::COUNT;
use crate::sys;
use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Relaxed};

/// Milliseconds of an epoch, by which pages age.
const EPOCH_MS: u64 = 5000;
/// Microseconds of a slice of meshing inside an allocation.
const BUSY_SLICE_US: u64 = 500;
/// Microseconds of a slice while the program waits.
const QUIET_SLICE_US: u64 = 800;

/// The heaps there are, as a list that begins at `COUNT.lua`.
static LIST: Mutex<()> = Mutex::new(());

/// What is left to be told of heaps that were closed; `state` is how many.
static CLOSED: Told = Told::new();

/// Of all heaps, those that were closed included: how many, and their figures together.
pub fn total() -> Told {
    let sum = Told::new();
    let _list = LIST.lock();
    sum.remember(&CLOSED);
    sum.state.set(CLOSED.state.get());
    for state in all() {
        let told = &state.locked().told;
        sum.remember(told);
        sum.pages.add(told.pages.get());
    }
    sum
}

/// The lock, for fork.
pub(crate) fn raw_lock() -> &'static crate::lock::Lock {
    LIST.raw()
}

/// Whether the thread that forked was alone.
static FORKED_ALONE: AtomicBool = AtomicBool::new(true);

/// Before a fork, with the list locked: no page is shared, so that parent and child do not write to each other's.
pub(crate) fn part() {
    FORKED_ALONE.store(COUNT.lua.get() == 0 || alone(), Relaxed);
    all().for_each(|state| state.locked().mesh.part());
}

/// In a forked child, with the list locked still: heaps may be those of threads that were in the midst of something.
pub(crate) fn forked() {
    let orphans = !FORKED_ALONE.load(Relaxed);
    for heap in all().map(State::locked) {
        heap.mesh.forked();
        heap.orphan.store(orphans || heap.orphan.load(Relaxed), Relaxed);
    }
    for state in ours() {
        // SAFETY: it is not closed, and the only thread is here.
        unsafe { state.heap() }.begin_anew();
    }
}

/// The heaps that are not closed and are not orphans of a fork. Whoever reads on must know that none is
/// closed meanwhile.
pub fn ours() -> impl Iterator<Item = State> {
    all().filter(|state| !state.locked().orphan.load(Relaxed))
}

/// After a fork, with the list locked still: calls `f` with each lock that [`part`] took.
pub(crate) fn after_fork(f: impl Fn(&crate::lock::Lock)) {
    all().for_each(|state| f(state.locked().mesh.lock()));
}

/// Turns of the purge that found memory short: each heap that sees the number changed takes everything as cold.
static PRESSED: AtomicU32 = AtomicU32::new(0);

/// Memory is short.
pub(crate) fn press() {
    PRESSED.fetch_add(1, Relaxed);
}

const BYTES: usize = size_of::<Heap>().next_multiple_of(crate::class::PAGE);

/// A Lua state's heap, by address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State(usize);

impl State {
    /// A heap for a state that is about to be made; `None` if memory ran out.
    pub fn new() -> Option<State> {
        let at = sys::map_anywhere(BYTES).ok()?;
        sys::name_mapping(at, BYTES, c"ebbtide lua");
        let state = State(at);
        let _list = LIST.lock();
        // SAFETY: mapped above, large enough, known to nobody else; all zeros is a heap.
        let heap = unsafe { state.heap() };
        heap.begin();
        heap.told.next.store(COUNT.lua.get() as usize, Relaxed);
        core::sync::atomic::fence(core::sync::atomic::Ordering::Release);
        COUNT.lua.set(at as u64);
        Some(state)
    }

    /// What to hand to `lua_newstate` beside [`lua_alloc`].
    pub fn data(self) -> *mut c_void {
        core::ptr::with_exposed_provenance_mut(self.0)
    }

    /// A heap in the list, which is locked or known not to change, for what is read and written in whole words or locked
    /// in it.
    fn locked<'a>(self) -> &'a Heap {
        // SAFETY: it is not closed.
        unsafe { &*core::ptr::with_exposed_provenance::<Heap>(self.0) }
    }

    /// # Safety
    /// The heap must not have been closed, and nobody else may use it meanwhile.
    unsafe fn heap<'a>(self) -> &'a mut Heap {
        // SAFETY: the caller's.
        unsafe { &mut *core::ptr::with_exposed_provenance_mut(self.0) }
    }

    /// What is told of it, also to other processes.
    ///
    /// # Safety
    /// The heap must not have been closed.
    pub unsafe fn told<'a>(self) -> &'a Told {
        &self.locked().told
    }

    /// Gives back everything the state left behind, and the heap itself.
    ///
    /// # Safety
    /// The state must have been closed, or never made; nobody may use the heap any more.
    pub unsafe fn close(self) {
        // SAFETY: the caller's.
        let heap = unsafe { self.heap() };
        heap.end();
        heap.mesh.end();
        let _list = LIST.lock();
        CLOSED.remember(&heap.told);
        let next = heap.told.next.load(Relaxed);
        if COUNT.lua.get() as usize == self.0 {
            COUNT.lua.set(next as u64);
        } else {
            let before = all().map(|other| &other.locked().told.next).find(|to| to.load(Relaxed) == self.0);
            before.inspect(|to| to.store(next, Relaxed));
        }
        // SAFETY: the mapping made by `new`; nothing refers to it any more.
        let _ = unsafe { sys::unmap(self.0, BYTES) };
    }

    /// What the hook remembers of it.
    ///
    /// # Safety
    /// The heap must not have been closed, and no thread may run the VM.
    pub unsafe fn notes<'a>(self) -> &'a mut Notes {
        // SAFETY: the caller's.
        unsafe { &mut self.heap().notes }
    }

    /// Tells which `lua_State` the heap belongs to.
    ///
    /// # Safety
    /// As for [`State::notes`].
    pub unsafe fn tell_state(self, state: usize) {
        // SAFETY: the caller's.
        unsafe { self.told() }.state.set(state as u64);
    }

    /// Tells how long a slice of the collector took.
    ///
    /// # Safety
    /// As for [`State::notes`].
    pub unsafe fn tell_slice(self, us: u64) {
        // SAFETY: the caller's.
        unsafe { self.told() }.longest_cycle_us.raise(us);
    }

    /// Tells by how much a cycle of the collector made the state smaller.
    ///
    /// # Safety
    /// As for [`State::notes`].
    pub unsafe fn tell_collected(self, bytes: u64) {
        // SAFETY: the caller's.
        let told = unsafe { self.told() };
        told.cycles.add(1);
        told.collected.add(bytes);
    }

    /// The program waits: what the heap held ready goes back.
    ///
    /// # Safety
    /// As for [`State::notes`].
    pub unsafe fn rest(self) {
        // SAFETY: the caller's.
        unsafe { self.heap() }.settle();
    }

    /// One slice of meshing, below a millisecond. Milliseconds until the next has something to do; `None` if none
    /// will, as long as nothing is allocated.
    ///
    /// # Safety
    /// As for [`State::notes`].
    pub unsafe fn mesh(self) -> Option<u64> {
        // SAFETY: the caller's.
        let heap = unsafe { self.heap() };
        let wait = heap.until_mesh(sys::now_ms());
        if wait == Some(0) && !heap.mesh_slice(QUIET_SLICE_US) {
            return heap.until_mesh(sys::now_ms());
        }
        wait
    }

    /// What tells its heap from one that comes to be at the same address.
    ///
    /// # Safety
    /// The heap must not have been closed.
    pub unsafe fn id(self) -> u32 {
        self.locked().id
    }

    /// As [`State::close`], unless LuaJIT has freed the state itself, and the heap with it.
    ///
    /// # Safety
    /// As for [`State::close`], if there is a heap with this id.
    pub unsafe fn close_unless_closed(self, id: u32) {
        let there = {
            let _list = LIST.lock();
            all().any(|state| state == self && state.locked().id == id)
        };
        if there {
            // SAFETY: the caller's.
            unsafe { self.close() };
        }
    }

    /// As if nothing had been touched for long: all that is sparse may be meshed at once.
    ///
    /// # Safety
    /// As for [`State::notes`].
    pub unsafe fn age(self) {
        // SAFETY: the caller's.
        unsafe { self.heap() }.age();
    }

    /// Calls `f` with the address of every block of the class that blocks of `size` bytes have, in pages from `from` on,
    /// until it says false; whether it never did. Where time runs out, `None`, and `from` is where to go on.
    ///
    /// # Safety
    /// As for [`State::notes`].
    pub unsafe fn each_block(
        self,
        size: usize,
        from: &mut usize,
        until_us: u64,
        f: impl FnMut(usize) -> bool,
    ) -> Option<bool> {
        // SAFETY: the caller's.
        unsafe { self.heap() }.each_block(size, from, until_us, f)
    }
}

/// The heaps that are not closed. Whoever reads on must know that none is closed meanwhile.
pub fn all() -> impl Iterator<Item = State> {
    let state = |at: usize| (at != 0).then_some(State(at));
    core::iter::successors(state(COUNT.lua.get() as usize), move |s| {
        state(s.locked().told.next.load(Relaxed))
    })
}

/// How much was allocated of each heap, ever, and how much of that had been when nothing was left to do. For whoever
/// does not know yet whether the heaps may be touched.
pub fn any_flow(f: impl Fn(u64, u64) -> bool) -> bool {
    if COUNT.lua.get() == 0 {
        return false;
    }
    let _list = LIST.lock();
    ours().any(|state| {
        let heap = state.locked();
        f(heap.told.flow.get(), heap.notes.done.load(Relaxed))
    })
}

/// Whether the calling thread is the process's only one, but for the purge thread. Where that is about to end, waits until
/// it has.
pub fn alone() -> bool {
    let is_counted = || sys::threads() == Some(2);
    seems_alone()
        || sys::threads().is_some_and(|count| count <= 2) && {
            spawn::await_end(is_counted);
            seems_alone()
        }
}

/// The same at once: not, where the purge thread has not quite begun or ended.
fn seems_alone() -> bool {
    let keeper = spawn::running();
    match sys::threads() {
        Some(1) => true,
        // Only if it is there both before and after was it counted.
        Some(2) => keeper.is_some() && spawn::running() == keeper,
        _ => false,
    }
}

/// The monotonic time in microseconds.
pub fn now_us() -> u64 {
    sys::now_us()
}

/// A `lua_Alloc` (lua.h): allocates, frees or resizes a block of the heap that `data` is.
///
/// What LuaJIT says a block's size was is not relied upon: after a failed allocation two of its paths are wrong.
///
/// # Safety
/// `data` is [`State::data`] of a heap that is not closed, used by one thread at a time; `at` null or a block of it.
pub unsafe extern "C" fn lua_alloc(
    data: *mut c_void,
    at: *mut c_void,
    old: usize,
    new: usize,
) -> *mut c_void {
    let state = State(data.expose_provenance());
    // SAFETY: the caller's.
    let heap = unsafe { state.heap() };
    if at.is_null() {
        return heap.alloc(new).cast();
    }
    if new == 0 {
        // SAFETY: the caller's.
        if unsafe { heap.free(at.cast(), old) } {
            // SAFETY: LuaJIT frees the state itself last (lj_state.c, close_state).
            unsafe { state.close() };
        }
        return core::ptr::null_mut();
    }
    // SAFETY: the caller's.
    unsafe { heap.resize(at.cast(), old, new).cast() }
}
