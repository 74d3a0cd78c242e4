//! Where CPython's own code is in a process: the executable, libpython, or a program that has it built in.
//!
//! It is the ELF file that exports `_PyRuntime`, as all since 3.7 do, stripped or not: extension modules need it.
//! Invariants: the file is read, never the mapping, since pages of a file that are not in memory must not be
//! faulted in; all numbers of the file are checked.

use crate::source::{Area, Fault, MemorySource, ReadSeek};
use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _, SectionHeader as _, Sym as _};
use object::read::{ReadCache, ReadRef};
use object::{Endianness, elf};
use std::ops::Range;

/// A page of a mapping's offset; segments are aligned to it or more.
const PAGE: u64 = 4096;
/// The most that is read of a file's read-only data to find the version.
const RODATA_MOST: u64 = 32 << 20;
/// The most that is searched of a binary's writable data; 3.13 has 0.9 MiB.
const DATA_MOST: u64 = 64 << 20;
/// Places in a table of names that are tried for one name.
const PLACES_MOST: usize = 16;

/// A mapped file that exports `_PyRuntime`.
#[derive(Debug)]
pub(super) struct Binary {
    /// Its writable data and zeroed data, as mapped.
    pub(super) data: Vec<Range<u64>>,
    /// Where `_PyRuntime` is.
    pub(super) runtime: u64,
    /// "3.11.2", if the file tells.
    pub(super) version: Option<String>,
}

type Elf<'d> = ElfFile64<'d, Endianness, &'d ReadCache<Box<dyn ReadSeek>>>;

/// The files in the process that are CPython. Looked into are those whose name begins with "python" or
/// "libpython", and the executable.
pub(super) fn find(source: &dyn MemorySource) -> Result<Vec<Binary>, Fault> {
    let files = source.areas().iter().filter(|area| area.inode != 0 && area.offset.0 == 0);
    let mut found = Vec::new();
    // A position-independent executable lies below its libraries, and any other below those.
    for (index, area) in files.enumerate() {
        if index > 0 && !is_named_python(&area.path) {
            continue;
        }
        let file = match source.file(area) {
            Ok(file) => file,
            Err(Fault::Ended) => return Err(Fault::Ended),
            Err(_) => continue,
        };
        found.extend(look_into(area, file));
    }
    Ok(found)
}

fn is_named_python(path: &[u8]) -> bool {
    let name = path.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
    name.starts_with(b"python") || name.starts_with(b"libpython")
}

fn look_into(area: &Area, file: Box<dyn ReadSeek>) -> Option<Binary> {
    let cache = ReadCache::new(file);
    let elf = Elf::parse(&cache).ok()?;
    let symbol = |name: &str| exported(&elf, &cache, name);
    let runtime = symbol("_PyRuntime")?;
    let endian = elf.endian();
    let headers = elf.elf_header().program_headers(endian, &cache).ok()?;
    let loads = headers.iter().filter(|header| header.p_type(endian) == elf::PT_LOAD);
    let first = loads.clone().find(|header| header.p_offset(endian) < PAGE)?;
    let bias = area.range.start.wrapping_sub(first.p_vaddr(endian) & !(PAGE - 1));
    let mut data = Vec::new();
    let mut total = 0_u64;
    for load in loads.filter(|header| header.p_flags(endian).0 & elf::PF_W.0 != 0) {
        let start = bias.wrapping_add(load.p_vaddr(endian)) & !7;
        total = total.checked_add(load.p_memsz(endian)).filter(|total| *total <= DATA_MOST)?;
        data.push(start..start.checked_add(load.p_memsz(endian))?);
    }
    let version = symbol("Py_Version").and_then(|at| version_number(&elf, &cache, at));
    let version = version.or_else(|| version_text(&elf, &cache));
    Some(Binary { data, runtime: bias.wrapping_add(runtime), version })
}

/// The virtual address of the symbol `name`. Names are searched for in one piece, not symbol by symbol: node exports
/// 37,000, whose names one by one take 0.1 s to read.
fn exported(elf: &Elf<'_>, cache: &ReadCache<Box<dyn ReadSeek>>, name: &str) -> Option<u64> {
    let endian = elf.endian();
    let symbols = elf.elf_dynamic_symbol_table();
    let strings = elf.elf_section_table().section(symbols.string_section()).ok()?.data(endian, cache).ok()?;
    let end = [name.as_bytes(), &[0]].concat();
    // More than one where a longer name ends in this one: linkers merge tails.
    let places: Vec<usize> = memchr::memmem::find_iter(strings, &end).take(PLACES_MOST).collect();
    if places.is_empty() {
        return None;
    }
    let is_it = |symbol: &&elf::Sym64<Endianness>| {
        !symbol.is_undefined(endian) && places.contains(&(symbol.st_name(endian) as usize))
    };
    symbols.iter().find(is_it).map(|symbol| symbol.st_value(endian))
}

/// The file's content of a segment that may not be written, from virtual address `at` on.
fn read_only<'d>(
    elf: &Elf<'d>,
    cache: &'d ReadCache<Box<dyn ReadSeek>>,
    at: u64,
    len: u64,
) -> Option<&'d [u8]> {
    let endian = elf.endian();
    let headers = elf.elf_header().program_headers(endian, cache).ok()?;
    headers.iter().filter(|header| header.p_type(endian) == elf::PT_LOAD).find_map(|header| {
        let into = at.checked_sub(header.p_vaddr(endian))?;
        let left = header.p_filesz(endian).checked_sub(into)?;
        let len = len.min(left);
        let offset = header.p_offset(endian).checked_add(into)?;
        cache.read_bytes_at(offset, len).ok().filter(|bytes| !bytes.is_empty())
    })
}

/// `Py_Version` of 3.11 and later: PY_VERSION_HEX as a long (Include/patchlevel.h).
fn version_number(elf: &Elf<'_>, cache: &ReadCache<Box<dyn ReadSeek>>, at: u64) -> Option<String> {
    let bytes: [u8; 4] = read_only(elf, cache, at, 4)?.try_into().ok()?;
    hex_version(u32::from_le_bytes(bytes))
}

/// "3.13.0" of 0x030d00f0; `None` for what is no version of CPython 3.
pub(super) fn hex_version(hex: u32) -> Option<String> {
    let [serial, micro, minor, major] = hex.to_le_bytes();
    let level = match serial >> 4 {
        0xa => "a",
        0xb => "b",
        0xc => "rc",
        0xf => "",
        _ => return None,
    };
    let serial = if level.is_empty() { String::new() } else { (serial & 15).to_string() };
    (major == 3).then(|| format!("{major}.{minor}.{micro}{level}{serial}"))
}

/// The string that `sys.version` begins with, in the read-only data. Linkers merge it into the tail of a longer
/// string that ends in it, such as an installation's path.
fn version_text(elf: &Elf<'_>, cache: &ReadCache<Box<dyn ReadSeek>>) -> Option<String> {
    let endian = elf.endian();
    let headers = elf.elf_header().program_headers(endian, cache).ok()?;
    let constant = headers.iter().filter(|header| {
        header.p_type(endian) == elf::PT_LOAD && header.p_flags(endian).0 & elf::PF_W.0 == 0
    });
    constant
        .filter_map(|header| {
            let len = header.p_filesz(endian).min(RODATA_MOST);
            cache.read_bytes_at(header.p_offset(endian), len).ok()
        })
        .find_map(version_within)
}

/// The first text in `bytes` that ends a C string and is a version before 3.11.
fn version_within(bytes: &[u8]) -> Option<String> {
    let starts = bytes.windows(2).enumerate().filter(|(_, two)| two == b"3.").map(|(at, _)| at);
    for at in starts {
        if at > 0 && (bytes[at - 1] == b'.' || bytes[at - 1].is_ascii_digit()) {
            continue;
        }
        let text = bytes[at..].iter().take(12).position(|byte| *byte == 0);
        let Some(text) = text.and_then(|len| std::str::from_utf8(&bytes[at..at + len]).ok()) else {
            continue;
        };
        let mut numbers = text.trim_end_matches('+').splitn(3, '.').skip(1);
        let minor = numbers.next().and_then(|number| number.parse::<u8>().ok());
        let micro = numbers.next().unwrap_or_default();
        let numeric = micro.starts_with(|first: char| first.is_ascii_digit())
            && micro.bytes().all(|byte| byte.is_ascii_digit() || b"abrc".contains(&byte));
        if minor.is_some_and(|minor| (7..11).contains(&minor)) && numeric {
            return Some(text.to_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn versions_as_numbers() {
        assert_eq!(hex_version(0x030d_00f0).as_deref(), Some("3.13.0"));
        assert_eq!(hex_version(0x030b_02f0).as_deref(), Some("3.11.2"));
        assert_eq!(hex_version(0x030e_00a3).as_deref(), Some("3.14.0a3"));
        assert_eq!(hex_version(0x030d_00c1).as_deref(), Some("3.13.0rc1"));
        assert_eq!(hex_version(0x020d_00f0), None);
        assert_eq!(hex_version(0), None);
    }

    #[test]
    fn versions_as_text() {
        let within = |text: &[u8]| version_within(text);
        assert_eq!(within(b"x\0/opt/python/3.9.18\0y").as_deref(), Some("3.9.18"));
        assert_eq!(within(b"\x003.10.0rc2\0").as_deref(), Some("3.10.0rc2"));
        assert_eq!(within(b"3.9.2+\0").as_deref(), Some("3.9.2+"));
        for other in
            [&b"1.3.9.1\0"[..], b"13.9.1\0", b"3.9.1", b"3.9.1 (x)\0", b"3.9\0", b"3.25.1\0", b"3.9.\0"]
        {
            assert_eq!(within(other), None, "{}", String::from_utf8_lossy(other));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_will_do(bytes in proptest::collection::vec(prop_oneof![Just(b'3'), Just(b'.'), any::<u8>()], 0..200)) {
            version_within(&bytes);
        }
    }
}
