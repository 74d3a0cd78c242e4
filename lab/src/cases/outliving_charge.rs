//! `outliving-charge`: memory charged to what is gone: removed cgroups that page cache keeps alive, and BPF
//! maps whose creator has ended.

use crate::actor::Actor;
use crate::case::{Case, Need, Truth, is};
use crate::cgroup::{Group, Hierarchy};
use crate::journal::Undo;
use crate::stage::Stage;
use crate::{cgroup, noise, procfs, sys};
use anyhow::{Context, Result, ensure};
use ebbtide_observe::Bytes;
use std::ffi::CString;
use std::fs::{self, File};

const TRUTH: Truth = is("outliving-charge");
const CGROUPS: &[Need] = &[Need::Root, Need::MemoryCgroup, Need::Disk(Bytes::ZERO)];
const BPF: &[Need] = &[Need::Root, Need::MemoryCgroup, Need::Bpf];

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::host(
        "outliving-charge/dying-cgroups",
        "6,000 removed cgroups that page cache keeps alive",
        TRUTH,
        |s| dying_on_host(s, 6_000),
    )
    .needs(CGROUPS),
    Case::cgroup(
        "outliving-charge/dying-children",
        "300 MB charged to 300 removed children of a cgroup",
        TRUTH,
        |s| dying_in_parent(s, 300, Bytes::from_mib(1)),
    )
    .needs(CGROUPS),
    Case::cgroup(
        "outliving-charge/dying-large",
        "400 MB charged to 20 removed children of a cgroup",
        TRUTH,
        |s| dying_in_parent(s, 20, Bytes::from_mib(20)),
    )
    .needs(CGROUPS),
    Case::cgroup("outliving-charge/bpf-map", "a pinned BPF map of 256 MB, its creator gone", TRUTH, |s| {
        bpf_map(s, Bytes::from_mib(256))
    })
    .needs(BPF),
    Case::host(
        "outliving-charge/bpf-map-host",
        "a pinned BPF map of 600 MB that nobody holds open",
        TRUTH,
        |s| bpf_map(s, Bytes::from_mib(600)),
    )
    .needs(BPF),
];

/// Removes `count` cgroups in which a file of `len` was read. The files stay, so do their pages, and with
/// them the cgroups (until the kernel reparents file pages, which 6.18 does not).
fn dying(stage: &mut Stage, memory: &Hierarchy, parent: &Group, count: u32, len: Bytes) -> Result<()> {
    let dir = stage.disk_dir(Bytes::ZERO)?;
    let home = memory.home()?;
    let mut visitor = Actor::fork(|line| {
        for n in 0..count {
            let group = parent.child(&format!("job-{n}"))?;
            group.enter()?;
            let path = dir.join(n.to_string());
            File::create(&path)?.set_len(len.0)?;
            noise::read_through(&mut File::open(&path)?)?;
            home.enter()?;
            group.remove()?;
        }
        line.ready()?;
        line.park()
    })?;
    visitor.hear().map(drop)
}

fn dying_on_host(stage: &mut Stage, count: u32) -> Result<()> {
    let count = stage.machine.count(count);
    let memory = cgroup::memory().context("no memory controller")?;
    let parent = memory.create(&mut stage.journal, "jobs")?;
    let before = (kernel_side()?, memory.dying()?);
    dying(stage, &memory, &parent, count, Bytes(4096))?;
    let gone = memory.dying()?.saturating_sub(before.1);
    stage.figure("dying", gone);
    ensure!(gone >= u64::from(count) * 9 / 10, "{gone} of {count} cgroups are dying: no such incident here");
    stage.bytes("kernel_growth", kernel_side()? - before.0);
    Ok(())
}

/// Where a dying cgroup's own memory is.
fn kernel_side() -> Result<Bytes> {
    let meminfo = procfs::meminfo()?;
    Ok(meminfo.bytes("Percpu")? + meminfo.bytes("SUnreclaim")?)
}

fn dying_in_parent(stage: &mut Stage, count: u32, len: Bytes) -> Result<()> {
    let memory = cgroup::memory().context("no memory controller")?;
    let parent = memory.create(&mut stage.journal, "jobs")?;
    let total = stage.size(len * u64::from(count));
    dying(stage, &memory, &parent, count, Bytes(total.0 / u64::from(count)))?;
    ensure!(fs::read_dir(parent.path())?.flatten().all(|e| !e.path().is_dir()), "a child is left");
    stage.at_least("charged", parent.usage()?, Bytes(total.0 / 100 * 95))?;
    stage.target_group(&parent);
    Ok(())
}

/// A process in a cgroup makes a BPF map, pins it and ends.
fn bpf_map(stage: &mut Stage, len: Bytes) -> Result<()> {
    const VALUE: u32 = 4096;
    let len = stage.size(len);
    let memory = cgroup::memory().context("no memory controller")?;
    let group = memory.create(&mut stage.journal, "agent")?;
    let dir = stage.journal.dir().join("bpf");
    stage.journal.will(&Undo::Mount(dir.clone()))?;
    fs::create_dir(&dir)?;
    rustix::mount::mount("bpf", &dir, "bpf", rustix::mount::MountFlags::empty(), None)?;
    let path = CString::new(dir.join("map").to_string_lossy().into_owned())?;
    let mut agent = Actor::fork(|line| {
        group.enter()?;
        let map = sys::bpf_array((len.0 / u64::from(VALUE)) as u32, VALUE)?;
        sys::bpf_pin(&map, &path)?;
        line.ready()?;
        line.park()
    })?;
    agent.hear()?;
    drop(agent);
    stage.verify("kernel_bytes", group.kernel()?, len, 10)?;
    stage.target_group(&group);
    Ok(())
}
