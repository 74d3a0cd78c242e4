//! How results look: text for people, JSON for programs. Presents only; nothing is computed here that a
//! library crate could compute.
//!
//! Invariants: everything is written into a buffer and goes out in one piece, so a closed pipe ends `ebb`
//! quietly; every foreign name passes through [`crate::escape`]; no line is wider than the terminal, whose
//! width is at least [`NARROWEST`].

mod findings;
mod growth;
mod ledger;
mod style;
mod table;

pub(crate) use findings::findings;
pub(crate) use growth::growth;
pub(crate) use ledger::ledger;
pub(crate) use style::*;
pub(crate) use table::{Align, Table};

use ebbtide_observe::Unread;
use std::io::Write;

/// Narrower terminals wrap.
pub(crate) const NARROWEST: usize = 60;

/// Wider lines are hard to read.
const WIDEST: usize = 100;

/// What the text is laid out for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Page {
    /// Columns.
    pub(crate) width: usize,
}

impl Page {
    /// The terminal's width; 80 columns in a pipe; COLUMNS overrides both.
    pub(crate) fn of_stdout() -> Page {
        let set = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        let seen = || terminal_size::terminal_size().map(|(columns, _)| usize::from(columns.0));
        Page { width: set.or_else(seen).unwrap_or(80).clamp(NARROWEST, WIDEST) }
    }
}

/// Writes `text` to stdout, with its colours where they can be seen. A reader that went away is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|e| anyhow::anyhow!("cannot write the result: {e}")),
    }
}

/// Writes `value` as JSON to stdout.
pub(crate) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    print(&text)
}

/// The list of what could not be read; nothing where all was.
pub(crate) fn unread(out: &mut String, page: Page, unread: &[Unread]) {
    if unread.is_empty() {
        return;
    }
    heading(out, "Not read");
    for item in unread {
        let text = format!("{}: {}", crate::escape::escape(&item.what), crate::escape::escape(&item.why));
        wrap(out, page, 2, 4, &text);
    }
}

/// A heading with a blank line above it.
pub(crate) fn heading(out: &mut String, text: &str) {
    out.push_str(&format!("\n{HEADING}{text}{HEADING:#}\n"));
}

/// `text` in lines that fit, the first indented by `first`, the others by `rest`. A word that is too long for
/// a line stands alone on one.
pub(crate) fn wrap(out: &mut String, page: Page, first: usize, rest: usize, text: &str) {
    let mut line = " ".repeat(first);
    let mut empty = true;
    for word in text.split_whitespace() {
        if !empty && columns(&line) + 1 + columns(word) > page.width {
            out.push_str(line.trim_end());
            out.push('\n');
            line = " ".repeat(rest);
            empty = true;
        }
        if !empty {
            line.push(' ');
        }
        line.push_str(word);
        empty = false;
    }
    out.push_str(line.trim_end());
    out.push('\n');
}

/// Columns `text` takes on a terminal.
pub(crate) fn columns(text: &str) -> usize {
    unicode_width::UnicodeWidthStr::width(text)
}

/// `text` cut to `width` columns, with an ellipsis where something is missing.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let mut out = String::new();
    let mut used = 0;
    for c in text.chars() {
        let wide = unicode_width::UnicodeWidthChar::width(c).unwrap_or(0);
        if used + wide + 1 > width {
            break;
        }
        used += wide;
        out.push(c);
    }
    out.push('…');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wraps_within_the_page() {
        let mut out = String::new();
        wrap(&mut out, Page { width: 20 }, 2, 4, "one two three four five averyveryverylongwordindeed end");
        assert_eq!(out, "  one two three four\n    five\n    averyveryverylongwordindeed\n    end\n");
    }

    #[test]
    fn cuts_by_columns() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("longer", 5), "long…");
        assert_eq!(cut("日本語", 5), "日本…");
    }
}
