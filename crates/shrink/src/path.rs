//! Where in the tree the cascade is: a chain of steps on the stack, written out only where something is reported.
//!
//! Invariants: walking costs nothing here (no allocation, no formatting); what is written is bounded in size
//! whatever a key's `Debug` writes, holds no control characters, and is given up where memory is refused.

use std::fmt::{self, Debug, Write};

/// One step down.
#[derive(Clone, Copy)]
pub(crate) enum Step<'a> {
    Root(&'static str),
    Field(&'static str),
    Index(usize),
    Key(&'a dyn Debug),
}

/// A step and the steps above it.
pub(crate) struct Link<'a> {
    pub(crate) up: Option<&'a Link<'a>>,
    pub(crate) step: Step<'a>,
}

/// How much of a step is written.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Show {
    /// `queues["a"]`
    Keys,
    /// `queues[*]`
    Star,
}

/// Longest path that is written, in bytes.
const LONGEST: usize = 240;
/// Longest part of a path that one key may be.
const LONGEST_KEY: usize = 48;

impl Link<'_> {
    /// Writes the path into `out`, in place of what is there; whether there was memory for it.
    pub(crate) fn text(&self, out: &mut String, show: Show) -> bool {
        out.clear();
        let mut text = Text { out, limit: LONGEST, refused: false };
        // An error here means that the limit was reached: what is written so far stands.
        let _ = self.write(&mut text, show);
        !text.refused
    }

    fn write(&self, out: &mut Text<'_>, show: Show) -> fmt::Result {
        if let Some(up) = self.up {
            up.write(out, show)?;
        }
        match self.step {
            Step::Root(name) => out.write_str(name),
            Step::Field(name) => {
                if !out.out.is_empty() {
                    out.write_char('.')?;
                }
                out.write_str(name)
            }
            Step::Index(_) | Step::Key(_) if show == Show::Star => out.write_str("[*]"),
            Step::Index(n) => write!(out, "[{n}]"),
            Step::Key(key) => {
                out.write_char('[')?;
                let whole = out.limit;
                out.limit = whole.min(out.out.len() + LONGEST_KEY);
                let cut = write!(out, "{key:?}").is_err();
                out.limit = whole;
                if out.refused {
                    return Err(fmt::Error);
                }
                out.write_str(if cut { "…]" } else { "]" })
            }
        }
    }

    /// A number for this very place (with keys and indices), or for all places of its kind (without).
    pub(crate) fn fingerprint(&self, show: Show) -> u64 {
        let start = self.up.map_or(0xcbf2_9ce4_8422_2325, |up| up.fingerprint(show));
        let mut hash = Fnv { hash: start, left: LONGEST };
        // A key may write more than is read of it: then it is known by its beginning.
        let _ = match self.step {
            Step::Root(name) => hash.write_str(name),
            Step::Field(name) => hash.write_char('.').and_then(|()| hash.write_str(name)),
            Step::Index(_) | Step::Key(_) if show == Show::Star => hash.write_char('*'),
            Step::Index(n) => write!(hash, "[{n}"),
            Step::Key(key) => write!(hash, "[{key:?}"),
        };
        hash.hash
    }
}

/// Fowler, Noll, Vo, 1a, 64 bits: short inputs, no key, no state.
struct Fnv {
    hash: u64,
    left: usize,
}

impl Write for Fnv {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        self.left = self.left.checked_sub(s.len()).ok_or(fmt::Error)?;
        for byte in s.bytes() {
            self.hash = (self.hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        Ok(())
    }
}

/// A string that refuses to grow beyond its limit, and survives a refusal of the allocator.
struct Text<'a> {
    out: &'a mut String,
    limit: usize,
    refused: bool,
}

impl Write for Text<'_> {
    fn write_str(&mut self, s: &str) -> fmt::Result {
        for c in s.chars() {
            if c.is_control() {
                c.escape_default().try_for_each(|c| self.push(c))?;
            } else {
                self.push(c)?;
            }
        }
        Ok(())
    }
}

impl Text<'_> {
    fn push(&mut self, c: char) -> fmt::Result {
        if self.out.len() + c.len_utf8() > self.limit {
            return Err(fmt::Error);
        }
        if self.out.try_reserve(c.len_utf8()).is_err() {
            self.refused = true;
            return Err(fmt::Error);
        }
        self.out.push(c);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(steps: &[Step<'_>], show: Show) -> String {
        fn down(up: Option<&Link<'_>>, steps: &[Step<'_>], show: Show) -> String {
            match steps {
                [] => {
                    let mut text = String::new();
                    assert!(up.unwrap().text(&mut text, show));
                    text
                }
                [step, rest @ ..] => down(Some(&Link { up, step: *step }), rest, show),
            }
        }
        down(None, steps, show)
    }

    #[test]
    fn a_path_reads_like_the_source() {
        let steps = [
            Step::Root("server"),
            Step::Field("vhosts"),
            Step::Key(&"/"),
            Step::Field("queues"),
            Step::Index(7),
            Step::Field("0"),
        ];
        assert_eq!(shown(&steps, Show::Keys), "server.vhosts[\"/\"].queues[7].0");
        assert_eq!(shown(&steps, Show::Star), "server.vhosts[*].queues[*].0");
    }

    struct Hostile;
    impl Debug for Hostile {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            loop {
                f.write_str("\x1b[31m\n")?;
            }
        }
    }

    #[test]
    fn a_hostile_key_is_escaped_and_cut() {
        let long = "x".repeat(10_000);
        let text = shown(&[Step::Root("s"), Step::Key(&long), Step::Field("f")], Show::Keys);
        assert!(text.len() < 60 && text.ends_with("…].f"), "{text}");
        Link { up: None, step: Step::Key(&Hostile) }.fingerprint(Show::Keys);
        let text = shown(&[Step::Root("s"), Step::Key(&Hostile)], Show::Keys);
        assert!(text.len() < 60 && !text.chars().any(char::is_control), "{text}");
        let deep = [Step::Key(&long); 100];
        assert!(shown(&deep, Show::Keys).len() <= LONGEST);
    }

    #[test]
    fn a_fingerprint_tells_places_apart() {
        let root = Link { up: None, step: Step::Root("s") };
        let at = |step| Link { up: Some(&root), step };
        assert_ne!(at(Step::Index(1)).fingerprint(Show::Keys), at(Step::Index(2)).fingerprint(Show::Keys));
        assert_eq!(at(Step::Index(1)).fingerprint(Show::Star), at(Step::Key(&"k")).fingerprint(Show::Star));
        assert_ne!(
            at(Step::Field("a")).fingerprint(Show::Star),
            at(Step::Field("b")).fingerprint(Show::Star)
        );
    }
}
