//! The environment that a process has now, read in its memory: what is left where /proc/PID/environ is overwritten.
//!
//! Redis, nginx and whoever else shows a title write over the room of arguments and environment, after they have copied
//! the environment elsewhere. Then the C library's `environ` leads to the copies. Foreign memory: everything is bounded,
//! and what does not look like an environment is none.

use ebbtide_heaps::{Live, MemorySource, Reader};
use ebbtide_observe::process::Process;
use object::read::elf::ElfFile64;
use object::{LittleEndian, Object, ObjectSegment, ObjectSymbol, ReadCache, ReadCacheOps};

/// More variables than this has nobody.
const MOST: usize = 4096;
/// The kernel takes no longer string (MAX_ARG_STRLEN).
const LONGEST: usize = 128 << 10;
/// As much in all as an environment may be read from /proc.
const ROOM: usize = 4 << 20;

/// The variables of `process`, NUL between them; `None` where they cannot be found.
pub(super) fn read(process: &Process) -> Option<Vec<u8>> {
    let source = Live::new(process, false).ok()?;
    // Where the program itself refers to `environ`, the linker has put the variable into the program (a copy
    // relocation), and the library uses that one: so the lowest file that defines it, which the program's is.
    let mut files = source.areas().iter().filter(|area| area.offset.0 == 0 && area.path.starts_with(b"/"));
    let address = files.find_map(|area| {
        let cache = ReadCache::new(source.file(area).ok()?);
        let (value, bias) = variable(&cache)?;
        Some(area.range.start.wrapping_sub(bias).wrapping_add(value))
    })?;
    strings(&mut Reader::new(&source), address)
}

/// Where `environ` is in a file, and the address that the file's first byte is linked to.
fn variable<R: ReadCacheOps>(content: &ReadCache<R>) -> Option<(u64, u64)> {
    let file = ElfFile64::<LittleEndian, _>::parse(content).ok()?;
    let is_it = |name: &str| matches!(name, "environ" | "__environ" | "_environ");
    let mut symbols = file.dynamic_symbols();
    let found = symbols.find(|symbol| symbol.is_definition() && symbol.name().is_ok_and(is_it))?;
    let first = file.segments().next()?;
    Some((found.address(), first.address().wrapping_sub(first.file_range().0)))
}

/// The strings that the array leads to whose address is at `variable`.
fn strings(reader: &mut Reader, variable: u64) -> Option<Vec<u8>> {
    let array = reader.u64(variable).ok().filter(|&array| array != 0)?;
    let mut found = Vec::new();
    for n in 0..MOST as u64 {
        let string = reader.u64(array.checked_add(n * 8)?).ok()?;
        if string == 0 {
            return Some(found);
        }
        let start = found.len();
        append(reader, string, &mut found)?;
        if !found[start..].contains(&b'=') || found.len() > ROOM {
            return None;
        }
        found.push(0);
    }
    None
}

/// Appends the string at `address`, without its end.
fn append(reader: &mut Reader, mut address: u64, out: &mut Vec<u8>) -> Option<()> {
    let start = out.len();
    while out.len() - start < LONGEST {
        let ahead = reader.ahead(address, 1).ok()?;
        let end = memchr::memchr(0, ahead);
        let part = &ahead[..end.unwrap_or(ahead.len())];
        out.extend_from_slice(part);
        if end.is_some() {
            return Some(());
        }
        address = address.checked_add(part.len() as u64)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_heaps::{Area, Image};
    use ebbtide_observe::Root;
    use ebbtide_observe::process::maps::Mapping;
    use proptest::prelude::*;

    #[test]
    fn this_tests_own() {
        let process = Process::open(&Root::live().unwrap(), std::process::id()).unwrap();
        let Some(found) = read(&process) else {
            return println!("skipped: no environ in a static test");
        };
        let mut found: Vec<&[u8]> = found.split(|&b| b == 0).filter(|entry| !entry.is_empty()).collect();
        found.sort();
        let mut own: Vec<Vec<u8>> = std::env::vars_os()
            .map(|(name, value)| [name.as_encoded_bytes(), b"=", value.as_encoded_bytes()].concat())
            .collect();
        own.sort();
        assert_eq!(found, own);
    }

    proptest! {
        #[test]
        fn any_memory_is_no_trap(mut memory: Vec<u8>, words in prop::collection::vec(0x1000u64..0x2100, 0..8)) {
            for word in words {
                memory.extend_from_slice(&word.to_le_bytes());
            }
            memory.resize(memory.len().next_multiple_of(4096).max(4096), 0);
            let line = format!("1000-{:x} rw-p 00000000 00:00 0", 0x1000 + memory.len());
            let mut image = Image::default();
            image.map(Area::of(&Mapping::parse(line.as_bytes()).unwrap()));
            image.put(0x1000, memory);
            for variable in [0, 0x1000, 0x1008, u64::MAX - 4] {
                strings(&mut Reader::new(&image), variable);
            }
        }
    }
}
