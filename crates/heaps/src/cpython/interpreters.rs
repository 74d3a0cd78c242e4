//! The books of further interpreters: from 3.12 on an interpreter with a GIL of its own has an obmalloc of its own,
//! in memory that malloc gave.
//!
//! 3.12 keeps it inside PyInterpreterState, at the same place in each, and the main one's is a static; the list
//! of interpreters is known by leading from its head to the main one. From 3.13 on PyInterpreterState has a
//! pointer to it, and `_PyRuntime` begins with a cookie and the offsets of what debuggers need
//! (`_Py_DebugOffsets`), the list of interpreters among them.

use super::books::{self, Books, Words};
use super::layout::word;
use crate::reader::Reader;
use crate::source::{Fault, there};

/// `_Py_DebugOffsets.cookie`.
pub(super) const COOKIE: &[u8; 8] = b"xdebugpy";
/// How many interpreters are looked at.
const MOST: usize = 1024;
/// PyInterpreterState is never larger: 3.12's, with obmalloc's books in it, has 0.7 MiB.
pub(super) const STATE_MOST: u64 = 4 << 20;

/// An interpreter's number and its books.
pub(super) type Other = (u64, Books);

/// The books of the interpreters beside the main one, whose books are `main`.
pub(super) fn others(
    reader: &mut Reader<'_>,
    runtime: u64,
    data: &[Words],
    main: &Books,
) -> Result<Vec<Other>, Fault> {
    if !main.is_one {
        return Ok(Vec::new());
    }
    match Offsets::read(reader, runtime)? {
        Some(offsets) => pointed_to(reader, runtime, &offsets, main),
        None => embedded(reader, data, main),
    }
}

/// What `_Py_DebugOffsets` says of interpreters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offsets {
    /// Of the list's head in the runtime.
    pub(super) head: u64,
    /// An interpreter's size.
    pub(super) size: u64,
    /// Of its number in it ...
    pub(super) id: u64,
    /// ... and of the next one's address.
    pub(super) next: u64,
}

impl Offsets {
    fn read(reader: &mut Reader<'_>, runtime: u64) -> Result<Option<Offsets>, Fault> {
        Ok(there(reader.array::<72>(runtime))?.and_then(|bytes| Offsets::parse(&bytes)))
    }

    /// The offsets that `bytes`, a runtime's first, begin with; nothing before 3.13.
    pub(super) fn parse(bytes: &[u8]) -> Option<Offsets> {
        let [head, size, id, next] = [40, 48, 56, 64].map(|at| word(bytes, at));
        let good = bytes.starts_with(COOKIE)
            && head < STATE_MOST
            && (1..=STATE_MOST).contains(&size)
            && id < size
            && next < size;
        good.then_some(Offsets { head, size, id, next })
    }
}

/// 3.13 and later.
fn pointed_to(
    reader: &mut Reader<'_>,
    runtime: u64,
    offsets: &Offsets,
    main: &Books,
) -> Result<Vec<Other>, Fault> {
    let mut found: Vec<Other> = Vec::new();
    let mut state = there(reader.u64(runtime.saturating_add(offsets.head)))?.unwrap_or(0);
    for _ in 0..MOST {
        let Some(end) = state.checked_add(offsets.size).filter(|_| state != 0) else { break };
        let id = there(reader.u64(state + offsets.id))?.unwrap_or(0);
        let next = there(reader.u64(state + offsets.next))?.unwrap_or(0);
        if id != 0 {
            let words = [Words::copy(reader, state..end)?];
            for used in books::pointers(reader.source(), &words) {
                let known = used == main.used || found.iter().any(|(_, books)| books.used == used);
                if !known && let Some(books) = books::at(reader, used, &[])? {
                    found.push((id, books));
                    break;
                }
            }
        }
        state = next;
    }
    Ok(found)
}

/// 3.12.
fn embedded(reader: &mut Reader<'_>, data: &[Words], main: &Books) -> Result<Vec<Other>, Fault> {
    let words = || data.iter().flat_map(Words::each).map(|(_, word)| word);
    let pairs = words().zip(words().skip(1));
    for (head, last) in pairs {
        let within = main.used.checked_sub(last).filter(|within| *within < STATE_MOST);
        let Some(within) = within.filter(|_| head != last && last != 0) else { continue };
        if let Some(states) = chain(reader, head, last)? {
            let mut found = Vec::new();
            for state in states {
                let id = there(reader.u64(state.saturating_add(8)))?.unwrap_or(0);
                let books = books::at(reader, state.saturating_add(within), &[])?;
                found.extend(books.map(|books| (id, books)));
            }
            // There are other lists that lead from a head to a static.
            if !found.is_empty() {
                return Ok(found);
            }
        }
    }
    Ok(Vec::new())
}

/// What lies on the way from `head` to `last`, linked by first words; `None` if it does not lead there.
fn chain(reader: &mut Reader<'_>, head: u64, last: u64) -> Result<Option<Vec<u64>>, Fault> {
    let (mut states, mut state) = (Vec::new(), head);
    while state != last {
        let private = reader.source().area_at(state).is_some_and(|area| area.is_private_anon());
        if !private || states.len() == MOST {
            return Ok(None);
        }
        states.push(state);
        state = there(reader.u64(state))?.unwrap_or(0);
    }
    Ok(Some(states))
}
