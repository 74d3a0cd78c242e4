//! /proc/PID/maps: the mappings, streamed; a [`Mapping`] borrows its path from the line.
//!
//! Facts (show_map_vma, fs/proc/task_mmu.c): the path begins after column 73 or one blank, newlines in it are
//! written `\012`, and a file that was unlinked ends in " (deleted)", as may the name of one that was not.
//! Reading needs the right to debug the process (PTRACE_MODE_READ), checked when the file is opened.

use super::Process;
use crate::{Bytes, ReadError, scan};
use serde::Serialize;
use std::fmt::{self, Debug, Display};

/// The `rwxp` of a mapping.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Perms {
    /// `r`
    pub read: bool,
    /// `w`
    pub write: bool,
    /// `x`
    pub exec: bool,
    /// `s` instead of `p`.
    pub shared: bool,
}

impl Perms {
    /// The permissions that `text` spells; `None` for other than four known letters.
    pub fn parse(text: &[u8]) -> Option<Perms> {
        let &[r, w, x, s] = text else { return None };
        let flag = |letter, yes, no| match letter {
            l if l == yes => Some(true),
            l if l == no => Some(false),
            _ => None,
        };
        Some(Perms {
            read: flag(r, b'r', b'-')?,
            write: flag(w, b'w', b'-')?,
            exec: flag(x, b'x', b'-')?,
            shared: flag(s, b's', b'p')?,
        })
    }

    /// `---p`: a guard or a reservation.
    pub fn is_none(self) -> bool {
        !self.read && !self.write && !self.exec
    }
}

impl Debug for Perms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let letter = |set, yes: char, no: char| if set { yes } else { no };
        let (r, w) = (letter(self.read, 'r', '-'), letter(self.write, 'w', '-'));
        write!(f, "{r}{w}{}{}", letter(self.exec, 'x', '-'), letter(self.shared, 's', 'p'))
    }
}

/// A device number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Device {
    /// Major.
    pub major: u32,
    /// Minor.
    pub minor: u32,
}

impl Device {
    /// The device of a `st_dev`.
    pub fn of(st_dev: u64) -> Device {
        Device { major: rustix::fs::major(st_dev), minor: rustix::fs::minor(st_dev) }
    }

    /// The device that "fe:00" names, both hexadecimal.
    fn hex(text: &[u8]) -> Option<Device> {
        let (major, minor) = scan::key_value(text, b':')?;
        let part = |digits| scan::hex(digits).and_then(|n| u32::try_from(n).ok());
        Some(Device { major: part(major)?, minor: part(minor)? })
    }
}

/// One mapping.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Mapping<'a> {
    /// Its first address.
    pub start: u64,
    /// The address after its last.
    pub end: u64,
    /// What may be done with it.
    pub perms: Perms,
    /// Where in its file it begins.
    pub offset: Bytes,
    /// Its file's device; 0:0 for none.
    pub dev: Device,
    /// Its file's inode; 0 for none.
    pub inode: u64,
    /// Its file's path as the process's mount namespace sees it, or a name in brackets, or nothing.
    pub path: &'a [u8],
}

impl<'a> Mapping<'a> {
    /// The mapping that `line` describes.
    pub fn parse(line: &'a [u8]) -> Option<Mapping<'a>> {
        let mut rest = line;
        let mut next = || {
            let end = rest.iter().position(|&b| b == b' ').unwrap_or(rest.len());
            let (word, tail) = rest.split_at(end);
            rest = tail.strip_prefix(b" ").unwrap_or(tail);
            word
        };
        let (start, end) = scan::key_value(next(), b'-')?;
        let (start, end) = (scan::hex(start)?, scan::hex(end)?);
        let perms = Perms::parse(next())?;
        let offset = Bytes(scan::hex(next())?);
        let dev = Device::hex(next())?;
        let inode = scan::number(next())?;
        (start < end).then_some(Mapping {
            start,
            end,
            perms,
            offset,
            dev,
            inode,
            path: rest.trim_ascii_start(),
        })
    }

    /// Its address space.
    pub fn size(&self) -> Bytes {
        Bytes(self.end - self.start)
    }

    /// Whether no file and no name is behind it.
    pub fn is_unnamed(&self) -> bool {
        self.inode == 0 && self.path.is_empty()
    }

    /// Its path without " (deleted)", if it ends so.
    pub fn deleted(&self) -> Option<&'a [u8]> {
        self.path.strip_suffix(b" (deleted)")
    }

    /// Whether `address` lies in it.
    pub fn contains(&self, address: u64) -> bool {
        (self.start..self.end).contains(&address)
    }
}

impl Debug for Mapping<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}-{:x} {:?} {}", self.start, self.end, self.perms, crate::Escaped(self.path))
    }
}

impl Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl Process {
    /// Calls `each` with every mapping in `maps`, in the order of addresses, until it returns false.
    pub fn each_mapping(&self, mut each: impl FnMut(&Mapping) -> bool) -> Result<(), ReadError> {
        self.each_line("maps", |line| Mapping::parse(line).is_none_or(|mapping| each(&mapping)))
    }

    /// How many mappings it has: what vm.max_map_count limits (the kernel's own count leaves out
    /// `[vsyscall]`, as this one does).
    pub fn mapping_count(&self) -> Result<u64, ReadError> {
        let mut count = 0;
        self.each_line("maps", |line| {
            count += u64::from(!line.ends_with(b"[vsyscall]"));
            true
        })?;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn lines_as_the_kernel_writes_them() {
        let line = b"558167cb2000-558167cb8000 r-xp 00002000 fe:00 247282                     /usr/bin/a b (deleted)";
        let mapping = Mapping::parse(line).unwrap();
        assert_eq!((mapping.start, mapping.size()), (0x5581_67cb_2000, Bytes(0x6000)));
        assert_eq!((mapping.offset, mapping.inode), (Bytes(0x2000), 247_282));
        assert_eq!(mapping.dev, Device { major: 0xfe, minor: 0 });
        assert_eq!(mapping.path, b"/usr/bin/a b (deleted)");
        assert_eq!(mapping.deleted(), Some(&b"/usr/bin/a b"[..]));
        assert_eq!(format!("{:?}", mapping.perms), "r-xp");

        let anon = Mapping::parse(b"7f0000000000-7f0000021000 rw-p 00000000 00:00 0 ").unwrap();
        assert!(anon.is_unnamed() && anon.contains(0x7f00_0002_0fff) && !anon.contains(0x7f00_0002_1000));
        let whole = Mapping::parse(b"0-ffffffffffffffff ---s 0 00:00 0").unwrap();
        assert!(whole.perms.is_none() && whole.perms.shared && whole.size() == Bytes(u64::MAX));
    }

    #[test]
    fn nonsense_is_none() {
        for line in
            ["", "1-1 rwxp 0 0:0 0", "2-1 rwxp 0 0:0 0", "1-2 rwx? 0 0:0 0", "1-2 rwxp 0 0 0", "Rss: 1 kB"]
        {
            assert_eq!(Mapping::parse(line.as_bytes()), None, "{line}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(line: Vec<u8>) {
            let _ = Mapping::parse(&line);
        }

        #[test]
        fn never_panics_near_the_real_form(line in "[0-9a-f]{0,18}-[0-9a-f]{0,18} [rwxsp-]{4} [0-9a-f]{0,17} [0-9a-f]{0,9}:[0-9a-f]{0,9} [0-9]{0,21} .{0,9}") {
            if let Some(mapping) = Mapping::parse(line.as_bytes()) {
                prop_assert!(mapping.contains(mapping.start) && !mapping.contains(mapping.end));
            }
        }
    }
}
