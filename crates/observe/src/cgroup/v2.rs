//! A group's files in v2.

use super::{CgroupSample, Events, Group, MemoryStat, Pids, Version};
use crate::ReadError;
use crate::host::Pressure;
use std::path::PathBuf;

pub(super) fn sample(mut group: Group, path: PathBuf) -> Result<CgroupSample, ReadError> {
    // cgroup.controllers is in every group, with or without a memory controller: without it it is gone.
    group.dir.read("cgroup.controllers", &mut Vec::new())?;
    let stat = group.text("memory.stat").unwrap_or_default();
    let (mut descendants, mut dying) = (None, None);
    group.keyed("cgroup.stat", |key, value| match key {
        b"nr_descendants" => descendants = Some(value),
        b"nr_dying_descendants" => dying = Some(value),
        _ => {}
    });
    Ok(CgroupSample {
        path,
        version: Version::V2,
        current: group.bytes("memory.current"),
        peak: group.bytes("memory.peak"),
        limit: group.limit("memory.max"),
        high: group.limit("memory.high"),
        low: group.bytes("memory.low"),
        min: group.bytes("memory.min"),
        soft_limit: None,
        swap: group.bytes("memory.swap.current"),
        swap_limit: group.limit("memory.swap.max"),
        memory_and_swap_limit: None,
        stat: MemoryStat::parse_v2(&stat),
        own: None,
        kmem: None,
        kmem_tcp: None,
        events: events(&mut group),
        pressure: Pressure::read(&group.dir, "memory.pressure").ok(),
        descendants,
        dying,
        pids: pids(&mut group),
        unread: group.unread,
    })
}

fn events(group: &mut Group) -> Events {
    let mut events = Events::default();
    group.keyed("memory.events", |key, value| match key {
        b"low" => events.low = value,
        b"high" => events.high = value,
        b"max" => events.max = value,
        b"oom" => events.oom = value,
        b"oom_kill" => events.oom_kill = value,
        b"oom_group_kill" => events.oom_group_kill = value,
        _ => {}
    });
    events
}

/// pids.current and pids.max, which v1's pids hierarchy has under the same names.
pub(super) fn pids(group: &mut Group) -> Option<Pids> {
    let current = group.number("pids.current")?;
    Some(Pids { current, max: group.number("pids.max") })
}
