//! Ranges of addresses: in order, as one where they touch, one less others.

use std::ops::Range;

/// `ranges` in order, those that touch or overlap as one.
pub(crate) fn merged(mut ranges: Vec<Range<u64>>) -> Vec<Range<u64>> {
    ranges.sort_by_key(|range| range.start);
    let mut merged: Vec<Range<u64>> = Vec::with_capacity(ranges.len());
    for range in ranges.into_iter().filter(|range| !range.is_empty()) {
        match merged.last_mut() {
            Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
            _ => merged.push(range),
        }
    }
    merged
}

/// Adds `range` to `ranges`, to the last one where they touch: the kernel keeps neighbours apart that differ in
/// nothing a program knows of.
pub(crate) fn append(ranges: &mut Vec<Range<u64>>, range: Range<u64>) {
    match ranges.last_mut() {
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

/// The parts of `range` that none of `claims`, in order and without overlaps, takes.
pub(crate) fn without(range: Range<u64>, claims: &[Range<u64>]) -> Vec<Range<u64>> {
    let (mut rest, mut at) = (Vec::new(), range.start);
    let first = claims.partition_point(|claim| claim.end <= range.start);
    for claim in claims[first..].iter().take_while(|claim| claim.start < range.end) {
        if claim.start > at {
            rest.push(at..claim.start);
        }
        at = claim.end;
    }
    if at < range.end {
        rest.push(at..range.end);
    }
    rest
}
