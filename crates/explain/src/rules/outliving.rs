//! `outliving-charge` of the whole host: removed cgroups that still hold memory, BPF maps nobody has open.

use super::{Host, worth};
use crate::{Cause, Finding, count};
use ebbtide_observe::Bytes;

pub(super) fn rule(host: &Host) -> Vec<Finding> {
    [dying(host), maps(host)].into_iter().flatten().collect()
}

/// Fewer removed cgroups than this are ordinary: their last pages go at the next reclaim.
const MANY: u64 = 1000;

/// What a memory cgroup costs by itself, beside what is charged to it: measured on 6.18 with 2 CPUs, 1,000 of them
/// are 16 MB of slab and 4 MB of per-CPU memory.
fn cost(cpus: u64) -> Bytes {
    Bytes::from_kib(16 + 2 * cpus)
}

fn dying(host: &Host) -> Option<Finding> {
    let dying = host.cgroups.dying?;
    let bytes = cost(host.sample.cpus) * dying;
    if dying < MANY || bytes < worth(host.sample.meminfo.mem_total) {
        return None;
    }
    let mem = &host.sample.meminfo;
    let summary = format!(
        "{} cgroups were removed and are still there: page cache or slab charged to them keeps each alive, with its own \
         books of about {}.",
        count(dying),
        cost(host.sample.cpus)
    );
    Some(
        Finding::new(Cause::OutlivingCharge, bytes, 0.9, summary)
            .evidence(
                host.cgroups.source,
                format!("{} dying, {} living", count(dying), count(host.cgroups.living)),
            )
            .evidence("/proc/meminfo", format!("Percpu {}, SUnreclaim {}", mem.percpu, mem.s_unreclaim))
            .not(
                Cause::KernelLeak,
                "they have owners: the pages charged to them, which go under memory pressure",
            )
            .not(Cause::Leak, "no process is in them")
            .lever(
                "drop-pins",
                "sync; ebb reclaim --host page-cache --all; ebb reclaim --host dentries",
                bytes.scaled(0.8),
                "all clean page cache is read again from disk",
            ),
    )
}

fn maps(host: &Host) -> Option<Finding> {
    let bytes = host.orphan_maps.iter().map(|map| map.bytes).sum::<Bytes>();
    if bytes < worth(host.sample.meminfo.mem_total) * 2 {
        return None;
    }
    let mut maps: Vec<_> = host.orphan_maps.iter().collect();
    maps.sort_by_key(|map| std::cmp::Reverse(map.bytes));
    let largest: Vec<String> =
        maps.iter().take(3).map(|map| format!("id {} {}", map.id, map.bytes)).collect();
    let summary = format!(
        "{} BPF maps take {bytes} and no process has them open: they are pinned, or held by an attached program.",
        count(maps.len() as u64)
    );
    Some(
        Finding::new(Cause::OutlivingCharge, bytes, 0.85, summary)
            .evidence("bpf(2), fdinfo memlock", format!("largest: {}", largest.join(", ")))
            .not(Cause::KernelLeak, "the maps have ids and pins: bpftool map shows them")
            .not(Cause::Leak, "in no process's memory")
            .lever(
                "unpin",
                "bpftool map; find /sys/fs/bpf; rm the pin that nobody needs",
                Bytes::ZERO,
                "a program that still uses the map loses it",
            ),
    )
}
