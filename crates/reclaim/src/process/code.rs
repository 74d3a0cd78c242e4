//! The three places in a target's code that borrowing a thread takes: `__restore_rt`, through which the thread takes
//! itself back; a `syscall` instruction in a function that then returns; and the functions to call, by name.
//!
//! The first two are found by their bytes in the C library's code, glibc's or musl's, or, where none is mapped, in that of
//! the program itself, which may have one of them in it; a static one on musl that sets no signal's action has not the
//! first, and is left alone. No other file is read: to read code is to bring it into the target's memory.

use super::levers::Function;
use ebbtide_heaps::{Area, Live, MemorySource};
use ebbtide_observe::ReadError;
use ebbtide_observe::process::Process;
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSegment, ObjectSymbol, ReadCache, ReadCacheOps, SymbolKind};
use rustix::process::Pid;
use std::ops::Range;

/// `mov $15, %rax; syscall`: __restore_rt, glibc's and musl's.
const RESTORER: &[u8] = &[0x48, 0xc7, 0xc0, 15, 0, 0, 0, 0x0f, 0x05];
/// `syscall; cmp $-4095, %rax; jae error; ret`, as glibc's wrappers go (2.17 to 2.43).
const GATE: &[u8] = &[0x0f, 0x05, 0x48, 0x3d, 0x01, 0xf0, 0xff, 0xff, 0x73, 0x01, 0xc3];
/// `syscall; ret`, as musl has it in __set_thread_area, and who else: at whatever bytes are these, it is what they do.
const SHORT_GATE: &[u8] = &[0x0f, 0x05, 0xc3];
/// No library is larger; what follows is not searched.
const CODE_MOST: u64 = 64 << 20;

/// What was found in a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Code {
    pub(super) restorer: u64,
    pub(super) gate: u64,
    /// Whether a thread of the process runs under a seccomp filter.
    pub(super) is_filtered: bool,
}

impl Code {
    /// Errors: the process ended, or its memory may not be read.
    pub(super) fn find(process: &Process) -> Result<Option<Code>, ReadError> {
        let source = Live::new(process, false)?;
        let of_file = |area: &&Area| area.inode != 0;
        let program = source.areas().iter().find(of_file).map(|area| &area.path);
        let has_libc = source.areas().iter().any(|area| is_libc(&area.path));
        let is_meant =
            |area: &&Area| if has_libc { is_libc(&area.path) } else { Some(&area.path) == program };
        let texts = source.areas().iter().filter(|area| area.perms.exec && area.perms.read);
        for area in texts.filter(of_file).filter(is_meant) {
            let bytes = content(process.pid(), &area.range);
            let find = |what| Some(area.range.start + memchr::memmem::find(&bytes, what)? as u64);
            let gate = find(GATE).or_else(|| find(SHORT_GATE));
            if let (Some(restorer), Some(gate)) = (find(RESTORER), gate) {
                return Ok(Some(Code { restorer, gate, is_filtered: is_filtered(process)? }));
            }
        }
        Ok(None)
    }
}

/// Whether a thread of the process runs under a seccomp filter. One that does not know a system call may end the process
/// for it.
pub(super) fn is_filtered(process: &Process) -> Result<bool, ReadError> {
    let statuses = process.threads()?.into_iter().map(|thread| thread.status());
    Ok(statuses.flatten().any(|status| status.seccomp.is_some_and(|mode| mode != 0)))
}

/// What can be read of `range`.
fn content(pid: u32, range: &Range<u64>) -> Vec<u8> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Vec::new() };
    let mut bytes = vec![0; (range.end - range.start).min(CODE_MOST) as usize];
    let read = ebbtide_sys::remote::read(pid, range.start, &mut bytes).unwrap_or(0);
    bytes.truncate(read);
    bytes
}

/// The address of `function`, in the first file mapped that defines it and what it must have beside it.
pub(super) fn function(process: &Process, function: &Function) -> Option<u64> {
    let source = Live::new(process, false).ok()?;
    let mut files = source.areas().iter().filter(|area| area.offset.0 == 0 && area.path.starts_with(b"/"));
    files.find_map(|area| {
        let cache = ReadCache::new(source.file(area).ok()?);
        let (value, bias) = symbol(&cache, function)?;
        Some(area.range.start.wrapping_sub(bias).wrapping_add(value))
    })
}

/// Whether `path` is that of a C library: glibc's "libc.so.6" and "libc-2.31.so", musl's "ld-musl-x86_64.so.1", which
/// Debian has as "libc.so".
fn is_libc(path: &[u8]) -> bool {
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
    name == b"libc.so.6"
        || name.starts_with(b"libc-2.")
        || name.starts_with(b"ld-musl-")
        || name == b"libc.so"
}

/// Where a function is in the file, and the address that the file's first byte is linked to.
fn symbol<R: ReadCacheOps>(content: &ReadCache<R>, function: &Function) -> Option<(u64, u64)> {
    let file = ElfFile64::<LittleEndian, _>::parse(content).ok()?;
    let (mut found, mut beside) = (None, function.beside.is_empty());
    for symbol in file.dynamic_symbols().chain(file.symbols()) {
        let Ok(name) = symbol.name() else { continue };
        if !symbol.is_definition() {
            continue;
        }
        beside |= name == function.beside;
        if symbol.kind() == SymbolKind::Text && function.names.contains(&name) {
            found = found.or(Some(symbol.address()));
        }
    }
    let first = file.segments().next()?;
    Some((found.filter(|_| beside)?, first.address().wrapping_sub(first.file_range().0)))
}
