//! Where in a process LuaJIT's own code is, which says at little cost whether there can be a Lua state at all.
//!
//! A file is LuaJIT's if it is mapped executable and its read-only part has the text "LuaJIT 2.": `jit.version`, in
//! every build whose standard libraries are linked in, symbols or not. To look at each page of a process's anonymous
//! memory instead costs as much as to copy all of it (16 bytes of each page: 1.5 us a page, 6.18 under load).

use crate::reader::Reader;
use crate::source::{Area, Fault, MemorySource};
use memchr::memmem::Finder;
use std::io::{Read, SeekFrom};
use std::ops::Range;

/// What LUAJIT_VERSION begins with.
const NAME: &[u8] = b"LuaJIT 2.";
/// What is read at once.
const BLOCK: usize = 256 << 10;
/// A version is no longer: "2.1.1720049189", "2.1.0-beta3".
const VERSION_MOST: usize = 24;
/// The most that is read of one process's files: their pages are not all in memory.
const READ_MOST: u64 = 2 << 30;

/// A file that LuaJIT's code is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Code {
    /// Its executable addresses.
    pub(super) text: Vec<Range<u64>>,
    /// As its text says: "2.1.0-beta3".
    pub(super) version: String,
}

/// The files of `source` that LuaJIT's code is in.
pub(super) fn find(source: &dyn MemorySource) -> Result<Vec<Code>, Fault> {
    let mut found = Vec::new();
    let mut seen = Vec::new();
    let mut left = READ_MOST;
    for area in source.areas().iter().filter(|area| area.perms.exec && area.inode != 0) {
        let file = (area.dev.major, area.dev.minor, area.inode);
        if seen.contains(&file) {
            continue;
        }
        seen.push(file);
        let of_file = |other: &&Area| (other.dev.major, other.dev.minor, other.inode) == file;
        let areas: Vec<&Area> = source.areas().iter().filter(of_file).collect();
        if let Some(version) = version(source, &areas, &mut left)? {
            let text = areas.iter().filter(|area| area.perms.exec).map(|area| area.range.clone()).collect();
            found.push(Code { text, version });
        }
    }
    Ok(found)
}

/// The version that the read-only ones of a file's mappings name.
fn version(source: &dyn MemorySource, areas: &[&Area], left: &mut u64) -> Result<Option<String>, Fault> {
    let read_only = areas.iter().filter(|area| area.perms.read && !area.perms.write);
    for area in read_only {
        let size = area.size().0.min(*left);
        *left -= size;
        let search = || in_file(source, area, size);
        let found = match source.files().map_or_else(search, |files| files.found(area, size, search)) {
            Some(found) => found,
            None => in_memory(source, area, size)?,
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// Looks at the file's content; `None` where it cannot be read.
fn in_file(source: &dyn MemorySource, area: &Area, size: u64) -> Option<Option<String>> {
    let mut file = source.file(area).ok()?;
    file.seek(SeekFrom::Start(area.offset.0)).ok()?;
    let mut search = Search::default();
    let mut part = file.take(size);
    loop {
        let kept = search.buf.len();
        let read = (&mut part).take(BLOCK as u64).read_to_end(&mut search.buf).ok()?;
        if let Some(version) = search.version() {
            return Some(Some(version));
        }
        if read == 0 || search.buf.len() == kept {
            return Some(None);
        }
        search.keep_end();
    }
}

/// Looks at what of the file's content is in memory.
fn in_memory(source: &dyn MemorySource, area: &Area, size: u64) -> Result<Option<String>, Fault> {
    let mut reader = Reader::new(source);
    let mut search = Search::default();
    let mut block = Vec::new();
    let mut at = area.range.start;
    let end = area.range.start.saturating_add(size).min(area.range.end);
    while at < end {
        let next = end.min(at + BLOCK as u64);
        match reader.copy(at..next, &mut block) {
            Ok(()) => search.buf.extend_from_slice(&block),
            Err(fault @ (Fault::Ended | Fault::Denied(_))) => return Err(fault),
            Err(_) => search.buf.clear(),
        }
        if let Some(version) = search.version() {
            return Ok(Some(version));
        }
        search.keep_end();
        at = next;
    }
    Ok(None)
}

/// A search that goes over the seams of blocks.
struct Search {
    finder: Finder<'static>,
    buf: Vec<u8>,
}

impl Default for Search {
    fn default() -> Search {
        Search { finder: Finder::new(NAME), buf: Vec::with_capacity(BLOCK + NAME.len() + VERSION_MOST) }
    }
}

impl Search {
    /// The version that is named in the block.
    fn version(&self) -> Option<String> {
        self.finder.find_iter(&self.buf).find_map(|at| {
            let number = &self.buf[at + b"LuaJIT ".len()..];
            let is_part = |byte: &&u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-');
            let number: Vec<u8> = number.iter().take(VERSION_MOST).take_while(is_part).copied().collect();
            let text = String::from_utf8(number).ok()?;
            // "LuaJIT 2.x" is what those say who only mean it.
            text[2..].starts_with(|digit: char| digit.is_ascii_digit()).then_some(text)
        })
    }

    /// Drops all but what a name may begin in.
    fn keep_end(&mut self) {
        let kept = self.buf.len().min(NAME.len() + VERSION_MOST);
        self.buf.drain(..self.buf.len() - kept);
    }
}
