//! What the processes of a host keep in their heaps: `allocator-retention`, `arena-multiplication`, of those that were
//! looked into. What else their heaps tell, the rules about one process say.

use super::heap::{Owner, is_read, retained};
use super::{Host, worth};
use crate::Finding;
use ebbtide_heaps::Heap;
use ebbtide_observe::Bytes;
use ebbtide_observe::process::ProcSample;

/// Heaps of a host of which it is said that they keep memory: a hundred workers that are alike say nothing more.
const MOST: usize = 3;

/// What was seen inside a process.
#[derive(Debug)]
pub struct Inside<'p> {
    /// Which.
    pub process: &'p ProcSample,
    /// Its heaps of known allocators.
    pub heaps: Vec<Heap>,
}

impl Inside<'_> {
    /// Whole free pages of all its heaps; `None` where no allocator was recognised.
    pub fn returnable(&self) -> Option<Bytes> {
        (!self.heaps.is_empty()).then(|| self.heaps.iter().map(|heap| heap.figures.returnable).sum())
    }
}

pub(super) fn rule(host: &Host) -> Vec<Finding> {
    let worth = worth(host.sample.meminfo.mem_total);
    let mut found: Vec<Finding> = Vec::new();
    for Inside { process, heaps } in host.inside {
        let vm = process.status.and_then(|status| status.vm);
        let owner = Owner { pid: process.pid, vm, worth };
        found.extend(heaps.iter().filter(|heap| is_read(heap)).filter_map(|heap| {
            let mut finding = retained(&owner, heap)?;
            finding.summary = format!("{} (pid {}): {}", process.name(), process.pid, finding.summary);
            Some(finding)
        }));
    }
    found.sort_by_key(|finding| std::cmp::Reverse(finding.bytes));
    found.truncate(MOST);
    found
}

#[cfg(test)]
mod tests {
    use super::super::testing::{alone, healthy, mib};
    use super::*;
    use crate::{Cause, ledger};
    use ebbtide_heaps::{Corruption, Figures, Kind};
    use ebbtide_observe::process::{Memory, Name, Stat};
    use ebbtide_observe::shared::SharedMemory;

    fn process(pid: u32) -> ProcSample {
        let stat = Stat { name: Name::new(b"worker"), ..Stat::default() };
        ProcSample { pid, stat, memory: Memory::None, status: None }
    }

    fn heap(returnable: u64) -> Heap {
        let figures = Figures {
            mapped: mib(400),
            resident: mib(400),
            free: mib(returnable),
            returnable: mib(returnable),
            ..Figures::default()
        };
        Heap { figures, ..Heap::new(Kind::LuaJit) }
    }

    #[test]
    fn the_largest_keepers_are_named() {
        let damage = Corruption { address: 0, what: String::new() };
        let damaged = Heap { corruptions: vec![damage], ..heap(390) };
        let heaps = [
            vec![heap(60), heap(10)],
            vec![],
            vec![damaged],
            vec![heap(100)],
            vec![heap(90)],
            vec![heap(80)],
        ];
        let processes: Vec<ProcSample> = (1..).take(heaps.len()).map(process).collect();
        let inside: Vec<Inside> =
            processes.iter().zip(heaps).map(|(process, heaps)| Inside { process, heaps }).collect();
        let returnable: Vec<_> = inside.iter().map(Inside::returnable).collect();
        assert_eq!(returnable[..3], [Some(mib(70)), None, Some(mib(390))]);
        let (sample, shared) = (healthy(), SharedMemory::default());
        let ledger = ledger::host(&sample, Vec::new(), Vec::new());
        let host = |inside| Host { inside, ..alone(&sample, &ledger, &shared) };
        let found = rule(&host(&inside));
        let bytes: Vec<Bytes> = found.iter().map(|finding| finding.bytes).collect();
        assert_eq!(bytes, [mib(100), mib(90), mib(80)]);
        assert!(found.iter().all(|finding| finding.cause == Cause::AllocatorRetention));
        assert!(
            found[0].summary.starts_with("worker (pid 4): 100 MiB of 400 MiB are free pages"),
            "{found:?}"
        );
        assert_eq!(super::super::host(&host(&inside)), found);
        assert_eq!(rule(&host(&inside[1..3])), []);
    }
}
