//! The host over time. Unreclaimable slab that climbs and rises in step with no kind of object in use has no
//! owner: a leak of the kernel's. In step with open files, sockets or threads it has one.

use super::{Growth, HOST_NOISE, Judged, Track};
use crate::trend::Series;
use crate::{Cause, Finding, count, in_step};
use ebbtide_observe::Bytes;

/// The host while it was watched.
#[derive(Debug, Clone)]
pub struct HostWatch {
    /// Its counters, named as the ledger's lines.
    pub tracks: Vec<Track>,
    /// Objects in use that slab is taken for: (name, count over time).
    pub objects: Vec<(&'static str, Series<u64>)>,
    /// Slab caches that grew: (name, by how much), largest first.
    pub grown_caches: Vec<(String, Bytes)>,
    /// Processes that grew: (name, pid, by how much), largest first.
    pub grown_processes: Vec<(String, u32, Bytes)>,
}

/// Judges the counters and names what their growth means.
pub fn host(watch: &HostWatch) -> (Growth, Vec<Finding>) {
    let growth = Growth::judge(&watch.tracks, HOST_NOISE);
    let slab = growth.climbs("slab-unreclaimable").map(|slab| unreclaimable(watch, slab, &growth));
    let anon = growth.climbs("anon").map(|anon| anonymous(watch, anon));
    (growth, slab.into_iter().chain(anon).collect())
}

fn unreclaimable(watch: &HostWatch, slab: &Judged, growth: &Growth) -> Finding {
    let series = watch.tracks.iter().find(|t| t.id == slab.id).map(|t| &t.series);
    let owner =
        watch.objects.iter().find(|(_, objects)| series.is_some_and(|s| in_step(s, objects).is_some()));
    let caches: Vec<String> =
        watch.grown_caches.iter().take(3).map(|(name, by)| format!("{name} by {by}")).collect();
    let grown = if caches.is_empty() { "no single cache".to_owned() } else { caches.join(", ") };
    let finding = match owner {
        Some((name, objects)) => {
            let now = objects.samples().last().map_or(0, |s| s.1);
            let summary = format!(
                "unreclaimable slab climbs in step with {name} ({} now): somebody makes them and keeps them.",
                count(now)
            );
            Finding::new(Cause::Undetermined, slab.gained(), 0.6, summary)
                .not(Cause::KernelLeak, format!("it has owners: {name} rise in step"))
        }
        None => {
            let summary = format!(
                "unreclaimable slab climbs steadily ({}) and nothing in use explains it: kernel memory without an owner.",
                slab.verdict
            );
            Finding::new(Cause::KernelLeak, slab.gained(), 0.75, summary)
                .not(Cause::SlabReclaimable, "SUnreclaim, which no shrinker takes back")
                .not(Cause::Leak, "no process holds it")
        }
    };
    let names: Vec<&str> = watch.objects.iter().map(|(name, _)| *name).collect();
    finding
        .evidence(
            "/proc/meminfo SUnreclaim",
            format!("{} to {} in {:.0} s", slab.from, slab.to, growth.span.as_secs_f64()),
        )
        .evidence("/proc/slabinfo", format!("grew: {grown}"))
        .evidence("objects in use", format!("watched: {}", names.join(", ")))
}

fn anonymous(watch: &HostWatch, anon: &Judged) -> Finding {
    let who: Vec<String> = watch
        .grown_processes
        .iter()
        .take(3)
        .map(|(name, pid, by)| format!("{name} (pid {pid}) by {by}"))
        .collect();
    let summary = format!("anonymous memory {}: look at the process that grows.", anon.verdict);
    let finding = Finding::new(Cause::Undetermined, anon.gained(), 0.5, summary)
        .evidence("/proc/meminfo AnonPages", format!("{} to {}", anon.from, anon.to))
        .evidence(
            "/proc/*/smaps_rollup",
            format!(
                "grew most: {}",
                if who.is_empty() { "none that could be read".into() } else { who.join(", ") }
            ),
        )
        .not(Cause::Leak, "not shown: that a process grows does not say that it leaks");
    match watch.grown_processes.first() {
        Some((_, pid, _)) => {
            finding.lever("look-closer", format!("ebb explain {pid} --for 60s"), Bytes::ZERO, "")
        }
        None => finding,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn series<Q: crate::trend::Quantity>(of: impl Fn(u64) -> Q) -> Series<Q> {
        Series::new((0..40).map(|i| (Duration::from_millis(500 * i), of(i))))
    }

    fn watch(id: &'static str, kib: impl Fn(u64) -> u64) -> HostWatch {
        let track = Track { id, remark: "", series: series(|i| Bytes::from_kib(kib(i))) };
        HostWatch {
            tracks: vec![track],
            objects: vec![("open files", series(|_| 1000u64))],
            grown_caches: vec![("kmalloc-4k".into(), Bytes::from_mib(80))],
            grown_processes: vec![],
        }
    }

    fn cause(watch: &HostWatch) -> Option<Cause> {
        host(watch).1.first().map(|f| f.cause)
    }

    #[test]
    fn slab_without_an_owner_is_a_kernel_leak() {
        let mut w = watch("slab-unreclaimable", |i| 50_000 + 2_000 * i);
        assert_eq!(cause(&w), Some(Cause::KernelLeak));
        w.objects.push(("sockets", series(|i| 10 + 20 * i)));
        assert_eq!(cause(&w), Some(Cause::Undetermined));
    }

    #[test]
    fn cache_may_climb() {
        assert_eq!(cause(&watch("page-cache", |i| 50_000 + 2_000 * i)), None);
        assert_eq!(cause(&watch("anon", |i| 50_000 + 2_000 * i)), Some(Cause::Undetermined));
    }
}
