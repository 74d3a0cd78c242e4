//! What a parent and its forked child no longer share.
//!
//! After a fork every page is shared until one of the two writes to it; then each has its own. In smaps such a
//! page is private in the child, at an address where the parent has memory too. Memory that the child took for
//! itself afterwards lies elsewhere, or where the parent has nothing. The figure is an upper bound where both
//! grew into the same range after the fork.

use super::{Process, VmFlags};
use crate::{Bytes, ReadError};

/// Pages of `child` that are its own where `parent` has anonymous memory as well.
pub fn copied(parent: &Process, child: &Process) -> Result<Bytes, ReadError> {
    let mut theirs: Vec<(u64, u64, Bytes)> = Vec::new();
    parent.each_area(|area| {
        let private = !area.mapping.perms.shared && area.counters.anonymous > Bytes::ZERO;
        let stack = area.flags.is_some_and(|flags| flags.has(VmFlags::GROWS_DOWN));
        if private && !stack {
            theirs.push((area.mapping.start, area.mapping.end, area.counters.anonymous));
        }
        true
    })?;
    let mut copied = Bytes::ZERO;
    child.each_area(|area| {
        let (start, end) = (area.mapping.start, area.mapping.end);
        let own = area.counters.private_dirty.min(area.counters.anonymous);
        if own > Bytes::ZERO && !area.mapping.perms.shared {
            // Mappings stand in the order of addresses; the first that ends above `start` may overlap.
            let from = theirs.partition_point(|&(_, parent_end, _)| parent_end <= start);
            let overlapping = theirs[from..].iter().take_while(|&&(parent_start, _, _)| parent_start < end);
            copied += own.min(overlapping.map(|&(_, _, anonymous)| anonymous).sum());
        }
        true
    })?;
    Ok(copied)
}
