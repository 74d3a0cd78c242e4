//! What a Lua heap tells, also other processes, and what the hook remembers of its state.

use crate::stats::Counter;
use core::sync::atomic::{AtomicU64, AtomicUsize};

/// What is told of a heap; readable from other processes, see `stats::Tables`.
#[derive(Debug)]
#[repr(C)]
pub struct Told {
    /// The address of the next heap, 0 for none.
    pub next: AtomicUsize,
    /// The address of its `lua_State`, 0 while it is being made.
    pub state: Counter,
    /// Pages it has.
    pub pages: Counter,
    /// Bytes of blocks that are too large for a slot.
    pub large: Counter,
    /// Bytes of slots taken up and of large blocks, ever: grows by what is allocated, whatever is freed.
    pub flow: Counter,
    /// Pages that share a frame with others.
    pub meshed: Counter,
    /// Frames they share.
    pub frames: Counter,
    /// Pages that were parted from the others for a fork, ever.
    pub parted: Counter,
    /// The longest pause of a slice of meshing, in microseconds.
    pub longest_us: Counter,
    /// Cycles of the collector run while nothing else was to do, ever.
    pub cycles: Counter,
    /// Bytes by which they made it smaller.
    pub collected: Counter,
    /// The longest slice of these, in microseconds.
    pub longest_cycle_us: Counter,
    /// Pages that came to share a frame, ever.
    pub ever_meshed: Counter,
}

impl Told {
    /// Nothing yet.
    pub(crate) const fn new() -> Told {
        Told {
            next: AtomicUsize::new(0),
            state: Counter::new(),
            pages: Counter::new(),
            large: Counter::new(),
            flow: Counter::new(),
            meshed: Counter::new(),
            frames: Counter::new(),
            parted: Counter::new(),
            longest_us: Counter::new(),
            cycles: Counter::new(),
            collected: Counter::new(),
            longest_cycle_us: Counter::new(),
            ever_meshed: Counter::new(),
        }
    }

    /// What remains to be told of a heap that is closed.
    pub(crate) fn remember(&self, other: &Told) {
        self.state.add(1);
        for (mine, its) in [
            (&self.cycles, &other.cycles),
            (&self.collected, &other.collected),
            (&self.ever_meshed, &other.ever_meshed),
            (&self.parted, &other.parted),
        ] {
            mine.add(its.get());
        }
        self.longest_us.raise(other.longest_us.get());
        self.longest_cycle_us.raise(other.longest_cycle_us.get());
    }
}

/// What the hook remembers of a state.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Notes {
    /// The `lua_State`.
    pub state: usize,
    /// A coroutine of our own; 0 for none.
    pub coroutine: usize,
    /// The state's layout is not one that is known, or its collector came to no end.
    pub unknown: bool,
    /// Cycles of the collector that are still to be run to the end.
    pub cycles: u8,
    /// Slices that these have taken.
    pub slices: u32,
    /// Bytes that the state had before the first of these.
    pub before: u64,
    /// Bytes that it had after the last.
    pub live: u64,
    /// [`Told::flow`] when the last of these began.
    pub collected: u64,
    /// The wait in which it is being looked whether any Lua runs, and up to which page it has been.
    pub looking: u64,
    /// See [`Notes::looking`].
    pub page: usize,
    /// The last wait in which no Lua was found to run.
    pub looked: u64,
    /// [`Told::flow`] when the heap was tidied.
    pub rested: u64,
    /// The same when there was nothing left to do.
    pub done: AtomicU64,
}
