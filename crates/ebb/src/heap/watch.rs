//! `ebb heap --watch`: a row for each look, as a table or as CSV.
//!
//! Each row goes out by itself, so that what was seen is kept whatever ends the watch: Ctrl-C, the process's end,
//! a reader that goes away (all three end it well), a full disk (an error).

use super::{HeapArgs, json, look};
use anyhow::Context;
use ebbtide_explain::count;
use ebbtide_heaps::{Heap, Look};
use ebbtide_observe::Bytes;
use ebbtide_observe::process::Process;
use ebbtide_sys::interrupt::Interrupts;
use std::io::Write;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Size classes named for having grown the most.
const GROWN: usize = 3;

pub(super) fn run(process: &Process, interval: Duration, args: &HeapArgs) -> anyhow::Result<ExitCode> {
    let stop = Interrupts::catch().context("cannot hold signals back")?;
    let mut first: Option<Look> = None;
    let (start, mut looks) = (Instant::now(), 0u32);
    loop {
        let (look, pause) = match look(process, args.freeze) {
            Ok(seen) => seen,
            Err(_) if looks > 0 && has_ended(process) => {
                eprintln!("ebb: process {} has ended", process.pid());
                break;
            }
            Err(error) => return Err(error),
        };
        let known: Vec<&Heap> = look.known().collect();
        let rss = process.statm().map(|statm| statm.resident.bytes()).unwrap_or_default();
        let text = if args.output.json {
            serde_json::to_string(&json(process, &look, pause))? + "\n"
        } else if args.csv {
            csv(&known, rss, looks == 0)
        } else {
            row(&known, rss, start.elapsed(), first.as_ref().map(|first| look.gained_since(first)).as_deref())
        };
        if !write(&text)? {
            break;
        }
        looks = looks.saturating_add(1);
        first.get_or_insert(look);
        if stop.wait(interval) {
            break;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A zombie has no memory; what was executed anew goes on.
fn has_ended(process: &Process) -> bool {
    !process.status().is_ok_and(|status| status.vm.is_some())
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

fn row(heaps: &[&Heap], rss: Bytes, at: Duration, gained: Option<&[(Bytes, u64, Bytes)]>) -> String {
    let mut out = String::new();
    if gained.is_none() {
        out += "    TIME       RSS    MAPPED      LIVE    CACHED      FREE  RETURNABLE  GREW MOST\n";
    }
    let sum =
        |of: fn(&Heap) -> Bytes| -> String { heaps.iter().map(|heap| of(heap)).sum::<Bytes>().to_string() };
    out += &format!(
        "{:>6.0} s {:>9} {:>9} {:>9} {:>9} {:>9} {:>11}  {}\n",
        at.as_secs_f64(),
        rss.to_string(),
        sum(|heap| heap.figures.mapped),
        sum(|heap| heap.figures.live),
        sum(|heap| heap.figures.cached),
        sum(|heap| heap.figures.free),
        sum(|heap| heap.figures.returnable),
        gained.map(grown).unwrap_or_default(),
    );
    out
}

/// The size classes that live bytes grew most in since the first look.
fn grown(gained: &[(Bytes, u64, Bytes)]) -> String {
    let named = gained
        .iter()
        .take(GROWN)
        .map(|(up_to, blocks, bytes)| format!("up to {up_to}: +{bytes} (+{} blocks)", count(*blocks)));
    named.collect::<Vec<_>>().join(", ")
}

fn csv(heaps: &[&Heap], rss: Bytes, head: bool) -> String {
    let mut out = String::new();
    if head {
        out += "unix_ms,allocator,version,rss_bytes,mapped_bytes,resident_bytes,live_bytes,cached_bytes,free_bytes,\
                returnable_bytes,returnable_by_trim_bytes,pinned_free_bytes,metadata_bytes,unused_bytes,free_chunks,\
                largest_free_bytes,arenas,unresolved_bytes\n";
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    for heap in heaps {
        let figures = &heap.figures;
        let by_trim = figures.returnable_by_trim.map(|bytes| bytes.0.to_string()).unwrap_or_default();
        // A version is digits and dots, or words of ours: nothing in it needs quotes.
        let version = heap.version.as_deref().unwrap_or_default().replace([',', '"', '\n'], " ");
        out += &format!(
            "{now},{},{version},{},{},{},{},{},{},{},{by_trim},{},{},{},{},{},{},{}\n",
            heap.kind,
            rss.0,
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
        );
    }
    out
}
