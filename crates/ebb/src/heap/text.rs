//! A look into a process's heaps, for people: what could be given back, how each heap divides, and how sure it is.

use super::Seen;
use crate::escape::escape;
use crate::render::{self, Align, BAD, FAINT, GOOD, HEADING, Page, Table};
use ebbtide_explain::{Ledger, Line, count};
use ebbtide_heaps::{Certainty, Extent, Figures, Heap, Kind};
use ebbtide_observe::Bytes;

/// Arenas, size classes and unknown heaps shown of each heap, unless all are asked for.
const MOST: usize = 5;

/// The report.
pub(super) fn report(page: Page, seen: &Seen, all: bool) -> String {
    let mut out = String::new();
    head(&mut out, page, seen);
    for heap in seen.look.known() {
        one(&mut out, page, heap, all);
    }
    rest(&mut out, page, seen, all);
    out.push('\n');
    render::wrap(&mut out, page, 0, 0, &certainty(seen));
    render::unread(&mut out, page, &seen.look.unread());
    out
}

/// The process, and the sum over its heaps.
fn head(out: &mut String, page: Page, seen: &Seen) {
    let rss = seen.rss.map(|rss| format!(", {rss} resident")).unwrap_or_default();
    let who = format!("{HEADING}{} (pid {}){HEADING:#}{rss}", seen.name, seen.pid);
    render::wrap(out, page, 0, 0, &who);
    let known: Vec<&Heap> = seen.look.known().collect();
    let text = match known.as_slice() {
        [] => {
            "No allocator was recognised in it: what lives there and what is free cannot be told.".to_owned()
        }
        [_] => return,
        _ => {
            let sum = |of: fn(&Figures) -> Bytes| known.iter().map(|heap| of(&heap.figures)).sum();
            let (returnable, resident) = (sum(|f| f.returnable), sum(|f| f.resident));
            format!("Its heaps: {}.", key(returnable, resident, sum(|f| f.live)))
        }
    };
    render::wrap(out, page, 0, 0, &text);
}

/// What it comes to.
fn key(returnable: Bytes, resident: Bytes, live: Bytes) -> String {
    format!("{GOOD}{returnable} of {resident} can be given back{GOOD:#}; {live} live")
}

/// One allocator's heap.
fn one(out: &mut String, page: Page, heap: &Heap, all: bool) {
    let figures = &heap.figures;
    let version = heap.version.as_ref().map(|version| format!(" {}", escape(version))).unwrap_or_default();
    render::heading(out, &format!("{}{version}: {} mapped", heap.kind, figures.mapped));
    let by_trim = match figures.returnable_by_trim {
        Some(by_trim) if by_trim < figures.returnable => {
            format!(" ({by_trim} by a trim of its own)")
        }
        _ => String::new(),
    };
    let text = key(figures.returnable, figures.resident, figures.live);
    render::wrap(out, page, 2, 2, &format!("{}.", text.replacen("; ", &format!("{by_trim}; "), 1)));
    for damage in &heap.corruptions {
        let text = format!("{BAD}damaged{BAD:#} at {:#x}: {}", damage.address, escape(&damage.what));
        render::wrap(out, page, 2, 4, &text);
    }
    render::division(out, page, &ledger(figures), all);
    if figures.free_chunks > 0 {
        let (chunks, largest) = (count(figures.free_chunks), figures.largest_free);
        let blocks = if figures.free_chunks == 1 { "free block" } else { "free blocks" };
        render::wrap(out, page, 2, 2, &format!("{chunks} {blocks}, the largest {largest}."));
    }
    for note in &heap.notes {
        render::wrap(out, page, 2, 4, &format!("{FAINT}{}{FAINT:#}", escape(note)));
    }
    arenas(out, page, heap, all);
    classes(out, page, heap, all);
}

/// How a heap divides.
fn ledger(figures: &Figures) -> Ledger {
    let away = figures.free - figures.returnable - figures.pinned_free;
    let mut ledger = Ledger::of(figures.mapped);
    for (id, bytes, note) in [
        ("live", figures.live, "blocks the program holds"),
        ("cached", figures.cached, "freed, in thread caches and quick lists"),
        ("returnable", figures.returnable, "free: whole pages, in memory"),
        ("pinned", figures.pinned_free, "free, on pages with live blocks"),
        ("given-back", away, "free, not in memory"),
        ("metadata", figures.metadata, "the allocator's own books"),
        ("unused", figures.unused, "mapped, never handed out"),
    ] {
        ledger.fill(Line::new(id, bytes).note(note));
    }
    ledger
}

fn arenas(out: &mut String, page: Page, heap: &Heap, all: bool) {
    if heap.arenas.len() < 2 {
        return;
    }
    let mut arenas: Vec<_> = heap.arenas.iter().collect();
    arenas.sort_by_key(|arena| std::cmp::Reverse(arena.figures.resident));
    let left = if all { 0 } else { arenas.len().saturating_sub(MOST) };
    arenas.truncate(arenas.len() - left);
    use Align::{Left, Right};
    let columns = [("RESIDENT", Right), ("LIVE", Right), ("RETURNABLE", Right), ("PINNED", Right)];
    let mut table = Table::new(&[&columns[..], &[("ARENA", Left)]].concat());
    for arena in arenas {
        let Figures { resident, live, returnable, pinned_free, .. } = arena.figures;
        let cells = [resident, live, returnable, pinned_free].map(|bytes| bytes.to_string());
        table.row(cells.into_iter().chain([escape(&arena.name).into_owned()]).collect());
    }
    out.push('\n');
    render::table(out, page, 2, &table);
    more(out, left, "arenas");
}

fn classes(out: &mut String, page: Page, heap: &Heap, all: bool) {
    let mut classes: Vec<_> = heap.histogram.iter().collect();
    if classes.is_empty() {
        return;
    }
    let left = if all { 0 } else { classes.len().saturating_sub(MOST) };
    if left > 0 {
        classes.sort_by_key(|class| std::cmp::Reverse(class.live + class.free));
        classes.truncate(MOST);
        classes.sort_by_key(|class| class.up_to);
    }
    use Align::Right;
    let mut table =
        Table::new(&["BLOCKS UP TO", "LIVE", "BYTES", "FREE", "BYTES"].map(|column| (column, Right)));
    for class in classes {
        table.row(vec![
            class.up_to.to_string(),
            count(class.live_count),
            class.live.to_string(),
            count(class.free_count),
            class.free.to_string(),
        ]);
    }
    out.push('\n');
    render::table(out, page, 2, &table);
    more(out, left, "size classes");
}

fn more(out: &mut String, left: usize, what: &str) {
    if left > 0 {
        out.push_str(&format!("  {FAINT}and {left} {what} more (--all){FAINT:#}\n"));
    }
}

/// Memory in which no allocator was recognised.
fn rest(out: &mut String, page: Page, seen: &Seen, all: bool) {
    let unknown: Vec<&Heap> = seen.look.heaps.iter().filter(|heap| heap.kind == Kind::Unknown).collect();
    let beside = [("stacks", seen.look.stacks), ("compiled code", seen.look.code)];
    let beside = beside.into_iter().filter(|(_, extent)| extent.resident > Bytes::ZERO);
    let sum: Bytes = unknown.iter().map(|heap| heap.figures.resident).sum::<Bytes>()
        + beside.clone().map(|(_, extent)| extent.resident).sum();
    if sum == Bytes::ZERO {
        return;
    }
    let word = if seen.look.known().next().is_some() { "Other private" } else { "Private" };
    render::heading(out, &format!("{word} memory: {sum} resident"));
    let line = |out: &mut String, name: &str, Extent { mapped, resident }: Extent| {
        render::wrap(out, page, 2, 4, &format!("{name}: {resident} of {mapped} mapped"));
    };
    let left = if all { 0 } else { unknown.len().saturating_sub(MOST) };
    for heap in &unknown[..unknown.len() - left] {
        let Figures { resident, mapped, .. } = heap.figures;
        line(out, &escape(heap.name.as_deref().unwrap_or("anonymous")), Extent { mapped, resident });
        for note in &heap.notes {
            render::wrap(out, page, 4, 6, &format!("{FAINT}{}{FAINT:#}", escape(note)));
        }
    }
    more(out, left, "names");
    beside.for_each(|(name, extent)| line(out, name, extent));
}

/// How sure it is.
fn certainty(seen: &Seen) -> String {
    let sum = seen.look.known().map(|heap| heap.certainty).fold(Certainty::default(), |a, b| Certainty {
        still: b.still,
        reread: a.reread + b.reread,
        unresolved: a.unresolved + b.unresolved,
    });
    let how = match seen.stop {
        Some(stop) => format!("Read while it stood still, for {:.1} ms", stop.as_secs_f64() * 1e3),
        None => "Read while it ran".to_owned(),
    };
    let places = if sum.reread == 1 { "place" } else { "places" };
    let unresolved =
        if sum.unresolved == Bytes::ZERO { "none".to_owned() } else { sum.unresolved.to_string() };
    let reread = format!("{how}: {} {places} re-read, {unresolved} unresolved.", count(sum.reread));
    if seen.stop.is_none() && sum.unresolved > Bytes::ZERO {
        format!("{reread} With --freeze it stands still meanwhile.")
    } else {
        reread
    }
}

#[cfg(test)]
mod tests;
