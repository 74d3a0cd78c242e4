//! `ebb heap`: inside a process's heaps, while it runs: what lives, what is free, what could be given back.

mod watch;

use crate::render::{self, Align, GOOD, Page, Table};
use crate::{cli, escape::escape, explain};
use anyhow::Context;
use ebbtide_explain::{Ledger, Line};
use ebbtide_heaps::{Certainty, Figures, Heap, Kind, Look, LookError};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, ReadError, Root};
use ebbtide_sys::freeze::Frozen;
use serde::Serialize;
use std::process::ExitCode;
use std::time::Duration;

/// `ebb heap`.
#[derive(Debug, clap::Args)]
pub(crate) struct HeapArgs {
    /// A process: its pid, or its name if only one has it
    #[arg(value_name = "PID|NAME")]
    target: String,
    /// Stop all its threads while its heaps are read, and say how long that took
    #[arg(long)]
    freeze: bool,
    /// Look again and again, so far apart (5s, 1m), until Ctrl-C or the process's end
    #[arg(long, value_name = "TIME", value_parser = cli::duration)]
    watch: Option<Duration>,
    /// With --watch: write CSV, a row for each look and allocator; bytes are integers
    #[arg(long, requires = "watch", conflicts_with = "json")]
    csv: bool,
    #[command(flatten)]
    output: cli::Output,
    /// Every arena, size class and mapping
    #[arg(long, short)]
    all: bool,
}

/// Arenas and size classes shown, unless all are asked for.
const MOST: usize = 6;

#[derive(Serialize)]
struct Json<'a> {
    schema_version: u32,
    pid: u32,
    longest_stop_us: u64,
    allocators: &'a [Heap],
    unread: Vec<ebbtide_observe::Unread>,
}

pub(crate) fn run(args: &HeapArgs) -> anyhow::Result<ExitCode> {
    let root = Root::live()?;
    let pid = explain::pid(&root, &args.target)?;
    let process = Process::open(&root, pid).map_err(|error| failed(pid, error.into()))?;
    let status = process.status().map_err(|error| failed(pid, error.into()))?;
    explain::with_memory(pid, &status)?;
    if let Some(interval) = args.watch {
        return watch::run(&process, interval, args);
    }
    let (look, stop) = look(&process, args.freeze)?;
    if args.output.json {
        render::print_json(&json(&process, &look, stop))?;
    } else {
        render::print(&text(Page::of_stdout(), &process, &look, stop, args.all))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn json<'a>(process: &Process, look: &'a Look, stop: Option<Duration>) -> Json<'a> {
    let longest_stop_us = stop.map_or(0, |stop| stop.as_micros().try_into().unwrap_or(u64::MAX));
    Json {
        schema_version: 1,
        pid: process.pid(),
        longest_stop_us,
        allocators: &look.heaps,
        unread: look.unread(),
    }
}

/// One look, and how long the process stood still for it.
fn look(process: &Process, freeze: bool) -> anyhow::Result<(Look, Option<Duration>)> {
    let frozen = match freeze {
        true => Some(Frozen::stop(process.pid()).context("cannot stop it")?),
        false => None,
    };
    let look = Look::into(process, freeze);
    let stop = frozen.map(Frozen::release);
    Ok((look.map_err(|error| failed(process.pid(), error))?, stop))
}

/// What happened, why, and what to do about it.
fn failed(pid: u32, error: LookError) -> anyhow::Error {
    match error {
        LookError::Read(ReadError::Vanished { .. }) => {
            anyhow::anyhow!("there is no process {pid}; 'ebb ps' lists them")
        }
        LookError::Read(ReadError::Denied { .. }) | LookError::Memory(ebbtide_heaps::Fault::Denied(_)) => {
            anyhow::Error::from(error)
                .context(format!("process {pid} may not be looked into: run ebb as its owner or as root"))
        }
        error => anyhow::Error::from(error).context(format!("cannot look into process {pid}")),
    }
}

fn text(page: Page, process: &Process, look: &Look, stop: Option<Duration>, all: bool) -> String {
    let mut out = String::new();
    let name = process.stat().map(|stat| stat.name.to_string()).unwrap_or_default();
    out.push_str(&format!("{} (pid {})\n", escape(&name), process.pid()));
    let (known, unknown): (Vec<&Heap>, Vec<&Heap>) =
        look.heaps.iter().partition(|heap| heap.kind != Kind::Unknown);
    for heap in known {
        one(&mut out, page, heap, all);
    }
    if !unknown.is_empty() {
        rest(&mut out, page, &unknown, all);
    }
    out.push('\n');
    match stop {
        Some(stop) => out.push_str(&format!("It stood still for {:.1} ms.\n", stop.as_secs_f64() * 1e3)),
        None => render::wrap(&mut out, page, 0, 0, &certainty(look)),
    }
    render::unread(&mut out, page, &look.unread());
    out
}

fn certainty(look: &Look) -> String {
    let sum = look.known().map(|heap| heap.certainty).fold(Certainty::default(), |a, b| Certainty {
        still: a.still && b.still,
        reread: a.reread + b.reread,
        unresolved: a.unresolved + b.unresolved,
    });
    let reread = match sum.reread {
        0 => "everything added up at once".to_owned(),
        1 => "1 place was read again".to_owned(),
        n => format!("{n} places were read again"),
    };
    match sum.unresolved {
        Bytes::ZERO => format!("Read while it ran; {reread}."),
        bytes => format!(
            "Read while it ran; {reread}, and {bytes} did not add up: --freeze stops it for the walk."
        ),
    }
}

/// One allocator's heap.
fn one(out: &mut String, page: Page, heap: &Heap, all: bool) {
    let figures = &heap.figures;
    let version = heap.version.as_ref().map(|version| format!(" {version}")).unwrap_or_default();
    let title = format!(
        "{}{}: {} resident of {} mapped",
        heap.kind,
        escape(&version),
        figures.resident,
        figures.mapped
    );
    render::heading(out, &title);
    render::ledger(out, page, &ledger(figures), all);
    let back = match figures.returnable_by_trim {
        Some(by_trim) if by_trim < figures.returnable => {
            format!("; its own trim would return {by_trim} of it")
        }
        _ => String::new(),
    };
    let bytes = figures.returnable;
    render::wrap(out, page, 2, 2, &format!("{GOOD}{bytes} can be given back{GOOD:#}{back}."));
    if figures.free_chunks > 0 {
        let chunks = ebbtide_explain::count(figures.free_chunks);
        let largest = figures.largest_free;
        render::wrap(out, page, 2, 2, &format!("Free blocks: {chunks}, the largest {largest}."));
    }
    for note in &heap.notes {
        render::wrap(out, page, 2, 2, &escape(note));
    }
    for damage in &heap.corruptions {
        let bad = render::BAD;
        let text = format!("{bad}damaged{bad:#} at {:#x}: {}", damage.address, escape(&damage.what));
        render::wrap(out, page, 2, 4, &text);
    }
    arenas(out, page, heap, all);
    classes(out, page, heap, all);
}

fn ledger(figures: &Figures) -> Ledger {
    let away = figures.free - figures.returnable - figures.pinned_free;
    let mut ledger = Ledger::of(figures.mapped);
    for (id, bytes, note) in [
        ("live", figures.live, "blocks the program holds"),
        ("cached", figures.cached, "freed, in thread caches and quick lists"),
        ("returnable", figures.returnable, "free: whole pages, in memory"),
        ("pinned", figures.pinned_free, "free, beside live blocks"),
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
    let mut table =
        Table::new(&[("  ARENA", Left), ("RESIDENT", Right), ("LIVE", Right), ("RETURNABLE", Right)]);
    for arena in arenas {
        let Figures { resident, live, returnable, .. } = arena.figures;
        let cells = [resident, live, returnable].map(|bytes| bytes.to_string());
        table.row([format!("  {}", escape(&arena.name))].into_iter().chain(cells).collect());
    }
    out.push('\n');
    table.render(out, page);
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
    let mut table = Table::new(&[
        ("  BLOCKS UP TO", Right),
        ("LIVE", Right),
        ("BYTES", Right),
        ("FREE", Right),
        ("BYTES", Right),
    ]);
    let count = ebbtide_explain::count;
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
    table.render(out, page);
    more(out, left, "size classes");
}

fn more(out: &mut String, left: usize, what: &str) {
    if left > 0 {
        out.push_str(&format!("  and {left} {what} more (--all)\n"));
    }
}

/// Memory in which nothing known was found.
fn rest(out: &mut String, page: Page, unknown: &[&Heap], all: bool) {
    let sum: Bytes = unknown.iter().map(|heap| heap.figures.resident).sum();
    render::heading(out, &format!("Other memory of its own: {sum} resident"));
    let left = if all { 0 } else { unknown.len().saturating_sub(MOST) };
    for heap in &unknown[..unknown.len() - left] {
        let Figures { resident, mapped, .. } = heap.figures;
        let name = heap.name.as_deref().unwrap_or("anonymous");
        render::wrap(out, page, 2, 4, &format!("{}: {resident} of {mapped} mapped", escape(name)));
    }
    more(out, left, "mappings");
}
