//! A ledger: a total split into exclusive lines that sum to it, with what nothing accounts for said openly.
//!
//! Invariant, by construction: `total == sum(lines) + unaccounted`, and a line's children sum to at most the
//! line. Lines are filled from a remainder in the order of trust (exact counters first, estimates last); a
//! line that would exceed what is left is cut, and the cut is remembered as `overlap`, because counters are
//! read one after another while they move, and a few kernel counters do overlap.

mod cgroup;
mod host;
mod process;

pub use cgroup::cgroup;
pub use host::host;
pub use process::{Beside, process};

use ebbtide_observe::Bytes;
use serde::Serialize;

/// One exclusive line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Line {
    /// Stable name, lower-case with dashes; a child's id may be a foreign name (a process, a mount).
    pub id: String,
    /// What this line holds.
    pub bytes: Bytes,
    /// What the line consists of; empty where nothing more is known. Children sum to at most `bytes`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub children: Vec<Line>,
    /// One short remark for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Line {
    /// A line without children.
    pub fn new(id: impl Into<String>, bytes: Bytes) -> Line {
        Line { id: id.into(), bytes, children: Vec::new(), note: None }
    }

    /// The same line with a remark.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Line {
        self.note = Some(note.into());
        self
    }

    /// The same line with children, largest first; what would exceed the line is cut.
    #[must_use]
    pub fn children(mut self, children: impl IntoIterator<Item = Line>) -> Line {
        let mut left = self.bytes;
        let mut children: Vec<Line> = children.into_iter().filter(|c| c.bytes > Bytes::ZERO).collect();
        children.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.id.cmp(&b.id)));
        for child in &mut children {
            child.cut(left);
            left -= child.bytes;
        }
        self.children = children;
        self
    }

    fn cut(&mut self, most: Bytes) {
        if self.bytes > most {
            self.bytes = most;
            let children = std::mem::take(&mut self.children);
            *self = std::mem::replace(self, Line::new("", Bytes::ZERO)).children(children);
        }
    }
}

/// A total and its lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// What is split.
    #[serde(rename = "total_bytes")]
    pub total: Bytes,
    /// The exclusive lines, in the order they were filled.
    pub lines: Vec<Line>,
    /// What no line accounts for.
    #[serde(rename = "unaccounted_bytes")]
    pub unaccounted: Bytes,
    /// What had to be cut from lines that exceeded the remainder: counters that overlap or moved.
    #[serde(skip)]
    pub overlap: Bytes,
}

impl Ledger {
    /// A ledger of `total` with nothing accounted for yet.
    pub fn of(total: Bytes) -> Ledger {
        Ledger { total, lines: Vec::new(), unaccounted: total, overlap: Bytes::ZERO }
    }

    /// Takes `line` out of what is unaccounted for. Lines of no bytes are left out.
    pub fn fill(&mut self, mut line: Line) {
        self.overlap += line.bytes - self.unaccounted;
        line.cut(self.unaccounted);
        self.unaccounted -= line.bytes;
        if line.bytes > Bytes::ZERO {
            self.lines.push(line);
        }
    }

    /// What line `id` holds; zero where there is no such line.
    pub fn bytes(&self, id: &str) -> Bytes {
        self.line(id).map_or(Bytes::ZERO, |line| line.bytes)
    }

    /// Line `id`.
    pub fn line(&self, id: &str) -> Option<&Line> {
        self.lines.iter().find(|line| line.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn lines_and_the_rest_sum_to_the_total(total: u64, parts: Vec<(u64, Vec<u64>)>) {
            let mut ledger = Ledger::of(Bytes(total));
            for (bytes, children) in &parts {
                let children = children.iter().map(|&b| Line::new("child", Bytes(b)));
                ledger.fill(Line::new("line", Bytes(*bytes)).children(children));
            }
            let lines: u128 = ledger.lines.iter().map(|l| u128::from(l.bytes.0)).sum();
            prop_assert_eq!(lines + u128::from(ledger.unaccounted.0), u128::from(total));
            for line in &ledger.lines {
                let children: u128 = line.children.iter().map(|l| u128::from(l.bytes.0)).sum();
                prop_assert!(children <= u128::from(line.bytes.0));
            }
        }
    }

    #[test]
    fn what_exceeds_the_total_is_cut_and_remembered() {
        let mut ledger = Ledger::of(Bytes(100));
        ledger.fill(Line::new("free", Bytes(70)));
        ledger.fill(Line::new("sockets", Bytes(50)).children([Line::new("tcp", Bytes(40))]));
        assert_eq!(ledger.bytes("sockets"), Bytes(30));
        assert_eq!(ledger.line("sockets").unwrap().children[0].bytes, Bytes(30));
        assert_eq!((ledger.unaccounted, ledger.overlap), (Bytes::ZERO, Bytes(20)));
    }
}
