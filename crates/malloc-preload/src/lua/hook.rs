//! `luaL_newstate` and `lua_newstate` in place of LuaJIT's: the state gets a heap of ours.
//!
//! A caller of `lua_newstate` who brings an allocator keeps it. Where LuaJIT is not one that takes an allocator (a
//! build without GC64), or is another Lua, or is part of the program itself, everything is as without this library;
//! that LuaJIT was left alone is said once.

use super::api::{self, Alloc, Api, AuxNewState, L, NewState, function};
use super::collect;
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering::Acquire, Ordering::Relaxed, Ordering::Release};
use ebbtide_malloc::is_set;
use ebbtide_malloc::lua::{self, State};

const REFUSED: &str = "this LuaJIT takes no other allocator, or memory ran out: its own is used\n";

/// LJ_ALLOCF_INTERNAL (lj_alloc.h): "LuaJIT's own".
const INTERNAL: usize = 1237 << 4;

static OFF: AtomicBool = AtomicBool::new(false);
/// 1 once [`FOUND`] is set.
static READY: AtomicU32 = AtomicU32::new(0);
static FOUND: Slot = Slot(core::cell::UnsafeCell::new(None));
static SAID: AtomicBool = AtomicBool::new(false);

struct Slot(core::cell::UnsafeCell<Option<Api>>);
// SAFETY: written once, by who moves READY from 0 to 2, and read after it has become 1.
unsafe impl Sync for Slot {}

/// LuaJIT's functions; `None` if there is no LuaJIT (yet).
pub(super) fn api() -> Option<Api> {
    if READY.load(Acquire) == 1 {
        // SAFETY: see `Slot`.
        return unsafe { *FOUND.0.get() };
    }
    let found = Api::find()?;
    if READY.compare_exchange(0, 2, Acquire, Relaxed).is_ok() {
        // SAFETY: see `Slot`.
        unsafe { *FOUND.0.get() = Some(found) };
        READY.store(1, Release);
    }
    Some(found)
}

/// In the constructor.
pub(super) fn prepare() {
    OFF.store(is_set(c"EBBTIDE_LUA", c"off"), Relaxed);
    if !OFF.load(Relaxed) && api::is_built_in() {
        leave_alone("LuaJIT is part of this program: its memory stays with its own allocator\n");
    }
}

/// Says once why a LuaJIT keeps its allocator, and makes it so for the states to come.
fn leave_alone(why: &str) {
    OFF.store(true, Relaxed);
    if !SAID.swap(true, Relaxed) {
        super::say::line(&["ebbtide: ", why]);
    }
}

/// A state with a heap of ours; null if it cannot be made.
fn make(api: &Api) -> L {
    let Some(state) = State::new() else { return core::ptr::null_mut() };
    // SAFETY: it was just made.
    let id = unsafe { state.id() };
    // SAFETY: the heap is for this state alone.
    let made = unsafe { (api.newstate)(Some(lua::lua_alloc), state.data(), 0) };
    if made.is_null() {
        // SAFETY: what LuaJIT did not give up by itself has no state, and nobody else knows the heap.
        unsafe { state.close_unless_closed(id) };
    } else {
        // SAFETY: the state was just made, and is known to this thread only.
        unsafe { collect::begin(made, state) };
    }
    made
}

/// LuaJIT: a new state with the allocator that the caller brings; if it is LuaJIT's own, with ours. Hands the address
/// that it was called from to [`newstate`].
///
/// # Safety
/// As LuaJIT's.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn lua_newstate(
    _allocator: Option<Alloc>,
    _data: *mut c_void,
    _seed: usize,
) -> L {
    core::arch::naked_asm!(
        #[cfg(target_arch = "x86_64")]
        "mov rcx, qword ptr [rsp]; jmp {to}",
        #[cfg(target_arch = "aarch64")]
        "mov x3, x30; b {to}",
        to = sym newstate,
    )
}

/// LuaJIT: a new state with its own allocator; here, with ours. Hands the address that it was called from to
/// [`aux_newstate`].
///
/// # Safety
/// As LuaJIT's.
#[unsafe(naked)]
#[unsafe(no_mangle)]
pub(super) unsafe extern "C" fn luaL_newstate() -> L {
    core::arch::naked_asm!(
        #[cfg(target_arch = "x86_64")]
        "mov rdi, qword ptr [rsp]; jmp {to}",
        #[cfg(target_arch = "aarch64")]
        "mov x0, x30; b {to}",
        to = sym aux_newstate,
    )
}

/// # Safety
/// As `lua_newstate`.
unsafe extern "C" fn newstate(
    allocator: Option<Alloc>,
    data: *mut c_void,
    seed: usize,
    caller: *const c_void,
) -> L {
    let Some(real): Option<NewState> = function!(api::real(c"lua_newstate", caller)) else {
        return core::ptr::null_mut();
    };
    let internal = allocator.is_some_and(|f| f as usize == INTERNAL) && !OFF.load(Relaxed);
    // Another LuaJIT than the one that is known is left alone.
    if let Some(api) = api().filter(|api| internal && api.newstate as usize == real as usize) {
        let made = make(&api);
        if !made.is_null() {
            return made;
        }
        leave_alone(REFUSED);
    }
    // SAFETY: the caller's arguments.
    unsafe { real(allocator, data, seed) }
}

/// # Safety
/// As `luaL_newstate`.
unsafe extern "C" fn aux_newstate(caller: *const c_void) -> L {
    let Some(real): Option<AuxNewState> = function!(api::real(c"luaL_newstate", caller)) else {
        return core::ptr::null_mut();
    };
    // LuaJIT's sets its panic function and calls lua_newstate, which as a rule is the one above.
    // SAFETY: takes no arguments.
    let made = unsafe { real() };
    if made.is_null() || OFF.load(Relaxed) {
        return made;
    }
    let Some(api) = api().filter(|api| api.aux_newstate as usize == real as usize) else { return made };
    let mut data = core::ptr::null_mut();
    // SAFETY: a state that was just made.
    let allocator = unsafe { (api.getallocf)(made, &raw mut data) };
    if allocator.is_some_and(|f| f as usize == lua::lua_alloc as *const () as usize) {
        return made;
    }
    // It was linked to call its own.
    let ours = make(&api);
    if ours.is_null() {
        leave_alone(REFUSED);
        return made;
    }
    // SAFETY: both states are new and known to this thread only.
    unsafe {
        (api.close)(made);
        (api.atpanic)(ours, panicked);
    }
    ours
}

/// What LuaJIT's lib_aux.c says when an error meets no protected call.
///
/// # Safety
/// As LuaJIT calls it.
unsafe extern "C" fn panicked(state: L) -> c_int {
    let Some(api) = api() else { return 0 };
    // SAFETY: the error is on top of the stack; a string there is NUL-terminated and stays.
    let text = unsafe {
        let text = (api.tolstring)(state, -1, core::ptr::null_mut());
        if text.is_null() { c"?" } else { core::ffi::CStr::from_ptr(text) }
    };
    let text = text.to_str().unwrap_or("?");
    super::say::line(&["PANIC: unprotected error in call to Lua API (", text, ")\n"]);
    0
}
