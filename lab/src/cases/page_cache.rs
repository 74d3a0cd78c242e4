//! `page-cache`: file pages charged to a cgroup, counted as its working set though the kernel can drop them.

use crate::actor::Actor;
use crate::case::{Case, Need, Noise, Truth, is};
use crate::cgroup::{self, Group};
use crate::noise::read_through;
use crate::region::{Kind, PAGE, Region};
use crate::stage::Stage;
use anyhow::{Context, Result};
use ebbtide_observe::Bytes;
use std::io::Seek;

const TRUTH: Truth = is("page-cache").near("file", 15);
const NEEDS: &[Need] = &[Need::Root, Need::MemoryCgroup, Need::Disk(Bytes::ZERO)];

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::cgroup("page-cache/working-set", "a cgroup of 512 MB full of a file read twice", TRUTH, |s| {
        reader(s, Bytes::from_mib(512), Bytes::from_mib(420), Bytes::from_mib(50), 2)
    })
    .needs(NEEDS),
    Case::cgroup("page-cache/working-set-1g", "a cgroup of 1 GB full of a file read twice", TRUTH, |s| {
        reader(s, Bytes::from_gib(1), Bytes::from_mib(850), Bytes::from_mib(100), 2)
    })
    .needs(NEEDS)
    .noise(&[Noise::Small(20)]),
    Case::cgroup(
        "page-cache/small-service",
        "a service of 20 MB under a limit of 256 MB of cache",
        TRUTH,
        |s| reader(s, Bytes::from_mib(256), Bytes::from_mib(215), Bytes::from_mib(20), 3),
    )
    .needs(NEEDS),
    Case::cgroup("page-cache/memory-high", "a cgroup at its memory.high, most of it cache", TRUTH, high)
        .needs(&[Need::Root, Need::CgroupV2, Need::Disk(Bytes::ZERO)]),
    Case::cgroup(
        "page-cache/empty-cgroup",
        "a cgroup of 400 MB of cache whose last process has ended",
        TRUTH,
        empty,
    )
    .needs(NEEDS),
];

/// A process in a cgroup limited to `limit` reads a file of `file` `times` over, beside `own` of its own.
pub(super) fn reader(stage: &mut Stage, limit: Bytes, file: Bytes, own: Bytes, times: u32) -> Result<()> {
    let scale = stage.size(limit).share_of(limit);
    let [limit, file, own] = [limit, file, own].map(|bytes| Bytes(bytes.scaled(scale).0 >> 12 << 12));
    let group = cgroup::memory().context("no memory controller")?.create(&mut stage.journal, "reader")?;
    group.limit(limit)?;
    stage.bytes("limit", limit);
    let actor = read_in(stage, &group, file, own, times)?;
    stage.cast(actor);
    stage.bytes("anon", group.stat_of("anon")?);
    stage.bytes("active_file", group.stat_of("active_file")?);
    charged(stage, &group, file)
}

fn empty(stage: &mut Stage) -> Result<()> {
    let limit = stage.size(Bytes::from_mib(512));
    let group = cgroup::memory().context("no memory controller")?.create(&mut stage.journal, "reader")?;
    group.limit(limit)?;
    let file = Bytes(limit.0 / 4 * 3);
    drop(read_in(stage, &group, file, Bytes::from_mib(1), 2)?);
    charged(stage, &group, file)
}

/// Under memory.high the kernel slows the cgroup's processes down instead of killing them.
fn high(stage: &mut Stage) -> Result<()> {
    let high = stage.size(Bytes::from_mib(256));
    let group = cgroup::memory().context("no memory controller")?.create(&mut stage.journal, "reader")?;
    group.throttle(high)?;
    let file = high.scaled(0.85);
    let actor = read_in(stage, &group, Bytes(file.0 >> 12 << 12), high.scaled(0.1), 2)?;
    stage.cast(actor);
    charged(stage, &group, file)
}

fn charged(stage: &mut Stage, group: &Group, file: Bytes) -> Result<()> {
    let inactive = group.stat_of("inactive_file")?;
    stage.bytes("working_set", group.usage()? - inactive);
    stage.target_group(group);
    stage.verify("file", group.stat_of("file")?, file, 10)
}

fn read_in(stage: &mut Stage, group: &Group, file: Bytes, own: Bytes, times: u32) -> Result<Actor> {
    let (_, mut file) = stage.sparse_file(file)?;
    Actor::ready(|line| {
        group.enter()?;
        let mut heap = Region::anon(own, Kind::Private)?;
        heap.write_every(PAGE, heap.all());
        for _ in 0..times {
            file.rewind()?;
            read_through(&mut file)?;
        }
        line.ready()?;
        line.park()
    })
}
