//! The heaps of Lua states, which the preload library gives LuaJIT: what each tells, and the free slots in its hand.

use super::block::{Block, Lua};
use crate::reader::Reader;
use crate::source::{Fault, MemorySource, there};
use ebbtide_observe::Bytes;
use std::ops::Range;

/// How many heaps are looked at.
const STATES_MOST: usize = 1 << 12;

/// One heap.
#[derive(Debug)]
pub(super) struct State {
    /// Where its books are.
    pub(super) range: Range<u64>,
    /// Addresses of free slots that it is about to hand out.
    pub(super) in_hand: Vec<u64>,
    state: u64,
    pages: u64,
    large: u64,
    meshed: u64,
    frames: u64,
    cycles: u64,
    collected: u64,
}

impl State {
    fn read(reader: &mut Reader<'_>, block: &Block, lua: &Lua, at: u64) -> Result<(State, u64), Fault> {
        let told = reader.array::<88>(at)?;
        let [next, state, pages, large, _, meshed, frames, _, _, cycles, collected] =
            std::array::from_fn(|i| {
                told.as_chunks::<8>().0.get(i).map_or(0, |word| u64::from_le_bytes(*word))
            });
        let mut in_hand = Vec::new();
        for (class, shape) in block.classes.iter().enumerate().skip(1) {
            let bin = at.saturating_add(lua.bins_at + class as u64 * lua.bin_bytes);
            let (bits, base) = (reader.u64(bin)?, reader.u64(bin + 8)?);
            let slots = (0..64).filter(|i| bits >> i & 1 != 0);
            in_hand.extend(slots.map(|i| base.saturating_add(i * shape.slot_bytes)));
        }
        let range = at..at.saturating_add(lua.heap_bytes.next_multiple_of(block.page));
        Ok((State { range, in_hand, state, pages, large, meshed, frames, cycles, collected }, next))
    }

    /// What is to be said of it.
    pub(super) fn note(&self, block: &Block) -> String {
        let bytes = |pages: u64| Bytes(block.page) * pages;
        format!(
            "Lua state {:#x}: {} in pages and {} in large blocks; {} pages ({}) share {} frames ({}); \
             {} collections while it waited found {}",
            self.state,
            bytes(self.pages),
            Bytes(self.large),
            self.meshed,
            bytes(self.meshed),
            self.frames,
            bytes(self.frames),
            self.cycles,
            Bytes(self.collected)
        )
    }
}

/// All heaps; one that comes or goes meanwhile ends the list.
pub(super) fn states(source: &dyn MemorySource, block: &Block) -> Result<Vec<State>, Fault> {
    let Some(lua) = block.lua else { return Ok(Vec::new()) };
    let mut reader = Reader::new(source);
    let (mut states, mut at) = (Vec::<State>::new(), lua.first);
    while at != 0 && states.len() < STATES_MOST {
        let Some((state, next)) = there(State::read(&mut reader, block, &lua, at))? else { break };
        if states.iter().any(|other| other.range.start == at) {
            break;
        }
        states.push(state);
        at = next;
    }
    Ok(states)
}
