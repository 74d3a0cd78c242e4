//! A report as tracing events: one for the cascade, one for each of its largest buffers.

use crate::Report;
use tracing::{debug, info, warn};

/// Tells of a cascade that has ended.
pub(crate) fn done(owner: &'static str, report: &Report) {
    let (time_us, longest_us) = (report.time.as_micros() as u64, report.longest_slice.as_micros() as u64);
    info!(
        owner,
        slack_bytes = report.slack.0,
        returned_bytes = report.returned.0,
        cut = report.cut,
        busy = report.busy,
        resting = report.resting,
        too_large_to_copy = report.too_large_to_copy,
        slices = report.slices,
        time_us,
        longest_slice_us = longest_us,
        "gave back memory"
    );
    if report.refused > 0 {
        warn!(
            owner,
            refused = report.refused,
            "the allocator refused smaller buffers; they are as they were"
        );
    }
    for spot in &report.spots {
        debug!(owner, path = %spot.path, kind = spot.kind, returned_bytes = spot.returned.0, "cut");
    }
}
