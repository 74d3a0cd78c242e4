//! How results look: text for people, JSON for programs. Presents only; nothing is computed here that a
//! library crate could compute.
//!
//! Invariants: everything is written into a buffer and goes out in one piece, so a closed pipe ends `ebb`
//! quietly; every foreign name passes through [`crate::escape`]; no line is wider than the terminal, whose
//! width is at least [`NARROWEST`], but for a command's: broken by a newline it could not be copied.

mod findings;
#[cfg(test)]
mod golden;
mod growth;
mod ledger;
mod style;
mod table;

pub(crate) use findings::findings;
#[cfg(test)]
pub(crate) use golden::golden;
pub(crate) use growth::growth;
pub(crate) use ledger::{division, ledger, percent};
pub(crate) use style::*;
pub(crate) use table::{Align, Table};

use ebbtide_observe::Unread;
use std::fmt::Display;
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
    /// The terminal's width, that of a pager behind a pipe included; 80 without one. COLUMNS overrides it.
    pub(crate) fn of_stdout() -> Page {
        let set = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        let seen = || terminal_size::terminal_size().map(|(columns, _)| usize::from(columns.0));
        Page { width: set.or_else(seen).unwrap_or(80).clamp(NARROWEST, WIDEST) }
    }
}

/// Writes `text` to stdout, with its colours where they can be seen. A reader that went away is no error.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    write(anstream::stdout().lock(), text)
}

fn write(mut out: impl Write, text: &str) -> anyhow::Result<()> {
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(|e| anyhow::anyhow!("cannot write the result: {e}")),
    }
}

/// Writes `value` as JSON to stdout, in one line: for long lists, which only programs read.
pub(crate) fn print_json_line(value: &impl serde::Serialize) -> anyhow::Result<()> {
    write_json(serde_json::to_string(value)?)
}

/// Writes `value` as JSON to stdout.
pub(crate) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    write_json(serde_json::to_string_pretty(value)?)
}

fn write_json(mut text: String) -> anyhow::Result<()> {
    text.push('\n');
    // JSON holds no colours to take out, and of thousands of processes that takes longer than writing them.
    write(std::io::stdout().lock(), &text)
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

/// Appends `table`, indented by `indent`.
pub(crate) fn table(out: &mut String, page: Page, indent: usize, table: &Table) {
    let mut lines = String::new();
    table.render(&mut lines, Page { width: page.width - indent });
    for line in lines.lines() {
        out.push_str(&format!("{:indent$}{line}\n", ""));
    }
}

/// A heading with a blank line above it.
pub(crate) fn heading(out: &mut String, text: &str) {
    out.push_str(&format!("\n{HEADING}{text}{HEADING:#}\n"));
}

/// `text` in lines that fit, the first indented by `first`, the others by `rest`. A word that is too long for
/// a line is broken where the line ends.
pub(crate) fn wrap(out: &mut String, page: Page, first: usize, rest: usize, text: &str) {
    let mut used = first;
    let mut empty = true;
    out.push_str(&" ".repeat(first));
    for word in text.split_whitespace() {
        let width = columns(word);
        if !empty && used + 1 + width > page.width {
            new_line(out, rest, &mut used);
        } else if !empty {
            out.push(' ');
            used += 1;
        }
        empty = false;
        if used + width <= page.width {
            out.push_str(word);
            used += width;
            continue;
        }
        let mut style = false;
        for c in word.chars() {
            // A style is an escape up to its 'm'; no name brings one along.
            style |= c == '\x1b';
            let width = if style { 0 } else { unicode_width::UnicodeWidthChar::width(c).unwrap_or(0) };
            style &= c != 'm';
            if used + width > page.width {
                new_line(out, rest, &mut used);
            }
            out.push(c);
            used += width;
        }
    }
    out.push('\n');
}

fn new_line(out: &mut String, indent: usize, used: &mut usize) {
    out.push('\n');
    out.push_str(&" ".repeat(indent));
    *used = indent;
}

/// `text` beside a label that takes `width` columns after `indent`; further lines stand below the first.
pub(crate) fn labelled(
    out: &mut String,
    page: Page,
    indent: usize,
    width: usize,
    label: impl Display,
    text: &str,
) {
    let at = indent + width + 1;
    let mut block = String::new();
    wrap(&mut block, page, at, at, text);
    let label = label.to_string();
    let blanks = " ".repeat((width + 1).saturating_sub(columns(&label)));
    let body = block.get(at..).unwrap_or_default();
    out.push_str(format!("{:indent$}{label}{blanks}{body}", "").trim_end());
    out.push('\n');
}

/// Columns `text` takes on a terminal, where styles take none.
pub(crate) fn columns(text: &str) -> usize {
    anstream::adapter::strip_str(text).map(unicode_width::UnicodeWidthStr::width).sum()
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

/// `text` cut between two words, if one fits.
pub(crate) fn cut_words(text: &str, width: usize) -> String {
    let mut short = cut(text, width);
    if short != text
        && let Some(at) = short.rfind(' ')
    {
        short.replace_range(at.., " …");
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wraps_within_the_page() {
        let mut out = String::new();
        wrap(&mut out, Page { width: 20 }, 2, 4, "one two three four five averyveryverylongwordindeed end");
        assert_eq!(out, "  one two three four\n    five\n    averyveryverylon\n    gwordindeed end\n");
        let mut out = String::new();
        wrap(&mut out, Page { width: 20 }, 0, 0, &format!("{FAINT}ten columns{FAINT:#} and nine"));
        wrap(&mut out, Page { width: 4 }, 0, 0, &format!("{FAINT}eight..8{FAINT:#}"));
        assert_eq!(anstream::adapter::strip_str(&out).to_string(), "ten columns and nine\neigh\nt..8\n");
    }

    #[test]
    fn labels_stand_in_a_column() {
        let mut out = String::new();
        labelled(&mut out, Page { width: 20 }, 2, 4, "seen", "one two three");
        labelled(&mut out, Page { width: 20 }, 2, 4, format!("{FAINT}not{FAINT:#}"), "four");
        labelled(&mut out, Page { width: 20 }, 2, 4, "none", "");
        let plain = anstream::adapter::strip_str(&out).to_string();
        assert_eq!(plain, "  seen one two three\n  not  four\n  none\n");
    }

    #[test]
    fn cuts_by_columns() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("longer", 5), "long…");
        assert_eq!(cut("日本語", 5), "日本…");
        assert_eq!(
            (cut_words("free pages on lists", 10), cut_words("freepages", 5)),
            ("free …".into(), "free…".into())
        );
        assert_eq!(cut_words("free pages", 10), "free pages");
    }
}
