//! What the walkers saw inside a process's heaps: `allocator-retention`, `arena-multiplication`,
//! `heap-fragmentation`, `gc-headroom` of a collector that tells its count; of a few huge blocks that they may be
//! kept capacity, or, where it was watched that nobody uses them, `capacity-slack`.
//!
//! Figures of a heap that could not be read to the end explain nothing: too much unresolved, and no rule fires.

use super::Subject;
use crate::{Cause, Finding, count};
use ebbtide_heaps::{Arena, Figures, HUGE_BLOCK, Heap, Kind};
use ebbtide_observe::Bytes;
use ebbtide_observe::process::status::Vm;
use std::time::Duration;

/// Free bytes on pages that hold live blocks too are fragmentation when they are this share of the heap.
const FRAGMENTED: f64 = 0.25;

/// Arenas are multiplied when so many of them, beside the main one, each keep a peak of their own ...
const ARENAS: usize = 4;

/// ... of at least this much.
const PEAK: Bytes = Bytes::from_mib(1);

/// A walk that leaves more than this of a heap unresolved does not explain it.
const RESOLVED: f64 = 0.05;

/// How many huge blocks are few.
const FEW: u64 = 64;

/// Blocks that lie idle are called slack when they were watched for so long ...
const LONG_ENOUGH: Duration = Duration::from_secs(10);

/// ... while their process worked for so long.
const AT_WORK: Duration = Duration::from_millis(100);

/// Whether the huge blocks of a process are used: [`ebbtide_observe::referenced`], over some time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    /// For how long.
    pub watched: Duration,
    /// CPU time that the process used meanwhile.
    pub cpu: Duration,
    /// What of the blocks was neither read nor written, at least.
    pub untouched: Bytes,
}

/// Whose heap it is.
pub(super) struct Owner {
    pub(super) pid: u32,
    pub(super) vm: Option<Vm>,
    /// The least that is worth a finding.
    pub(super) worth: Bytes,
}

impl Owner {
    fn of(subject: &Subject) -> Owner {
        Owner { pid: subject.detail.pid, vm: Some(subject.detail.vm), worth: subject.worth() }
    }
}

pub(super) fn rule(subject: &Subject) -> Vec<Finding> {
    let known = || subject.heaps.iter().filter(|heap| is_read(heap));
    let owner = Owner::of(subject);
    let mut findings: Vec<Finding> = known().filter_map(|heap| retained(&owner, heap)).collect();
    findings.extend(known().filter_map(|heap| fragmented(subject, heap)));
    findings.extend(known().filter_map(|heap| uncollected(subject, heap)));
    findings
}

/// What is known of the heap when nothing is wrong in it: whether that answers where its memory is.
pub(super) fn is_answered(subject: &Subject) -> bool {
    let read: Bytes =
        subject.heaps.iter().filter(|heap| is_read(heap)).map(|heap| heap.figures.resident).sum();
    read.share_of(subject.detail.counters.anonymous) >= 0.5
}

/// A few huge blocks hold most of what lives: kept capacity, or data. One look cannot tell, so that is doubt, with
/// what it rests on; a watch of whether they are used can.
pub(super) fn huge_blocks(subject: &Subject) -> Option<Finding> {
    let heap = subject.heaps.iter().filter(|heap| is_read(heap)).max_by_key(|heap| heap.figures.live)?;
    let huge = heap.histogram.iter().filter(|class| class.up_to > HUGE_BLOCK);
    let (blocks, bytes) =
        huge.fold((0, Bytes::ZERO), |(n, sum), class| (n + class.live_count, sum + class.live));
    if bytes < subject.worth() * 2 || blocks > FEW || bytes.share_of(heap.figures.live) < 0.5 {
        return None;
    }
    match subject.used {
        Some(used) if used.watched >= LONG_ENOUGH && used.cpu >= AT_WORK => {
            slack(subject, heap, blocks, bytes, used)
        }
        used => Some(may_be_slack(subject, heap, blocks, bytes, used)),
    }
}

fn may_be_slack(subject: &Subject, heap: &Heap, blocks: u64, bytes: Bytes, used: Option<&Used>) -> Finding {
    let summary = format!(
        "{bytes} of {}'s memory lives in {} blocks of {HUGE_BLOCK} and more: data, or collections that kept the \
         capacity of a peak. Which of the two, only whether they are used tells.",
        name(heap),
        count(blocks)
    );
    let finding = books(Finding::new(Cause::Undetermined, bytes, 0.5, summary), subject.detail.pid, heap);
    let finding = match used {
        Some(used) => watched(finding, subject, used),
        None => finding,
    };
    finding
        .not(Cause::AllocatorRetention, "the allocator has handed these blocks out and got none of them back")
        .not(Cause::Leak, "not shown: a few large blocks do not grow one by one")
        .lever(
            "watch",
            format!("ebb explain {} --for 60s --clear-refs", subject.detail.pid),
            Bytes::ZERO,
            "tells whether they are used while it works; holds the process's mmap lock for 11 ms per GB",
        )
}

/// Huge blocks that a process at work does not touch.
fn slack(subject: &Subject, heap: &Heap, blocks: u64, bytes: Bytes, used: &Used) -> Option<Finding> {
    let untouched = used.untouched.min(bytes);
    if untouched < subject.worth() || untouched.share_of(bytes) < 0.5 {
        return None;
    }
    let summary = format!(
        "{untouched} of the {bytes} that live in {} huge blocks of {} were neither read nor written while the program \
         worked: collections that kept the capacity of a peak, or data that it did not need meanwhile.",
        count(blocks),
        name(heap)
    );
    let finding =
        books(Finding::new(Cause::CapacitySlack, untouched, 0.7, summary), subject.detail.pid, heap);
    Some(
        watched(finding, subject, used)
            .not(Cause::AllocatorRetention, "the program has not freed these blocks: no trim returns them")
            .not(Cause::Leak, "a few large blocks that nobody adds to do not grow")
            .lever(
                "shrink",
                "shrink_to_fit(), or a new collection in place of the old, in the program",
                Bytes::ZERO,
                "a change in the program; a collection that fills again soon had better keep its room",
            ),
    )
}

fn watched(finding: Finding, subject: &Subject, used: &Used) -> Finding {
    let Used { watched, cpu, untouched } = used;
    finding.evidence(
        subject.file("smaps"),
        format!(
            "in {:.0} s, with {:.1} s of CPU, at least {untouched} of the huge blocks stayed unreferenced",
            watched.as_secs_f64(),
            cpu.as_secs_f64()
        ),
    )
}

/// Whether a walk read the heap well enough to explain it.
pub(super) fn is_read(heap: &Heap) -> bool {
    heap.kind != Kind::Unknown
        && heap.corruptions.is_empty()
        && heap.certainty.unresolved.share_of(heap.figures.mapped) <= RESOLVED
}

/// Whole free pages that are resident: kept by one allocator, or by many arenas each.
pub(super) fn retained(owner: &Owner, heap: &Heap) -> Option<Finding> {
    let figures = &heap.figures;
    if figures.returnable < owner.worth {
        return None;
    }
    let keepers = keepers(heap);
    let spread: Bytes = keepers.iter().map(|arena| arena.figures.returnable).sum();
    let multiplied = keepers.len() >= ARENAS && spread.share_of(figures.returnable) >= 0.5;
    let (cause, summary) = if multiplied {
        let summary = format!(
            "{} of {} are free pages that {} thread arenas of {} keep, each for a peak of its own; {} lives.",
            spread,
            figures.resident,
            keepers.len(),
            name(heap),
            figures.live
        );
        (Cause::ArenaMultiplication, summary)
    } else {
        let summary = format!(
            "{} of {} are free pages that {} keeps for the next request; {} lives.",
            figures.returnable,
            figures.resident,
            name(heap),
            figures.live
        );
        (Cause::AllocatorRetention, summary)
    };
    let mut finding =
        books(Finding::new(cause, figures.returnable, confidence(heap), summary), owner.pid, heap)
            .not(Cause::Leak, "the program has freed these pages: its next requests are served from them")
            .not(Cause::HeapFragmentation, "they are whole pages, with no live block on any of them");
    if let Some(vm) = owner.vm {
        let peak = format!("VmHWM {}, VmRSS {}", vm.high_water, vm.rss);
        finding = finding.evidence(format!("/proc/{}/status", owner.pid), peak);
    }
    if multiplied {
        let largest = keepers.iter().map(|arena| arena.figures.returnable).max().unwrap_or_default();
        finding = finding.evidence(
            "thread arenas",
            format!("{} with {PEAK} and more of free pages, the largest {largest}", keepers.len()),
        );
    }
    Some(levers(finding, owner.pid, heap, multiplied))
}

/// Arenas other than the main one that keep a peak.
fn keepers(heap: &Heap) -> Vec<&Arena> {
    let others = heap.arenas.iter().filter(|arena| heap.kind == Kind::Glibc && arena.name != "main");
    others.filter(|arena| arena.figures.returnable >= PEAK).collect()
}

/// What gives back, by allocator; only what acts on the running process has a figure.
fn levers(finding: Finding, pid: u32, heap: &Heap, multiplied: bool) -> Finding {
    let by_trim = heap.figures.returnable_by_trim.unwrap_or_default();
    match heap.kind {
        Kind::Glibc => {
            let finding = finding.lever(
                "reclaim",
                format!("ebb reclaim {pid}"),
                heap.figures.returnable,
                "a waiting thread calls malloc_trim, which locks arena after arena (7 to 11 ms for 300 MB, glibc 2.36); for \
                 tops of thread arenas all threads stop for a moment",
            );
            let setting = if multiplied {
                "MALLOC_ARENA_MAX=2 in its environment"
            } else {
                "MALLOC_TRIM_THRESHOLD_=131072 in its environment"
            };
            finding.lever("setting", setting, Bytes::ZERO, "takes a restart; more threads share a lock").lever(
                "breathe",
                "ebb run -- CMD",
                Bytes::ZERO,
                "takes a restart; its malloc gives free pages back by itself",
            )
        }
        Kind::Jemalloc => finding
            .lever(
                "purge",
                "mallctl(\"arena.4096.purge\"), called by the program itself; Redis: redis-cli MEMORY PURGE",
                by_trim,
                "the pages fault in again when they are next used",
            )
            .lever(
                "setting",
                "MALLOC_CONF=background_thread:true,dirty_decay_ms:1000 in its environment",
                Bytes::ZERO,
                "takes a restart",
            ),
        Kind::LuaJit => finding.lever(
            "reclaim",
            format!("ebb reclaim {pid}"),
            heap.figures.returnable,
            "all its threads stop for 5 ms at most, as often as it takes; LuaJIT's allocator itself returns nothing but the \
             end of its newest segment, so tuning the collector does not help",
        ),
        Kind::Musl => finding.lever(
            "reclaim",
            format!("ebb reclaim {pid}"),
            heap.figures.returnable,
            "all its threads stop for 5 ms at most, as often as it takes; musl itself gives back only groups of blocks that \
             are all free, and has no malloc_trim and no setting for it",
        ),
        Kind::Tcmalloc => finding.lever(
            "release",
            "MallocExtension_ReleaseFreeMemory(), called by the program itself",
            by_trim,
            "the pages fault in again when they are next used",
        ),
        _ => finding.lever(
            "breathe",
            "ebb run -- CMD",
            Bytes::ZERO,
            "takes a restart; its malloc gives free pages back by itself",
        ),
    }
}

/// Free bytes that share their pages with live blocks.
fn fragmented(subject: &Subject, heap: &Heap) -> Option<Finding> {
    let Figures { pinned_free, resident, returnable, .. } = heap.figures;
    if pinned_free < subject.worth()
        || pinned_free.share_of(resident) < FRAGMENTED
        || pinned_free < returnable
    {
        return None;
    }
    let summary = format!(
        "{pinned_free} of {resident} are free in {}, but on pages that hold live blocks too: no trim gets them back.",
        name(heap)
    );
    Some(
        books(Finding::new(Cause::HeapFragmentation, pinned_free, confidence(heap), summary), subject.detail.pid, heap)
            .not(Cause::Leak, "the program has freed it: new blocks that fit are put there")
            .not(Cause::AllocatorRetention, format!("only {returnable} of it are whole pages"))
            .lever(
                "restart",
                "restart the program when it suits",
                Bytes::ZERO,
                "a new heap is packed; in Redis, CONFIG SET activedefrag yes does it while it runs (with its own jemalloc)",
            ),
    )
}

/// Garbage that a collector has counted and not yet found: all that was allocated since its last cycle.
fn uncollected(subject: &Subject, heap: &Heap) -> Option<Finding> {
    let states = heap.arenas.iter().filter_map(|arena| {
        let collector = arena.collector?;
        Some((collector.total, collector.estimate?.min(collector.total)))
    });
    let (total, estimate) =
        states.fold((Bytes::ZERO, Bytes::ZERO), |(t, e), state| (t + state.0, e + state.1));
    let headroom = total - estimate;
    if headroom < subject.worth() || headroom.share_of(total) < 0.3 {
        return None;
    }
    let summary = format!(
        "{}'s collector counts {total}, {headroom} of it allocated since its last cycle, which found {estimate} alive: \
         what of the rest is garbage, the next cycle finds.",
        name(heap)
    );
    Some(
        books(Finding::new(Cause::GcHeadroom, headroom, 0.75, summary), subject.detail.pid, heap)
            .not(Cause::Leak, "not shown: a leak would be in what a cycle finds alive")
            .not(Cause::AllocatorRetention, "to the allocator these blocks live")
            .lever(
                "collect",
                "collectgarbage(), called by the program itself",
                Bytes::ZERO,
                "frees to the allocator, which keeps the pages",
            ),
    )
}

fn books(finding: Finding, pid: u32, heap: &Heap) -> Finding {
    let Figures { live, cached, free, returnable, pinned_free, .. } = heap.figures;
    let source = format!("ebb heap {pid}: {}", name(heap));
    let finding = finding.evidence(
        source,
        format!(
            "live {live}, cached {cached}, free {free}: {returnable} in whole resident pages, {pinned_free} beside live blocks"
        ),
    );
    heap.notes.iter().take(2).fold(finding, |finding, note| finding.evidence(name(heap), note.clone()))
}

/// One look at a running process is a little less than sure.
fn confidence(heap: &Heap) -> f64 {
    if heap.certainty.still || heap.certainty.unresolved == Bytes::ZERO { 0.95 } else { 0.85 }
}

fn name(heap: &Heap) -> &'static str {
    match heap.kind {
        Kind::Glibc => "glibc's malloc",
        Kind::LuaJit => "LuaJIT's allocator",
        Kind::Jemalloc => "jemalloc",
        Kind::Mimalloc => "mimalloc",
        Kind::Musl => "musl's malloc",
        Kind::Tcmalloc => "tcmalloc",
        Kind::CPython => "CPython's obmalloc",
        Kind::Ebbtide => "Ebbtide's malloc",
        Kind::Unknown => "an unknown allocator",
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{gib, mib};
    use super::*;
    use ebbtide_heaps::{Certainty, Collector, Corruption, SizeClass};
    use ebbtide_observe::host::HostSample;
    use ebbtide_observe::process::Detail;
    use ebbtide_observe::shared::SharedMemory;

    /// A heap of 400 MiB in memory of which this much lives, is returnable and is pinned.
    fn heap(kind: Kind, live: u64, returnable: u64, pinned: u64) -> Heap {
        let figures = Figures {
            mapped: mib(400),
            resident: mib(400),
            live: mib(live),
            free: mib(returnable + pinned),
            returnable: mib(returnable),
            returnable_by_trim: Some(mib(returnable)),
            pinned_free: mib(pinned),
            ..Figures::default()
        };
        Heap { figures, ..Heap::new(kind) }
    }

    fn arena(name: &str, returnable: u64) -> Arena {
        let figures = Figures { returnable: mib(returnable), ..Figures::default() };
        Arena { address: 0, name: name.into(), figures, collector: None }
    }

    fn causes(heap: Heap) -> Vec<Cause> {
        watched_causes(heap, None)
    }

    fn watched_causes(heap: Heap, used: Option<&Used>) -> Vec<Cause> {
        let mut host = HostSample::default();
        host.meminfo.mem_total = gib(16);
        let mut detail = Detail::default();
        detail.counters.anonymous = mib(400);
        let subject = Subject {
            detail: &detail,
            host: &host,
            limit: None,
            shared: &SharedMemory::default(),
            fork: None,
            cow: &[],
            jvm: None,
            heaps: &[heap],
            used,
            may_lock: false,
        };
        let mut findings = rule(&subject);
        findings.extend(is_answered(&subject).then(|| huge_blocks(&subject)).flatten());
        for finding in &findings {
            assert!(!finding.evidence.is_empty() && !finding.not.is_empty(), "{finding:?}");
            assert!(finding.returnable <= finding.bytes, "{finding:?}");
        }
        findings.iter().map(|finding| finding.cause).collect()
    }

    #[test]
    fn what_fills_the_heap_is_its_cause() {
        assert_eq!(causes(heap(Kind::Glibc, 390, 5, 5)), [], "it lives");
        assert_eq!(causes(heap(Kind::Glibc, 80, 300, 20)), [Cause::AllocatorRetention]);
        assert_eq!(causes(heap(Kind::Jemalloc, 80, 300, 20)), [Cause::AllocatorRetention]);
        assert_eq!(causes(heap(Kind::Glibc, 180, 20, 200)), [Cause::HeapFragmentation]);
        assert_eq!(causes(heap(Kind::Unknown, 80, 300, 20)), [], "nobody looked inside");
    }

    #[test]
    fn arenas_that_each_keep_a_peak() {
        let mut many = heap(Kind::Glibc, 80, 300, 20);
        many.arenas = vec![arena("main", 20), arena("thread 1", 100), arena("thread 2", 100)];
        assert_eq!(causes(many.clone()), [Cause::AllocatorRetention], "two are not many");
        many.arenas.extend([arena("thread 3", 40), arena("thread 4", 40)]);
        assert_eq!(causes(many.clone()), [Cause::ArenaMultiplication]);
        many.arenas[0] = arena("main", 290);
        many.arenas.iter_mut().skip(1).for_each(|arena| arena.figures.returnable = mib(2));
        assert_eq!(causes(many), [Cause::AllocatorRetention], "the main one has it");
    }

    #[test]
    fn a_heap_that_was_not_read_to_the_end_explains_nothing() {
        let mut torn = heap(Kind::Glibc, 80, 300, 20);
        torn.certainty = Certainty { unresolved: mib(100), ..Certainty::default() };
        assert_eq!(causes(torn), []);
        let mut damaged = heap(Kind::Glibc, 80, 300, 20);
        damaged.corruptions.push(Corruption { address: 1, what: "a size of 0".into() });
        assert_eq!(causes(damaged), []);
    }

    #[test]
    fn garbage_not_yet_found() {
        let mut lua = heap(Kind::LuaJit, 390, 5, 5);
        lua.arenas = vec![arena("state 1", 5)];
        let count = |total, estimate| {
            let estimate = mib(estimate);
            Some(Collector {
                total: mib(total),
                estimate: Some(estimate),
                threshold: estimate * 2,
                phase: "pause",
            })
        };
        lua.arenas[0].collector = count(390, 380);
        assert_eq!(causes(lua.clone()), [], "what the last cycle found alive");
        lua.arenas[0].collector = count(390, 10);
        assert_eq!(causes(lua), [Cause::GcHeadroom]);
    }

    #[test]
    fn a_few_huge_blocks_are_doubt() {
        let mut huge = heap(Kind::Glibc, 390, 5, 5);
        let class =
            |up_to, live_count| SizeClass { up_to, live_count, live: mib(380), ..SizeClass::default() };
        huge.histogram = vec![class(mib(448), 1)];
        assert_eq!(causes(huge.clone()), [Cause::Undetermined]);
        let used = |seconds, cpu_ms, untouched| {
            let (watched, cpu) = (Duration::from_secs(seconds), Duration::from_millis(cpu_ms));
            Used { watched, cpu, untouched: mib(untouched) }
        };
        assert_eq!(watched_causes(huge.clone(), Some(&used(12, 500, 370))), [Cause::CapacitySlack]);
        assert_eq!(watched_causes(huge.clone(), Some(&used(12, 500, 20))), [], "data in use");
        let idle = used(60, 0, 380);
        assert_eq!(watched_causes(huge.clone(), Some(&idle)), [Cause::Undetermined], "nothing ran");
        let short = used(5, 900, 380);
        assert_eq!(watched_causes(huge.clone(), Some(&short)), [Cause::Undetermined], "too short");
        huge.histogram = vec![class(mib(2), 190)];
        assert_eq!(causes(huge.clone()), [], "many");
        huge.histogram = vec![class(Bytes(64), 6 << 20)];
        assert_eq!(causes(huge), [], "small");
    }
}
