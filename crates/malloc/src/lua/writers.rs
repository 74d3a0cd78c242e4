//! Which memory of a Lua heap may somebody else be writing to while the VM stands still: another thread of a C
//! library, or the kernel? Such pages are not copied, or the write could be lost.
//!
//! Lua code can hand out only addresses of cdata, of userdata, and of string buffers' contents (`buf:reserve()`), and
//! this tells from a slot's bytes that it is none of them. LuaJIT 2.1, GC64, 15f58c96:
//! - `lj_obj.h`, GCHeader: every collectable object begins with the 8 bytes of `nextgc`, a byte of marks, and a byte
//!   that says its type: ~LJ_TCDATA is 10, ~LJ_TUDATA 12;
//! - `lj_cdata.c`, lj_cdata_newv: cdata of variable length or great alignment has before that header, at the beginning
//!   of the block, a GCcdataVar: 16 bits of offset to the header, 16 of all that comes beside the payload, 32 of length;
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

/// The first bytes of a slot.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Head {
    pub(crate) first: u64,
    pub(crate) second: u64,
}

impl Head {
    /// Whether only the VM writes to a slot of `size` bytes that begins so. `byte` reads the byte at an offset of the
    /// slot.
    pub(crate) fn is_the_vms(self, size: u32, byte: impl FnOnce(u32) -> u8) -> bool {
        let kind = (self.second >> 8) as u8;
        if size.is_power_of_two() && size >= 32 {
            return SAFE.contains(&kind) && self.links();
        }
        kind != CDATA && kind != UDATA && !self.varies(size, byte)
    }

    /// Whether the first word can be a `nextgc`.
    fn links(self) -> bool {
        self.first == 0 || (self.first.is_multiple_of(8) && Page::of(self.first as usize).is_some())
    }

    /// Whether it can be cdata of variable length.
    fn varies(self, size: u32, byte: impl FnOnce(u32) -> u8) -> bool {
        let (offset, beside, len) = (self.first as u16, (self.first >> 16) as u16, (self.first >> 32) as u32);
        let header = u32::from(offset);
        let fits =
            u64::from(beside) + u64::from(len) <= u64::from(size) && header + 16 <= size && header >= 8;
        fits && byte(header + 9) == CDATA
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(first: u64, kind: u8) -> Head {
        Head { first, second: u64::from(kind) << 8 | 1 }
    }

    #[test]
    fn cdata_and_userdata_are_left_alone() {
        for size in [24, 40, 48, 96, 112, 144] {
            assert!(!head(0, CDATA).is_the_vms(size, |_| 0));
            assert!(!head(0, UDATA).is_the_vms(size, |_| 0));
            assert!(head(0, 11).is_the_vms(size, |_| 0));
            assert!(head(0xfff9_0000_0000_1234, 200).is_the_vms(size, |_| 0), "an array of values");
        }
    }

    #[test]
    fn variable_cdata_is_known_by_its_inner_header() {
        // ffi.new("char[?]", 20): 8 + 16 beside it, the header at 8.
        let first = 20_u64 << 32 | 24 << 16 | 8;
        let inner = |at| if at == 17 { CDATA } else { 0 };
        assert!(!head(first, 77).is_the_vms(48, inner));
        assert!(head(first, 77).is_the_vms(48, |_| 4), "not with another type inside");
    }

    #[test]
    fn of_a_buffers_sizes_only_objects() {
        assert!(head(0, 4).is_the_vms(64, |_| 0));
        assert!(!head(0x4142_4344_4546_4748, 4).is_the_vms(64, |_| 0), "text");
        assert!(!head(0, 0).is_the_vms(128, |_| 0), "cleared");
        assert!(!head(0, CDATA).is_the_vms(32, |_| 0));
    }
}
