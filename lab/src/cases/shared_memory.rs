//! `shared-memory`: shmem that no process maps, or whose file nobody can see any more.

use crate::actor::Actor;
use crate::case::{Case, Need, Noise, Truth, is};
use crate::region::{PAGE, Region};
use crate::stage::Stage;
use crate::{cgroup, procfs, sys};
use anyhow::Result;
use ebbtide_observe::Bytes;
use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

const TRUTH: Truth = is("shared-memory").near("shm_bytes", 5);
const HELD: Truth = TRUTH.says(&["{holder_pid}"]);
const SIZE: Bytes = Bytes::from_mib(300);

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::host("shared-memory/memfd", "300 MB in a memfd that nobody maps", HELD, |s| memfd(s, SIZE, 1)),
    Case::process(
        "shared-memory/memfd-holder",
        "the process that holds 300 MB in a memfd, unmapped",
        TRUTH,
        |s| memfd(s, SIZE, 1),
    ),
    Case::host(
        "shared-memory/memfd-two-holders",
        "300 MB in a memfd that two hold and nobody maps",
        HELD,
        |s| memfd(s, SIZE, 2),
    ),
    Case::host("shared-memory/memfd-beside-page-cache", "the memfd beside 2 GB just read", HELD, |s| {
        memfd(s, SIZE, 1)
    })
    .needs(&[Need::Disk(Bytes::ZERO)])
    .noise(&[Noise::PageCache(Bytes::from_gib(2))]),
    Case::host(
        "shared-memory/memfd-1g",
        "1 GB in a memfd that nobody maps, beside 60 small processes",
        HELD,
        |s| memfd(s, Bytes::from_gib(1), 1),
    )
    .noise(&[Noise::Small(60)]),
    Case::host("shared-memory/sysv", "a System V segment of 300 MB, attached by nobody", TRUTH, sysv)
        .needs(&[Need::SysvIpc]),
    Case::host("shared-memory/tmpfs-file", "a file of 300 MB in a tmpfs of its own", TRUTH, tmpfs_file)
        .needs(&[Need::Root]),
    Case::host(
        "shared-memory/tmpfs-deleted-open",
        "a deleted file of 300 MB in a tmpfs, still open",
        HELD,
        |s| deleted(s, false),
    )
    .needs(&[Need::Root]),
    Case::host(
        "shared-memory/tmpfs-deleted-mapped",
        "a deleted file of 300 MB in a tmpfs, still mapped",
        HELD,
        |s| deleted(s, true),
    )
    .needs(&[Need::Root]),
    Case::process(
        "shared-memory/deleted-mapped-holder",
        "the process that maps a deleted tmpfs file",
        TRUTH,
        |s| deleted(s, true),
    )
    .needs(&[Need::Root]),
    Case::host("shared-memory/dev-shm", "a file of 300 MB in /dev/shm, its creator gone", TRUTH, dev_shm),
    Case::cgroup(
        "shared-memory/charge-stays",
        "tmpfs pages charged to a cgroup whose writer is gone",
        TRUTH,
        charge_stays,
    )
    .needs(&[Need::Root, Need::MemoryCgroup]),
];

/// Writes `len` non-zero bytes to `file`.
pub(super) fn fill(mut file: &File, len: Bytes) -> Result<()> {
    let block = vec![0x65; 1 << 20];
    let mut left = len.0 as usize;
    while left > 0 {
        left -= file.write(&block[..left.min(block.len())])?;
    }
    Ok(())
}

/// Runs `make`, and verifies that Shmem grew by `len` (other processes' shmem may move a little meanwhile).
pub(super) fn shmem_grows(
    stage: &mut Stage,
    len: Bytes,
    make: impl FnOnce(&mut Stage) -> Result<()>,
) -> Result<()> {
    let before = procfs::meminfo()?.bytes("Shmem")?;
    make(stage)?;
    let grown = procfs::meminfo()?.bytes("Shmem")? - before;
    stage.verify("shmem_growth", grown, len, 5)?;
    stage.bytes("shm_bytes", len);
    Ok(())
}

/// `holders` processes hold a memfd of `len`; none maps it.
fn memfd(stage: &mut Stage, len: Bytes, holders: u32) -> Result<()> {
    let len = stage.size(len);
    shmem_grows(stage, len, |stage| {
        let file = sys::memfd(c"ebbtide-lab-buffer")?;
        fill(&file, len)?;
        let mut last = 0;
        for _ in 0..holders {
            let actor = Actor::ready(|line| {
                line.ready()?;
                line.park()
            })?;
            last = stage.cast(actor);
        }
        drop(file);
        stage.figure("holder_pid", last);
        stage.target(last);
        Ok(())
    })
}

fn sysv(stage: &mut Stage) -> Result<()> {
    let len = stage.size(SIZE);
    shmem_grows(stage, len, |stage| {
        let id = segment(stage, len)?;
        let mut region = Region::of_sysv(id, len)?;
        region.write_every(PAGE, region.all());
        stage.figure("shmid", id);
        Ok(())
    })
}

/// A new System V segment, removed with the stage.
pub(super) fn segment(stage: &mut Stage, len: Bytes) -> Result<i32> {
    let key = (0x0ebb_0000 | std::process::id() & 0xffff) as i32;
    stage.journal.will(&crate::journal::Undo::Segment(key))?;
    sys::shm_create(key, len)
}

fn tmpfs_file(stage: &mut Stage) -> Result<()> {
    let len = stage.size(SIZE);
    shmem_grows(stage, len, |stage| {
        let dir = stage.tmpfs(len + Bytes::from_mib(8))?;
        fill(&File::create(dir.join("upload.tmp"))?, len)
    })
}

/// A process holds a deleted file of its own tmpfs, by a descriptor or by a mapping alone.
fn deleted(stage: &mut Stage, mapped: bool) -> Result<()> {
    let len = stage.size(SIZE);
    shmem_grows(stage, len, |stage| {
        let path = stage.tmpfs(len + Bytes::from_mib(8))?.join("journal.db");
        let actor = Actor::ready(|line| {
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            fill(&file, len)?;
            fs::remove_file(&path)?;
            let _kept: (Option<File>, Option<Region>) = if mapped {
                let region = Region::of_file(&file, len, false)?;
                region.read_every(PAGE, region.all());
                (None, Some(region))
            } else {
                (Some(file), None)
            };
            line.ready()?;
            line.park()
        })?;
        let pid = stage.cast(actor);
        stage.figure("holder_pid", pid);
        stage.target(pid);
        Ok(())
    })
}

fn dev_shm(stage: &mut Stage) -> Result<()> {
    let len = stage.size(SIZE);
    shmem_grows(stage, len, |stage| {
        let path = Path::new("/dev/shm").join(format!("ebbtide-lab-{}", std::process::id()));
        stage.journal.will(&crate::journal::Undo::Remove(path.clone()))?;
        let mut creator = Actor::fork(|line| {
            fill(&File::create_new(&path)?, len)?;
            line.ready()?;
            line.park()
        })?;
        creator.hear().map(drop)
    })
}

/// A process in a cgroup writes to a tmpfs and ends: the pages stay charged to the cgroup, which is empty.
fn charge_stays(stage: &mut Stage) -> Result<()> {
    let Some(memory) = cgroup::memory() else { anyhow::bail!("no memory controller") };
    let len = stage.size(SIZE);
    let group = memory.create(&mut stage.journal, "writer")?;
    group.limit(stage.size(Bytes::from_gib(1)))?;
    shmem_grows(stage, len, |stage| {
        let path = stage.tmpfs(len + Bytes::from_mib(8))?.join("spool");
        let mut writer = Actor::fork(|line| {
            group.enter()?;
            fill(&File::create_new(&path)?, len)?;
            line.ready()?;
            line.park()
        })?;
        writer.hear().map(drop)
    })?;
    stage.at_least("cgroup_shmem", group.stat_of("shmem")?, Bytes(len.0 / 100 * 95))?;
    stage.target_group(&group);
    Ok(())
}
