//! `gc-headroom`, and what the kernel's files leave open about a heap: `undetermined`.

use super::Subject;
use crate::{Cause, Finding};
use ebbtide_observe::Bytes;
use ebbtide_observe::process::Kind;

/// A managed heap is worth a word when less than half of it is used.
const MOSTLY_EMPTY: f64 = 0.5;

pub(super) fn gc_headroom(subject: &Subject) -> Vec<Finding> {
    let Some(jvm) = subject.jvm else { return Vec::new() };
    let (committed, used) = (jvm.heap.committed, jvm.heap.used);
    // What was committed and never touched is in no RSS.
    let resident = subject.detail.counters.anonymous;
    let headroom = (committed - used).min(resident - used);
    if headroom < subject.worth() || headroom.share_of(committed) < MOSTLY_EMPTY {
        return Vec::new();
    }
    let since =
        jvm.since_last_collection().map_or("never".to_owned(), |d| format!("{:.0} s ago", d.as_secs_f64()));
    let summary = format!(
        "the Java heap has {committed} from the system and used {used} of it at its last collection ({since}): the rest \
         is room the collector keeps, {headroom} of it resident."
    );
    vec![
        Finding::new(Cause::GcHeadroom, headroom, 0.9, summary)
            .evidence(
                "hsperfdata",
                format!("heap committed {committed}, used {used}, at most {}", jvm.heap.max),
            )
            .evidence(subject.file("smaps"), format!("anonymous memory resident {resident}"))
            .not(Cause::Leak, "what is used after a collection is small; a leak would be in it")
            .not(Cause::AllocatorRetention, "the heap is the JVM's own, not malloc's")
            .lever(
                "collect",
                format!("jcmd {} GC.run", subject.detail.pid),
                headroom.scaled(0.5),
                "stops the program for a full collection; how much goes back depends on the collector",
            )
            .lever(
                "smaller-heap",
                "-Xms and -Xmx lower, -XX:MaxHeapFreeRatio=30, -XX:G1PeriodicGCInterval=60000",
                Bytes::ZERO,
                "takes a restart",
            ),
    ]
}

/// malloc's memory, of which only its own books say what lives. Nothing is said of a process whose memory the
/// kernel's files explain.
pub(super) fn heap(subject: &Subject) -> Option<Finding> {
    let rss = |kind| subject.detail.kinds.get(&kind).map_or(Bytes::ZERO, |total| total.counters.rss);
    let (heap, arenas) = (rss(Kind::Heap), rss(Kind::Arena));
    let malloc = heap + arenas + subject.detail.malloc_blocks;
    if malloc < subject.worth() * 2
        || malloc.share_of(subject.detail.counters.rss) < 0.5
        || subject.jvm.is_some()
    {
        return None;
    }
    let summary = format!(
        "{malloc} of its memory is malloc's: whether that lives, or was freed and is kept, fragmented or spread over \
         arenas, only the allocator's own books tell."
    );
    Some(
        Finding::new(Cause::Undetermined, malloc, 0.5, summary)
            .evidence(subject.file("smaps"), format!("brk heap {heap}, thread arenas {arenas}, large blocks {}", subject.detail.malloc_blocks))
            .evidence(subject.file("status"), format!("VmHWM {}, VmRSS {}", subject.detail.vm.high_water, subject.detail.vm.rss))
            .not(Cause::Leak, "not shown: one look cannot tell whether it grows; ebb explain PID --for 60s does")
            .lever(
                "watch",
                format!("ebb explain {} --for 60s", subject.detail.pid),
                Bytes::ZERO,
                "tells whether it grows; what is free inside, the program's own statistics tell (malloc_info, mallctl)",
            ),
    )
}
