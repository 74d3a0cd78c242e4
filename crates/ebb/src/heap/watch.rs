//! `ebb heap --watch`: a row for each look, as a table or as CSV.
//!
//! Each row goes out by itself, so that what was seen is kept whatever ends the watch: Ctrl-C, the process's end,
//! a reader that goes away (all three end it well), a full disk (an error).

use super::{HeapArgs, Seen, Target};
use crate::render::{self, Page};
use anyhow::Context;
use ebbtide_heaps::{Figures, Heap, Look};
use ebbtide_observe::Bytes;
use ebbtide_sys::interrupt::Interrupts;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// How rows are written.
enum Form {
    Table(Page),
    Csv,
    Json,
}

pub(super) fn run(target: &Target, interval: Duration, args: &HeapArgs) -> anyhow::Result<ExitCode> {
    let stop = Interrupts::catch().context("cannot hold signals back")?;
    let form = match args {
        _ if args.output.json => Form::Json,
        _ if args.csv => Form::Csv,
        _ => Form::Table(Page::of_stdout()),
    };
    let mut first: Option<Look> = None;
    let start = Instant::now();
    for number in 1u32.. {
        let seen = match target.look(args.freeze) {
            Ok(seen) => seen,
            Err(_) if first.is_some() && target.has_ended() => {
                // Where even this cannot be written, nobody waits for it.
                let _ = writeln!(std::io::stderr(), "ebb: process {} has ended", target.pid);
                break;
            }
            Err(error) => return Err(error),
        };
        if !write(&text(&form, &seen, start.elapsed(), first.as_ref())?)? {
            break;
        }
        first.get_or_insert(seen.look);
        // Looks are as far apart as asked for, however long each takes.
        let next = interval.saturating_mul(number);
        if args.time.is_some_and(|time| next > time) || stop.wait(next.saturating_sub(start.elapsed())) {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn text(form: &Form, seen: &Seen, at: Duration, first: Option<&Look>) -> anyhow::Result<String> {
    let head = first.is_none();
    Ok(match form {
        Form::Json => serde_json::to_string(&seen.json())? + "\n",
        Form::Csv if head => format!("{CSV_HEAD}\n{}", csv(seen)),
        Form::Csv => csv(seen),
        Form::Table(page) if head => format!("{}\n{}\n", table_head(*page), row(seen, at)),
        Form::Table(page) => {
            let mut row = row(seen, at);
            let room = page.width.saturating_sub(render::columns(&row) + GAP.len());
            let grown = first.map(|first| grown(&seen.look.gained_since(first), room)).unwrap_or_default();
            if !grown.is_empty() {
                row.extend([GAP, &grown]);
            }
            row + "\n"
        }
    })
}

/// False where the reader went away.
fn write(text: &str) -> anyhow::Result<bool> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error).context("cannot write the result"),
        Ok(()) => Ok(true),
    }
}

const GAP: &str = "  ";

const TABLE_HEAD: &str = "    TIME      RSS     LIVE   CACHED     FREE RETURNABLE";

/// The columns of a table; the last one is there if a size class fits in it.
fn table_head(page: Page) -> String {
    let room = page.width.saturating_sub(TABLE_HEAD.len() + GAP.len());
    if room < "≤1.00 KiB +1.00 KiB".chars().count() {
        return TABLE_HEAD.to_owned();
    }
    format!("{TABLE_HEAD}{GAP}GREW MOST")
}

/// Sums over the heaps that are known, if any is. What a size class grew by has room beside it on 80 columns.
fn row(seen: &Seen, at: Duration) -> String {
    let sum = |of: fn(&Figures) -> Bytes| match seen.look.known().next() {
        Some(_) => seen.look.known().map(|heap| of(&heap.figures)).sum::<Bytes>().to_string(),
        None => "-".to_owned(),
    };
    format!(
        "{:>6.1} s {:>8} {:>8} {:>8} {:>8} {:>10}",
        at.as_secs_f64(),
        seen.rss.unwrap_or_default().to_string(),
        sum(|figures| figures.live),
        sum(|figures| figures.cached),
        sum(|figures| figures.free),
        sum(|figures| figures.returnable),
    )
}

/// The size classes that gained the most live bytes since the first look, as many as there is room for.
fn grown(gained: &[(Bytes, u64, Bytes)], room: usize) -> String {
    let mut out = String::new();
    for (up_to, _, bytes) in gained {
        let separator = if out.is_empty() { "" } else { ", " };
        let next = format!("{separator}≤{up_to} +{bytes}");
        if render::columns(&out) + render::columns(&next) > room {
            break;
        }
        out.push_str(&next);
    }
    out
}

const CSV_HEAD: &str = "unix_ms,allocator,version,rss_bytes,mapped_bytes,resident_bytes,live_bytes,cached_bytes,\
    free_bytes,returnable_bytes,returnable_by_trim_bytes,pinned_free_bytes,metadata_bytes,unused_bytes,free_chunks,\
    largest_free_bytes,arenas,unresolved_bytes";

/// A row for each heap that is known; one of the process alone where there is none.
fn csv(seen: &Seen) -> String {
    let (time, rss) = (seen.unix_ms(), seen.rss.unwrap_or_default().0);
    let rows: String = seen.look.known().map(|heap| csv_row(time, rss, heap)).collect();
    if rows.is_empty() { format!("{time},,,{rss}{}\n", ",".repeat(14)) } else { rows }
}

fn csv_row(time: u64, rss: u64, heap: &Heap) -> String {
    let figures = &heap.figures;
    let by_trim = figures.returnable_by_trim.map(|bytes| bytes.0.to_string()).unwrap_or_default();
    // A version is digits and dots, or words of ours, but some are read from the program.
    let version = heap.version.as_deref().unwrap_or_default();
    let version = version.replace(|c: char| c == ',' || c == '"' || c.is_control(), " ");
    format!(
        "{time},{},{version},{rss},{},{},{},{},{},{},{by_trim},{},{},{},{},{},{},{}\n",
        heap.kind,
        figures.mapped.0,
        figures.resident.0,
        figures.live.0,
        figures.cached.0,
        figures.free.0,
        figures.returnable.0,
        figures.pinned_free.0,
        figures.metadata.0,
        figures.unused.0,
        figures.free_chunks,
        figures.largest_free.0,
        heap.arenas.len(),
        heap.certainty.unresolved.0,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_classes_as_fit() {
        let gained = [(Bytes(64), 10, Bytes(640)), (Bytes(4096), 1, Bytes(4096)), (Bytes(32), 1, Bytes(32))];
        assert_eq!(grown(&gained, 12), "≤64 B +640 B");
        assert_eq!(grown(&gained, 40), "≤64 B +640 B, ≤4.00 KiB +4.00 KiB");
        assert_eq!((grown(&gained, 11), grown(&[], 40)), (String::new(), String::new()));
    }

    #[test]
    fn every_row_has_every_column() {
        let heap = Heap { version: Some("2,36\n\"".to_owned()), ..Heap::new(ebbtide_heaps::Kind::Glibc) };
        let look = Look { heaps: vec![heap.clone(), heap], ..Look::default() };
        let at = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        let mut seen = Seen { pid: 1, name: Default::default(), rss: Some(Bytes(7)), look, stop: None, at };
        let columns = |text: &str| text.lines().map(|row| row.split(',').count()).collect::<Vec<_>>();
        let head = CSV_HEAD.split(',').count();
        assert_eq!(columns(&csv(&seen)), [head, head]);
        assert!(csv(&seen).starts_with("1000,glibc,2 36  ,7,0,"), "{}", csv(&seen));
        seen.look.heaps.clear();
        assert_eq!(columns(&csv(&seen)), [head]);
    }
}
