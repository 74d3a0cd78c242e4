//! The LuaJIT hook: every Lua state made while this library is loaded gets a heap of ours.
//!
//! | module | does |
//! |---|---|
//! | [`api`] | finds LuaJIT's own functions |
//! | [`hook`] | `lua_newstate` and `luaL_newstate`, in place of LuaJIT's |
//! | [`collect`] | runs the collector and meshing while the program waits |
//! | [`layout`] | what of LuaJIT's structures has to be known |
//! | [`wait`] | `epoll_wait`, by which programs wait |
//! | [`say`] | one line at the end, if asked |

mod api;
mod collect;
mod hook;
mod layout;
mod say;
mod wait;

use core::ffi::{CStr, c_char};

#[link(name = "c")]
unsafe extern "C" {
    fn secure_getenv(name: *const c_char) -> *const c_char;
}

/// Whether an environment variable has this value; never in a program that runs with more rights than its caller.
fn is_set(name: &CStr, value: &CStr) -> bool {
    // SAFETY: a NUL-terminated name; what comes back is a NUL-terminated string of the environment, read at once.
    unsafe {
        let found = secure_getenv(name.as_ptr());
        !found.is_null() && CStr::from_ptr(found) == value
    }
}

/// Run by the loader before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

extern "C" fn constructor() {
    say::prepare();
    collect::prepare();
    hook::prepare();
}
