//! A process's or thread's name, held inline.
//!
//! A user process's comm has at most 15 bytes, a kernel worker's full name as /proc shows it at most 63
//! (`char tcomm[64]`, fs/proc/array.c), so 63 bytes lose nothing and a record allocates nothing. The bytes
//! are whatever the process wrote with prctl: show them through [`Display`], which escapes.

use crate::Escaped;
use serde::{Serialize, Serializer};
use std::fmt::{self, Debug, Display};

/// Up to 63 bytes of name; displays escaped.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name {
    len: u8,
    bytes: [u8; Name::MAX],
}

impl Name {
    /// The most bytes a name holds; the rest of a longer one is cut.
    pub const MAX: usize = 63;

    /// A name of these very bytes.
    pub fn new(bytes: &[u8]) -> Name {
        bytes.iter().copied().collect()
    }

    /// A name as `/proc/PID/status` writes it: the kernel escapes newline as `\n` and backslash as `\\`
    /// there (proc_task_name, fs/proc/array.c), and nothing else.
    pub fn unescape(text: &[u8]) -> Name {
        let mut rest = text;
        std::iter::from_fn(|| {
            let (byte, used) = match rest {
                [b'\\', b'n', ..] => (b'\n', 2),
                [b'\\', b'\\', ..] => (b'\\', 2),
                [byte, ..] => (*byte, 1),
                [] => return None,
            };
            rest = &rest[used..];
            Some(byte)
        })
        .collect()
    }

    /// The raw bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl FromIterator<u8> for Name {
    fn from_iter<I: IntoIterator<Item = u8>>(source: I) -> Name {
        let mut name = Name::default();
        for (place, byte) in name.bytes.iter_mut().zip(source) {
            *place = byte;
            name.len += 1;
        }
        name
    }
}

impl Default for Name {
    fn default() -> Name {
        Name { len: 0, bytes: [0; Name::MAX] }
    }
}

impl Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(&Escaped(self.as_bytes()), f)
    }
}

impl Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// As the escaped text.
impl Serialize for Name {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn undoes_the_kernels_escapes() {
        assert_eq!(Name::unescape(br"a\nb\\n").as_bytes(), b"a\nb\\n");
        assert_eq!(Name::unescape(br"a\").as_bytes(), br"a\");
        assert_eq!(format!("{:?}", Name::new(b"x\x1b")), r#""x\x1b""#);
    }

    proptest! {
        #[test]
        fn any_bytes(bytes: Vec<u8>) {
            let cut = &bytes[..bytes.len().min(Name::MAX)];
            let name = Name::new(&bytes);
            prop_assert_eq!(name.as_bytes(), cut);
            prop_assert!(Name::unescape(&bytes).as_bytes().len() <= cut.len());
        }
    }
}
