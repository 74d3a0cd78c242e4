//! Foreign names made safe to show: processes, files and cgroups are named by anybody.
//!
//! Invariant: what is written holds no control character, nothing that turns the direction of text, and no
//! invalid UTF-8, so a name can neither drive a terminal nor look like another line. A backslash stays as it
//! is: unit names hold it ("\x2d"), and safety, not reversibility, is the aim.

use std::fmt::{self, Display, Write};

/// A foreign name; displays with everything dangerous as `\n`, `\x1b` or `\u{202e}`.
#[derive(Debug, Clone, Copy)]
pub struct Escaped<'a>(pub &'a [u8]);

impl Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '\n' => f.write_str("\\n")?,
                    '\t' => f.write_str("\\t")?,
                    '\r' => f.write_str("\\r")?,
                    c if c.is_ascii_control() => write!(f, "\\x{:02x}", u32::from(c))?,
                    c if c.is_control() || reorders(c) => write!(f, "\\u{{{:x}}}", u32::from(c))?,
                    c => f.write_char(c)?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Unicode's marks, embeddings, overrides and isolates of direction, its line separators and the BOM.
fn reorders(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn hostile_names() {
        let show = |name: &[u8]| Escaped(name).to_string();
        assert_eq!(show(b"a) R 1\n\x1b[31m"), "a) R 1\\n\\x1b[31m");
        assert_eq!(show("gro\u{df} \u{202e}txt".as_bytes()), "gro\u{df} \\u{202e}txt");
        assert_eq!(show(b"\xffx\xe2\x82"), "\\xffx\\xe2\\x82");
        assert_eq!(show("\u{9b}2J".as_bytes()), "\\u{9b}2J");
        assert_eq!(show(b"by\\x2duuid"), "by\\x2duuid");
    }

    proptest! {
        #[test]
        fn nothing_dangerous_passes(name: Vec<u8>) {
            prop_assert!(!Escaped(&name).to_string().chars().any(|c| c.is_control() || reorders(c)));
        }
    }
}
