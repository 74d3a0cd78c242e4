//! Where a libc's `main_arena` and `mp_` are: neither has a symbol, so both are known by what the file says of
//! them before the program ran. Works on a stripped libc.so.6 and on static programs.
//!
//! Evidence, all of which must agree: `main_arena.next` starts as a pointer to its own structure, which is a
//! relocation (RELA, RELR) or a word in .data whose place less its value is the offset of `next`; `mp_` starts
//! with a pattern of eight known values, found once; and the file names its version, which a static one does
//! not: there the structures alone tell a range of versions. The last word is that of
//! the running process: the arena's bins must be lists ([`super::arena`]).

use super::layout::{Layout, Params};
use crate::source::{Area, Fault, MemorySource, ReadSeek};
use ebbtide_observe::scan;
use object::LittleEndian;
use object::elf::{self, FileHeader64, ProgramHeader64, Rela64};
use object::read::elf::{Dyn, FileHeader, ProgramHeader};
use object::read::{ReadCache, ReadRef};
use std::io::SeekFrom;
use std::ops::Range;

/// The most of a file's data that is looked at; libc.so.6 has 20 KiB.
const DATA_MOST: u64 = 16 << 20;
/// The most relocations; libc.so.6 has about 1,200.
const RELOCATIONS_MOST: u64 = 1 << 20;
/// The most of a file that is searched for its version.
const TEXT_MOST: u64 = 256 << 20;
/// A process with more ELF files than this has a loader, so no static program is looked for.
const STATIC_FILES_MOST: usize = 4;

/// A libc in a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Libc {
    /// Every layout, arena and `mp_` that the file has evidence for; one, but for enterprise distributions.
    pub(super) claims: Vec<Claim>,
}

/// What a file claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) layout: Layout,
    /// Address of `main_arena` in the process.
    pub(super) arena: u64,
    /// Address of `mp_` in the process.
    pub(super) params: u64,
}

/// What a look at one file came to.
#[derive(Debug)]
pub(super) enum Located {
    Here(Libc),
    /// Surely a glibc, and this is why no more is known of it.
    Unreadable(String),
}

/// The libcs of `source`: those mapped under a libc's name, or else the program itself where it is static.
pub(super) fn libcs(source: &dyn MemorySource) -> Result<Vec<Located>, Fault> {
    let files = elf_files(source.areas());
    let named: Vec<&Area> = files.iter().copied().filter(|area| is_libc(&area.path)).collect();
    let mut found = Vec::new();
    for area in &named {
        match source.file(area) {
            Ok(file) => found.extend(inspect(file, area.range.start, false)),
            Err(Fault::Ended) => return Err(Fault::Ended),
            Err(error) => found.push(Located::Unreadable(format!("its libc's file cannot be read: {error}"))),
        }
    }
    if named.is_empty() && files.len() <= STATIC_FILES_MOST {
        for area in files {
            if let Ok(file) = source.file(area) {
                found.extend(inspect(file, area.range.start, true));
            }
        }
    }
    Ok(found)
}

/// Where each file with executable mappings begins.
fn elf_files(areas: &[Area]) -> Vec<&Area> {
    let begins = areas.iter().filter(|area| area.inode != 0 && area.offset.0 == 0 && !area.perms.shared);
    begins
        .filter(|first| {
            let same = |area: &&Area| (area.dev, area.inode) == (first.dev, first.inode);
            areas[areas.partition_point(|area| area.range.start < first.range.start)..]
                .iter()
                .take_while(same)
                .any(|area| area.perms.exec)
        })
        .collect()
}

/// libc.so.6, or libc-2.31.so as it was until 2.33; also when it was replaced since.
pub(crate) fn is_libc(path: &[u8]) -> bool {
    let path = path.strip_suffix(b" (deleted)").unwrap_or(path);
    let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
    name == b"libc.so.6" || (name.starts_with(b"libc-2.") && name.ends_with(b".so"))
}

/// What the file whose first byte is mapped at `base` has evidence for. Damaged files have none.
fn inspect(mut file: Box<dyn ReadSeek>, base: u64, must_be_static: bool) -> Option<Located> {
    let (arenas, params) = {
        let cache = ReadCache::new(&mut file);
        let elf = Elf::read(&cache, base)?;
        let arenas = elf.arenas();
        if must_be_static && (elf.has_interpreter || arenas.is_empty()) {
            return None;
        }
        let params = every_params().into_iter();
        (arenas, params.filter_map(|params| Some((params, elf.params(&params)?))).collect::<Vec<_>>())
    };
    let release = Release::read(&mut file);
    let layouts = match &release {
        Release::Named { .. } => release.layouts(),
        Release::Unnamed { safe_links } if must_be_static => Layout::unnamed(*safe_links),
        Release::Unnamed { .. } => return None,
    };
    let mut claims = Vec::new();
    for layout in layouts {
        let params = params.iter().filter(|(params, _)| *params == layout.params);
        for (_, params) in params {
            let arenas = arenas.iter().filter(|(next, _)| *next == layout.next);
            claims.extend(arenas.map(|&(_, arena)| Claim { layout, arena, params: *params }));
        }
    }
    Some(match (claims.is_empty(), release) {
        (false, _) => Located::Here(Libc { claims }),
        (true, Release::Named { major, minor, .. }) => {
            Located::Unreadable(format!("glibc {major}.{minor}: its structures are not known"))
        }
        (true, Release::Unnamed { .. }) => return None,
    })
}

/// Every layout of `mp_` there is.
fn every_params() -> Vec<Params> {
    let mut every: Vec<Params> = (17..=43).flat_map(Layout::of).map(|layout| layout.params).collect();
    every.dedup();
    every
}

/// What is of interest in an ELF file.
struct Elf<'d> {
    /// Address in the process less address in the file.
    bias: u64,
    has_interpreter: bool,
    /// Addresses in the file, and content, of what the program may write.
    data: Vec<(u64, &'d [u8])>,
    relocations: &'d [Rela64<LittleEndian>],
}

impl<'d> Elf<'d> {
    fn read<R: ReadRef<'d>>(file: R, base: u64) -> Option<Elf<'d>> {
        let header = FileHeader64::<LittleEndian>::parse(file).ok()?;
        let endian = header.endian().ok()?;
        let segments = header.program_headers(endian, file).ok()?;
        let loads = || segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD);
        let first = loads().find(|segment| segment.p_offset(endian) == 0)?;
        let bias = base.wrapping_sub(first.p_vaddr(endian));
        let mut data = Vec::new();
        for segment in loads().filter(|segment| segment.p_flags(endian).0 & elf::PF_W.0 != 0) {
            let size = segment.p_filesz(endian);
            if size > DATA_MOST {
                return None;
            }
            data.push((segment.p_vaddr(endian), file.read_bytes_at(segment.p_offset(endian), size).ok()?));
        }
        let has_interpreter = segments.iter().any(|segment| segment.p_type(endian) == elf::PT_INTERP);
        let relocations = relocations(segments, file).unwrap_or_default();
        Some(Elf { bias, has_interpreter, data, relocations })
    }

    /// Every (offset of `next`, address) at which the file has a pointer to the structure it stands in, for
    /// the three offsets there are.
    fn arenas(&self) -> Vec<(usize, u64)> {
        let nexts = [Layout::of(17), Layout::of(36), Layout::of(43)].map(|layouts| layouts[0].next);
        let mut found = Vec::new();
        let mut check = |place: u64, value: u64| {
            let distance = place.wrapping_sub(value);
            if let Some(&next) = nexts.iter().find(|&&next| next as u64 == distance) {
                let found_here = (next, value.wrapping_add(self.bias));
                if self.holds(value) && !found.contains(&found_here) && found.len() < 16 {
                    found.push(found_here);
                }
            }
        };
        for relocation in self.relocations {
            let kind = relocation.r_info.get(LittleEndian) as u32;
            if kind == elf::R_X86_64_RELATIVE.0 || kind == elf::R_AARCH64_RELATIVE.0 {
                let addend = relocation.r_addend.get(LittleEndian);
                check(relocation.r_offset.get(LittleEndian), addend as u64);
            }
        }
        // RELR keeps its addends in place, as do programs that are not moved.
        for (address, bytes) in &self.data {
            for (index, word) in words(*address, bytes) {
                check(index, word);
            }
        }
        found
    }

    /// Where the file has the initial values of an `mp_` laid out as `params`, if that is one place.
    fn params(&self, params: &Params) -> Option<u64> {
        let mut places = self.data.iter().flat_map(|(address, bytes)| {
            let skew = (address.next_multiple_of(8) - address) as usize;
            let bytes = bytes.get(skew..).unwrap_or_default();
            let windows = bytes.windows(params.size).step_by(8).enumerate();
            windows
                .filter(|(_, window)| is_initial(window, params))
                .map(move |(index, _)| address + skew as u64 + 8 * index as u64)
        });
        let one = places.next()?;
        places.next().is_none().then(|| one.wrapping_add(self.bias))
    }

    /// Whether the file's writable part has `address`.
    fn holds(&self, address: u64) -> bool {
        self.data.iter().any(|(start, bytes)| (*start..start + bytes.len() as u64).contains(&address))
    }
}

/// The RELA table, of which DT_RELA tells the address; no section headers are needed.
fn relocations<'d, R: ReadRef<'d>>(
    segments: &[ProgramHeader64<LittleEndian>],
    file: R,
) -> Option<&'d [Rela64<LittleEndian>]> {
    const DYNAMIC_MOST: u64 = 64 << 10;
    let endian = LittleEndian;
    let dynamic = segments.iter().find(|segment| segment.p_type(endian) == elf::PT_DYNAMIC)?;
    if dynamic.p_filesz(endian) > DYNAMIC_MOST {
        return None;
    }
    let entries = dynamic.dynamic(endian, file).ok()??;
    let value =
        |tag| entries.iter().find(|entry| entry.d_tag(endian) == tag).map(|entry| entry.d_val(endian));
    let (address, size) = (value(elf::DT_RELA)?, value(elf::DT_RELASZ)?);
    let loads = segments.iter().filter(|segment| segment.p_type(endian) == elf::PT_LOAD);
    let offset = loads
        .map(|segment| (segment.p_vaddr(endian), segment.p_filesz(endian), segment.p_offset(endian)))
        .find(|(start, size, _)| address.checked_sub(*start).is_some_and(|into| into < *size))
        .and_then(|(start, _, offset)| offset.checked_add(address - start))?;
    let count = size / size_of::<Rela64<LittleEndian>>() as u64;
    file.read_slice_at(offset, usize::try_from(count.min(RELOCATIONS_MOST)).ok()?).ok()
}

/// The aligned words of `bytes` at `address`, each with its own address.
fn words(address: u64, bytes: &[u8]) -> impl Iterator<Item = (u64, u64)> {
    let start = address.next_multiple_of(8);
    let words = bytes.get((start - address) as usize..).unwrap_or_default().as_chunks::<8>().0;
    words.iter().enumerate().map(move |(index, word)| (start + 8 * index as u64, u64::from_le_bytes(*word)))
}

/// Whether `bytes` are an `mp_` as it is before the first allocation (malloc.c, `mp_` and its DEFAULT_s): the
/// thresholds 128 KiB, 8 arenas to start with, 65,536 mappings at most, and of the changing fields none set.
fn is_initial(bytes: &[u8], params: &Params) -> bool {
    let word = |at: usize| word_at(bytes, at);
    let int = |at: usize| word(at).map(|word| word as u32);
    let range =
        |range: Range<usize>| bytes.get(range).is_some_and(|bytes| bytes.iter().all(|&byte| byte == 0));
    const THRESHOLD: u64 = 128 << 10;
    word(0) == Some(THRESHOLD)
        && matches!(word(8), Some(0 | THRESHOLD))
        && word(16) == Some(THRESHOLD)
        && word(24) == Some(8)
        && word(32) == Some(0)
        && params.huge.is_none_or(|huge| range(huge..params.n_mmaps))
        && int(params.n_mmaps) == Some(0)
        && int(params.n_mmaps + 4) == Some(1 << 16)
        && int(params.n_mmaps + 8) == Some(0)
        && range(params.mmapped..params.sbrk_base + 8)
        && params.cache.is_none_or(|cache| {
            word(cache) == Some(64)
                && word(cache + 8).is_some_and(|most| (1..1 << 32).contains(&most))
                && word(cache + 16).is_some_and(|count| (1..1 << 16).contains(&count))
                && word(cache + 24) == Some(0)
        })
}

/// The little-endian word at `at`.
pub(super) fn word_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|word| u64::from_le_bytes(*word))
}

/// What the file says it is.
enum Release {
    /// "GNU C Library (...) stable release version 2.36".
    Named {
        major: u32,
        minor: u32,
        /// Between two releases, numbered 2.42.9000: may have the layout of either.
        is_snapshot: bool,
    },
    /// Static programs have the library without its banner. A message of malloc's tells whether links are safe.
    Unnamed { safe_links: bool },
}

impl Release {
    /// Reads through `file`, keeping only a part of it at a time.
    fn read(file: &mut dyn ReadSeek) -> Release {
        const STEP: usize = 256 << 10;
        /// The longest of what is looked for; parts of the file overlap by it.
        const LONGEST: usize = 256;
        const SAFE: &[u8] = b"malloc(): unaligned tcache chunk detected";
        let mut safe_links = false;
        let (mut part, mut kept, mut read) = (vec![0; STEP], 0, 0);
        let mut more = file.seek(SeekFrom::Start(0)).is_ok();
        while more && read < TEXT_MOST {
            let Ok(n @ 1..) = file.read(&mut part[kept..]) else { break };
            read += n as u64;
            let end = kept + n;
            let banner = find(&part[..end], b"GNU C Library (");
            if let Some(named) = banner.and_then(|at| Release::parse(&part[at..end])) {
                return named;
            }
            safe_links |= find(&part[..end], SAFE).is_some();
            let start = end.saturating_sub(LONGEST);
            part.copy_within(start..end, 0);
            kept = end - start;
            more = kept < STEP;
        }
        Release::Unnamed { safe_links }
    }

    fn parse(banner: &[u8]) -> Option<Release> {
        const VERSION: &[u8] = b"release version ";
        let line = &banner[..banner.len().min(256)];
        let mut numbers = line[find(line, VERSION)? + VERSION.len()..].split(|&byte| byte == b'.');
        let mut number = || {
            let text = numbers.next()?;
            let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
            scan::number(&text[..digits]).and_then(|n| u32::try_from(n).ok())
        };
        let (major, minor) = (number()?, number()?);
        Some(Release::Named { major, minor, is_snapshot: number().is_some_and(|n| n >= 9000) })
    }

    fn layouts(&self) -> Vec<Layout> {
        match *self {
            Release::Named { major: 2, minor, is_snapshot } => {
                (minor..=minor.saturating_add(u32::from(is_snapshot))).flat_map(Layout::of).collect()
            }
            _ => Vec::new(),
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(found) = haystack[from..].iter().position(|&byte| byte == first) {
        if haystack[from + found..].starts_with(needle) {
            return Some(from + found);
        }
        from += found + 1;
    }
    None
}
