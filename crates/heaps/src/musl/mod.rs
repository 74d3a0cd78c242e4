//! musl's malloc since 1.2.1, mallocng, as dynamic programs have it in ld-musl-*.so.1 and static ones in themselves.
//!
//! Facts are from src/malloc/mallocng of musl (meta.h, malloc.c, free.c, realloc.c, aligned_alloc.c, donate.c), the same
//! in 1.2.1 to 1.2.5 but for what they ask of the system; tested on Debian's 1.2.2, 1.2.3 and 1.2.5. Its static books
//! ([`context`]) lead to pages of metas ([`metas`]), one for each group of up to 32 slots of one size. A group is a
//! mapping of its own or lies in a slot of a larger one; it begins with the address of its meta. A slot is free if one of
//! its meta's two masks says so: freed, or never handed out. A live one says before its block and behind it ([`block`])
//! where the block begins and how much of it was asked for. A block of 131,052 bytes or more is a group of one slot.
//! At start the dynamic linker donates what is left over on the pages of programs' and libraries' data: groups of one
//! slot in no mapping of their own.
//!
//! A slot's *frame* is counted by its name: the four bytes before the slot, which are its header, and all of it but its
//! last four, which are the next one's header. Frames follow one another without a gap, the last one of a group reaches
//! to the group's end, and 12 bytes of a group belong to none; so whole pages in neighbouring free frames are what could
//! be given back.
//!
//! Why these pages may read as zeroes afterwards. Nobody but these reads what is in a free frame:
//! - enframe() (meta.h), when the slot is handed out: of its header. The byte at -4 must be 0. A byte at -3 that is 0 means
//!   that the slot was never used: then the block's place in it is drawn from a counter, and not made another one than it
//!   had (offsets are cycled to make use after free show; after a page is dropped they begin anew).
//! - get_nominal_size() for a live block before it: the byte behind a slot, which is that same byte at -4, must be 0.
//! - get_meta() for a block that is freed twice: the 16 bytes before it are on one page. Dropped, they lead to a meta at
//!   address 0, or to what was written there since and has not the secret: the program ends there, as it would have ended
//!   by the 255 that stood there.
//! - calloc(): it takes memory to be zero only in groups of one slot that are smaller than their class or have none
//!   (is_allzero), which are unmapped when they are freed; else it writes zeroes, or sees that there are (mal0_clear).
//!
//! What is read of a group while it exists, its first 9 bytes (the meta's address, active_idx) and the header of the slot
//! that it lies in, is in no free frame. Donated memory is part of a file's mapping, whose pages would come back as the
//! file has them: never returnable. musl itself gives back nothing but groups that are free as a whole; there is no
//! malloc_trim, so `returnable_by_trim` is not known.
//!
//! Damage is a byte behind a block that was written to, by which the program would end when it frees that block, or a
//! group and a meta that disagree. A header that makes no sense is not: of a slot that is being handed out or freed it has
//! none yet or no more, and who overruns a block meets the byte behind it first.
//!
//! Not read: oldmalloc (musl up to 1.2.0, and builds with --with-malloc=oldmalloc), the malloc of static programs that
//! never free (lite_malloc.c), mallocng preloaded beside glibc. musl's lock and thread caches: the one is not needed to
//! read, the others do not exist.

mod block;
mod context;
mod free;
mod metas;
mod walk;

use crate::model::{Heap, Kind};
use crate::now::Now;
use crate::source::{Area, Fault, MemorySource};
pub use free::Groups;

/// musl's heap in the process; none where there is none.
pub fn find(source: &dyn MemorySource) -> Result<Vec<Heap>, Fault> {
    look(source, false)
}

/// As [`find`], with [`Heap::returnable_ranges`].
pub fn find_with_ranges(source: &dyn MemorySource) -> Result<Vec<Heap>, Fault> {
    look(source, true)
}

fn look(source: &dyn MemorySource, ranges: bool) -> Result<Vec<Heap>, Fault> {
    let Some(context) = context::find(source)? else { return Ok(Vec::new()) };
    // Most groups have mappings of their own, which come and go.
    let now = Now::of(source)?;
    let source = now.as_ref().map_or(source, |now| now as &dyn MemorySource);
    Ok(vec![walk::walk(source, &context, ranges)?])
}

/// What is said of memory of which an older musl may have a part.
pub(crate) const OLD: &str =
    "it runs on musl, and no books of mallocng are in memory: the malloc of musl before 1.2.1 is not read";

/// Whether a process with `areas` runs on a musl that has another malloc: its dynamic linker, which is its C library, is
/// mapped (ld-musl-x86_64.so.1, or libc.so where Debian has it), and mallocng, which is there from the start because of
/// what it is donated, is not among `heaps`.
pub(crate) fn is_old(areas: &[Area], heaps: &[Heap]) -> bool {
    let is_linker = |area: &Area| {
        let mut parts = area.path.rsplit(|&byte| byte == b'/');
        let (name, dir) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        name.starts_with(b"ld-musl-") || name == b"libc.so" && dir.ends_with(b"-linux-musl")
    };
    areas.iter().any(is_linker) && !heaps.iter().any(|heap| heap.kind == Kind::Musl)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_musl_is_told_by_its_linker() {
        let of = |path: &[u8]| [Area { inode: 7, path: path.to_vec(), ..Area::anon(0..4096) }];
        for path in [&b"/lib/ld-musl-x86_64.so.1"[..], b"/usr/lib/x86_64-linux-musl/libc.so"] {
            assert!(is_old(&of(path), &[Heap::new(Kind::Glibc)]));
            assert!(!is_old(&of(path), &[Heap::new(Kind::Musl)]));
        }
        for path in [&b"/usr/lib/x86_64-linux-gnu/libc.so.6"[..], b"/opt/x/libc.so", b"", b"/", b"libc.so"] {
            assert!(!is_old(&of(path), &[]));
        }
    }
}
