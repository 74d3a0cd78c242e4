//! A climb seen from inside the heap: whether what lives grows, or what is free.
//!
//! Live bytes that climb through a whole watch are a leak as far as a watch can tell; a cache that still fills
//! looks the same. So it takes a watch of some length, growth that no clients explain, and is said with doubt.

use super::{Growth, Judged, ProcessWatch};
use crate::{Cause, Finding, count, in_step};
use ebbtide_observe::Bytes;
use std::time::Duration;

/// A climb of live bytes is called no leak before it was watched for so long: start-up, warm caches and one
/// request's work take seconds.
const LONG_ENOUGH: Duration = Duration::from_secs(20);

/// The share of a process's growth that must lie in its heap for the heap to explain it.
const MOST: f64 = 0.5;

/// The name of the track of live bytes.
pub const LIVE: &str = "heap-live";

/// A process's heaps while it was watched, beside the track [`LIVE`].
#[derive(Debug, Clone, Default)]
pub struct HeapWatch {
    /// Whole free resident pages, at first and at last.
    pub returnable: [Bytes; 2],
    /// Free bytes beside live blocks, at first and at last.
    pub pinned: [Bytes; 2],
    /// The size classes that gained live bytes, most first: (largest size, blocks, bytes).
    pub gained: Vec<(Bytes, u64, Bytes)>,
}

/// What the heap says of a climb of anonymous memory; nothing where it does not explain it.
pub(super) fn explained(watch: &ProcessWatch, anon: &Judged, growth: &Growth) -> Option<Finding> {
    let heap = watch.heap.as_ref()?;
    let live = growth.get(LIVE)?;
    match growth.climbs(LIVE) {
        Some(live) => leak(watch, heap, anon, live, growth),
        None if live.gained().share_of(anon.gained()) < MOST / 2.0 => kept(watch, heap, anon, live, growth),
        None => None,
    }
}

fn leak(
    watch: &ProcessWatch,
    heap: &HeapWatch,
    anon: &Judged,
    live: &Judged,
    growth: &Growth,
) -> Option<Finding> {
    let gained = live.gained();
    if growth.span < LONG_ENOUGH || gained.share_of(anon.gained()) < MOST || is_work(watch, growth) {
        return None;
    }
    let classes: Vec<String> = heap
        .gained
        .iter()
        .take(3)
        .map(|(up_to, blocks, bytes)| format!("{bytes} in {} blocks of up to {up_to}", count(*blocks)))
        .collect();
    let summary = format!(
        "what lives in its heap climbs by {}, all through the watch. A cache that still fills looks the same: one that \
         has a limit stops at it.",
        live.verdict_rate()
    );
    Some(
        Finding::new(Cause::Leak, gained, 0.6, summary)
            .evidence(format!("ebb heap {}", watch.pid), said(live, growth))
            .evidence("live blocks by size", format!("gained {}", classes.join(", ")))
            .evidence(format!("/proc/{}/status", watch.pid), super::process::climbed(anon, growth))
            .not(
                Cause::AllocatorRetention,
                format!(
                    "blocks in use grow; free pages went from {} to {}",
                    heap.returnable[0], heap.returnable[1]
                ),
            )
            .not(Cause::PageCache, "anonymous memory climbs, not file pages")
            .lever(
                "watch-longer",
                format!("ebb explain {} --for 30m", watch.pid),
                Bytes::ZERO,
                "longer than its caches take to fill: a leak goes on",
            ),
    )
}

/// Clients that come and stay, and threads for them, bring live memory that is no leak.
fn is_work(watch: &ProcessWatch, growth: &Growth) -> bool {
    let Some(live) = watch.tracks.iter().find(|track| track.id == LIVE) else { return true };
    let [before, after] = watch.opened;
    let clients = after.sockets.saturating_sub(before.sockets);
    let in_step = in_step(&live.series, &watch.descriptors).is_some()
        || in_step(&live.series, &watch.threads).is_some();
    clients as f64 > growth.span.as_secs_f64() / 10.0 || in_step
}

/// It grows, and what lives in it does not.
fn kept(
    watch: &ProcessWatch,
    heap: &HeapWatch,
    anon: &Judged,
    live: &Judged,
    growth: &Growth,
) -> Option<Finding> {
    let [returnable, pinned] = [heap.returnable, heap.pinned].map(|[before, after]| after - before);
    let (cause, bytes, what) = if returnable >= pinned {
        (Cause::AllocatorRetention, returnable, "whole free pages")
    } else {
        (Cause::HeapFragmentation, pinned, "free bytes beside live blocks")
    };
    if bytes.share_of(anon.gained()) < MOST {
        return None;
    }
    let summary = format!(
        "it grows by {}, and what lives in its heap does not: {bytes} of it are {what}.",
        anon.gained()
    );
    Some(
        Finding::new(cause, bytes, 0.85, summary)
            .evidence(format!("ebb heap {}", watch.pid), said(live, growth))
            .evidence(format!("/proc/{}/status", watch.pid), super::process::climbed(anon, growth))
            .not(Cause::Leak, "a leak is live memory, and that stays level"),
    )
}

fn said(live: &Judged, growth: &Growth) -> String {
    let Judged { from, to, verdict, .. } = live;
    format!("live {from} to {to} in {:.0} s: {verdict}", growth.span.as_secs_f64())
}
