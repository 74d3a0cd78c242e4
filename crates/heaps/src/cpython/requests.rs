//! Where a running CPython of 3.14 takes requests to run a script: what sys.remote_exec() writes to (PEP 768).
//!
//! Facts: `_Py_DebugOffsets` (Include/internal/pycore_debug_offsets.h, 3.14.10) stands at the start of `_PyRuntime` and
//! tells, among others, where interpreters, their threads and the fields of a request are; sys.remote_exec() takes them
//! to be the same in all releases of 3.14 and in no other (Python/remote_debugging.c). A thread that comes by an
//! evaluation check, or is interrupted in a system call, and finds its request pending takes it off and runs the file.
//!
//! Invariant: addresses are told only of threads that the interpreter's list has now, so that what stands still may be
//! written to.

use super::binary::{self, hex_version};
use super::interpreters::{self, STATE_MOST};
use super::layout::word;
use crate::reader::Reader;
use crate::source::{Fault, MemorySource, covered};

/// `sizeof(_Py_DebugOffsets)` of 3.14.
const OFFSETS: usize = 760;
/// PY_VERSION_HEX >> 16.
const KNOWN: u64 = 0x030e;
/// How many interpreters and threads are looked at.
const MOST: usize = 4096;
/// _PY_EVAL_PLEASE_STOP_BIT.
const PLEASE_STOP: u64 = 1 << 5;

/// A CPython that may take requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Requests {
    runtime: u64,
    offsets: Offsets,
}

/// Why a CPython takes none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Deaf {
    /// An earlier release, or a later one.
    #[error("CPython {0} takes no requests from outside that are known here: 3.14 does")]
    Version(String),
    /// Its threads share objects without a lock.
    #[error("a free-threaded CPython is asked nothing")]
    FreeThreaded,
    /// `-X disable-remote-debug`, PYTHON_DISABLE_REMOTE_DEBUG, or it was built without.
    #[error("this CPython takes no requests (-X disable-remote-debug, PYTHON_DISABLE_REMOTE_DEBUG)")]
    Disabled,
}

/// What is needed of `_Py_DebugOffsets`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Offsets {
    interpreters: interpreters::Offsets,
    threads: u64,
    thread: u64,
    next_thread: u64,
    breaker: u64,
    enabled: u64,
    pending: u64,
    script: u64,
    script_size: u64,
}

/// Where a thread finds a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inbox {
    /// A u64: what makes it look.
    pub breaker: u64,
    /// Its value, with what makes it look at its request.
    pub alarmed: u64,
    /// An i32: 1 where a request waits.
    pub pending: u64,
    /// Whether one does.
    pub is_pending: bool,
    /// The path of the script to run, as a C string ...
    pub script: u64,
    /// ... that has room for so many bytes.
    pub room: u64,
}

impl Requests {
    /// The first CPython of `source`, if it takes requests; `None` where there is no CPython.
    pub fn find(source: &dyn MemorySource) -> Result<Option<Result<Requests, Deaf>>, Fault> {
        let mut reader = Reader::new(source);
        for binary in binary::find(source)? {
            let version = || binary.version.clone().unwrap_or_else(|| "of unknown version".to_owned());
            let mut bytes = Vec::new();
            let end = binary.runtime.saturating_add(OFFSETS as u64);
            match reader.copy(binary.runtime..end, &mut bytes) {
                Ok(()) => {}
                // Never used: another file of the process is the one that runs.
                Err(Fault::Unmapped(_) | Fault::Swapped(_)) => continue,
                Err(fault) => return Err(fault),
            }
            let found = Offsets::parse(&bytes).unwrap_or_else(|| Err(Deaf::Version(version())));
            return Ok(Some(found.map(|offsets| Requests { runtime: binary.runtime, offsets })));
        }
        Ok(None)
    }

    /// The inboxes of the main interpreter's threads, as they are now: `source` stands still.
    pub fn inboxes(&self, source: &dyn MemorySource) -> Result<Result<Vec<Inbox>, Deaf>, Fault> {
        let (mut reader, at) = (Reader::new(source), &self.offsets);
        let mut state = reader.u64(self.runtime.saturating_add(at.interpreters.head))?;
        for _ in 0..MOST {
            let (id, next) = (
                reader.u64(sum(state, at.interpreters.id)?)?,
                reader.u64(sum(state, at.interpreters.next)?)?,
            );
            // The newest comes first, the main one last.
            if id == 0 {
                let is_enabled = reader.array::<4>(sum(state, at.enabled)?)? == 1_u32.to_le_bytes();
                let first = reader.u64(sum(state, at.threads)?)?;
                return if is_enabled {
                    Ok(Ok(self.of(&mut reader, first)?))
                } else {
                    Ok(Err(Deaf::Disabled))
                };
            }
            state = next;
        }
        Err(Fault::Unmapped(state))
    }

    /// The inboxes of the threads from `state` on.
    fn of(&self, reader: &mut Reader<'_>, mut state: u64) -> Result<Vec<Inbox>, Fault> {
        let (at, mut inboxes) = (&self.offsets, Vec::new());
        while state != 0 && inboxes.len() < MOST {
            let whole = state..sum(state, at.thread)?;
            if !covered(reader.source(), whole, |area| area.perms.write && !area.perms.shared) {
                return Err(Fault::Unmapped(state));
            }
            let pending = state + at.pending;
            inboxes.push(Inbox {
                breaker: state + at.breaker,
                alarmed: reader.u64(state + at.breaker)? | PLEASE_STOP,
                pending,
                is_pending: reader.array::<4>(pending)? != [0; 4],
                script: state + at.script,
                room: at.script_size,
            });
            state = reader.u64(state + at.next_thread)?;
        }
        Ok(inboxes)
    }
}

/// `address` and `offset`, of which either may be anything.
fn sum(address: u64, offset: u64) -> Result<u64, Fault> {
    address.checked_add(offset).filter(|_| address != 0).ok_or(Fault::Unmapped(address))
}

impl Offsets {
    /// `None` if they are of no release that is known.
    fn parse(bytes: &[u8]) -> Option<Result<Offsets, Deaf>> {
        let version = word(bytes, 8);
        let is_release = hex_version(version as u32)
            .is_some_and(|text| text.bytes().all(|byte| byte == b'.' || byte.is_ascii_digit()));
        let interpreters = interpreters::Offsets::parse(bytes)?;
        if bytes.len() < OFFSETS || version >> 16 != KNOWN || !is_release {
            return None;
        }
        if word(bytes, 16) != 0 {
            return Some(Err(Deaf::FreeThreaded));
        }
        let at = |index: usize| word(bytes, index);
        let support = at(720);
        let offsets = Offsets {
            interpreters,
            threads: at(72),
            thread: at(176),
            next_thread: at(192),
            breaker: at(712),
            enabled: at(728),
            pending: support.checked_add(at(736))?,
            script: support.checked_add(at(744))?,
            script_size: at(752),
        };
        let within = |size: u64, fields: &[(u64, u64)]| {
            size <= STATE_MOST
                && fields.iter().all(|(at, long)| at.checked_add(*long).is_some_and(|end| end <= size))
        };
        let interpreters::Offsets { size, id, next, .. } = interpreters;
        let Offsets { threads, enabled, thread, .. } = offsets;
        let is_sound = within(size, &[(id, 8), (next, 8), (threads, 8), (enabled, 4)])
            && within(thread, &[(offsets.next_thread, 8), (offsets.breaker, 8), (offsets.pending, 4)])
            && within(thread, &[(offsets.script, offsets.script_size)]);
        is_sound.then_some(Ok(offsets))
    }
}

#[cfg(test)]
mod tests {
    use super::interpreters::COOKIE;
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn releases() {
        let mut bytes = vec![0; OFFSETS];
        bytes[..8].copy_from_slice(COOKIE);
        for (at, value) in [(8, 0x030e_0af0), (48, 4096), (176, 2048), (752, 512)] {
            bytes[at..at + 8].copy_from_slice(&u64::to_le_bytes(value));
        }
        let parse = |bytes: &[u8]| Offsets::parse(bytes);
        assert!(matches!(parse(&bytes), Some(Ok(_))));
        let with = |at: usize, value: u64| {
            let mut other = bytes.clone();
            other[at..at + 8].copy_from_slice(&value.to_le_bytes());
            other
        };
        for version in [0x030d_0af0, 0x030f_00f0, 0x030e_00a1, 0x030e_00c2, 0] {
            assert_eq!(parse(&with(8, version)), None, "{version:#x}");
        }
        assert_eq!(parse(&with(16, 1)), Some(Err(Deaf::FreeThreaded)));
        for (at, value) in [(48, 1 << 40), (192, 2048), (752, 4096), (720, u64::MAX), (0, 0)] {
            assert_eq!(parse(&with(at, value)), None, "{at}");
        }
        assert_eq!(parse(&bytes[..100]), None);
    }

    proptest! {
        #[test]
        fn any_offsets_will_do(bytes in proptest::collection::vec(any::<u8>(), OFFSETS)) {
            let mut bytes = bytes;
            bytes[..8].copy_from_slice(COOKIE);
            bytes[8..24].copy_from_slice(&[&0x030e_01f0_u64.to_le_bytes()[..], &[0; 8]].concat());
            Offsets::parse(&bytes);
        }
    }
}
