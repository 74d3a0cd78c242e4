//! Cases that are watched (`--for`): leaks with their company, climbs that prove nothing, and growth that is
//! none.
//!
//! A climb goes on at its pace for a minute and a half from its start, several times the longest watch, and
//! then stays: bounded, and a slow machine still sees it climb.

use crate::actor::{Actor, Line};
use crate::case::{Case, INNOCENT, Named, Need, Noise, Truth, is};
use crate::procfs;
use crate::region::{Kind, PAGE, Region};
use crate::stage::Stage;
use crate::sys;
use anyhow::{Context, Result, bail, ensure};
use ebbtide_observe::Bytes;
use rustix::event::{EventfdFlags, eventfd};
use std::any::Any;
use std::convert::Infallible;
use std::fs::{self, File};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Duration;

const LEAK: Truth = is("leak");
const UNDECIDED: Truth = is("undetermined");
/// A climb that is no leak, of which an honest look may say nothing or that it cannot tell.
const NO_LEAK: Truth = INNOCENT.or(&[Some("undetermined")]);
const CACHE: &[Named] = &[Some("page-cache"), Some("undetermined")];
const DISK: &[Need] = &[Need::Disk(Bytes::ZERO)];

/// The cases.
pub(super) const CASES: &[Case] = &[
    Case::process("leak/files", "10 MB/s, and a file opened again and again", LEAK, |s| {
        climb(s, Bytes::from_kib(512), || Ok(Box::new(File::open("/proc/self/exe")?)))
    })
    .watch(12),
    Case::process("leak/files-slowly", "2 MB/s, and a file opened again and again", LEAK, |s| {
        climb(s, Bytes::from_kib(100), || Ok(Box::new(File::open("/proc/self/exe")?)))
    })
    .watch(15),
    Case::process("leak/threads", "10 MB/s, and a thread that never ends with every step", LEAK, |s| {
        climb(s, Bytes::from_kib(512), || {
            Ok(Box::new(thread::Builder::new().stack_size(64 << 10).spawn(|| sys::park())?))
        })
    })
    .watch(12),
    Case::process("leak/eventfds", "10 MB/s, and an eventfd with every step", LEAK, |s| {
        climb(s, Bytes::from_kib(512), || Ok(Box::new(eventfd(0, EventfdFlags::CLOEXEC)?)))
    })
    .watch(12),
    Case::process("leak/files-beside-work", "the leak of files beside a busy process", LEAK, |s| {
        climb(s, Bytes::from_kib(512), || Ok(Box::new(File::open("/proc/self/exe")?)))
    })
    .watch(12)
    .noise(&[Noise::Busy]),
    Case::process("undetermined/climb", "10 MB/s and nothing else rising", UNDECIDED, |s| {
        climb(s, Bytes::from_kib(512), || Ok(Box::new(())))
    })
    .watch(12),
    Case::process("undetermined/slow-climb", "2 MB/s and nothing else rising", UNDECIDED, |s| {
        climb(s, Bytes::from_kib(100), || Ok(Box::new(())))
    })
    .watch(15),
    Case::process(
        "innocent/saw-tooth",
        "120 MB taken and given back every three seconds",
        INNOCENT,
        saw_tooth,
    )
    .watch(15),
    Case::process("innocent/warm-up", "a warm-up of 200 MB that levels off", NO_LEAK, warm_up).watch(20),
    Case::process(
        "innocent/connections",
        "20 clients a second, each with a socket and 200 KB",
        NO_LEAK,
        clients,
    )
    .watch(12),
    Case::process("innocent/steady-work", "a process that rewrites 100 MB over and over", INNOCENT, steady)
        .watch(10),
    Case::host("innocent/cache-growing", "a file being read at 80 MB/s", INNOCENT, cache_growing)
        .needs(DISK)
        .watch(10),
    Case::process(
        "innocent/mapping-being-read",
        "a mapped file being read",
        INNOCENT.or(CACHE),
        mapping_being_read,
    )
    .needs(DISK)
    .watch(10),
    Case::host(
        "slab-reclaimable/growing",
        "missing names looked up all the while",
        is("slab-reclaimable"),
        |s| {
            let dir = s.disk_dir(Bytes::ZERO)?;
            let actor = pace(100, move |step| look_up(&dir, step, 1_500))?;
            s.cast(actor);
            Ok(())
        },
    )
    .needs(&[Need::Root, Need::Disk(Bytes::ZERO)])
    .watch(10),
];

/// Between two steps.
const STEP: Duration = Duration::from_millis(50);
/// Steps of a climb.
const STEPS: u32 = 1_800;

/// What one step keeps for ever.
type Kept = Box<dyn Any>;

/// A process that does the first `head` steps at once, says ready, and does [`STEPS`] more, 20 a second.
fn pace(head: u32, mut step: impl FnMut(u32) -> Result<()>) -> Result<Actor> {
    Actor::ready(move |line| {
        sys::raise_files()?;
        (0..head).try_for_each(&mut step)?;
        line.ready()?;
        run(line, head, step)
    })
}

fn run(line: &Line, first: u32, mut step: impl FnMut(u32) -> Result<()>) -> Result<Infallible> {
    for n in first..first + STEPS {
        step(n)?;
        thread::sleep(STEP);
    }
    line.park()
}

/// Takes `bytes` of memory and one of `company` with every step.
fn climb(stage: &mut Stage, bytes: Bytes, company: fn() -> Result<Kept>) -> Result<()> {
    let mut kept: Vec<(Region, Kept)> = Vec::new();
    let actor = pace(20, move |_| {
        let mut region = Region::anon(bytes, Kind::Private)?;
        region.write_every(PAGE, region.all());
        kept.push((region, company()?));
        Ok(())
    })?;
    rising(stage, actor)
}

/// Verifies that the actor's memory rises.
fn rising(stage: &mut Stage, actor: Actor) -> Result<()> {
    let pid = actor.pid();
    let rss = || procfs::status(pid)?.bytes("VmRSS");
    let first = rss()?;
    let later = until_above(first, rss)?;
    stage.bytes("rss", later);
    stage.figure("fds", procfs::fds(pid)?);
    stage.figure("threads", procfs::status(pid)?.number("Threads")?);
    stage.cast(actor);
    stage.target(pid);
    Ok(())
}

/// Reads a figure until it is above `least`. There is no event for that: bounded polling.
pub(super) fn until_above(least: Bytes, read: impl Fn() -> Result<Bytes>) -> Result<Bytes> {
    for _ in 0..400 {
        let now = read()?;
        if now > least {
            return Ok(now);
        }
        thread::sleep(STEP / 2);
    }
    bail!("still at {least} after ten seconds: no such incident here")
}

fn saw_tooth(stage: &mut Stage) -> Result<()> {
    const TOOTH: u32 = 60;
    let part = 2 << 20;
    let mut heap = Region::anon(Bytes(u64::from(TOOTH) * part), Kind::Private)?;
    let actor = pace(0, move |n| {
        let at = (n % TOOTH) as usize * part as usize;
        if at == 0 {
            heap.advise(heap.all(), libc::MADV_DONTNEED)?;
        }
        heap.write_every(PAGE, at..at + part as usize);
        Ok(())
    })?;
    rising(stage, actor)
}

/// Each step takes a part of what is left to 200 MB: after four seconds less than 2 MB/s, after eight
/// nothing.
fn warm_up(stage: &mut Stage) -> Result<()> {
    let mut heap = Region::anon(Bytes::from_mib(200), Kind::Private)?;
    let mut used = 0;
    let actor = pace(0, move |_| {
        let all = heap.all().end;
        let next = (used + (all - used) / 25 / PAGE * PAGE).min(all);
        heap.write_every(PAGE, used..next);
        used = next;
        Ok(())
    })?;
    rising(stage, actor)
}

/// A server whose clients connect and stay: descriptors and memory rise together, and every descriptor has a
/// living peer.
fn clients(stage: &mut Stage) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let mut kept: Vec<(TcpStream, Region)> = Vec::new();
    let server = Actor::ready(move |line| {
        sys::raise_files()?;
        line.ready()?;
        loop {
            let mut session = Region::anon(Bytes::from_kib(200), Kind::Private)?;
            session.write_every(PAGE, session.all());
            kept.push((listener.accept()?.0, session));
        }
    })?;
    let mut streams = Vec::new();
    let clients = pace(0, move |n| {
        if n < 900 {
            streams.push(TcpStream::connect(address)?);
        }
        Ok(())
    })?;
    stage.cast(clients);
    rising(stage, server)
}

fn steady(stage: &mut Stage) -> Result<()> {
    let mut heap = Region::anon(Bytes::from_mib(100), Kind::Private)?;
    heap.scramble(heap.all(), 1);
    let actor = pace(20, move |n| {
        heap.scramble(heap.all(), u64::from(n) + 2);
        Ok(())
    })?;
    let pid = stage.cast(actor);
    stage.target(pid);
    Ok(())
}

fn cache_growing(stage: &mut Stage) -> Result<()> {
    const PART: usize = 4 << 20;
    let (_, file) = stage.sparse_file(Bytes(u64::from(STEPS) * PART as u64))?;
    let mut block = vec![0; PART];
    let actor = pace(0, move |n| {
        let most = 500;
        let at = u64::from(n % most) * PART as u64;
        file.read_exact_at(&mut block, at).context("reading")
    })?;
    stage.cast(actor);
    Ok(())
}

fn mapping_being_read(stage: &mut Stage) -> Result<()> {
    const PART: usize = 2 << 20;
    let parts = 500;
    let (_, file) = stage.sparse_file(Bytes((parts * PART) as u64))?;
    let map = Region::of_file(&file, Bytes((parts * PART) as u64), false)?;
    let actor = pace(0, move |n| {
        let at = n as usize % parts * PART;
        map.read_every(PAGE, at..at + PART);
        Ok(())
    })?;
    rising(stage, actor)
}

fn look_up(dir: &std::path::Path, step: u32, count: u32) -> Result<()> {
    for n in 0..count {
        let path = dir.join(format!("{step}-{n}"));
        ensure!(fs::symlink_metadata(&path).is_err(), "{} exists", path.display());
    }
    Ok(())
}
