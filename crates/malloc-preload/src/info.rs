//! glibc's functions that ask about the heap or tune it.

use crate::text::Text;
use crate::{EINVAL, PAGE, fail};
use core::ffi::{c_char, c_int, c_void};
use core::fmt::Write as _;
use ebbtide_malloc as heap;
use heap::COUNT;

/// Bytes that the statistics have at most.
const ROOM: usize = 16 * 1024;

unsafe extern "C" {
    fn fputs(text: *const c_char, stream: *mut c_void) -> c_int;
}

/// Gives back everything that can be; 1 if there was anything. Every thread's magazines are emptied and every
/// page that holds nothing is given back, not only those at the top, so the bytes to keep there mean nothing.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_trim(_pad: usize) -> c_int {
    c_int::from(heap::trim())
}

/// glibc's `struct mallinfo2`.
#[derive(Debug, Default, Clone, Copy)]
#[repr(C)]
pub struct MallInfo2 {
    arena: usize,
    ordblks: usize,
    smblks: usize,
    hblks: usize,
    hblkhd: usize,
    usmblks: usize,
    fsmblks: usize,
    uordblks: usize,
    fordblks: usize,
    keepcost: usize,
}

/// glibc's `struct mallinfo`: as [`MallInfo2`], with fields too small for today's heaps.
#[derive(Debug, Default, Clone, Copy)]
#[repr(C)]
pub struct MallInfo {
    fields: [c_int; 10],
}

/// The heap in glibc's terms: arena is what is mapped for slots and runs, hblkhd what large blocks occupy,
/// keepcost what malloc_trim would give back at least.
#[unsafe(no_mangle)]
pub extern "C" fn mallinfo2() -> MallInfo2 {
    let arena = (COUNT.mapped.get() * PAGE) as usize;
    let large = (COUNT.large.get() + COUNT.cached.get()) as usize;
    let live = COUNT.live_bytes() as usize;
    let free_slots: u64 = COUNT.class.iter().map(|c| c.slots_free.get()).sum();
    MallInfo2 {
        arena,
        ordblks: free_slots as usize,
        hblkhd: large,
        uordblks: live,
        fordblks: (arena + large).saturating_sub(live),
        keepcost: (COUNT.dirty.get() * PAGE + COUNT.cached.get()) as usize,
        ..MallInfo2::default()
    }
}

/// As [`mallinfo2`], cut to `int`s as glibc cuts them.
#[unsafe(no_mangle)]
pub extern "C" fn mallinfo() -> MallInfo {
    let i = mallinfo2();
    let all = [
        i.arena, i.ordblks, i.smblks, i.hblks, i.hblkhd, i.usmblks, i.fsmblks, i.uordblks, i.fordblks,
        i.keepcost,
    ];
    MallInfo { fields: all.map(|n| n as c_int) }
}

/// Tuning that glibc knows is accepted and has no counterpart here; what glibc does not know is refused.
#[unsafe(no_mangle)]
pub extern "C" fn mallopt(param: c_int, _value: c_int) -> c_int {
    // M_MXFAST 1, M_TRIM_THRESHOLD -1 .. M_CHECK_ACTION -5, M_PERTURB -6, M_ARENA_TEST -7, M_ARENA_MAX -8.
    c_int::from(param == 1 || (-8..=-1).contains(&param))
}

/// Writes the statistics to standard error.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_stats() {
    let mut text = Text::<ROOM>::new();
    let _ = write!(
        text,
        "ebbtide malloc\nlive bytes      {}\nmapped bytes    {}\nfree, resident  {}\ngiven back      {}\n\
         refaulted       {}\ndelay ms        {}\nturns           {}\nsize: live, in magazines, free slots, pages\n",
        COUNT.live_bytes(),
        COUNT.mapped_bytes(),
        COUNT.dirty.get() * PAGE + COUNT.cached.get(),
        COUNT.purged.get() * PAGE,
        COUNT.refaulted.get() * PAGE,
        COUNT.delay_ms.get(),
        COUNT.turns.get(),
    );
    for (i, c) in COUNT.class.iter().enumerate().filter(|(_, c)| c.pages.get() > 0) {
        let (size, kept) = (c.slot_bytes.get(), COUNT.magazines(i as u8));
        let live = c.slots_out.get().saturating_sub(kept);
        let _ = writeln!(text, "{size}: {live}, {kept}, {}, {}", c.slots_free.get(), c.pages.get());
    }
    text.say();
}

/// Writes the statistics as XML, in the elements glibc's version 1 has. -1 if `options` is not 0.
///
/// # Safety
/// `stream` must be an open stream.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_info(options: c_int, stream: *mut c_void) -> c_int {
    if options != 0 {
        fail(EINVAL);
        return -1;
    }
    let mut text = Text::<ROOM>::new();
    let _ = text.write_str("<malloc version=\"1\">\n<heap nr=\"0\">\n<sizes>\n");
    for c in COUNT.class.iter().filter(|c| c.slots_free.get() > 0) {
        let (size, free) = (c.slot_bytes.get(), c.slots_free.get());
        let total = size * free;
        let _ = writeln!(text, "<size from=\"{size}\" to=\"{size}\" total=\"{total}\" count=\"{free}\"/>");
    }
    let MallInfo2 { arena, ordblks, hblkhd, fordblks, .. } = mallinfo2();
    let _ = write!(
        text,
        "</sizes>\n<total type=\"fast\" count=\"0\" size=\"0\"/>\n\
         <total type=\"rest\" count=\"{ordblks}\" size=\"{fordblks}\"/>\n\
         <system type=\"current\" size=\"{arena}\"/>\n<aspace type=\"total\" size=\"{arena}\"/>\n</heap>\n\
         <total type=\"mmap\" count=\"0\" size=\"{hblkhd}\"/>\n</malloc>\n",
    );
    let Some(text) = text.for_c() else { return -1 };
    // SAFETY: the caller's stream; the text ends with a zero byte.
    if unsafe { fputs(text.as_ptr(), stream) } < 0 { -1 } else { 0 }
}
