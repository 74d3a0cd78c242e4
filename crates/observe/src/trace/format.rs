//! The kernel's own description of its trace records: events/*/*/format and events/header_page.
//!
//! Nothing about a record's layout is assumed, since it differs between kernels and word sizes; every offset
//! comes from these files. Invariants: parsing never panics and holds at most [`MAX_FIELDS`] fields, and
//! [`Field`]'s readers give `None` instead of looking outside the record.

use crate::scan;

/// More fields than any event has; the rest of a longer description is dropped.
const MAX_FIELDS: usize = 64;

/// One field of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Field {
    /// Its C type, "const char *" or "__data_loc char[]".
    pub(super) kind: Box<str>,
    /// Its name, without array brackets.
    pub(super) name: Box<str>,
    /// Its place in the record, in bytes.
    pub(super) offset: usize,
    /// Its length in bytes; for an array, of all of it.
    pub(super) size: usize,
}

impl Field {
    /// Parses a line "field:TYPE NAME;\toffset:N;\tsize:N;\tsigned:N;".
    fn parse(line: &[u8]) -> Option<Field> {
        let mut parts =
            line.trim_ascii().strip_prefix(b"field:")?.split(|&b| b == b';').map(<[u8]>::trim_ascii);
        let declaration = std::str::from_utf8(parts.next()?).ok()?;
        let offset = number_of(parts.next()?, b"offset:")?;
        let size = number_of(parts.next()?, b"size:")?;
        let (kind, name) = declaration.rsplit_once([' ', '\t'])?;
        let name = name.split('[').next().unwrap_or(name);
        Some(Field { kind: kind.trim_end().into(), name: name.into(), offset, size })
    }

    fn bytes<'r>(&self, record: &'r [u8]) -> Option<&'r [u8]> {
        record.get(self.offset..self.offset.checked_add(self.size)?)
    }

    /// The number in this field, as the bits the kernel wrote, zero-extended.
    pub(super) fn unsigned(&self, record: &[u8]) -> Option<u64> {
        Some(match *self.bytes(record)? {
            [a] => a.into(),
            [a, b] => u16::from_ne_bytes([a, b]).into(),
            [a, b, c, d] => u32::from_ne_bytes([a, b, c, d]).into(),
            [a, b, c, d, e, f, g, h] => u64::from_ne_bytes([a, b, c, d, e, f, g, h]),
            _ => return None,
        })
    }

    /// The number in this field, sign-extended.
    pub(super) fn signed(&self, record: &[u8]) -> Option<i64> {
        let bits = self.unsigned(record)?;
        let unused = 64 - 8 * self.size as u32;
        Some((bits << unused) as i64 >> unused)
    }

    /// True if the field holds where its text is (`__data_loc`), not the text itself.
    pub(super) fn is_data_loc(&self) -> bool {
        self.kind.starts_with("__data_loc")
    }

    /// The text in this field, up to its NUL: a char array, or what a `__data_loc` points to (offset in the
    /// low half, length in the high half of its 32 bits).
    pub(super) fn text<'r>(&self, record: &'r [u8]) -> Option<&'r [u8]> {
        let text = if self.is_data_loc() {
            let place = self.unsigned(record)?;
            let (start, len) = ((place & 0xffff) as usize, (place >> 16 & 0xffff) as usize);
            record.get(start..start + len)?
        } else {
            self.bytes(record)?
        };
        Some(text.split(|&b| b == 0).next().unwrap_or_default())
    }
}

/// One event's description.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Format {
    /// The number that records of this event carry in `common_type`.
    pub(super) id: u16,
    /// Its fields in order, the common ones first.
    pub(super) fields: Vec<Field>,
}

impl Format {
    /// Parses a format file; `None` without an ID.
    pub(super) fn parse(text: &[u8]) -> Option<Format> {
        let id = scan::lines(text).find_map(|line| number_of(line, b"ID:"))?;
        let fields = scan::lines(text).filter_map(Field::parse).take(MAX_FIELDS).collect();
        Some(Format { id: u16::try_from(id).ok()?, fields })
    }

    /// The field called `name`.
    pub(super) fn field(&self, name: &str) -> Option<&Field> {
        self.fields.iter().find(|f| &*f.name == name)
    }
}

/// Where a sub-buffer's header keeps what: the timestamp, how much of it is filled, and the first record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) timestamp: Field,
    pub(super) commit: Field,
    pub(super) data: Field,
}

impl Header {
    /// Parses events/header_page.
    pub(super) fn parse(text: &[u8]) -> Option<Header> {
        let field = |name: &str| scan::lines(text).filter_map(Field::parse).find(|f| &*f.name == name);
        Some(Header { timestamp: field("timestamp")?, commit: field("commit")?, data: field("data")? })
    }
}

/// The number after `key` at the start of `text`; `None` if it is no offset any record could have.
fn number_of(text: &[u8], key: &[u8]) -> Option<usize> {
    let value = scan::number(text.strip_prefix(key)?.trim_ascii_start())?;
    u16::try_from(value).ok().map(usize::from)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// As Linux 6.18 writes it.
    pub(in super::super) const NEWFSTATAT: &str = "name: sys_enter_newfstatat
ID: 854
format:
\tfield:unsigned short common_type;\toffset:0;\tsize:2;\tsigned:0;
\tfield:unsigned char common_flags;\toffset:2;\tsize:1;\tsigned:0;
\tfield:unsigned char common_preempt_count;\toffset:3;\tsize:1;\tsigned:0;
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:int __syscall_nr;\toffset:8;\tsize:4;\tsigned:1;
\tfield:int dfd;\toffset:16;\tsize:8;\tsigned:0;
\tfield:const char * filename;\toffset:24;\tsize:8;\tsigned:0;
\tfield:struct stat * statbuf;\toffset:32;\tsize:8;\tsigned:0;
\tfield:int flag;\toffset:40;\tsize:8;\tsigned:0;

print fmt: \"dfd: 0x%08lx\", ((unsigned long)(REC->dfd))
";

    const EXEC: &str = "name: sched_process_exec
ID: 365
format:
\tfield:int common_pid;\toffset:4;\tsize:4;\tsigned:1;

\tfield:__data_loc char[] filename;\toffset:8;\tsize:4;\tsigned:0;
\tfield:pid_t pid;\toffset:12;\tsize:4;\tsigned:1;
\tfield:char comm[16];\toffset:16;\tsize:16;\tsigned:0;
";

    pub(in super::super) const HEADER_PAGE: &str = "\tfield: u64 timestamp;\toffset:0;\tsize:8;\tsigned:0;
\tfield: local_t commit;\toffset:8;\tsize:8;\tsigned:1;
\tfield: int overwrite;\toffset:8;\tsize:1;\tsigned:1;
\tfield: char data;\toffset:16;\tsize:4080;\tsigned:0;
";

    #[test]
    fn a_system_calls_format() {
        let format = Format::parse(NEWFSTATAT.as_bytes()).unwrap();
        assert_eq!((format.id, format.fields.len()), (854, 9));
        let filename = format.field("filename").unwrap();
        assert_eq!((&*filename.kind, filename.offset, filename.size), ("const char *", 24, 8));
        let mut record = vec![0; 48];
        record[16..24].copy_from_slice(&(-100i64).to_ne_bytes());
        assert_eq!(format.field("dfd").unwrap().signed(&record), Some(-100));
        assert_eq!(format.field("dfd").unwrap().signed(&record[..20]), None);
    }

    #[test]
    fn texts_in_place_and_elsewhere() {
        let format = Format::parse(EXEC.as_bytes()).unwrap();
        let mut record = vec![0; 32];
        record[8..12].copy_from_slice(&(8u32 << 16 | 32).to_ne_bytes());
        record[16..19].copy_from_slice(b"sh\0");
        record.extend_from_slice(b"/bin/sh\0");
        assert_eq!(format.field("filename").unwrap().text(&record), Some(&b"/bin/sh"[..]));
        assert_eq!(format.field("comm").unwrap().text(&record), Some(&b"sh"[..]));
        assert_eq!(format.field("filename").unwrap().text(&record[..33]), None);
    }

    #[test]
    fn the_header_of_a_page() {
        let header = Header::parse(HEADER_PAGE.as_bytes()).unwrap();
        assert_eq!((header.commit.offset, header.data.offset, header.data.size), (8, 16, 4080));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(text: Vec<u8>, record: Vec<u8>) {
            let _ = Header::parse(&text);
            if let Some(format) = Format::parse(&text) {
                for field in &format.fields {
                    let _ = (field.signed(&record), field.text(&record));
                }
            }
        }

        #[test]
        fn damaged_formats_never_panic(at in 0..NEWFSTATAT.len(), with: u8, record: Vec<u8>) {
            for whole in [NEWFSTATAT, EXEC] {
                let mut text = whole.as_bytes().to_vec();
                let at = at % text.len();
                text[at] = with;
                if let Some(format) = Format::parse(&text) {
                    prop_assert!(format.fields.len() <= MAX_FIELDS);
                    for field in &format.fields {
                        let _ = (field.signed(&record), field.text(&record));
                    }
                }
            }
        }
    }
}
