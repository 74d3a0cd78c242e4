//! A ledger for people: lines by size, each with its share as a bar, and its largest parts beside it.

use super::{CAUSE, FAINT, GOOD, Page, bar, columns, cut, cut_words};
use crate::escape::escape;
use anstyle::Style;
use ebbtide_explain::{Ledger, Line};
use ebbtide_observe::Bytes;

/// Lines below this share are summed in one, unless they are asked for.
const SMALL: f64 = 0.001;

/// Lines that the kernel gives away, or takes back when it needs room, and what a heap could give back: green.
const TO_BE_HAD: [&str; 5] = ["free", "free-per-cpu", "page-cache", "slab-reclaimable", "returnable"];

/// More than this share unaccounted for is worth a look.
const MUCH: f64 = 0.02;

/// Appends `ledger`, largest line first, `unaccounted` last.
pub(crate) fn ledger(out: &mut String, page: Page, ledger: &Ledger, all: bool) {
    let rows = lines(out, page, ledger, all);
    let colour = if ledger.unaccounted.share_of(ledger.total) > MUCH { CAUSE } else { Style::new() };
    rows.row(out, "unaccounted", ledger.unaccounted, colour, |_| String::new());
}

/// Appends the lines of a ledger that leaves nothing out.
pub(crate) fn division(out: &mut String, page: Page, ledger: &Ledger, all: bool) {
    lines(out, page, ledger, all);
}

fn lines(out: &mut String, page: Page, ledger: &Ledger, all: bool) -> Rows {
    let mut lines: Vec<&Line> = ledger.lines.iter().collect();
    lines.sort_by_key(|line| std::cmp::Reverse(line.bytes));
    let (large, small): (Vec<&Line>, Vec<&Line>) =
        lines.into_iter().partition(|line| all || line.bytes.share_of(ledger.total) >= SMALL);
    let name = large.iter().map(|line| columns(&line.id)).chain([11]).max().unwrap_or(11);
    let rows = Rows { page, name, total: ledger.total };
    for line in large {
        let colour = if TO_BE_HAD.contains(&line.id.as_str()) { GOOD } else { Style::new() };
        rows.row(out, &escape(&line.id), line.bytes, colour, |room| parts(line, room));
    }
    if !small.is_empty() {
        let names: Vec<&str> = small.iter().map(|line| line.id.as_str()).collect();
        let sum = small.iter().map(|line| line.bytes).sum();
        rows.row(out, "other lines", sum, Style::new(), |room| cut_words(&names.join(", "), room));
    }
    rows
}

/// What all rows of a ledger share.
struct Rows {
    page: Page,
    /// Columns of the widest name.
    name: usize,
    total: Bytes,
}

impl Rows {
    /// Appends a row; `remark` is given the columns that are left for it.
    fn row(&self, out: &mut String, id: &str, bytes: Bytes, colour: Style, remark: impl Fn(usize) -> String) {
        let share = bytes.share_of(self.total);
        let width = if self.page.width >= 80 { 10 } else { 6 };
        let bar = bar(share, width);
        let blanks = width - columns(&bar);
        let figures =
            format!("  {id:<name$} {:>8} {:>5}", bytes.to_string(), percent(share), name = self.name);
        let room = self.page.width.saturating_sub(columns(&figures) + 2 + width + 2);
        let remark = if room < 12 { String::new() } else { remark(room) };
        let line = match (bar.is_empty(), remark.is_empty()) {
            (true, true) => figures,
            (_, true) => format!("{figures}  {colour}{bar}{colour:#}"),
            _ => format!("{figures}  {colour}{bar}{colour:#}{:blanks$}  {FAINT}{remark}{FAINT:#}", ""),
        };
        out.push_str(&line);
        out.push('\n');
    }
}

/// "12%", "0.4%", "<0.1%"; "100%" is nothing but all.
pub(crate) fn percent(share: f64) -> String {
    match share * 100.0 {
        0.0 => "0%".to_owned(),
        ..0.1 => "<0.1%".to_owned(),
        ..9.95 => format!("{:.1}%", share * 100.0),
        99.0..100.0 => "99%".to_owned(),
        percent => format!("{percent:.0}%"),
    }
}

/// As many of the line's largest parts as fit into `room`, but at most three; or its note.
fn parts(line: &Line, room: usize) -> String {
    let named = line.children.iter().filter(|part| !part.id.starts_with("other "));
    let mut parts = named.take(3).map(|part| (escape(&part.id), format!(" {}", part.bytes)));
    let Some((id, bytes)) = parts.next() else {
        return cut_words(line.note.as_deref().unwrap_or_default(), room);
    };
    let mut out = cut(&id, room.saturating_sub(columns(&bytes))) + &bytes;
    for (id, bytes) in parts {
        let next = format!(", {id}{bytes}");
        if columns(&out) + columns(&next) > room {
            break;
        }
        out.push_str(&next);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_never_none_or_all_by_rounding() {
        let of = |part: u64, whole: u64| percent(Bytes(part).share_of(Bytes(whole)));
        assert_eq!((of(0, 9), of(1, 9000), of(1, 900)), ("0%".into(), "<0.1%".into(), "0.1%".into()));
        assert_eq!((of(899, 900), of(9, 9), of(1, 8)), ("99%".into(), "100%".into(), "12%".into()));
    }

    #[test]
    fn a_part_keeps_its_figure() {
        let line = Line::new("anon", Bytes(1 << 30)).children([
            Line::new("a-rather-long-name (123)", Bytes(512 << 20)),
            Line::new("b", Bytes(1 << 20)),
        ]);
        assert_eq!(parts(&line, 16), "a-rathe… 512 MiB");
        assert_eq!(parts(&line, 60), "a-rather-long-name (123) 512 MiB, b 1.00 MiB");
        assert_eq!(parts(&line, 42), "a-rather-long-name (123) 512 MiB");
    }
}
