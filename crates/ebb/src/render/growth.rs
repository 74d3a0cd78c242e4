//! Growth for people: one line for each counter that did something, what it did and what that means.

use super::{FAINT, Page, cut, heading};
use ebbtide_explain::Verdict;
use ebbtide_explain::growth::Growth;

/// Appends what `growth` saw; counters that stayed level are one line, unless all are asked for.
pub(crate) fn growth(out: &mut String, page: Page, growth: &Growth, all: bool) {
    heading(out, &format!("Over {:.0} s, {} samples", growth.span.as_secs_f64(), growth.samples));
    let level = |verdict: &Verdict| matches!(verdict, Verdict::Flat { .. });
    let (still, moved): (Vec<_>, Vec<_>) = growth.counters.iter().partition(|c| !all && level(&c.verdict));
    let width = moved.iter().map(|c| c.id.len()).max().unwrap_or(0);
    for counter in moved {
        let says = format!("  {:<width$}  {}", counter.id, counter.verdict);
        out.push_str(&cut(&says, page.width));
        out.push('\n');
        if !counter.remark.is_empty() && !level(&counter.verdict) {
            out.push_str(&format!("  {:<width$}  {FAINT}{}{FAINT:#}\n", "", counter.remark));
        }
    }
    if !still.is_empty() {
        let names: Vec<&str> = still.iter().map(|c| c.id).collect();
        super::wrap(out, page, 2, 4, &format!("level: {}", names.join(", ")));
    }
}
