//! A group's files in v1.

use super::{CgroupSample, Events, Group, MemoryStat, Version};
use crate::{Bytes, ReadError, scan};
use std::path::PathBuf;

pub(super) fn sample(mut group: Group, path: PathBuf) -> Result<CgroupSample, ReadError> {
    let mut stat = Vec::new();
    group.dir.read("memory.stat", &mut stat)?;
    let own = own(&stat);
    let stat = MemoryStat::parse_v1(&stat);
    Ok(CgroupSample {
        current: group.bytes("memory.usage_in_bytes"),
        peak: group.bytes("memory.max_usage_in_bytes"),
        limit: group.limit("memory.limit_in_bytes"),
        soft_limit: group.limit("memory.soft_limit_in_bytes"),
        swap: stat.swap,
        memory_and_swap_limit: group.limit("memory.memsw.limit_in_bytes"),
        stat,
        own,
        kmem: group.bytes("memory.kmem.usage_in_bytes"),
        kmem_tcp: group.bytes("memory.kmem.tcp.usage_in_bytes"),
        events: events(&mut group),
        unread: group.unread,
        ..CgroupSample::new(path, Version::V1)
    })
}

/// The group's own `cache` and `rss`.
fn own(stat: &[u8]) -> Option<Bytes> {
    let value = |wanted: &[u8]| {
        let mut lines = scan::lines(stat).filter_map(|line| scan::key_value(line, b' '));
        lines.find(|(key, _)| *key == wanted).and_then(|(_, value)| scan::number(value))
    };
    Some(Bytes(value(b"cache")?) + Bytes(value(b"rss")?))
}

fn events(group: &mut Group) -> Events {
    let mut events = Events { max: group.number("memory.failcnt").unwrap_or_default(), ..Events::default() };
    group.keyed("memory.oom_control", |key, value| {
        if key == b"oom_kill" {
            events.oom_kill = value;
        }
    });
    events
}
