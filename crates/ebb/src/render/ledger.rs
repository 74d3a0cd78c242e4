//! A ledger for people: lines by size, each with its share as a bar, and its largest parts beside it.

use super::{FAINT, Page, bar, columns, cut};
use crate::escape::escape;
use ebbtide_explain::{Ledger, Line};
use ebbtide_observe::Bytes;

/// Lines below this share are summed in one, unless they are asked for.
const SMALL: f64 = 0.001;

/// Appends `ledger`, largest line first, `unaccounted` last.
pub(crate) fn ledger(out: &mut String, page: Page, ledger: &Ledger, all: bool) {
    let mut lines: Vec<&Line> = ledger.lines.iter().collect();
    lines.sort_by_key(|line| std::cmp::Reverse(line.bytes));
    let (large, small): (Vec<&Line>, Vec<&Line>) =
        lines.into_iter().partition(|line| all || line.bytes.share_of(ledger.total) >= SMALL);
    let name = large.iter().map(|line| columns(&line.id)).chain([11]).max().unwrap_or(11);
    for line in large {
        row(out, page, name, &escape(&line.id), line.bytes, ledger.total, &parts(line));
    }
    if !small.is_empty() {
        let names: Vec<&str> = small.iter().map(|line| line.id.as_str()).collect();
        let sum = small.iter().map(|line| line.bytes).sum();
        row(out, page, name, "other lines", sum, ledger.total, &names.join(", "));
    }
    row(out, page, name, "unaccounted", ledger.unaccounted, ledger.total, "");
}

fn row(out: &mut String, page: Page, name: usize, id: &str, bytes: Bytes, total: Bytes, parts: &str) {
    let share = bytes.share_of(total);
    let bars = if page.width >= 80 { 10 } else { 6 };
    let mut line =
        format!("  {id:<name$} {:>8} {:>5}  {}", bytes.to_string(), percent(share), bar(share, bars));
    let before_parts = 2 + name + 1 + 8 + 1 + 5 + 2 + bars + 2;
    let room = page.width.saturating_sub(before_parts);
    if !parts.is_empty() && room >= 12 {
        line.push_str(&" ".repeat(before_parts - columns(&line)));
        line.push_str(&format!("{FAINT}{}{FAINT:#}", cut(parts, room)));
    }
    out.push_str(line.trim_end());
    out.push('\n');
}

/// "12%", "0.4%", "<0.1%".
pub(crate) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent >= 9.95 {
        format!("{percent:.0}%")
    } else if percent >= 0.1 || percent == 0.0 {
        format!("{percent:.1}%")
    } else {
        "<0.1%".to_owned()
    }
}

/// The largest parts of a line, or its note.
fn parts(line: &Line) -> String {
    let shown: Vec<String> = line
        .children
        .iter()
        .filter(|part| !part.id.starts_with("other "))
        .take(3)
        .map(|part| format!("{} {}", escape(&part.id), part.bytes))
        .collect();
    if shown.is_empty() { line.note.clone().unwrap_or_default() } else { shown.join(", ") }
}
