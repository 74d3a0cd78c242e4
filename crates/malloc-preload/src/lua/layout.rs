//! What has to be known of LuaJIT's structures, and how it is found out that they are as known.
//!
//! Offsets are those of lj_obj.h (LuaJIT 2.1, 15f58c96) with LJ_GC64; [`Layout::find`] compares what lies there with what
//! LuaJIT's own functions say, and who calls into a state compares `cframe` during the call with the stack.

use super::api::{self, Api};
use core::ffi::c_void;
use ebbtide_malloc::lua::{self, Notes, State};

/// Where in a `lua_State` and its `global_State` what is needed lies: offsets of lj_obj.h with LJ_GC64, luajit2 or not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Layout {
    state: usize,
    pub(super) global: usize,
}

impl Layout {
    const KIND: usize = 9;
    const GLREF: usize = 16;
    const CFRAME: usize = 80;
    pub(super) const TOTAL: usize = 16;
    pub(super) const THRESHOLD: usize = 24;
    pub(super) const PHASE: usize = 33;
    pub(super) const DEBT: usize = 88;
    /// `gc.stepmul` and behind it `gc.pause`, as one word.
    const STEPMUL: usize = 104;
    /// ~LJ_TTHREAD
    const THREAD: u8 = 6;
    /// GCSpause and GCSfinalize (lj_gc.h).
    pub(super) const BETWEEN: u8 = 0;
    pub(super) const FINALIZE: u8 = 5;

    pub(super) fn word(at: usize) -> *mut u64 {
        core::ptr::with_exposed_provenance_mut(at)
    }

    /// # Safety
    /// `at` must be mapped and a multiple of 8.
    pub(super) unsafe fn read(at: usize) -> u64 {
        // SAFETY: the caller's.
        unsafe { Self::word(at).read_volatile() }
    }

    /// # Safety
    /// `at` must be mapped.
    pub(super) unsafe fn byte(at: usize) -> u8 {
        // SAFETY: the caller's.
        unsafe { core::ptr::with_exposed_provenance::<u8>(at).read_volatile() }
    }

    /// The layout of a state with a heap of ours; `None` if it is another one than is known here.
    ///
    /// # Safety
    /// The state must be alive, and nobody else may use it.
    pub(super) unsafe fn find(api: &Api, state: usize, heap: State) -> Option<Layout> {
        // SAFETY: a lua_State has more than 24 bytes in any build.
        let (kind, global) =
            unsafe { (Self::byte(state + Self::KIND), Self::read(state + Self::GLREF) as usize) };
        // GG_State (lj_dispatch.h): the main lua_State and the global_State behind it. 96 bytes, luajit2 112.
        if kind != Self::THREAD || !matches!(global.wrapping_sub(state), 96 | 112) {
            return None;
        }
        let layout = Layout { state, global };
        let l = core::ptr::with_exposed_provenance_mut::<c_void>(state);
        // SAFETY: the offsets lie within the GG_State, some KB of memory; lua_gc is as lua.h says.
        unsafe {
            let ours = Self::read(global) as usize == lua::lua_alloc as *const () as usize
                && Self::read(global + 8) as usize == heap.data() as usize;
            let pause = (api.gc)(l, api::GC_SETPAUSE, 200);
            (api.gc)(l, api::GC_SETPAUSE, pause);
            let stepmul = (api.gc)(l, api::GC_SETSTEPMUL, 200);
            (api.gc)(l, api::GC_SETSTEPMUL, stepmul);
            let total = (api.gc)(l, api::GC_COUNT, 0) as u64 * 1024 + (api.gc)(l, api::GC_COUNTB, 0) as u64;
            let collector = Self::read(global + Self::STEPMUL) == (pause as u64) << 32 | stepmul as u64
                && Self::read(global + Self::TOTAL) == total;
            (ours && collector).then_some(layout)
        }
    }

    fn size(self) -> usize {
        self.global - self.state
    }

    /// # Safety
    /// As for [`Layout::find`].
    pub(super) unsafe fn cframe(state: usize) -> u64 {
        // SAFETY: within a lua_State.
        unsafe { Self::read(state + Self::CFRAME) }
    }

    /// Whether no Lua is on any C stack; `None` where time runs out, to be asked again in the same wait, of which `wait` is
    /// the number.
    ///
    /// # Safety
    /// As for [`Layout::find`].
    pub(super) unsafe fn nothing_runs(
        self,
        heap: State,
        notes: &mut Notes,
        wait: u64,
        until_us: u64,
    ) -> Option<bool> {
        if notes.looked == wait {
            return Some(true);
        }
        if notes.looking != wait {
            (notes.looking, notes.page) = (wait, 0);
        }
        // SAFETY: the caller's.
        if unsafe { Self::cframe(self.state) } != 0 {
            return Some(false);
        }
        // SAFETY: the caller's; blocks of that size have at least the bytes of a lua_State.
        let nothing = unsafe {
            heap.each_block(self.size(), &mut notes.page, until_us, |at| {
                let is_state = Self::byte(at + Self::KIND) == Self::THREAD
                    && Self::read(at + Self::GLREF) as usize == self.global;
                !is_state || Self::cframe(at) == 0
            })
        };
        if nothing == Some(true) {
            notes.looked = wait;
        }
        nothing
    }
}
