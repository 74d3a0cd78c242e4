//! Which memory of a Lua heap may somebody else be writing to while the VM stands still: another thread of a C
//! library, or the kernel? Such pages are not copied, or the write could be lost.
//!
//! Lua code can hand out only addresses of cdata, of userdata, and of string buffers' contents (`buf:reserve()`), and
//! this tells from a slot's bytes that it is none of them. LuaJIT 2.1, GC64, 15f58c96:
//! - `lj_obj.h`, GCHeader: every collectable object begins with the 8 bytes of `nextgc`, a byte of marks, and a byte
//!   that says its type: ~LJ_TCDATA is 10, ~LJ_TUDATA 12;
//! - `lj_cdata.c`, lj_cdata_newv: cdata of variable length or great alignment has right before that header, which is not
//!   at the beginning of the block, a GCcdataVar: 16 bits of offset to the header, 16 of all that comes beside the payload,
//!   32 of length;
//! - `lj_buf.c`, buf_grow: string buffers are of a power of two bytes, from 32 on.
//!
//! So in slots whose size is no power of two it is enough that they look like neither kind of cdata nor userdata; in
//! the others only what is seen to be another collectable object is safe. That stale bytes of such an object are not
//! taken for one, the heap clears the type of every slot that it hands out.

use crate::map::Page;

/// Types whose objects only the VM writes to: str, upval, thread, proto, func, trace, tab.
const SAFE: [u8; 7] = [4, 5, 6, 7, 8, 9, 11];
const CDATA: u8 = 10;
const UDATA: u8 = 12;

/// Whether only the VM writes to a slot of `size` bytes. `word` reads the word at an offset of the slot.
pub(crate) fn is_the_vms(size: u32, word: impl Fn(u32) -> u64) -> bool {
    let kind = kind_at(0, &word);
    if size.is_power_of_two() && size >= 32 {
        return SAFE.contains(&kind) && links(word(0));
    }
    kind != CDATA && kind != UDATA && !varies(size, word)
}

/// The type in the header at an offset of the slot.
fn kind_at(header: u32, word: impl Fn(u32) -> u64) -> u8 {
    (word(header + 8) >> 8) as u8
}

/// Whether the first word can be a `nextgc`.
fn links(first: u64) -> bool {
    first == 0 || (first.is_multiple_of(8) && Page::of(first as usize).is_some())
}

/// Whether there can be cdata of variable length or great alignment in it.
fn varies(size: u32, word: impl Fn(u32) -> u64) -> bool {
    (8..size.saturating_sub(15)).step_by(8).any(|header| {
        let before = word(header - 8);
        let (offset, beside, len) = (before as u16, (before >> 16) as u16, (before >> 32) as u32);
        u32::from(offset) == header
            && u64::from(beside) + u64::from(len) <= u64::from(size)
            && kind_at(header, &word) == CDATA
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known(size: u32, words: &[u64]) -> bool {
        is_the_vms(size, |at| words.get(at as usize / 8).copied().unwrap_or(0))
    }

    fn object(first: u64, kind: u8) -> [u64; 2] {
        [first, u64::from(kind) << 8 | 1]
    }

    #[test]
    fn cdata_and_userdata_are_left_alone() {
        for size in [24, 40, 48, 96, 112, 144] {
            assert!(!known(size, &object(0, CDATA)));
            assert!(!known(size, &object(0, UDATA)));
            assert!(known(size, &object(0, 11)));
            assert!(known(size, &object(0xfff9_0000_0000_1234, 200)), "an array of values");
        }
    }

    #[test]
    fn variable_cdata_is_known_by_its_inner_header() {
        // ffi.new("char[?]", 20): 8 + 16 beside it, the header at 8.
        let words = |kind: u8| [20_u64 << 32 | 24 << 16 | 8, 77, u64::from(kind) << 8];
        assert!(!known(48, &words(CDATA)));
        assert!(known(48, &words(4)), "not with another type inside");
    }

    #[test]
    fn aligned_cdata_is_known_wherever_its_header_is() {
        // 16 bytes that are to lie at a multiple of 16: what is before the word that tells is whatever was there.
        for header in [8, 16] {
            let mut words = [0xdead_beef_dead_beef_u64; 6];
            words[1] = 0;
            words[header / 8 - 1] = 16 << 32 | 32 << 16 | header as u64;
            words[header / 8 + 1] = u64::from(CDATA) << 8;
            assert!(!known(48, &words), "{header}");
        }
    }

    #[test]
    fn of_a_buffers_sizes_only_objects() {
        assert!(known(64, &object(0, 4)));
        assert!(!known(64, &object(0x4142_4344_4546_4748, 4)), "text");
        assert!(!known(128, &object(0, 0)), "cleared");
        assert!(!known(32, &object(0, CDATA)));
    }
}
