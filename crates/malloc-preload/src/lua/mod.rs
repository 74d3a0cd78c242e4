//! The LuaJIT hook: every Lua state made while this library is loaded gets a heap of ours.
//!
//! | module | does |
//! |---|---|
//! | [`api`] | finds LuaJIT's own functions |
//! | [`hook`] | `lua_newstate` and `luaL_newstate`, in place of LuaJIT's |
//! | [`collect`] | runs the collector and meshing while the program waits |
//! | [`layout`] | what of LuaJIT's structures has to be known |
//! | [`signals`] | those that come meanwhile |
//! | [`wait`] | `epoll_wait`, by which programs wait |
//! | [`say`] | one line at the end, if asked |

mod api;
mod collect;
mod hook;
mod layout;
mod say;
mod signals;
mod wait;

/// Run by the loader before `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

extern "C" fn constructor() {
    say::prepare();
    collect::prepare();
    hook::prepare();
}
