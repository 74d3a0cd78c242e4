//! Which processes of a host have free pages in their heaps, and how much: figures that overlap the ledger.

use crate::looks::Looks;
use crate::render::{self, Align, FAINT, Page, Table};
use ebbtide_heaps::Kind;
use ebbtide_observe::Bytes;
use ebbtide_observe::process::Name;
use serde::Serialize;

/// Processes that are shown, unless all are asked for.
const MOST: usize = 5;

/// Columns of a name: an escaped one has up to four for each byte.
const NAME: usize = 20;

/// Less than this is not worth a line.
const LITTLE: Bytes = Bytes::from_mib(1);

/// The processes that were looked into.
#[derive(Debug, Serialize)]
pub(crate) struct Heaps {
    /// So many.
    looked: usize,
    /// Of so many nothing is known: they are small, may not be read, or there was no time.
    not_looked: usize,
    /// Those in which an allocator was recognised, the most returnable first.
    processes: Vec<Process>,
}

#[derive(Debug, Serialize)]
struct Process {
    pid: u32,
    name: Name,
    /// Pages that it shares with its forks count in each of them.
    returnable_bytes: Bytes,
    allocators: Vec<Allocator>,
}

#[derive(Debug, Serialize)]
struct Allocator {
    kind: Kind,
    returnable_bytes: Bytes,
}

impl Heaps {
    pub(crate) fn of(looks: &Looks) -> Heaps {
        let process = |inside: &ebbtide_explain::rules::Inside| {
            let allocators = inside
                .heaps
                .iter()
                .map(|heap| Allocator { kind: heap.kind, returnable_bytes: heap.figures.returnable });
            Some(Process {
                pid: inside.process.pid,
                name: *inside.process.name(),
                returnable_bytes: inside.returnable()?,
                allocators: allocators.collect(),
            })
        };
        let mut processes: Vec<Process> = looks.seen().iter().filter_map(process).collect();
        processes.sort_by_key(|process| std::cmp::Reverse(process.returnable_bytes));
        Heaps { looked: looks.seen().len(), not_looked: looks.unseen(), processes }
    }

    /// Appends those with much; nothing where none has.
    pub(super) fn text(&self, out: &mut String, page: Page, all: bool) {
        let much = self.processes.iter().take_while(|process| process.returnable_bytes >= LITTLE);
        let much: Vec<&Process> = much.collect();
        if much.is_empty() {
            return;
        }
        render::heading(out, "Free pages in heaps");
        let mut table =
            Table::new(&[("BYTES", Align::Right), ("PROCESS", Align::Left), ("ALLOCATOR", Align::Left)]);
        let shown = if all { much.len() } else { much.len().min(MOST) };
        for process in &much[..shown] {
            table.row(vec![
                process.returnable_bytes.to_string(),
                format!("{} ({})", render::cut(&process.name.to_string(), NAME), process.pid),
                process.by_allocator(),
            ]);
        }
        render::table(out, page, 2, &table);
        let more = much.len() - shown;
        let more = if more > 0 { format!("{more} more (--all); ") } else { String::new() };
        let looked =
            if self.looked == 1 { "1 process".to_owned() } else { format!("{} processes", self.looked) };
        let not = match self.not_looked {
            0 => String::new(),
            others => format!("; {others} not: less than 1 MiB of their own, or named below"),
        };
        let not = format!("{more}{looked} looked into{not}");
        render::wrap(out, page, 2, 2, &format!("{FAINT}{not}{FAINT:#}"));
    }
}

impl Process {
    /// "luajit", or "glibc 10.0 MiB, cpython 2.00 MiB".
    fn by_allocator(&self) -> String {
        let mut of: Vec<&Allocator> =
            self.allocators.iter().filter(|of| of.returnable_bytes > Bytes::ZERO).collect();
        of.sort_by_key(|of| std::cmp::Reverse(of.returnable_bytes));
        match of[..] {
            [one] => one.kind.to_string(),
            _ => {
                let parts: Vec<String> =
                    of.iter().map(|of| format!("{} {}", of.kind, of.returnable_bytes)).collect();
                parts.join(", ")
            }
        }
    }
}

#[cfg(test)]
impl Heaps {
    /// Seven processes, the smallest with next to nothing.
    pub(super) fn made_up() -> Heaps {
        let of = |kind, kib| Allocator { kind, returnable_bytes: Bytes::from_kib(kib) };
        let process = |(pid, name, allocators): (u32, &[u8], Vec<Allocator>)| Process {
            pid,
            name: Name::new(name),
            returnable_bytes: allocators.iter().map(|of| of.returnable_bytes).sum(),
            allocators,
        };
        let processes = vec![
            (812, b"nginx".as_slice(), vec![of(Kind::Glibc, 3_300), of(Kind::LuaJit, 250_880)]),
            (9, b"\x1b[31mred", vec![of(Kind::Glibc, 70_000), of(Kind::CPython, 0)]),
            (10_312, b"a-long-name-it-is", vec![of(Kind::Glibc, 6_000), of(Kind::CPython, 2_000)]),
            (11, b"redis", vec![of(Kind::Glibc, 6_000)]),
            (12, b"cron", vec![of(Kind::Glibc, 5_000)]),
            (13, b"\x1b\x1b\x1b\x1b\x1b\x1b\x1b\x1b", vec![of(Kind::Glibc, 1_024)]),
            (14, b"getty", vec![of(Kind::Glibc, 1_023)]),
        ];
        Heaps { looked: 9, not_looked: 140, processes: processes.into_iter().map(process).collect() }
    }
}
