//! The settings that a running malloc goes by: the first words of `mp_`, in this order since 2.10 (struct malloc_par,
//! malloc/malloc.c, 2.17 to 2.43).

use super::arena;
use super::free::Arenas;
use super::locate::word_at;
use crate::reader::Reader;
use crate::source::{Fault, MemorySource};
use ebbtide_observe::Bytes;

/// What malloc goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tunables {
    /// M_TRIM_THRESHOLD: a top is given back by free() from so much on. Twice the largest block freed that had a mapping
    /// of its own, up to 64 MiB, while [`Tunables::is_dynamic`].
    pub trim_threshold: Bytes,
    /// M_MMAP_THRESHOLD: blocks from so much on get mappings of their own.
    pub mmap_threshold: Bytes,
    /// Whether free() raises the two: until one of four settings is made by hand (`no_dyn_threshold`).
    pub is_dynamic: bool,
    /// M_ARENA_TEST: with more arenas than that their limit is reckoned, once and for ever (`narenas_limit` of
    /// arena_get2, malloc/arena.c).
    pub arena_test: u64,
    /// M_ARENA_MAX: so many arenas are made at most, if the limit was not reckoned yet; 0 is eight for each processor.
    pub arena_max: u64,
    /// How many arenas there are.
    pub arenas: u64,
}

impl Arenas {
    /// The settings now; nothing where the books do not make sense. Errors as of [`super::find`].
    pub fn tunables(&self, source: &dyn MemorySource) -> Result<Option<Tunables>, Fault> {
        let (claim, mut reader) = (self.claim(), Reader::new(source));
        let arena::Confirmed::Yes(confirmed) = arena::confirm(&mut reader, &[*claim])? else {
            return Ok(None);
        };
        let (_, main, _) = *confirmed;
        let (threads, broken) = arena::ring(&mut reader, &claim.layout, &main)?;
        let params = &claim.layout.params;
        let mut bytes = Vec::new();
        let Some(end) = claim.params.checked_add(params.size as u64) else { return Ok(None) };
        reader.copy(claim.params..end, &mut bytes)?;
        let word = |at| word_at(&bytes, at).unwrap_or(0);
        let found = Tunables {
            trim_threshold: Bytes(word(0)),
            mmap_threshold: Bytes(word(16)),
            is_dynamic: word(params.n_mmaps + 12) & 0xffff_ffff == 0,
            arena_test: word(24),
            arena_max: word(32),
            arenas: 1 + threads.len() as u64,
        };
        Ok(broken.is_none().then_some(found))
    }
}
