//! `ebb ps`: processes by what they really hold, and what of it could be given back.
//!
//! One read of `status` and `smaps_rollup` for each process; nothing else, so that a host with thousands of
//! processes answers in the time those reads take.

use crate::cli::{PsArgs, Sort};
use crate::render::{self, Align, Page, Table};
use ebbtide_observe::process::{ProcSample, Processes};
use ebbtide_observe::{Bytes, Root, Unread};
use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};
use std::process::ExitCode;

/// One process as it is shown.
#[derive(Debug, Serialize)]
struct Row {
    pid: u32,
    ppid: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<u32>,
    name: ebbtide_observe::process::Name,
    threads: u32,
    rss_bytes: Bytes,
    pss_bytes: Bytes,
    uss_bytes: Bytes,
    swap_bytes: Bytes,
    /// Pages the kernel may take back without asking: MADV_FREE'd and still resident.
    available_bytes: Bytes,
    estimated: bool,
}

#[derive(Serialize)]
struct Json<'a> {
    schema_version: u32,
    #[serde(serialize_with = "rows")]
    processes: &'a [&'a ProcSample],
    unread: Vec<Unread>,
}

pub(crate) fn run(args: &PsArgs) -> anyhow::Result<ExitCode> {
    let root = Root::live()?;
    let processes = Processes::read(&root)?;
    let mut chosen: Vec<&ProcSample> =
        processes.all.iter().filter(|p| p.rss() > Bytes::ZERO || p.stat.vsize > Bytes::ZERO).collect();
    if let Some(name) = &args.name {
        chosen.retain(|p| String::from_utf8_lossy(p.name().as_bytes()).contains(name.as_str()));
    }
    chosen.sort_by_cached_key(|p| std::cmp::Reverse(key(&row(p), args.sort)));
    if let Some(top) = args.top {
        chosen.truncate(top);
    }
    if args.output.json {
        render::print_json_line(&Json { schema_version: 1, processes: &chosen, unread: processes.unread() })?;
    } else {
        render::print(&text(args, Page::of_stdout(), &chosen, &processes))?;
    }
    Ok(ExitCode::SUCCESS)
}

fn rows<S: Serializer>(processes: &&[&ProcSample], serializer: S) -> Result<S::Ok, S::Error> {
    let mut list = serializer.serialize_seq(Some(processes.len()))?;
    for process in *processes {
        list.serialize_element(&row(process))?;
    }
    list.end()
}

/// What is known of a process. Without the right to its rollup, anonymous memory counts as its own and what
/// it maps of files and shmem as shared by all: PSS is then too low by its share, USS never too high by files.
fn row(process: &ProcSample) -> Row {
    let vm = process.status.and_then(|status| status.vm).unwrap_or_default();
    let counters = process.counters();
    let own = vm.rss_anon;
    Row {
        pid: process.pid,
        ppid: process.stat.ppid,
        uid: process.status.map(|status| status.uid.real),
        name: *process.name(),
        threads: process.stat.threads,
        rss_bytes: process.rss(),
        pss_bytes: counters.map_or(own, |c| c.pss),
        uss_bytes: counters.map_or(own, |c| c.uss()),
        swap_bytes: counters.map_or(vm.swap, |c| c.swap),
        available_bytes: counters.map_or(Bytes::ZERO, |c| c.lazy_free),
        estimated: counters.is_none(),
    }
}

fn key(row: &Row, sort: Sort) -> Bytes {
    match sort {
        Sort::Pss => row.pss_bytes,
        Sort::Uss => row.uss_bytes,
        Sort::Rss => row.rss_bytes,
        Sort::Swap => row.swap_bytes,
    }
}

fn text(args: &PsArgs, page: Page, chosen: &[&ProcSample], processes: &Processes) -> String {
    use Align::{Left, Right};
    let mut heads = vec![("PID", Right), ("PSS", Right), ("USS", Right), ("RSS", Right), ("SWAP", Right)];
    let rows: Vec<Row> = chosen.iter().map(|p| row(p)).collect();
    let freeable = rows.iter().any(|row| row.available_bytes > Bytes::ZERO);
    if freeable {
        heads.push(("LAZYFREE", Right));
    }
    heads.push(("NAME", Left));
    let mut table = Table::new(&heads);
    for row in &rows {
        let mark = if row.estimated { "~" } else { "" };
        let mut cells = vec![
            row.pid.to_string(),
            format!("{mark}{}", row.pss_bytes),
            format!("{mark}{}", row.uss_bytes),
            row.rss_bytes.to_string(),
            row.swap_bytes.to_string(),
        ];
        if freeable {
            cells.push(row.available_bytes.to_string());
        }
        cells.push(row.name.to_string());
        table.row(cells);
    }
    let mut out = String::new();
    table.render(&mut out, page);
    if args.top.is_none() && args.name.is_none() {
        out.push('\n');
        render::wrap(&mut out, page, 0, 0, &sums(&rows));
    }
    if rows.iter().any(|row| row.estimated) {
        render::wrap(&mut out, page, 0, 2, "~ estimated from status: smaps_rollup may not be read");
    }
    render::unread(&mut out, page, &processes.unread());
    out
}

fn sums(rows: &[Row]) -> String {
    let sum = |of: fn(&Row) -> Bytes| -> Bytes { rows.iter().map(of).sum() };
    let (pss, rss) = (sum(|row| row.pss_bytes), sum(|row| row.rss_bytes));
    let shared = format!("Their RSS sums to {rss}: shared pages counted again and again.");
    match rows.len() {
        1 => format!("1 process holds {pss} (PSS)."),
        n => format!("{n} processes hold {pss} (PSS). {shared}"),
    }
}
