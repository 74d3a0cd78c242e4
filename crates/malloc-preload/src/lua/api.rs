//! LuaJIT's functions, found in the library that is loaded.
//!
//! Types and numbers are those of lua.h (Lua 5.1) and of luajit2's additions to it.
//!
//! The loader is asked nothing from within `dl_iterate_phdr`: that holds one of its two locks, and whoever loads a library
//! in another thread holds the other one and waits for this.

use crate::dl::{RTLD_DEFAULT, RTLD_NEXT, look};
use core::ffi::{CStr, c_char, c_int, c_void};

/// `lua_State *`, never looked into here.
pub(super) type L = *mut c_void;
/// `lua_Alloc`.
pub(super) type Alloc = unsafe extern "C" fn(*mut c_void, *mut c_void, usize, usize) -> *mut c_void;
/// `lua_CFunction`.
pub(super) type Function = unsafe extern "C" fn(L) -> c_int;

/// `lua_newstate`; Lua 5.5 has a third argument, which others do not look at.
pub(super) type NewState = unsafe extern "C" fn(Option<Alloc>, *mut c_void, usize) -> L;
/// `luaL_newstate`.
pub(super) type AuxNewState = unsafe extern "C" fn() -> L;

pub(super) const GC_COUNT: c_int = 3;
pub(super) const GC_COUNTB: c_int = 4;
pub(super) const GC_STEP: c_int = 5;
pub(super) const GC_SETPAUSE: c_int = 6;
pub(super) const GC_SETSTEPMUL: c_int = 7;
pub(super) const GC_ISRUNNING: c_int = 9;
pub(super) const REGISTRY: c_int = -10000;

const RTLD_LAZY: c_int = 1;
const RTLD_NOLOAD: c_int = 4;

#[link(name = "c")]
unsafe extern "C" {
    fn dlclose(handle: *mut c_void) -> c_int;
    fn dladdr(addr: *const c_void, info: *mut Info) -> c_int;
    fn dl_iterate_phdr(each: Each, data: *mut c_void) -> c_int;
}

type Each = unsafe extern "C" fn(*const Object, usize, *mut c_void) -> c_int;

/// The beginning of glibc's `struct dl_phdr_info`.
#[repr(C)]
struct Object {
    addr: usize,
    name: *const c_char,
}

/// `Dl_info`.
#[repr(C)]
struct Info {
    file: *const c_char,
    base: *mut c_void,
    name: *const c_char,
    at: *mut c_void,
}

/// The functions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Api {
    pub(super) newstate: NewState,
    pub(super) aux_newstate: AuxNewState,
    pub(super) close: unsafe extern "C" fn(L),
    pub(super) getallocf: unsafe extern "C" fn(L, *mut *mut c_void) -> Option<Alloc>,
    pub(super) atpanic: unsafe extern "C" fn(L, Function) -> Option<Function>,
    pub(super) cpcall: unsafe extern "C" fn(L, Function, *mut c_void) -> c_int,
    pub(super) touserdata: unsafe extern "C" fn(L, c_int) -> *mut c_void,
    pub(super) tolstring: unsafe extern "C" fn(L, c_int, *mut usize) -> *const c_char,
    pub(super) gc: unsafe extern "C" fn(L, c_int, c_int) -> c_int,
    pub(super) newthread: unsafe extern "C" fn(L) -> L,
    pub(super) pushlightuserdata: unsafe extern "C" fn(L, *mut c_void),
    pub(super) rawset: unsafe extern "C" fn(L, c_int),
    pub(super) settop: unsafe extern "C" fn(L, c_int),
    /// luajit2's: what nginx keeps with a coroutine.
    pub(super) setexdata: Option<unsafe extern "C" fn(L, *mut c_void)>,
    pub(super) setexdata2: Option<unsafe extern "C" fn(L, *mut c_void)>,
}

/// The function at an address that was looked for, with the type of the place it is put in.
macro_rules! function {
    ($at:expr) => {{
        let at: *mut c_void = $at;
        // SAFETY: null is `None`; else it is the address of the function that lua.h declares with this type.
        (!at.is_null()).then(|| unsafe { core::mem::transmute::<*mut c_void, _>(at) })
    }};
}
pub(super) use function;

impl Api {
    fn of(handle: *mut c_void) -> Option<Api> {
        let look = |name| look(handle, name);
        if look(c"luaJIT_setmode").is_null() {
            return None;
        }
        Some(Api {
            newstate: function!(look(c"lua_newstate"))?,
            aux_newstate: function!(look(c"luaL_newstate"))?,
            close: function!(look(c"lua_close"))?,
            getallocf: function!(look(c"lua_getallocf"))?,
            atpanic: function!(look(c"lua_atpanic"))?,
            cpcall: function!(look(c"lua_cpcall"))?,
            touserdata: function!(look(c"lua_touserdata"))?,
            tolstring: function!(look(c"lua_tolstring"))?,
            gc: function!(look(c"lua_gc"))?,
            newthread: function!(look(c"lua_newthread"))?,
            pushlightuserdata: function!(look(c"lua_pushlightuserdata"))?,
            rawset: function!(look(c"lua_rawset"))?,
            settop: function!(look(c"lua_settop"))?,
            setexdata: function!(look(c"lua_setexdata")),
            setexdata2: function!(look(c"lua_setexdata2")),
        })
    }

    /// The LuaJIT that the program would have without this library: the next in the order of searching, or, where it
    /// was loaded for one library only, the first object that defines it.
    pub(super) fn find() -> Option<Api> {
        Api::of(RTLD_NEXT).or_else(|| {
            let mut names = Names { text: [0; ROOM], used: 0, known: 0 };
            loop {
                let known = names.known;
                names.read_on();
                // The handle is kept, so the library stays.
                if let Some(handle) = names.all().find_map(own_luajit) {
                    return Api::of(handle);
                }
                if names.known == known {
                    return None;
                }
            }
        })
    }
}

/// What a name would mean to `caller` without this library: the next in the order of searching, else what is among the
/// dependencies of the caller's object, which may have been loaded for itself alone.
pub(super) fn real(name: &CStr, caller: *const c_void) -> *mut c_void {
    let next = look(RTLD_NEXT, name);
    let file = object_of(caller).map_or(core::ptr::null(), |info| info.file);
    if !next.is_null() || file.is_null() {
        return next;
    }
    // SAFETY: libc's name of an object that is loaded; with RTLD_NOLOAD it is only counted.
    let handle = unsafe { crate::deepbind::dlopen(file, RTLD_LAZY | RTLD_NOLOAD) };
    if handle.is_null() {
        return next;
    }
    let found = look(handle, name);
    // SAFETY: counted above; the caller keeps it.
    unsafe { dlclose(handle) };
    found
}

/// Whether the program itself contains LuaJIT, so that its calls never come here.
pub(super) fn is_built_in() -> bool {
    // By object and not by address: a name of ours may mean the program's function here, too.
    let ours = object_of(is_built_in as *const c_void).map(|info| info.base);
    let theirs = object_of(look(RTLD_DEFAULT, c"lua_newstate")).map(|info| info.base);
    !look(RTLD_DEFAULT, c"luaJIT_setmode").is_null() && theirs.is_some() && theirs != ours
}

/// The object that an address lies in.
fn object_of(at: *const c_void) -> Option<Info> {
    let mut info = Info {
        file: core::ptr::null(),
        base: core::ptr::null_mut(),
        name: core::ptr::null(),
        at: core::ptr::null_mut(),
    };
    // SAFETY: libc fills in the structure, and tells of addresses in no object.
    let found = !at.is_null() && unsafe { dladdr(at, &raw mut info) } != 0;
    found.then_some(info)
}

/// Bytes of names that are looked through at a time: as a rule all.
const ROOM: usize = 16 << 10;

/// Names of loaded objects, one after the other, each with its NUL.
struct Names {
    text: [u8; ROOM],
    used: usize,
    /// Objects whose names were here, or had no room.
    known: usize,
}

impl Names {
    /// Those that follow, as many as have room; none at the end.
    fn read_on(&mut self) {
        let mut pass = Pass { at: 0, names: self };
        pass.names.used = 0;
        // SAFETY: `copy` treats its last argument as this.
        unsafe { dl_iterate_phdr(copy, (&raw mut pass).cast()) };
    }

    fn all(&self) -> impl Iterator<Item = &CStr> {
        self.text[..self.used]
            .split_inclusive(|byte| *byte == 0)
            .filter_map(|name| CStr::from_bytes_with_nul(name).ok())
    }
}

/// One walk through the objects, `at` so many.
struct Pass<'a> {
    at: usize,
    names: &'a mut Names,
}

/// Copies the name of an object that is not known yet, and stops where it has no room.
///
/// # Safety
/// As `dl_iterate_phdr` calls it; `pass` points to a [`Pass`].
unsafe extern "C" fn copy(object: *const Object, _size: usize, pass: *mut c_void) -> c_int {
    // SAFETY: the caller's.
    let (Pass { at, names }, name) = unsafe { (&mut *pass.cast::<Pass<'_>>(), (*object).name) };
    *at += 1;
    if *at <= names.known || name.is_null() {
        return 0;
    }
    // SAFETY: the loader's names are NUL-terminated.
    let name = unsafe { CStr::from_ptr(name) }.to_bytes_with_nul();
    if let Some(room) = names.text[names.used..].get_mut(..name.len()) {
        room.copy_from_slice(name);
        names.used += name.len();
    } else if names.used > 0 {
        return 1;
    }
    names.known = *at;
    0
}

/// A handle of the object of this name, if it is one that defines LuaJIT.
fn own_luajit(name: &CStr) -> Option<*mut c_void> {
    // The program's own name.
    if name.is_empty() {
        return None;
    }
    // SAFETY: with RTLD_NOLOAD nothing is loaded, only counted.
    let handle = unsafe { crate::deepbind::dlopen(name.as_ptr(), RTLD_LAZY | RTLD_NOLOAD) };
    if handle.is_null() {
        return None;
    }
    // By file: a handle finds what is in the object's dependencies, too.
    // SAFETY: the file's name is the loader's, and NUL-terminated.
    let own = object_of(look(handle, c"luaJIT_setmode"))
        .is_some_and(|info| unsafe { !info.file.is_null() && CStr::from_ptr(info.file) == name });
    if own {
        return Some(handle);
    }
    // SAFETY: counted above.
    unsafe { dlclose(handle) };
    None
}
