//! What a live slot says of its block: where it begins and how much of it was asked for (enframe, set_size,
//! get_nominal_size in meta.h; aligned_alloc.c).
//!
//! Before the block: a byte that is 0 if a 16-bit offset follows, its slot's number with the five ways in which the rest
//! is said, and its offset in units from the first slot; of an offset beyond 16 bits, which only alignment makes, 32 bits
//! four bytes before that. If the block does not begin with the slot, the slot begins with how far from it. The rest, what
//! is behind the block in the slot, is said before the block if it is below 5, else in the slot's last four bytes.

use super::metas::{Group, HEADER, UNIT};
use crate::reader::Reader;
use crate::source::{Fault, there};

/// The rest is said at the end; the slot holds a group; the block begins elsewhere.
const AT_THE_END: u8 = 5;
const GROUP: u8 = 6;
const ELSEWHERE: u8 = 7;
/// Offsets in slots count 16 bits: beyond them a block begins so many bytes further. At most so many such places are
/// tried: an alignment of 2 GiB.
const WRAPS: u64 = UNIT << 16;
const WRAPS_MOST: u64 = 2048;

/// What a live slot holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// A block of which so much was asked for.
    Block(u64),
    /// The same, behind which a byte was written to: so much was asked for, and where it is.
    Overrun(u64, u64),
    /// Another group.
    Group,
    /// Neither: it is being handed out or freed, or damaged.
    Odd,
}

/// What slot `index` of `group` holds; nothing where it is not in memory.
pub(super) fn content(reader: &mut Reader<'_>, group: &Group, index: u64) -> Result<Option<Content>, Fault> {
    let slot = group.start + UNIT + group.stride() * index;
    let end = slot + group.stride() - HEADER;
    let Some([_, number, low, high]) = there(reader.array::<4>(slot - HEADER))? else { return Ok(None) };
    if number >> 5 != ELSEWHERE {
        return at(reader, group, index, slot, end);
    }
    let first = slot + UNIT * u64::from(u16::from_le_bytes([low, high]));
    for block in (first..end).step_by(WRAPS as usize).take(WRAPS_MOST as usize) {
        match at(reader, group, index, block, end)? {
            // A group takes a slot whole.
            Some(Content::Odd | Content::Group) => {}
            found => return Ok(found),
        }
    }
    Ok(Some(Content::Odd))
}

/// The block at `block` in the slot that ends at `end`.
fn at(
    reader: &mut Reader<'_>,
    group: &Group,
    index: u64,
    block: u64,
    end: u64,
) -> Result<Option<Content>, Fault> {
    let Some(header) = there(reader.array::<8>(block - 8))? else { return Ok(None) };
    let [a, b, c, d, is_long, number, low, high] = header;
    let short = u64::from(u16::from_le_bytes([low, high]));
    let long = u64::from(u32::from_le_bytes([a, b, c, d]));
    let units = match is_long {
        0 => short,
        _ if short == 0 && long > 0xffff => long,
        _ => return Ok(Some(Content::Odd)),
    };
    if u64::from(number & 31) != index || group.start + UNIT + UNIT * units != block {
        return Ok(Some(Content::Odd));
    }
    let (room, said) = (end - block, number >> 5);
    let rest = match said {
        GROUP => return Ok(Some(Content::Group)),
        AT_THE_END if room > u64::from(AT_THE_END) => {
            let Some([zero, rest @ ..]) = there(reader.array::<5>(end - 5))? else { return Ok(None) };
            match u64::from(u32::from_le_bytes(rest)) {
                rest if zero == 0 && rest >= 5 => rest,
                _ => return Ok(Some(Content::Odd)),
            }
        }
        0..AT_THE_END => u64::from(said),
        _ => return Ok(Some(Content::Odd)),
    };
    let Some(asked) = room.checked_sub(rest) else { return Ok(Some(Content::Odd)) };
    // Behind the block is a zero, and one behind the slot.
    for zero in [end - rest, end] {
        match there(reader.array::<1>(zero))? {
            Some([0]) => {}
            Some(_) => return Ok(Some(Content::Overrun(asked, zero))),
            None => return Ok(None),
        }
    }
    Ok(Some(Content::Block(asked)))
}
