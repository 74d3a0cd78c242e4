//! The allocators' own functions, found in the process, and called; and two questions to the kernel about mapped pages.
//!
//! Two ways, because neither sees all: a symbol that a program has linked in statically is in no dynamic table, so
//! dlsym(3) does not know it, but the linker fills in a weak reference; and one that comes by LD_PRELOAD the linker
//! could not know, but dlsym does. The dynamic one goes first: it is who malloc is really called in.
//!
//! Invariant: what is not found is not called.
#![allow(unsafe_code)]

#[cfg(feature = "memmap2")]
use crate::Bytes;
use std::ffi::{CStr, c_char, c_int, c_void};

// A table of four addresses; the linker or the loader writes 0 where there is no such function.
std::arch::global_asm!(
    ".pushsection .data.rel.ro.ebbtide_shrink_found, \"aw\", %progbits",
    ".balign 8",
    ".weak malloc_trim",
    ".weak mallctl",
    ".weak _rjem_mallctl",
    ".weak mi_collect",
    ".globl ebbtide_shrink_0_1_found",
    ".hidden ebbtide_shrink_0_1_found",
    "ebbtide_shrink_0_1_found:",
    ".8byte malloc_trim",
    ".8byte mallctl",
    ".8byte _rjem_mallctl",
    ".8byte mi_collect",
    ".popsection",
);

unsafe extern "C" {
    #[link_name = "ebbtide_shrink_0_1_found"]
    static LINKED: [usize; 4];
}

/// glibc's `int malloc_trim(size_t pad)`, which Ebbtide's malloc exports, too.
type Trim = unsafe extern "C" fn(usize) -> c_int;
/// jemalloc's `int mallctl(const char *, void *, size_t *, void *, size_t)`.
type Mallctl = unsafe extern "C" fn(*const c_char, *mut c_void, *mut usize, *mut c_void, usize) -> c_int;
/// mimalloc's `void mi_collect(bool force)`.
type Collect = unsafe extern "C" fn(bool);

/// The address of a function, from the dynamic table, else from the linker's.
fn address(name: &CStr, linked: usize) -> usize {
    // SAFETY: the name ends with a NUL; dlsym takes it and keeps nothing.
    let dynamic = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    if dynamic.is_null() {
        // SAFETY: the table above has four words, written before the program ran, and `linked` is below 4.
        unsafe { LINKED[linked] }
    } else {
        dynamic as usize
    }
}

/// Calls `malloc_trim(0)`: whether there is one.
pub(crate) fn malloc_trim() -> bool {
    let at = address(c"malloc_trim", 0);
    if at == 0 {
        return false;
    }
    // SAFETY: a function of this name has this type in glibc, its only meaning on Linux, and in Ebbtide's malloc; it
    // may be called by any thread at any time.
    unsafe { std::mem::transmute::<usize, Trim>(at)(0) };
    true
}

/// Calls `mi_collect(force)`: whether there is one.
pub(crate) fn mi_collect(force: bool) -> bool {
    let at = address(c"mi_collect", 3);
    if at == 0 {
        return false;
    }
    // SAFETY: a function of this name has this type in all versions of mimalloc; any thread may call it.
    unsafe { std::mem::transmute::<usize, Collect>(at)(force) };
    true
}

/// Writes nothing to a jemalloc control, which is how those that are commands are given: whether one took it.
pub(crate) fn mallctl(command: &CStr) -> bool {
    let mut taken = false;
    for at in [address(c"mallctl", 1), address(c"_rjem_mallctl", 2)] {
        if at != 0 {
            let no = std::ptr::null_mut();
            // SAFETY: a function of this name has this type in jemalloc since 3.0 (and in FreeBSD's libc, which is
            // it); the name ends with a NUL; null pointers mean that nothing is read or written. Any thread may call.
            let call = unsafe { std::mem::transmute::<usize, Mallctl>(at) };
            // SAFETY: as said.
            taken |= unsafe { call(command.as_ptr(), no, std::ptr::null_mut(), no, 0) } == 0;
        }
    }
    taken
}

/// The whole pages that lie in these bytes: where they begin, how long they are together, and how long each is.
#[cfg(feature = "memmap2")]
pub(crate) fn pages(bytes: &[u8]) -> (*mut c_void, usize, usize) {
    // SAFETY: asks for a constant of the system; the value is positive on Linux.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
    let (start, end) = (bytes.as_ptr().addr(), bytes.as_ptr().addr() + bytes.len());
    let first = start.next_multiple_of(page);
    // A file's last page is mapped whole.
    let last = if start.is_multiple_of(page) { end.next_multiple_of(page) } else { end / page * page };
    (first as *mut c_void, last.saturating_sub(first), page)
}

/// How many of these bytes are in memory (for a file: in the page cache), by `mincore(2)`; none where it does not say.
#[cfg(feature = "memmap2")]
pub(crate) fn in_core(bytes: &[u8]) -> Bytes {
    const MOST: usize = 64;
    let (mut start, mut len, page) = pages(bytes);
    let (mut found, mut answer) = (0, [0_u8; MOST]);
    while len > 0 {
        let part = len.min(MOST * page);
        // SAFETY: mincore only reads page tables; the answer has a byte for each page of the part.
        if unsafe { libc::mincore(start, part, answer.as_mut_ptr()) } != 0 {
            return Bytes::ZERO;
        }
        found += answer[..part.div_ceil(page)].iter().filter(|byte| *byte & 1 == 1).count();
        start = start.wrapping_byte_add(part);
        len -= part;
    }
    Bytes(found * page)
}

/// Gives the pages of these bytes back to the kernel, contents kept: `madvise(MADV_PAGEOUT)`, Linux 5.4. An older
/// kernel says EINVAL, and nothing happens.
#[cfg(feature = "memmap2")]
pub(crate) fn page_out(bytes: &[u8]) {
    let (start, len, _) = pages(bytes);
    // SAFETY: this advice changes where contents are kept, never the contents; on memory that is not mapped it answers
    // with an error.
    unsafe { libc::madvise(start, len, libc::MADV_PAGEOUT) };
}
