//! `cow-after-fork`: pages that parent and child shared until one of them wrote.

use crate::actor::Actor;
use crate::case::{Case, Need, Noise, Truth, is};
use crate::procfs;
use crate::region::{Kind, PAGE, Region};
use crate::stage::Stage;
use anyhow::Result;
use ebbtide_observe::Bytes;
use serde_json::json;

const TRUTH: Truth = is("cow-after-fork").near("copied", 10);
const SMALL: Bytes = Bytes::from_mib(400);
const LARGE: Bytes = Bytes::from_mib(1200);

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::process(
        "cow-after-fork/parent-writes-half",
        "a parent of 400 MB rewrote half after its fork",
        TRUTH,
        |s| {
            let [parent, _] = forked(s, SMALL, Writer::Parent, 0.5)?;
            s.target(parent);
            Ok(())
        },
    ),
    Case::process(
        "cow-after-fork/child-writes-half",
        "a child rewrote half of its parent's 400 MB",
        TRUTH,
        |s| {
            let [_, child] = forked(s, SMALL, Writer::Child, 0.5)?;
            s.target(child);
            Ok(())
        },
    ),
    Case::host(
        "cow-after-fork/host-parent-writes",
        "a parent of 1.2 GB rewrote all after its fork",
        TRUTH,
        |s| forked(s, LARGE, Writer::Parent, 1.0).map(drop),
    ),
    Case::host(
        "cow-after-fork/host-child-writes",
        "a child rewrote half of its parent's 1.2 GB",
        TRUTH,
        |s| forked(s, LARGE, Writer::Child, 0.5).map(drop),
    ),
    Case::host(
        "cow-after-fork/beside-page-cache",
        "the rewriting parent beside 2 GB just read",
        TRUTH,
        |s| forked(s, LARGE, Writer::Parent, 1.0).map(drop),
    )
    .needs(&[Need::Disk(Bytes::ZERO)])
    .noise(&[Noise::PageCache(Bytes::from_gib(2))]),
    Case::host(
        "cow-after-fork/reference-counts",
        "12 workers that wrote to 100 MB each of what their parent had loaded",
        TRUTH,
        |s| workers(s, Bytes::from_mib(150), 12),
    ),
];

/// Who writes after the fork.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Writer {
    Parent,
    Child,
}

/// A parent with `len` forks, then `writer` rewrites `share` of it. The pids of both.
fn forked(stage: &mut Stage, len: Bytes, writer: Writer, share: f64) -> Result<[i32; 2]> {
    let len = stage.size(len);
    let part = len.scaled(share).0 as usize / PAGE * PAGE;
    let mut parent = Actor::fork(|line| {
        let mut heap = Region::anon(len, Kind::Private)?;
        heap.write_every(PAGE, heap.all());
        let child = Actor::ready(|line| {
            if writer == Writer::Child {
                heap.write_every(PAGE, 0..part);
            }
            line.ready()?;
            line.park()
        })?;
        if writer == Writer::Parent {
            heap.write_every(PAGE, 0..part);
        }
        line.say(&json!({ "child": child.pid() }))?;
        line.park()
    })?;
    let child = i32::try_from(parent.hear_number("child")?)?;
    let parent = stage.cast(parent);
    copied(stage, &[child], Bytes(part as u64))?;
    Ok([parent, child])
}

/// A parent loads `len`; each of `count` workers writes to two thirds of its pages, as reference counts do.
fn workers(stage: &mut Stage, len: Bytes, count: u32) -> Result<()> {
    let (len, count) = (stage.size(len), stage.machine.count(count));
    let mut heap = Region::anon(len, Kind::Private)?;
    heap.write_every(PAGE, heap.all());
    let part = len.0 as usize / PAGE * 2 / 3 * PAGE;
    let mut pids = Vec::new();
    for _ in 0..count {
        let worker = Actor::ready(|line| {
            heap.write_every(PAGE, 0..part);
            line.ready()?;
            line.park()
        })?;
        pids.push(stage.cast(worker));
    }
    stage.hold(heap);
    copied(stage, &pids, Bytes(part as u64) * u64::from(count))
}

/// Verifies what is no longer shared: the children's Private_Dirty, whoever wrote.
fn copied(stage: &mut Stage, children: &[i32], expected: Bytes) -> Result<()> {
    let mut dirty = Bytes::ZERO;
    for &pid in children {
        dirty += procfs::rollup(pid)?.bytes("Private_Dirty")?;
    }
    stage.verify("copied", dirty, expected, 5)
}
