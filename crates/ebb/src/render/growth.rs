//! Growth for people: what each counter did that did something, and what that means.

use super::{FAINT, Page, heading, labelled, wrap};
use ebbtide_explain::growth::{Growth, Judged};
use ebbtide_explain::trend::{Undecided, Verdict};

/// Appends what `growth` saw; counters that stayed level are one line, unless all are asked for, and so are
/// those of a watch too short for any verdict.
pub(crate) fn growth(out: &mut String, page: Page, growth: &Growth, all: bool) {
    let samples = if growth.samples == 1 { "sample" } else { "samples" };
    heading(out, &format!("Over {:.0} s, {} {samples}", growth.span.as_secs_f64(), growth.samples));
    let (short, judged): (Vec<&Judged>, Vec<&Judged>) = growth.counters.iter().partition(|c| too_short(c));
    let (still, mut moved): (Vec<&Judged>, Vec<&Judged>) =
        judged.into_iter().partition(|c| !all && is_level(c));
    let unseen = if moved.is_empty() && still.is_empty() { short.first() } else { None };
    if unseen.is_none() {
        moved.extend(&short);
    }
    let width = moved.iter().map(|c| c.id.len()).max().unwrap_or(0);
    for counter in moved {
        labelled(out, page, 2, width + 1, counter.id, &counter.verdict.to_string());
        if !counter.remark.is_empty() && !is_level(counter) {
            labelled(out, page, 2, width + 1, "", &format!("{FAINT}{}{FAINT:#}", counter.remark));
        }
    }
    if !still.is_empty() {
        let names: Vec<&str> = still.iter().map(|c| c.id).collect();
        wrap(out, page, 2, 4, &format!("level: {}", names.join(", ")));
    }
    if let Some(first) = unseen {
        wrap(out, page, 2, 4, &format!("{}: whether anything grows was not seen", first.verdict));
    }
}

fn is_level(counter: &Judged) -> bool {
    matches!(counter.verdict, Verdict::Flat { .. })
}

/// Whether nothing can be said because the watch was too short, or the counter too dear to be read often.
fn too_short(counter: &Judged) -> bool {
    use Undecided::{TooFew, TooShort};
    matches!(counter.verdict, Verdict::Undecided(TooFew { .. } | TooShort { .. }))
}
