//! `ebb ps`: processes by what they really hold, and what of it could be given back.
//!
//! One read of `stat` and `smaps_rollup` for each process, so that a host with thousands of processes answers in the
//! time those reads take; then looks into the heaps of the largest, for a second at most ([`Looks`]).

use crate::cli::{PsArgs, Sort};
use crate::looks::Looks;
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
    /// Whole free pages in its heaps; `None` where nobody looked, or no allocator was recognised.
    returnable_bytes: Option<Bytes>,
    looked: bool,
    estimated: bool,
}

/// The processes that are shown, in their order, and what was seen inside them.
struct Chosen<'p> {
    processes: Vec<&'p ProcSample>,
    looks: Looks<'p>,
}

#[derive(Serialize)]
struct Json<'a> {
    schema_version: u32,
    processes: &'a Chosen<'a>,
    unread: Vec<Unread>,
}

pub(crate) fn run(args: &PsArgs) -> anyhow::Result<ExitCode> {
    let root = Root::live()?;
    let processes = Processes::read(&root)?;
    let chosen = Chosen::of(args, &root, &processes);
    let unread = [processes.unread(), chosen.looks.unread()].concat();
    if args.output.json {
        render::print_json_line(&Json { schema_version: 1, processes: &chosen, unread })?;
    } else {
        render::print(&text(args, Page::of_stdout(), &chosen.rows().collect::<Vec<_>>(), &unread))?;
    }
    Ok(ExitCode::SUCCESS)
}

impl<'p> Chosen<'p> {
    fn of(args: &PsArgs, root: &Root, processes: &'p Processes) -> Chosen<'p> {
        let has_memory = |p: &&ProcSample| p.rss() > Bytes::ZERO || p.stat.vsize > Bytes::ZERO;
        let mut chosen =
            Chosen { processes: processes.all.iter().filter(has_memory).collect(), looks: Looks::default() };
        if let Some(name) = &args.name {
            let named =
                |p: &&ProcSample| String::from_utf8_lossy(p.name().as_bytes()).contains(name.as_str());
            chosen.processes.retain(named);
        }
        let look = |chosen: &mut Chosen<'p>| {
            chosen.looks = Looks::into(root, &chosen.processes, args.budget);
        };
        // To sort by what is inside, all must be looked into; else only those that are shown.
        if args.sort == Sort::Returnable {
            look(&mut chosen);
        }
        chosen.sort(args);
        if args.sort != Sort::Returnable {
            look(&mut chosen);
        }
        chosen
    }

    fn sort(&mut self, args: &PsArgs) {
        let mut processes = std::mem::take(&mut self.processes);
        processes.sort_by_cached_key(|p| std::cmp::Reverse(key(&self.row(p), args.sort)));
        processes.truncate(args.top.unwrap_or(usize::MAX));
        self.processes = processes;
    }

    fn rows(&self) -> impl Iterator<Item = Row> {
        self.processes.iter().map(|process| self.row(process))
    }

    fn row(&self, process: &ProcSample) -> Row {
        let inside = self.looks.of(process.pid);
        let returnable_bytes = inside.and_then(|inside| inside.returnable());
        Row { returnable_bytes, looked: inside.is_some(), ..row(process) }
    }
}

/// Row by row: of thousands of processes, one is held at a time.
impl Serialize for Chosen<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(Some(self.processes.len()))?;
        for row in self.rows() {
            list.serialize_element(&row)?;
        }
        list.end()
    }
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
        returnable_bytes: None,
        looked: false,
        estimated: counters.is_none(),
    }
}

fn key(row: &Row, sort: Sort) -> Bytes {
    match sort {
        Sort::Pss => row.pss_bytes,
        Sort::Uss => row.uss_bytes,
        Sort::Rss => row.rss_bytes,
        Sort::Swap => row.swap_bytes,
        Sort::Returnable => row.returnable_bytes.unwrap_or_default(),
    }
}

fn text(args: &PsArgs, page: Page, rows: &[Row], unread: &[Unread]) -> String {
    let mut out = String::new();
    table(args, rows).render(&mut out, page);
    if args.top.is_none() && args.name.is_none() {
        out.push('\n');
        render::wrap(&mut out, page, 0, 0, &sums(rows));
    }
    let mut legend = |applies: bool, text: &str| {
        if applies {
            render::wrap(&mut out, page, 0, 2, text);
        }
    };
    legend(rows.iter().any(|row| row.estimated), "~ estimated from status: smaps_rollup may not be read");
    let looked = args.budget.is_some();
    let unknown = rows.iter().any(|row| row.looked && row.returnable_bytes.is_none());
    legend(looked && unknown, "- no allocator that ebb knows");
    let not_looked = rows.iter().any(|row| !row.looked);
    legend(looked && not_looked, "? not looked into: less than 1 MiB of its own, no right to, or no time");
    render::unread(&mut out, page, unread);
    out
}

/// Columns of which nothing is to be said are left out.
fn table(args: &PsArgs, rows: &[Row]) -> Table {
    use Align::{Left, Right};
    let swapped = args.sort == Sort::Swap || rows.iter().any(|row| row.swap_bytes > Bytes::ZERO);
    let freeable = rows.iter().any(|row| row.available_bytes > Bytes::ZERO);
    let looked = args.budget.is_some();
    let mut heads = vec![("PID", Right), ("PSS", Right), ("USS", Right), ("RSS", Right)];
    heads.extend(swapped.then_some(("SWAP", Right)));
    heads.extend(freeable.then_some(("LAZYFREE", Right)));
    heads.extend(looked.then_some(("RETURNABLE", Right)));
    heads.push(("NAME", Left));
    let mut table = Table::new(&heads);
    for row in rows {
        let mark = if row.estimated { "~" } else { "" };
        let mut cells = vec![
            row.pid.to_string(),
            format!("{mark}{}", row.pss_bytes),
            format!("{mark}{}", row.uss_bytes),
            row.rss_bytes.to_string(),
        ];
        cells.extend(swapped.then(|| row.swap_bytes.to_string()));
        cells.extend(freeable.then(|| row.available_bytes.to_string()));
        cells.extend(looked.then(|| match row.returnable_bytes {
            Some(bytes) => bytes.to_string(),
            None => if row.looked { "-" } else { "?" }.to_owned(),
        }));
        cells.push(row.name.to_string());
        table.row(cells);
    }
    table
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
