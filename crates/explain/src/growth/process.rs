//! One process over time. What a climb of its anonymous memory is, the kernel's files decide only sometimes:
//! growth without page faults is khugepaged's doing, and memory that rises in step with things the program
//! opens and never closes is a leak. A climb alone may be a warm-up, a cache, or work in progress, so it is
//! `undetermined`: only the live bytes inside the heap can tell.

use super::inside::{self, HeapWatch};
use super::{Growth, Judged, PROCESS_NOISE, Track};
use crate::trend::Series;
use crate::{Cause, Finding, count, in_step};
use ebbtide_observe::Bytes;
use std::time::Duration;

/// Open descriptors by what they say of the program, at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Descriptors {
    /// All of them.
    pub all: u64,
    /// Sockets: they come and go with clients.
    pub sockets: u64,
    /// Those nobody opens twice for a reason: the second and further ones to one path, deleted files, and
    /// anonymous inodes (eventfd, epoll, timerfd).
    pub suspicious: u64,
}

/// A process while it was watched.
#[derive(Debug, Clone)]
pub struct ProcessWatch {
    /// Its counters; "anon" is RssAnon plus swap.
    pub tracks: Vec<Track>,
    /// Its open descriptors.
    pub descriptors: Series<u64>,
    /// Its threads.
    pub threads: Series<u64>,
    /// Descriptors at the beginning and at the end.
    pub opened: [Descriptors; 2],
    /// Of the threads started while it was watched: how many have hardly run (at most two ticks of CPU).
    pub idle_new_threads: u64,
    /// CPU time it used meanwhile.
    pub cpu: Duration,
    /// Memory that its page faults brought in.
    pub faulted: Bytes,
    /// AnonHugePages at the beginning and at the end.
    pub huge: [Bytes; 2],
    /// The inside of its heaps, where they could be read.
    pub heap: Option<HeapWatch>,
    /// Its id.
    pub pid: u32,
}

/// Judges the counters and names what their growth means.
pub fn process(watch: &ProcessWatch) -> (Growth, Vec<Finding>) {
    let growth = Growth::judge(&watch.tracks, PROCESS_NOISE);
    let finding = growth.climbs("anon").map(|anon| climb(watch, anon, &growth));
    (growth, finding.into_iter().collect())
}

fn climb(watch: &ProcessWatch, anon: &Judged, growth: &Growth) -> Finding {
    refilled(watch, anon)
        .or_else(|| leak(watch, anon, growth))
        .or_else(|| inside::explained(watch, anon, growth))
        .unwrap_or_else(|| undetermined(watch, anon, growth))
}

/// Pages that nobody faulted in: khugepaged gives whole huge pages for a few small ones.
fn refilled(watch: &ProcessWatch, anon: &Judged) -> Option<Finding> {
    let gained = anon.gained();
    let huge = watch.huge[1] - watch.huge[0];
    if huge < gained.scaled(0.5) || watch.faulted > gained.scaled(0.2) {
        return None;
    }
    let summary = format!(
        "it grows by {gained} while it faults in only {}: khugepaged puts huge pages where there were small ones.",
        watch.faulted
    );
    let finding = Finding::new(Cause::ThpBloat, gained, 0.9, summary)
        .evidence(
            file(watch, "smaps_rollup"),
            format!("AnonHugePages {} to {}", watch.huge[0], watch.huge[1]),
        )
        .evidence(
            file(watch, "stat"),
            format!("{} of page faults, {:.1} s of CPU", watch.faulted, watch.cpu.as_secs_f64()),
        )
        .not(Cause::Leak, "a program that asks for memory faults it in: this one did not");
    Some(finding)
}

/// Growth in step with what is opened and never closed, or with threads that are started and never run again.
fn leak(watch: &ProcessWatch, anon: &Judged, growth: &Growth) -> Option<Finding> {
    let series = &watch.tracks.iter().find(|track| track.id == "anon")?.series;
    let [before, after] = watch.opened;
    let opened = after.all.saturating_sub(before.all);
    let suspicious = after.suspicious.saturating_sub(before.suspicious);
    let clients = after.sockets.saturating_sub(before.sockets);
    let finding = |evidence: String, source: &str| {
        let summary = format!("live memory climbs by {}: {evidence}.", anon.verdict_rate());
        Finding::new(Cause::Leak, anon.gained(), 0.75, summary)
            .evidence(file(watch, "status"), climbed(anon, growth))
            .evidence(file(watch, source), evidence)
            .not(Cause::PageCache, "anonymous memory climbs, not file pages")
            .not(
                Cause::AllocatorRetention,
                "what is freed and kept does not grow in step with what is opened",
            )
    };
    if let Some(step) = in_step(series, &watch.descriptors)
        && opened >= 8
        && suspicious * 10 >= opened * 8
    {
        let says = format!(
            "{} descriptors were opened and not closed, {} of them to files already open, deleted files or the like; \
             memory rises in step with them, {} each",
            count(opened),
            count(suspicious),
            Bytes(step.per.max(0.0) as u64)
        );
        return Some(finding(says, "fd"));
    }
    let started = watch.threads.samples().last()?.1.saturating_sub(watch.threads.samples().first()?.1);
    if let Some(step) = in_step(series, &watch.threads)
        && started >= 8
        && clients * 5 <= started
        && watch.idle_new_threads * 10 >= started * 9
    {
        let says = format!(
            "{} threads were started and none ended, {} of them have hardly run; memory rises in step with them, {} each",
            count(started),
            count(watch.idle_new_threads),
            Bytes(step.per.max(0.0) as u64)
        );
        return Some(finding(says, "task"));
    }
    None
}

fn undetermined(watch: &ProcessWatch, anon: &Judged, growth: &Growth) -> Finding {
    let summary = format!(
        "its anonymous memory climbs by {}. Whether that is a leak, a cache that fills or work in progress, its \
         page counters cannot tell.",
        anon.verdict_rate()
    );
    let [before, after] = watch.opened;
    Finding::new(Cause::Undetermined, anon.gained(), 0.5, summary)
        .evidence(file(watch, "status"), climbed(anon, growth))
        .evidence(
            file(watch, "fd"),
            format!("{} descriptors at first, {} at last", count(before.all), count(after.all)),
        )
        .not(
            Cause::Leak,
            "not shown: nothing it opens or starts rises in step, and it was watched for a short time only",
        )
        .not(Cause::PageCache, "it is anonymous memory, not file pages")
        .lever(
            "watch-longer",
            format!("ebb explain {} --for 10m", watch.pid),
            Bytes::ZERO,
            "decides between a climb and a warm-up; live against free bytes inside the heap decide the rest",
        )
}

pub(super) fn climbed(anon: &Judged, growth: &Growth) -> String {
    let Judged { from, to, verdict, .. } = anon;
    format!("RssAnon and swap {from} to {to} in {:.0} s: {verdict}", growth.span.as_secs_f64())
}

fn file(watch: &ProcessWatch, name: &str) -> String {
    format!("/proc/{}/{name}", watch.pid)
}

impl Judged {
    /// How fast it climbs, for a sentence.
    pub(super) fn verdict_rate(&self) -> String {
        match &self.verdict {
            crate::Verdict::Climb(slope) => slope.rate.to_string(),
            other => other.to_string(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TICKS: u32 = 40;

    fn series<Q: crate::trend::Quantity>(of: impl Fn(u32) -> Q) -> Series<Q> {
        Series::new((0..TICKS).map(|i| (Duration::from_millis(500 * u64::from(i)), of(i))))
    }

    fn watch(anon: impl Fn(u32) -> u64) -> ProcessWatch {
        let track = Track { id: "anon", remark: "", series: series(|i| Bytes::from_kib(anon(i))) };
        ProcessWatch {
            tracks: vec![track],
            descriptors: series(|_| 10u64),
            threads: series(|_| 1u64),
            opened: [Descriptors { all: 10, ..Descriptors::default() }; 2],
            idle_new_threads: 0,
            cpu: Duration::from_secs(3),
            faulted: Bytes::from_gib(1),
            huge: [Bytes::ZERO; 2],
            heap: None,
            pid: 7,
        }
    }

    fn cause(watch: &ProcessWatch) -> Option<Cause> {
        let (_, findings) = process(watch);
        findings.iter().for_each(|f| assert!(!f.evidence.is_empty() && !f.not.is_empty()));
        findings.first().map(|f| f.cause)
    }

    #[test]
    fn a_climb_alone_is_undetermined() {
        assert_eq!(cause(&watch(|i| 100_000 + 2_000 * u64::from(i))), Some(Cause::Undetermined));
        assert_eq!(cause(&watch(|_| 100_000)), None);
        assert_eq!(cause(&watch(|i| 100_000 + 8_000 * u64::from(i % 8))), None, "a saw-tooth");
    }

    #[test]
    fn files_never_closed_make_it_a_leak() {
        let mut w = watch(|i| 100_000 + 2_000 * u64::from(i));
        w.descriptors = series(|i| 10 + u64::from(i));
        w.opened[1] = Descriptors { all: 49, sockets: 0, suspicious: 39 };
        assert_eq!(cause(&w), Some(Cause::Leak));
        w.opened[1] = Descriptors { all: 49, sockets: 39, suspicious: 0 };
        assert_eq!(cause(&w), Some(Cause::Undetermined), "clients come");
        w.opened[1] = Descriptors { all: 49, sockets: 0, suspicious: 0 };
        assert_eq!(cause(&w), Some(Cause::Undetermined), "different files: a store that opens its tables");
    }

    #[test]
    fn threads_that_never_run_again_make_it_a_leak() {
        let mut w = watch(|i| 100_000 + 2_000 * u64::from(i));
        w.threads = series(|i| 1 + u64::from(i));
        w.idle_new_threads = 39;
        assert_eq!(cause(&w), Some(Cause::Leak));
        w.opened[1].sockets = 39;
        assert_eq!(cause(&w), Some(Cause::Undetermined), "a thread for each client");
        w.opened[1].sockets = 0;
        w.idle_new_threads = 10;
        assert_eq!(cause(&w), Some(Cause::Undetermined), "a pool that works");
    }

    #[test]
    fn live_bytes_tell_a_leak_from_what_is_kept() {
        let mut w = watch(|i| 100_000 + 2_000 * u64::from(i));
        let live = |of: fn(u64) -> u64| Track {
            id: inside::LIVE,
            remark: "",
            series: Series::new(
                (0..TICKS).map(|i| (Duration::from_secs(u64::from(i)), Bytes::from_kib(of(u64::from(i))))),
            ),
        };
        w.tracks.push(live(|i| 50_000 + 2_000 * i));
        assert_eq!(cause(&w), Some(Cause::Undetermined), "nobody looked inside");
        w.heap =
            Some(HeapWatch { gained: vec![(Bytes(64), 1_000, Bytes::from_mib(70))], ..HeapWatch::default() });
        assert_eq!(cause(&w), Some(Cause::Leak));
        w.opened[1].sockets = 30;
        assert_eq!(cause(&w), Some(Cause::Undetermined), "clients come");
        w.opened[1].sockets = 0;
        w.tracks[1] = live(|i| 50_000 + 80_000.min(8_000 * i));
        assert_eq!(cause(&w), Some(Cause::Undetermined), "a cache that reached its limit");
        w.tracks[1] = live(|_| 50_000);
        w.heap = Some(HeapWatch { returnable: [Bytes::ZERO, Bytes::from_mib(70)], ..HeapWatch::default() });
        assert_eq!(cause(&w), Some(Cause::AllocatorRetention));
        w.heap = Some(HeapWatch { pinned: [Bytes::ZERO, Bytes::from_mib(70)], ..HeapWatch::default() });
        assert_eq!(cause(&w), Some(Cause::HeapFragmentation));
    }

    #[test]
    fn a_short_climb_of_live_bytes_is_no_leak_yet() {
        let mut w = watch(|i| 100_000 + 2_000 * u64::from(i));
        let samples = (0..TICKS)
            .map(|i| (Duration::from_millis(400 * u64::from(i)), Bytes::from_kib(2_000 * u64::from(i))));
        w.tracks[0].series = Series::new(samples.clone());
        w.tracks.push(Track { id: inside::LIVE, remark: "", series: Series::new(samples) });
        w.heap = Some(HeapWatch::default());
        assert_eq!(cause(&w), Some(Cause::Undetermined));
    }

    #[test]
    fn growth_without_faults_is_the_kernels() {
        let mut w = watch(|i| 100_000 + 2_000 * u64::from(i));
        w.faulted = Bytes::from_mib(1);
        w.huge = [Bytes::ZERO, Bytes::from_mib(78)];
        assert_eq!(cause(&w), Some(Cause::ThpBloat));
    }
}
