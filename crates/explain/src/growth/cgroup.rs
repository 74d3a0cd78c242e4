//! A cgroup over time: a climb of its anonymous memory is somebody's in it, and says no more than that.

use super::{Growth, PROCESS_NOISE, Track};
use crate::{Cause, Finding};
use ebbtide_observe::Bytes;

/// Judges the counters of the group at `path` and names what their growth means.
pub fn cgroup(tracks: &[Track], path: &str) -> (Growth, Vec<Finding>) {
    let growth = Growth::judge(tracks, PROCESS_NOISE);
    let finding = growth.climbs("anon").map(|anon| {
        let summary =
            format!("anonymous memory of its processes {}: look at the process that grows.", anon.verdict);
        Finding::new(Cause::Undetermined, anon.gained(), 0.5, summary)
            .evidence(
                format!("{path}/memory.stat"),
                format!("anon {} to {} in {:.0} s", anon.from, anon.to, growth.span.as_secs_f64()),
            )
            .not(Cause::Leak, "not shown: that a process grows does not say that it leaks")
            .not(Cause::PageCache, "anonymous memory climbs, not file pages")
            .lever(
                "look-closer",
                "ebb ps; ebb explain PID --for 60s",
                Bytes::ZERO,
                "finds the process that grows",
            )
    });
    (growth, finding.into_iter().collect())
}
