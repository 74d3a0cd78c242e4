//! What kind of memory a mapping is: the heap, an arena, a stack, code, a file, shared memory ...
//!
//! Most mappings tell by their path. Unnamed anonymous ones tell by their neighbours: a glibc thread arena
//! begins at a multiple of 64 MiB and its reserved rest ends at one; a thread's stack lies right above a
//! guard. So [`Classifier`] takes the mappings in the order of addresses and answers one or a few mappings
//! late, holding no more than the pieces of one arena.
//!
//! A [`Verdict`] says whether it is sure: an arena and a stack found by their shape alone may be something
//! else that likes round addresses or guards. Measured shapes (glibc 2.36, JDK 17, kernel 6.18): arenas are
//! `nr`; stacks and their guards are `nh` since 6.7; the JVM's compressed class space, its code cache and
//! Go's heap come near to an arena and must not be taken for one.

use super::{Counters, Device, Mapping, Process, VmFlags};
use crate::{Bytes, ReadError};
use serde::Serialize;
use std::collections::BTreeMap;

/// HEAP_MAX_SIZE of glibc on 64-bit machines: what a thread arena's heap reserves, and its alignment.
const ARENA: u64 = 64 << 20;

/// Go reserves 64 MiB arenas from 0xc0_0000_0000 on and fills them just like glibc; below 1 TiB nothing of
/// glibc lies, as mmap begins near the top of the address space.
const MMAP_LOWEST: u64 = 1 << 40;

/// The largest gap below a mapping that passes for a stack's guard: the JVM has 16 KiB, musl 8 KiB; a
/// reservation's unused rest is mostly larger.
const GUARD_MOST: Bytes = Bytes::from_mib(1);

/// The largest mapping taken for a stack by its guard alone.
const STACK_MOST: Bytes = Bytes::from_mib(64);

/// A kind of memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// The brk heap: glibc's main arena, mostly.
    Heap,
    /// A glibc thread arena.
    Arena,
    /// The main thread's stack.
    MainStack,
    /// Another thread's stack, with its TLS.
    ThreadStack,
    /// Anonymous memory with a name (PR_SET_VMA_ANON_NAME), as Go's heap from 1.25.
    NamedAnon,
    /// Other private anonymous memory: mmapped blocks, managed heaps, other allocators, .bss, JIT code.
    Anon,
    /// Executable file mappings.
    Code,
    /// Other file mappings; written private pages of them are anonymous (see [`Counters::anonymous`]).
    File,
    /// Shared anonymous memory.
    SharedAnon,
    /// A System V segment.
    SysV,
    /// A memfd.
    Memfd,
    /// A file on a tmpfs.
    Tmpfs,
    /// An unlinked file of a disk.
    DeletedFile,
    /// A device's or a kernel object's memory.
    Device,
    /// Hugetlb pages, however mapped.
    Hugetlb,
    /// vdso, vvar and the like.
    Kernel,
    /// No access allowed: guards and reservations.
    Reserved,
}

/// A mapping's kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// What it is.
    pub kind: Kind,
    /// False where only its shape says so.
    pub sure: bool,
}

impl Verdict {
    const fn sure(kind: Kind) -> Verdict {
        Verdict { kind, sure: true }
    }

    const fn likely(kind: Kind) -> Verdict {
        Verdict { kind, sure: false }
    }
}

/// What is known besides the mappings.
#[derive(Debug, Clone, Default)]
pub struct Hints {
    /// Where threads' stack pointers stand, sorted ([`Process::stack_pointers`]).
    pub stack_pointers: Vec<u64>,
    /// Whether every thread's is among them: then a mapping without one is no living thread's stack.
    pub complete: bool,
    /// The devices of tmpfs mounts.
    pub tmpfs: Vec<Device>,
}

/// Tells kinds while mappings stream by, each with a `T` of the caller's that is handed back.
#[derive(Debug)]
pub struct Classifier<T> {
    hints: Hints,
    /// Writable mappings without a gap between them, the first at a multiple of 64 MiB: an arena, if what
    /// comes next fits.
    held: Vec<(Piece, T)>,
    /// Where the mapping before ended, and whether it may have been a guard.
    below_end: u64,
    below_guards: bool,
}

/// An unnamed private writable mapping.
#[derive(Debug, Clone, Copy)]
struct Piece {
    start: u64,
    end: u64,
    flags: Option<VmFlags>,
    /// Whether what may be a guard lies right below.
    guarded: bool,
}

impl<T> Classifier<T> {
    /// A classifier for one process's mappings.
    pub fn new(hints: Hints) -> Classifier<T> {
        Classifier { hints, held: Vec::new(), below_end: 0, below_guards: false }
    }

    /// Takes the next mapping; calls `tell` with what has become clear, in the order of addresses.
    pub fn push(
        &mut self,
        mapping: &Mapping,
        flags: Option<VmFlags>,
        item: T,
        tell: &mut impl FnMut(Verdict, T),
    ) {
        let &Mapping { start, end, perms, .. } = mapping;
        let unnamed = mapping.is_unnamed() && !perms.shared && !has(flags, VmFlags::HUGETLB);
        let touches = self.below_end == start;
        if unnamed && perms.write && !perms.exec {
            let guarded = touches && self.below_guards;
            self.writable(Piece { start, end, flags, guarded }, touches, item, tell);
            self.below_guards = false;
        } else {
            let reserved = unnamed && perms.is_none();
            let arena = self.flush((reserved && touches).then_some(end), tell);
            tell(by_name(mapping, flags, &self.hints.tmpfs), item);
            self.below_guards = reserved && !arena && mapping.size() <= GUARD_MOST;
        }
        self.below_end = end;
    }

    /// Tells what is left.
    pub fn finish(mut self, tell: &mut impl FnMut(Verdict, T)) {
        self.flush(None, tell);
    }

    fn writable(&mut self, piece: Piece, touches: bool, item: T, tell: &mut impl FnMut(Verdict, T)) {
        let continues = touches && self.held.last().is_some_and(|(last, _)| last.end % ARENA != 0);
        if !continues {
            self.flush(None, tell);
        }
        let begins = piece.start.is_multiple_of(ARENA) && piece.start >= MMAP_LOWEST;
        if continues || begins {
            self.held.push((piece, item));
        } else {
            tell(self.hints.alone(&piece), item);
        }
    }

    /// Tells what the held pieces are, given where the reserved mapping right above them ends; true where
    /// they are an arena.
    fn flush(&mut self, tail: Option<u64>, tell: &mut impl FnMut(Verdict, T)) -> bool {
        let (Some((first, _)), Some((last, _))) = (self.held.first(), self.held.last()) else { return false };
        let arena = arena(first, last.end, tail);
        for (piece, item) in self.held.drain(..) {
            tell(arena.unwrap_or_else(|| self.hints.alone(&piece)), item);
        }
        arena.is_some()
    }
}

/// Whether mappings from `first` up to `end`, and the reserved one above that ends at `tail`, are an arena.
fn arena(first: &Piece, end: u64, tail: Option<u64>) -> Option<Verdict> {
    let boundary = end.checked_next_multiple_of(ARENA)?;
    let full = end == boundary;
    // glibc maps heaps MAP_NORESERVE, and mprotect keeps that; overcommit mode 2 drops it.
    let unreserved = first.flags.map(|flags| flags.has(VmFlags::NO_RESERVE));
    match unreserved {
        Some(true) if full || tail == Some(boundary) => Some(Verdict::sure(Kind::Arena)),
        _ if !full && tail == Some(boundary) => Some(Verdict::likely(Kind::Arena)),
        _ => None,
    }
}

impl Hints {
    /// What an unnamed writable mapping that is no arena is.
    fn alone(&self, piece: &Piece) -> Verdict {
        let at = self.stack_pointers.partition_point(|&pointer| pointer < piece.start);
        let used = self.stack_pointers.get(at).is_some_and(|&pointer| pointer < piece.end);
        let stack_flag = has(piece.flags, VmFlags::NO_HUGE_PAGE);
        let shaped = piece.guarded
            && piece.end - piece.start <= STACK_MOST.0
            && !has(piece.flags, VmFlags::NO_RESERVE);
        match () {
            () if used && (piece.guarded || stack_flag) => Verdict::sure(Kind::ThreadStack),
            // Go runs on stacks inside its heap.
            () if used && piece.start >= MMAP_LOWEST => Verdict::likely(Kind::ThreadStack),
            () if shaped && (stack_flag || !self.complete) => Verdict::likely(Kind::ThreadStack),
            () => Verdict::sure(Kind::Anon),
        }
    }
}

fn has(flags: Option<VmFlags>, flag: VmFlags) -> bool {
    flags.is_some_and(|flags| flags.has(flag))
}

/// What a mapping is by its name, or by having none and not being writable.
fn by_name(mapping: &Mapping, flags: Option<VmFlags>, tmpfs: &[Device]) -> Verdict {
    let path = mapping.path;
    let begins = |prefix: &[u8]| path.starts_with(prefix);
    let deleted = mapping.deleted();
    let kind = match () {
        () if has(flags, VmFlags::HUGETLB) || begins(b"/anon_hugepage") => Kind::Hugetlb,
        () if path.is_empty() && mapping.perms.is_none() => Kind::Reserved,
        () if path.is_empty() => Kind::Anon,
        () if begins(b"[") => return bracketed(path, mapping.perms.is_none()),
        () if deleted == Some(b"/dev/zero") => Kind::SharedAnon,
        () if path == b"/dev/zero" && !mapping.perms.shared => Kind::Anon,
        () if deleted.and_then(super::fds::sysv_key).is_some() => Kind::SysV,
        () if deleted.is_some() && begins(b"/memfd:") => Kind::Memfd,
        () if tmpfs.contains(&mapping.dev) || begins(b"/dev/shm/") => Kind::Tmpfs,
        () if begins(b"/dev/hugepages/") => Kind::Hugetlb,
        () if begins(b"/dev/") || begins(b"/dmabuf:") || !begins(b"/") => Kind::Device,
        () if has(flags, VmFlags::IO) || has(flags, VmFlags::PFN_MAP) => Kind::Device,
        () if mapping.perms.exec => Kind::Code,
        () if deleted.is_some() => Kind::DeletedFile,
        () => Kind::File,
    };
    Verdict::sure(kind)
}

/// What a name in brackets means. glibc (2.39, glibc.mem.decorate_maps) and Android name stacks and arenas.
fn bracketed(path: &[u8], reserved: bool) -> Verdict {
    let Some(name) = path.strip_prefix(b"[anon:") else {
        return Verdict::sure(match path {
            b"[heap]" => Kind::Heap,
            _ if path.starts_with(b"[stack") => Kind::MainStack,
            _ if path.starts_with(b"[anon_shmem:") => Kind::SharedAnon,
            _ => Kind::Kernel,
        });
    };
    let name = name.trim_ascii_start();
    Verdict::sure(match () {
        () if reserved => Kind::Reserved,
        () if name.starts_with(b"glibc: malloc arena") => Kind::Arena,
        () if name.starts_with(b"glibc: pthread") || name.starts_with(b"stack_and_tls") => Kind::ThreadStack,
        () => Kind::NamedAnon,
    })
}

/// All mappings of one kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Total {
    /// How many.
    pub mappings: u64,
    /// Their address space.
    pub size: Bytes,
    /// Their counters.
    pub counters: Counters,
    /// The resident part of those whose kind is not sure.
    pub unsure: Bytes,
}

impl Total {
    /// Adds one mapping.
    pub fn add(&mut self, verdict: Verdict, size: Bytes, counters: &Counters) {
        self.mappings += 1;
        self.size += size;
        self.counters += counters;
        self.unsure += if verdict.sure { Bytes::ZERO } else { counters.rss };
    }
}

impl Process {
    /// What its threads tell, and nothing of tmpfs mounts.
    pub fn hints(&self) -> Result<Hints, ReadError> {
        let (stack_pointers, complete) = self.stack_pointers()?;
        Ok(Hints { stack_pointers, complete, tmpfs: Vec::new() })
    }

    /// Its smaps, summed by kind.
    pub fn kinds(&self, hints: Hints) -> Result<BTreeMap<Kind, Total>, ReadError> {
        let mut totals: BTreeMap<Kind, Total> = BTreeMap::new();
        let mut tell = |verdict: Verdict, (size, counters): (Bytes, Counters)| {
            totals.entry(verdict.kind).or_default().add(verdict, size, &counters);
        };
        let mut classifier = Classifier::new(hints);
        self.each_area(|area| {
            let item = (area.mapping.size(), area.counters);
            classifier.push(&area.mapping, area.flags, item, &mut tell);
            true
        })?;
        classifier.finish(&mut tell);
        Ok(totals)
    }
}

#[cfg(test)]
mod tests;
