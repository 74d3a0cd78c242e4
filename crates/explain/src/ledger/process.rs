//! A process's ledger: its resident set in exclusive lines, one for each kind of mapping.
//!
//! The total is the sum of Rss over its mappings, so the lines sum to it exactly and nothing is unaccounted;
//! hugetlb pages are in no Rss and stand beside it, as PSS, USS and swap do.

use super::{Ledger, Line};
use ebbtide_observe::Bytes;
use ebbtide_observe::process::kind::Total;
use ebbtide_observe::process::{Detail, Kind};
use serde::Serialize;

/// Figures that overlap the resident set and are no lines of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Beside {
    /// Resident, each page divided by the number of processes that map it.
    pub pss_bytes: Bytes,
    /// What ending the process would free.
    pub uss_bytes: Bytes,
    /// Swapped out.
    pub swap_bytes: Bytes,
    /// hugetlb pages, which no Rss counts.
    pub hugetlb_bytes: Bytes,
    /// Page tables, which are kernel memory.
    pub page_tables_bytes: Bytes,
    /// Address space.
    pub virtual_bytes: Bytes,
}

impl Beside {
    /// The figures of `detail`.
    pub fn of(detail: &Detail) -> Beside {
        let c = &detail.counters;
        Beside {
            pss_bytes: c.pss,
            uss_bytes: c.uss(),
            swap_bytes: c.swap,
            hugetlb_bytes: c.hugetlb(),
            page_tables_bytes: detail.vm.page_tables,
            virtual_bytes: detail.vm.size,
        }
    }
}

/// Splits the resident set of `detail`.
pub fn process(detail: &Detail) -> Ledger {
    let mut ledger = Ledger::of(detail.counters.rss);
    let mut kinds: Vec<(&Kind, &Total)> = detail.kinds.iter().collect();
    kinds.sort_by_key(|(_, total)| std::cmp::Reverse(total.counters.rss));
    for (kind, total) in kinds {
        ledger.fill(line(*kind, total));
    }
    ledger
}

fn line(kind: Kind, total: &Total) -> Line {
    let c = &total.counters;
    // Huge, lazily freed and written pages may overlap; each child takes only what those before it left.
    let mut parts = Ledger::of(c.rss);
    parts.fill(Line::new("lazily freed", c.lazy_free));
    parts.fill(Line::new("huge pages", c.anon_huge_pages + c.shmem_pmd_mapped + c.file_pmd_mapped));
    if matches!(kind, Kind::Code | Kind::File | Kind::DeletedFile) {
        parts.fill(Line::new("written copies", c.anonymous));
    }
    let line = Line::new(id(kind), c.rss).children(parts.lines);
    let note = match total.mappings {
        1 => "1 mapping".to_owned(),
        n => format!("{} mappings", crate::count(n)),
    };
    let unsure = total.unsure.share_of(c.rss) > 0.5;
    line.note(if unsure { format!("{note}, by their shape") } else { note })
}

/// The stable id of a kind's line.
fn id(kind: Kind) -> &'static str {
    match kind {
        Kind::Heap => "heap",
        Kind::Arena => "thread-arenas",
        Kind::MainStack => "main-stack",
        Kind::ThreadStack => "thread-stacks",
        Kind::NamedAnon => "named-anon",
        Kind::Anon => "anon",
        Kind::Code => "code",
        Kind::File => "files",
        Kind::SharedAnon => "shared-anon",
        Kind::SysV => "sysv-shm",
        Kind::Memfd => "memfd",
        Kind::Tmpfs => "tmpfs-files",
        Kind::DeletedFile => "deleted-files",
        Kind::Device => "devices",
        Kind::Hugetlb => "hugetlb",
        Kind::Kernel => "vdso",
        Kind::Reserved => "reserved",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_observe::Root;
    use ebbtide_observe::process::Process;

    #[test]
    fn the_resident_set_of_this_process_is_split_whole() {
        let process = Process::open(&Root::live().unwrap(), std::process::id()).unwrap();
        let detail = Detail::read(&process, Vec::new()).unwrap();
        let ledger = super::process(&detail);
        assert_eq!((ledger.unaccounted, ledger.overlap), (Bytes::ZERO, Bytes::ZERO));
        assert!(ledger.bytes("code") > Bytes::ZERO);
    }
}
