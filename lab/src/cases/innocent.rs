//! Cases in which nothing is wrong: what healthy machines, processes and cgroups look like. More of them
//! stand beside the incidents that they resemble (`overcommit_refusal`, `growth`).

use crate::actor::Actor;
use crate::case::{Case, INNOCENT, Need, Noise};
use crate::cases::kernel_pages::connections;
use crate::cases::{other_limit, page_cache, reserved_pool, shared_memory, stacks_and_locked};
use crate::cgroup;
use crate::noise;
use crate::procfs;
use crate::programs::{self, Jvm};
use crate::region::{HUGE, Kind, PAGE, Region};
use crate::stage::Stage;
use crate::sys;
use anyhow::{Context, Result, ensure};
use ebbtide_observe::Bytes;
use std::fs;
use std::io::Write;
use std::path::Path;

const DISK: &[Need] = &[Need::Disk(Bytes::ZERO)];
const CGROUP: &[Need] = &[Need::Root, Need::MemoryCgroup, Need::Disk(Bytes::ZERO)];
const JAVA: &[Need] = &[Need::Java, Need::MemoryAtLeast(Bytes::from_gib(1))];

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::host("innocent/host-at-rest", "the host with nothing made", INNOCENT, |_| Ok(())),
    Case::process("innocent/idle", "an idle process", INNOCENT, |_| Ok(())),
    Case::host("innocent/page-cache", "a file of 3 GB just read", INNOCENT, |s| {
        file_read(s, Bytes::from_gib(3))
    })
    .needs(DISK),
    Case::host("innocent/file-written", "a file of 500 MB just written", INNOCENT, file_written).needs(DISK),
    Case::host("innocent/small-workers", "40 small forked workers", INNOCENT, |_| Ok(()))
        .noise(&[Noise::Small(40)]),
    Case::host("innocent/many-processes", "300 small processes", INNOCENT, |_| Ok(()))
        .noise(&[Noise::Small(300)]),
    Case::host("innocent/honest-anon", "a process that uses 3 GB, all of it written", INNOCENT, |_| Ok(()))
        .noise(&[Noise::Anon(Bytes::from_gib(3))]),
    Case::host("innocent/work-and-cache", "a busy process, small ones and 2 GB just read", INNOCENT, |_| {
        Ok(())
    })
    .needs(DISK)
    .noise(&[Noise::Busy, Noise::Small(30), Noise::PageCache(Bytes::from_gib(2))]),
    Case::host(
        "innocent/shared-buffers",
        "a database's 256 MB of shared buffers, used by five",
        INNOCENT,
        |s| shared_buffers(s, Bytes::from_mib(256), 5),
    ),
    Case::host(
        "innocent/posix-shm",
        "a buffer of 200 MB in /dev/shm, mapped by its three users",
        INNOCENT,
        posix_shm,
    ),
    Case::process("innocent/memfd-in-use", "a memfd of 200 MB, mapped and in use", INNOCENT, memfd_in_use),
    Case::host("innocent/small-tmpfs", "20 MB in a tmpfs", INNOCENT, |s| {
        let len = s.size(Bytes::from_mib(20));
        let dir = s.tmpfs(len * 2)?;
        shared_memory::fill(&fs::File::create(dir.join("cache"))?, len)
    })
    .needs(&[Need::Root]),
    Case::host("innocent/positive-dentries", "a walk over 30,000 files of /usr", INNOCENT, walk),
    Case::host("innocent/hugetlb-in-use", "512 MB of huge pages reserved, all used", INNOCENT, |s| {
        reserved_pool::reserve(s, Bytes::from_mib(512), 1.0)
    })
    .needs(&[Need::Root, Need::HugePages]),
    Case::host(
        "innocent/quiet-connections",
        "50 connections with a few bytes each",
        INNOCENT,
        quiet_connections,
    ),
    Case::host("innocent/fresh-fork", "a parent of 600 MB whose child has written nothing", INNOCENT, |s| {
        fresh_fork(s).map(drop)
    }),
    Case::process(
        "innocent/fresh-fork-child",
        "the child that has written nothing",
        INNOCENT.or(&[Some("counted-twice")]),
        |s| {
            let child = fresh_fork(s)?;
            s.target(child);
            Ok(())
        },
    ),
    Case::host("innocent/living-cgroups", "200 living cgroups", INNOCENT, living_cgroups).needs(CGROUP),
    Case::process(
        "innocent/mapped-file",
        "a process that maps and has read a file of 1 GB",
        INNOCENT,
        mapped_file,
    )
    .needs(DISK),
    Case::process(
        "innocent/go-reservation",
        "a reservation of 1.5 GB, as Go's runtime makes",
        INNOCENT,
        |s| {
            let heap = Region::anon(Bytes::from_mib(1536), Kind::Reserved)?;
            s.hold(heap);
            Ok(())
        },
    ),
    Case::process(
        "innocent/100-threads",
        "100 threads with stacks of 8 MB, next to nothing of them used",
        INNOCENT,
        |s| {
            stacks_and_locked::threads(100, 8, |_| {})?;
            s.bytes("rss_anon", procfs::status(std::process::id() as i32)?.bytes("RssAnon")?);
            Ok(())
        },
    ),
    Case::process("innocent/5000-maps", "a process with 5,000 mappings", INNOCENT, |s| {
        let maps = other_limit::split(s, 5_000)?;
        ensure!(maps >= 5_000, "{maps} maps");
        Ok(())
    }),
    Case::process("innocent/dense-huge-pages", "400 MB of huge pages, every byte written", INNOCENT, dense)
        .needs(&[Need::Thp]),
    Case::process("innocent/swapped-out", "an idle process, swapped out", INNOCENT, swapped_out)
        .needs(&[Need::Swap]),
    Case::process("innocent/jvm-at-rest", "a JVM that has done next to nothing", INNOCENT, |s| {
        let heap = programs::jvm(s, Jvm { options: &["-Xmx512m"], ..Jvm::default() }, &[], None)?;
        s.target(heap.pid);
        s.bytes("committed", heap.committed);
        Ok(())
    })
    .needs(JAVA),
    Case::process("innocent/jvm-full", "a JVM of 400 MB that uses 300 of them", INNOCENT, |s| {
        let options = &["-XX:+UseSerialGC", "-Xms400m", "-Xmx400m"];
        let heap = programs::jvm(s, Jvm { options, garbage: 0, live: 300, collect: true }, &[], None)?;
        s.target(heap.pid);
        s.bytes("used", heap.used);
        Ok(())
    })
    .needs(JAVA),
    Case::process("innocent/node-at-rest", "Node.js that has done next to nothing", INNOCENT, |s| {
        let pid = programs::node(s, &[], None)?;
        s.target(pid);
        Ok(())
    })
    .needs(&[Need::Node]),
    Case::cgroup("innocent/cgroup-with-room", "a cgroup of 1 GB that uses 200 MB", INNOCENT, |s| {
        page_cache::reader(s, Bytes::from_gib(1), Bytes::from_mib(20), Bytes::from_mib(200), 1)
    })
    .needs(CGROUP),
    Case::cgroup(
        "innocent/cgroup-cold-cache",
        "a cgroup of 1 GB with 300 MB of cache read once",
        INNOCENT,
        |s| page_cache::reader(s, Bytes::from_gib(1), Bytes::from_mib(300), Bytes::from_mib(50), 1),
    )
    .needs(CGROUP),
    Case::cgroup(
        "innocent/cgroup-unlimited",
        "a cgroup without limit, 100 MB of it in use",
        INNOCENT,
        cgroup_unlimited,
    )
    .needs(CGROUP),
];

fn file_read(stage: &mut Stage, len: Bytes) -> Result<()> {
    let before = procfs::meminfo()?.bytes("Cached")?;
    noise::page_cache(stage, len)?;
    let grown = procfs::meminfo()?.bytes("Cached")? - before;
    let len = stage.size(len);
    stage.at_least("cached_growth", grown, Bytes(len.0 / 100 * 80))
}

fn file_written(stage: &mut Stage) -> Result<()> {
    let len = stage.size(Bytes::from_mib(500));
    let path = stage.disk_dir(len + Bytes::from_mib(64))?.join("log");
    let mut file = fs::File::create(path)?;
    let block = vec![0x65; 1 << 20];
    (0..len.0 >> 20).try_for_each(|_| file.write_all(&block))?;
    stage.hold(file);
    Ok(())
}

/// A shared buffer that every one of `users` maps and has touched, as a database's processes do. It is a
/// small part of the box, so that even the sum of their resident sets is (contrast `counted_twice`).
fn shared_buffers(stage: &mut Stage, len: Bytes, users: u32) -> Result<()> {
    let len = len.min(Bytes(stage.machine.total.0 / 32));
    let mut buffer = Region::anon(len, Kind::Shared)?;
    buffer.write_every(PAGE, buffer.all());
    users_of(stage, &buffer, users)?;
    stage.hold(buffer);
    Ok(())
}

fn users_of(stage: &mut Stage, buffer: &Region, users: u32) -> Result<()> {
    for _ in 0..users {
        let actor = Actor::ready(|line| {
            buffer.read_every(PAGE, buffer.all());
            line.ready()?;
            line.park()
        })?;
        stage.cast(actor);
    }
    stage.bytes("shmem", procfs::meminfo()?.bytes("Shmem")?);
    Ok(())
}

fn posix_shm(stage: &mut Stage) -> Result<()> {
    let len = Bytes::from_mib(200).min(Bytes(stage.machine.total.0 / 32));
    let path = Path::new("/dev/shm").join(format!("ebbtide-lab-{}", std::process::id()));
    stage.journal.will(&crate::journal::Undo::Remove(path.clone()))?;
    let file = fs::File::options().read(true).write(true).create_new(true).open(&path)?;
    file.set_len(len.0)?;
    let mut buffer = Region::of_file(&file, len, true)?;
    buffer.write_every(PAGE, buffer.all());
    users_of(stage, &buffer, 3)?;
    stage.hold(buffer);
    Ok(())
}

fn memfd_in_use(stage: &mut Stage) -> Result<()> {
    let len = stage.size(Bytes::from_mib(200));
    let file = sys::memfd(c"wl_shm")?;
    file.set_len(len.0)?;
    let mut buffer = Region::of_file(&file, len, true)?;
    buffer.write_every(PAGE, buffer.all());
    stage.hold((file, buffer));
    Ok(())
}

/// Looks at up to 30,000 files below /usr, as `find` does.
fn walk(stage: &mut Stage) -> Result<()> {
    let mut seen = 0;
    let mut todo = vec![Path::new("/usr").to_owned()];
    while let Some(dir) = todo.pop().filter(|_| seen < 30_000) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(meta) = entry.metadata() else { continue };
            seen += 1;
            if meta.is_dir() {
                todo.push(entry.path());
            }
        }
    }
    stage.figure("files_seen", seen);
    stage.bytes("sreclaimable", procfs::meminfo()?.bytes("SReclaimable")?);
    Ok(())
}

fn quiet_connections(stage: &mut Stage) -> Result<()> {
    let ends = connections(50)?;
    for [client, _] in &ends {
        rustix::io::write(client, b"GET / HTTP/1.1\r\n")?;
    }
    stage.hold(ends);
    Ok(())
}

/// A parent of 600 MB with a child that only waits; the child's pid.
fn fresh_fork(stage: &mut Stage) -> Result<i32> {
    let mut heap = Region::anon(stage.size(Bytes::from_mib(600)), Kind::Private)?;
    heap.write_every(PAGE, heap.all());
    let child = Actor::ready(|line| {
        line.ready()?;
        line.park()
    })?;
    stage.hold(heap);
    let pid = stage.cast(child);
    let dirty = procfs::rollup(pid)?.bytes("Private_Dirty")?;
    stage.at_most("child_private", dirty, Bytes::from_mib(2))?;
    Ok(pid)
}

fn living_cgroups(stage: &mut Stage) -> Result<()> {
    let parent = cgroup::memory().context("no memory controller")?.create(&mut stage.journal, "services")?;
    (0..200).try_for_each(|n| parent.child(&format!("service-{n}")).map(drop))
}

fn mapped_file(stage: &mut Stage) -> Result<()> {
    let len = stage.size(Bytes::from_gib(1));
    let (_, file) = stage.sparse_file(len)?;
    let map = Region::of_file(&file, len, false)?;
    map.read_every(PAGE, map.all());
    stage.hold(map);
    stage.at_least(
        "rss_file",
        procfs::status(std::process::id() as i32)?.bytes("RssFile")?,
        Bytes(len.0 / 10 * 9),
    )
}

fn dense(stage: &mut Stage) -> Result<()> {
    let len = stage.size(Bytes::from_mib(400));
    let mut heap = Region::anon_aligned(len, HUGE, Kind::Private)?;
    heap.advise(heap.all(), libc::MADV_HUGEPAGE)?;
    heap.scramble(heap.all(), 7);
    stage.hold(heap);
    stage.verify("anon_huge", procfs::rollup(std::process::id() as i32)?.bytes("AnonHugePages")?, len, 5)
}

fn swapped_out(stage: &mut Stage) -> Result<()> {
    let len = stage.size(Bytes::from_mib(100));
    let mut heap = Region::anon(len, Kind::Private)?;
    heap.scramble(heap.all(), 9);
    heap.advise(heap.all(), libc::MADV_PAGEOUT)?;
    stage.hold(heap);
    stage.at_least("swap", procfs::status(std::process::id() as i32)?.bytes("VmSwap")?, Bytes(len.0 / 2))
}

fn cgroup_unlimited(stage: &mut Stage) -> Result<()> {
    let group = cgroup::memory().context("no memory controller")?.create(&mut stage.journal, "service")?;
    let actor = Actor::ready(|line| {
        group.enter()?;
        let mut heap = Region::anon(Bytes::from_mib(100), Kind::Private)?;
        heap.write_every(PAGE, heap.all());
        line.ready()?;
        line.park()
    })?;
    stage.cast(actor);
    stage.bytes("usage", group.usage()?);
    stage.target_group(&group);
    Ok(())
}
