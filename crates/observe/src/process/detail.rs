//! One process looked at closely: one pass over its smaps, and what else tells about its memory.
//!
//! Costs a page-table walk of the whole target (3.4-5.1 ms per GiB of 4 KiB pages, measured on 6.18) and a
//! bounded sample of its content; nothing is stopped or changed. Whatever cannot be read leaves its field empty
//! and a line in `unread`.

use super::kind::{Classifier, Hints, Kind, Total, Verdict};
use super::membership::Membership;
use super::sampling::{Ranges, Windows, ZeroSample};
use super::{Area, Counters, Device, Limits, Pid, Process, Status, VmFlags, status::Vm};
use crate::{Bytes, ReadError, Unread, page_size};
use std::collections::BTreeMap;

/// What the overcommit rules count of a process: mappings with VmFlags `ac` and without `dc`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Charge {
    /// All of it.
    pub total: Bytes,
    /// The largest single mapping: what mode 0 compares with RAM and swap.
    pub largest: Bytes,
    /// Where that one begins.
    pub largest_start: u64,
}

/// Stacks of threads, the main thread's apart.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stacks {
    /// How many.
    pub count: u64,
    /// Their address space.
    pub size: Bytes,
    /// What of it is resident.
    pub rss: Bytes,
    /// Of those resident from end to end: what lies below their threads' stack pointers. Nothing that anybody
    /// needs can be there.
    pub prefaulted: Bytes,
    /// How many those are.
    pub prefaulted_count: u64,
}

/// One process, closely.
#[derive(Debug, Clone, Default)]
pub struct Detail {
    /// Its id.
    pub pid: Pid,
    /// Its status.
    pub status: Status,
    /// Its Vm lines; zero for a process without memory.
    pub vm: Vm,
    /// The sum over its mappings.
    pub counters: Counters,
    /// The same by kind.
    pub kinds: BTreeMap<Kind, Total>,
    /// How many mappings it has: what vm.max_map_count limits.
    pub mappings: u64,
    /// What overcommit charges it with.
    pub charge: Charge,
    /// Address space that costs nothing: without access rights, or never charged.
    pub reserved: Bytes,
    /// Its threads' stacks.
    pub stacks: Stacks,
    /// A sample of its huge pages; `None` where it has hardly any.
    pub huge: Option<ZeroSample>,
    /// A sample of its locked memory that is no stack; `None` where it has hardly any.
    pub locked: Option<ZeroSample>,
    /// The resident memory that `locked` is a sample of.
    pub locked_rss: Bytes,
    /// Resident memory of tmpfs files that it maps and that were deleted.
    pub deleted_shmem: Bytes,
    /// Resident memory in blocks that glibc's malloc mmapped each for itself.
    pub malloc_blocks: Bytes,
    /// Its limits.
    pub limits: Option<Limits>,
    /// Its arguments, each ended by NUL.
    pub cmdline: Vec<u8>,
    /// Its cgroups.
    pub membership: Membership,
    /// What is missing, and why.
    pub unread: Vec<Unread>,
}

/// Less than this of huge or locked memory is not worth reading the target for.
const WORTH_SAMPLING: Bytes = Bytes::from_mib(16);

/// A stack counts as resident from end to end from this share on: the thread's own TLS and guard pages may lie in
/// the same mapping (200 prefaulted stacks of 2 MiB: 0.94).
const END_TO_END: f64 = 0.9;

impl Detail {
    /// Looks at `process`, where `tmpfs` are the devices of file systems in RAM. An error where it ended or its
    /// mappings may not be read.
    pub fn read(process: &Process, tmpfs: Vec<Device>) -> Result<Detail, ReadError> {
        let status = process.status()?;
        let mut detail =
            Detail { pid: process.pid(), vm: status.vm.unwrap_or_default(), status, ..Detail::default() };
        let mut pass = Pass::default();
        if status.vm.is_some() {
            detail.walk(process, tmpfs, &mut pass)?;
        }
        let mut unread = Vec::new();
        let mut keep = |what: &str, error: ReadError| {
            unread.push(Unread::of(format!("{what} of pid {}", process.pid()), &error))
        };
        let huge = process.sampled(&pass.huge, Windows::Full, detail.counters.anon_huge_pages);
        detail.huge = huge.unwrap_or_else(|e| {
            keep("a sample of huge pages", e);
            None
        });
        let locked = process.sampled(&pass.locked, Windows::Any, pass.locked_rss);
        detail.locked = locked.unwrap_or_else(|e| {
            keep("a sample of locked memory", e);
            None
        });
        detail.locked_rss = pass.locked_rss;
        detail.limits = process.limits().map_err(|e| keep("limits", e)).ok();
        detail.cmdline = process.cmdline().unwrap_or_default();
        detail.membership = process.membership().unwrap_or_default();
        detail.unread = unread;
        Ok(detail)
    }

    fn walk(&mut self, process: &Process, tmpfs: Vec<Device>, pass: &mut Pass) -> Result<(), ReadError> {
        let hints = Hints { tmpfs, ..process.hints()? };
        pass.stack_pointers = hints.stack_pointers.clone();
        let mut classifier = Classifier::new(hints);
        let mut stacks = Vec::new();
        let mut kinds: BTreeMap<Kind, Total> = BTreeMap::new();
        let (mut deleted_shmem, mut large) = (Bytes::ZERO, Vec::new());
        let mut tell = |verdict: Verdict, piece: Piece| {
            kinds.entry(verdict.kind).or_default().add(verdict, piece.size(), &piece.counters);
            deleted_shmem +=
                if piece.deleted && verdict.kind == Kind::Tmpfs { piece.counters.rss } else { Bytes::ZERO };
            if verdict.kind == Kind::Anon && piece.counters.rss >= WORTH_SAMPLING {
                large.push(piece);
            }
            if verdict.kind == Kind::ThreadStack {
                stacks.push(piece);
            } else if piece.locked && verdict.kind != Kind::MainStack {
                pass.locked.add(piece.start, piece.end);
                pass.locked_rss += piece.counters.rss;
            }
        };
        let mut huge = Ranges::default();
        process.each_area(|area| {
            self.area(area);
            if area.counters.anon_huge_pages > Bytes::ZERO {
                huge.add(area.mapping.start, area.mapping.end);
            }
            classifier.push(&area.mapping, area.flags, Piece::of(area), &mut tell);
            true
        })?;
        classifier.finish(&mut tell);
        pass.huge = huge;
        self.kinds = kinds;
        self.deleted_shmem = deleted_shmem;
        self.malloc_blocks = malloc_blocks(process, &large);
        for stack in stacks {
            self.stack(process, &pass.stack_pointers, &stack);
        }
        Ok(())
    }

    fn area(&mut self, area: &Area) {
        let size = area.mapping.size();
        self.counters += &area.counters;
        self.mappings += u64::from(area.mapping.path != b"[vsyscall]");
        let flags = area.flags.unwrap_or_default();
        if flags.has(VmFlags::ACCOUNT) && !flags.has(VmFlags::DONT_COPY) {
            self.charge.total += size;
            if size > self.charge.largest {
                self.charge.largest = size;
                self.charge.largest_start = area.mapping.start;
            }
        }
        if area.mapping.perms.is_none() || flags.has(VmFlags::NO_RESERVE) {
            self.reserved += size - area.counters.rss;
        }
    }

    fn stack(&mut self, process: &Process, pointers: &[u64], stack: &Piece) {
        self.stacks.count += 1;
        self.stacks.size += stack.size();
        self.stacks.rss += stack.counters.rss;
        let at = pointers.partition_point(|&pointer| pointer < stack.start);
        let Some(&pointer) = pointers.get(at).filter(|&&pointer| pointer < stack.end) else { return };
        if stack.counters.rss.share_of(stack.size()) < END_TO_END {
            return;
        }
        self.stacks.prefaulted_count += 1;
        self.stacks.prefaulted += process.resident(stack.start, pointer).unwrap_or_default();
    }
}

/// The resident memory of those `pieces` that begin with the header of a block which glibc's malloc mmapped for
/// itself: its size, a multiple of the page, with only the IS_MMAPPED bit (malloc/malloc.c). Neighbours may have
/// merged into one mapping, so the first block need not fill it.
fn malloc_blocks(process: &Process, pieces: &[Piece]) -> Bytes {
    const MOST: usize = 256;
    const IS_MMAPPED: u64 = 2;
    let Some(pid) = i32::try_from(process.pid()).ok().and_then(rustix::process::Pid::from_raw) else {
        return Bytes::ZERO;
    };
    let is_block = |piece: &&Piece| {
        let mut header = [0; 8];
        let read = ebbtide_sys::remote::read(pid, piece.start + 8, &mut header);
        let size = u64::from_ne_bytes(header);
        let (size, flags) = (size & !7, size & 7);
        read == Ok(8)
            && flags == IS_MMAPPED
            && size > 0
            && size <= piece.size().0
            && size.is_multiple_of(page_size().0)
    };
    pieces.iter().take(MOST).filter(is_block).map(|piece| piece.counters.rss).sum()
}

/// What one pass over the mappings collects for afterwards.
#[derive(Default)]
struct Pass {
    stack_pointers: Vec<u64>,
    huge: Ranges,
    locked: Ranges,
    locked_rss: Bytes,
}

/// What is kept of a mapping until its kind is clear.
#[derive(Clone, Copy)]
struct Piece {
    start: u64,
    end: u64,
    locked: bool,
    deleted: bool,
    counters: Counters,
}

impl Piece {
    fn of(area: &Area) -> Piece {
        let Area { mapping, counters, flags, .. } = *area;
        let locked = flags.is_some_and(|flags| flags.has(VmFlags::LOCKED));
        Piece {
            start: mapping.start,
            end: mapping.end,
            locked,
            deleted: mapping.deleted().is_some(),
            counters,
        }
    }

    fn size(&self) -> Bytes {
        Bytes(self.end - self.start)
    }
}

impl Process {
    fn sampled(&self, ranges: &Ranges, which: Windows, of: Bytes) -> Result<Option<ZeroSample>, ReadError> {
        if of < WORTH_SAMPLING { Ok(None) } else { self.sample_zeros(ranges, which).map(Some) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Root;

    #[test]
    fn this_process() {
        let process = Process::open(&Root::live().unwrap(), std::process::id()).unwrap();
        let detail = Detail::read(&process, Vec::new()).unwrap();
        let by_kind: Bytes = detail.kinds.values().map(|total| total.counters.rss).sum();
        assert_eq!(by_kind, detail.counters.rss, "every mapping has one kind");
        assert!(detail.charge.largest <= detail.charge.total && detail.charge.total > Bytes::ZERO);
        assert!(detail.mappings > 10 && detail.limits.is_some() && !detail.cmdline.is_empty());
        assert!(detail.unread.is_empty(), "{:?}", detail.unread);
    }

    #[test]
    fn a_kernel_thread_has_no_memory() {
        let process = Process::open(&Root::live().unwrap(), 2).unwrap();
        match Detail::read(&process, Vec::new()) {
            Ok(detail) => assert_eq!((detail.counters, detail.mappings), (Counters::default(), 0)),
            Err(e) => println!("skipped: {e}"),
        }
    }
}
