//! Which threads are at rest: in a system call that waits, or at the end of one, and in no signal handler. Such a thread
//! is in no function of an allocator: those make no call that waits but for their locks.
//!
//! Invariants: a thread of which anything is not known is not at rest; a signal handler that interrupted an allocator is
//! seen by its frame on the stack, whatever it waits in; waiting for an allocator's lock is not rest. Nobody who waits
//! for a lock at all may make a call: glibc's fork() waits for one arena's lock while it holds those of others
//! (__malloc_fork_lock_parent), and would wait for itself for ever.

use ebbtide_heaps::{Area, MemorySource};
use ebbtide_observe::Bytes;
use ebbtide_observe::process::{Process, Syscall};
use ebbtide_sys::remote;
use rustix::process::Pid;
use std::ops::Range;

/// read, readv, recvfrom, recvmsg, recvmmsg, accept, accept4.
const READS: &[u32] = &[0, 19, 45, 47, 299, 43, 288];
/// poll, ppoll, select, pselect6, epoll_wait, epoll_pwait, epoll_pwait2, io_getevents.
const EVENTS: &[u32] = &[7, 271, 23, 270, 232, 281, 441, 208];
/// nanosleep, clock_nanosleep, pause, rt_sigsuspend, rt_sigtimedwait, wait4, waitid, restart_syscall. Of the last it
/// is not known what it restarts: a sleep, a poll, or a futex with a time-out, which no allocator's lock has.
const SLEEPS: &[u32] = &[35, 230, 34, 130, 128, 61, 247, 219];
const FUTEX: u32 = 202;
/// Calls at whose end a thread that never waits may be met: of those above, what no allocator makes even where it would not
/// wait (jemalloc reads /proc and /sys when it starts). An event loop makes one in each of its rounds.
pub(super) const ENDS: &[u32] = &[7, 271, 23, 270, 232, 281, 441, 208, 45, 47, 299, 43, 288, 35, 230];
/// So much of a stack is searched for signal frames; one that is deeper is not at rest.
const STACK_MOST: u64 = 256 << 10;
/// A guard below a stack; what reserves more address space is none.
const GUARD_MOST: Bytes = Bytes::from_mib(1);
/// Code segment, gs, fs and stack segment as they stand in a signal frame of 64-bit code (struct sigcontext,
/// arch/x86/include/uapi/asm/sigcontext.h, since Linux 4.7): __USER_CS and __USER_DS. Hardly anything else is this number.
const SEGMENTS: u64 = 0x002b_0000_0000_0033;

/// A thread at rest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Resting {
    pub(super) tid: u32,
    /// What is mapped of its stack.
    pub(super) stack: Range<u64>,
    /// Whether it waits for another thread, and not for the outside.
    in_futex: bool,
}

impl Resting {
    /// Whether it may call a function that takes locks.
    pub(super) fn may_call(&self) -> bool {
        !self.in_futex
    }
}

/// Who is asked, and what is known of the place.
pub(super) struct Scene<'a> {
    pub(super) process: &'a Process,
    pub(super) source: &'a dyn MemorySource,
    /// Addresses of the allocator's locks.
    pub(super) locks: &'a [u64],
}

impl Scene<'_> {
    /// The threads at rest, best first, and those that are not.
    pub(super) fn threads(&self) -> (Vec<Resting>, Vec<u32>) {
        let (mut resting, mut busy) = (Vec::new(), Vec::new());
        for thread in self.process.threads().unwrap_or_default() {
            match thread.syscall().ok().and_then(|call| self.resting(thread.tid(), &call)) {
                Some(thread) => resting.push(thread),
                None => busy.push(thread.tid()),
            }
        }
        // One that waits for the outside holds no lock that others want, as a rule.
        resting.sort_by_key(|thread| thread.in_futex);
        (resting, busy)
    }

    fn resting(&self, tid: u32, call: &Syscall) -> Option<Resting> {
        let &Syscall::In { number, args, stack_pointer, .. } = call else { return None };
        let in_futex = number == FUTEX;
        let waits = [READS, EVENTS, SLEEPS].iter().any(|calls| calls.contains(&number));
        if !(waits || in_futex && !self.is_allocators(args[0])) {
            return None;
        }
        let area = self.source.area_at(stack_pointer).filter(|area| self.is_stack(area))?;
        let stack = area.range.clone();
        (!self.is_in_handler(stack_pointer, &stack)?).then_some(Resting { tid, stack, in_futex })
    }

    /// Whether `area` is a stack from end to end: the first thread's, or one with a guard below, as pthread_create makes
    /// them. What runs on a piece of a heap (goroutines, fibers from malloc) has other memory below its stack pointer.
    fn is_stack(&self, area: &Area) -> bool {
        let below = area.range.start.checked_sub(1).and_then(|address| self.source.area_at(address));
        let has_guard = below.is_some_and(|below| below.perms.is_none() && below.size() <= GUARD_MOST);
        let is_heap = area.inode != 0 || area.path.starts_with(b"[heap");
        area.path == b"[stack]" || has_guard && !is_heap
    }

    /// Whether a futex may be an allocator's lock: an arena's, or another in the data of the library that the locks are in.
    fn is_allocators(&self, futex: u64) -> bool {
        if self.locks.contains(&futex) || self.source.area_at(futex).is_none() {
            return true;
        }
        let file = self.file_of(futex);
        file.is_some() && self.locks.iter().any(|&lock| self.file_of(lock) == file)
    }

    /// The file whose data `address` is in: mapped from it, or right behind such a mapping, as the rest of a library's
    /// data is (.bss).
    fn file_of(&self, address: u64) -> Option<&[u8]> {
        let of_file = |area: &&Area| area.path.starts_with(b"/");
        let area = self.source.area_at(address)?;
        let before = || self.source.area_at(area.range.start.checked_sub(1)?).filter(of_file);
        Some(&Some(area).filter(of_file).or_else(before)?.path)
    }

    /// Whether there is a signal frame on the stack from `stack_pointer` on; nothing where that cannot be known.
    fn is_in_handler(&self, stack_pointer: u64, stack: &Range<u64>) -> Option<bool> {
        let pid = i32::try_from(self.process.pid()).ok().and_then(Pid::from_raw)?;
        let from = stack_pointer & !7;
        if stack.end - from > STACK_MOST {
            return None;
        }
        let mut bytes = vec![0; (stack.end - from) as usize];
        if remote::read(pid, from, &mut bytes).ok()? != bytes.len() {
            return None;
        }
        let (words, _) = bytes.as_chunks::<8>();
        Some(words.iter().any(|word| u64::from_le_bytes(*word) == SEGMENTS))
    }
}
