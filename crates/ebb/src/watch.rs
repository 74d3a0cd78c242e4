//! `--for`: the same counters again and again, with a progress bar, until the time is up or Ctrl-C.
//!
//! Samples are cheap (no page table is walked between the first and the last) and their intervals vary, so that
//! what comes and goes as regularly as the samples do is not taken for a slow line. What was seen until an
//! interruption is judged all the same.

use crate::cgroup::Chosen;
use anyhow::Context;
use ebbtide_explain::growth::{self, Descriptors, Growth, HeapWatch, HostWatch, ProcessWatch, Track};
use ebbtide_explain::rules::Used;
use ebbtide_explain::{Finding, Series};
use ebbtide_heaps::{Heap, Look};
use ebbtide_observe::host::{Meminfo, Slabs, Sockstat};
use ebbtide_observe::process::{Process, Processes, Status, Target};
use ebbtide_observe::{Bytes, Pages, ReadError, Root, referenced};
use ebbtide_sys::interrupt::Interrupts;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::time::{Duration, Instant};

/// Samples over the whole time: enough for the statistics, few enough to cost nothing.
const SAMPLES: u32 = 120;

/// The shortest interval on average.
const SHORTEST: Duration = Duration::from_millis(100);

/// Calls `sample` with the time since the start until `time` is up, it returns false, or Ctrl-C.
fn every(time: Duration, mut sample: impl FnMut(Duration) -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let stop = Interrupts::catch().context("cannot hold signals back")?;
    let interval = (time / SAMPLES).max(SHORTEST);
    let bar = ProgressBar::with_draw_target(Some(time.as_millis() as u64), ProgressDrawTarget::stderr());
    let style = ProgressStyle::with_template("{msg} {wide_bar} {eta}")
        .unwrap_or_else(|_| ProgressStyle::default_bar());
    bar.set_style(style);
    bar.set_message("watching");
    let start = Instant::now();
    for i in 0u32.. {
        let now = start.elapsed();
        if !sample(now)? || now >= time {
            break;
        }
        bar.set_position(now.as_millis() as u64);
        // A low-discrepancy walk through 0.75 to 1.25 intervals: uneven, and the same at every run.
        let jitter = 0.75 + 0.5 * (f64::from(i) * 0.618_034).fract();
        if stop.wait(interval.mul_f64(jitter).min(time.saturating_sub(start.elapsed()))) {
            break;
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Counters by name while they are taken.
#[derive(Default)]
struct Tracks(BTreeMap<&'static str, (&'static str, Samples)>);

type Samples = Vec<(Duration, Bytes)>;

impl Tracks {
    fn add(&mut self, at: Duration, id: &'static str, remark: &'static str, bytes: Bytes) {
        self.0.entry(id).or_insert((remark, Vec::new())).1.push((at, bytes));
    }

    fn finish(self) -> Vec<Track> {
        let track = |(id, (remark, samples))| Track { id, remark, series: Series::new(samples) };
        self.0.into_iter().map(track).collect()
    }
}

const CACHE: &str = "cache: the kernel drops it when it needs room";

/// What became of a process while it was watched.
pub(crate) struct Watched {
    pub(crate) growth: (Growth, Vec<Finding>),
    /// Whether its huge blocks were used, where that was asked.
    pub(crate) used: Option<Used>,
}

/// Watches a process; with `clear_refs`, also whether it uses its huge blocks. That it ends meanwhile is an error
/// only if nothing was seen of it.
pub(crate) fn process(process: &Process, time: Duration, clear_refs: bool) -> anyhow::Result<Watched> {
    let mut tracks = Tracks::default();
    let (mut descriptors, mut threads) = (Vec::new(), Vec::new());
    let opened = open_descriptors(process);
    let known: HashSet<u32> = process.threads()?.iter().map(|thread| thread.tid()).collect();
    let first = process.stat()?;
    let huge = process.rollup().map(|c| c.anon_huge_pages).unwrap_or_default();
    let mut last = first;
    let mut inside = Inside::new(time);
    let untouched = clear_refs.then(|| Untouched::begin(process)).transpose()?;
    every(time, |at| {
        let (status, stat): (Status, _) = match (process.status(), process.stat()) {
            (Ok(status), Ok(stat)) => (status, stat),
            (Err(ReadError::Vanished { .. }), _) | (_, Err(ReadError::Vanished { .. })) => return Ok(false),
            (Err(e), _) | (_, Err(e)) => return Err(e.into()),
        };
        let vm = status.vm.unwrap_or_default();
        tracks.add(at, "anon", "RssAnon and swap", vm.rss_anon + vm.swap);
        tracks.add(at, "files", CACHE, vm.rss_file);
        tracks.add(at, "shmem", "shared memory and tmpfs it maps", vm.rss_shmem);
        tracks.add(at, "page-tables", "kernel memory for its mappings", vm.page_tables);
        threads.push((at, u64::from(stat.threads)));
        descriptors.extend(process.fd_count().ok().map(|n| (at, n)));
        inside.look(process, at);
        last = stat;
        Ok(true)
    })?;
    for &(at, live) in &inside.samples {
        tracks.add(at, growth::LIVE, "blocks the program holds, in its heaps", live);
    }
    let ticks = Duration::from_millis(20);
    let is_idle = |stat: ebbtide_observe::process::Stat| stat.user_time + stat.system_time <= ticks;
    let started = process.threads().unwrap_or_default();
    let new = started.iter().filter(|thread| !known.contains(&thread.tid()));
    let idle_new_threads = new.filter(|thread| thread.stat().is_ok_and(is_idle)).count() as u64;
    let faults = last.minor_faults + last.major_faults - (first.minor_faults + first.major_faults);
    let cpu = (last.user_time + last.system_time).saturating_sub(first.user_time + first.system_time);
    // A process that has ended uses nothing any more.
    let used = untouched.and_then(|untouched| untouched.end(process, cpu).ok());
    let growth = growth::process(&ProcessWatch {
        tracks: tracks.finish(),
        descriptors: Series::new(descriptors),
        threads: Series::new(threads),
        opened: [opened, open_descriptors(process)],
        idle_new_threads,
        cpu,
        faulted: Pages(faults).bytes(),
        huge: [huge, process.rollup().map(|c| c.anon_huge_pages).unwrap_or_default()],
        heap: inside.finish(),
        pid: process.pid(),
    });
    Ok(Watched { growth, used })
}

/// The huge blocks of a process, with their pages' referenced bits taken off.
struct Untouched {
    blocks: Vec<Range<u64>>,
    since: Instant,
}

impl Untouched {
    /// The look comes first: it touches the pages with the blocks' headers.
    fn begin(process: &Process) -> anyhow::Result<Untouched> {
        let blocks = Look::into(process, false)?.huge();
        referenced::clear(process)?;
        Ok(Untouched { blocks, since: Instant::now() })
    }

    fn end(self, process: &Process, cpu: Duration) -> Result<Used, ReadError> {
        let untouched = referenced::untouched(process, &self.blocks)?;
        Ok(Used { watched: self.since.elapsed(), cpu, untouched })
    }
}

/// Looks inside the heaps read all of them, so they take one part in so many of the time ...
const LOOKING: u32 = 20;
/// ... but a short watch has as many as a verdict needs ...
const LOOKS: u32 = 24;
/// ... if they take no more than one part in so many.
const AT_MOST: u32 = 4;

/// A look that left more than this share of what lives unresolved says nothing of how that grows: a busy machine lets a
/// process run on for long while it is read.
const UNRESOLVED: f64 = 0.01;

/// The heaps of a process while it is watched.
struct Inside {
    /// Between two looks at most.
    gap: Duration,
    first: Option<Look>,
    last: Option<Look>,
    /// Not before then.
    next: Option<Instant>,
    failed: bool,
    /// When, and what lived.
    samples: Samples,
}

impl Inside {
    fn new(time: Duration) -> Inside {
        Inside { gap: time / LOOKS, first: None, last: None, next: None, failed: false, samples: Vec::new() }
    }

    /// Takes a sample, if it is time for a look and there is a heap that can be read.
    fn look(&mut self, process: &Process, at: Duration) {
        let began = Instant::now();
        if self.failed || self.next.is_some_and(|next| began < next) {
            return;
        }
        let look = Look::into(process, false).ok().filter(|look| look.known().next().is_some());
        let cost = began.elapsed();
        self.next = Some(began + (cost * LOOKING).min(self.gap.max(cost * AT_MOST)));
        let Some(look) = look else {
            // Whatever it is, one that could not be read at first is not tried again and again.
            self.failed = self.first.is_none();
            return;
        };
        let live: Bytes = look.known().map(|heap| heap.figures.live).sum();
        let unresolved: Bytes = look.known().map(|heap| heap.certainty.unresolved).sum();
        if unresolved.share_of(live) > UNRESOLVED {
            // The next one may see more.
            self.next = Some(Instant::now() + cost * AT_MOST);
            return;
        }
        self.samples.push((at, live));
        match &mut self.first {
            None => self.first = Some(look),
            Some(_) => self.last = Some(look),
        }
    }

    fn finish(self) -> Option<HeapWatch> {
        let (first, last) = (self.first?, self.last?);
        let sum = |look: &Look, of: fn(&Heap) -> Bytes| -> Bytes { look.known().map(of).sum() };
        let both = |of: fn(&Heap) -> Bytes| [sum(&first, of), sum(&last, of)];
        Some(HeapWatch {
            returnable: both(|heap| heap.figures.returnable),
            pinned: both(|heap| heap.figures.pinned_free),
            gained: last.gained_since(&first),
        })
    }
}

/// Distinct paths remembered of one process's descriptors.
const PATHS: usize = 1 << 16;

fn open_descriptors(process: &Process) -> Descriptors {
    let mut found = Descriptors::default();
    let mut paths: HashSet<Vec<u8>> = HashSet::new();
    // Without the right to see them there are none to count, and no leak is named.
    let _ = process.each_fd(|_, target| {
        found.all += 1;
        match target {
            Target::Socket(_) => found.sockets += 1,
            Target::Deleted(_) | Target::AnonInode(_) | Target::Memfd(_) => found.suspicious += 1,
            Target::File(path) if paths.contains(path) => found.suspicious += 1,
            Target::File(path) if paths.len() < PATHS => drop(paths.insert(path.to_vec())),
            _ => {}
        }
        true
    });
    found
}

/// Watches the host.
pub(crate) fn host(root: &Root, time: Duration) -> anyhow::Result<(Growth, Vec<Finding>)> {
    let mut tracks = Tracks::default();
    let mut objects: BTreeMap<&'static str, Vec<(Duration, u64)>> = BTreeMap::new();
    let before = (Slabs::read(root).unwrap_or_default(), sizes(root)?);
    every(time, |at| {
        let mem = Meminfo::read(root)?;
        let sockets = Sockstat::read(root).unwrap_or_default();
        for (id, remark, bytes) in [
            ("anon", "memory of processes", mem.anon_pages + mem.swap_used()),
            ("page-cache", CACHE, mem.page_cache()),
            ("shmem", "tmpfs, System V, memfd", mem.shmem),
            ("slab-reclaimable", CACHE, mem.s_reclaimable),
            ("slab-unreclaimable", "kernel objects in use", mem.s_unreclaim),
            ("page-tables", "", mem.page_tables),
            ("kernel-stacks", "", mem.kernel_stack),
            ("percpu", "", mem.percpu),
            ("vmalloc", "", mem.vmalloc_used),
            ("socket-buffers", "TCP", sockets.tcp_mem.bytes()),
        ] {
            tracks.add(at, id, remark, bytes);
        }
        for (name, count) in in_use(root, &sockets) {
            objects.entry(name).or_default().push((at, count));
        }
        Ok(true)
    })?;
    let (slabs, processes) = before;
    Ok(growth::host(&HostWatch {
        tracks: tracks.finish(),
        objects: objects.into_iter().map(|(name, samples)| (name, Series::new(samples))).collect(),
        grown_caches: grown_caches(&slabs, &Slabs::read(root).unwrap_or_default()),
        grown_processes: grown_processes(&processes, root)?,
    }))
}

/// Kernel objects that have owners and take unreclaimable slab: files, tasks, sockets, pipes, mounts, groups.
fn in_use(root: &Root, sockets: &Sockstat) -> Vec<(&'static str, u64)> {
    let first = |path: &str| root.read_number(path).ok();
    let tasks = root.read_line("proc/loadavg").ok().and_then(|line| {
        let all = line.split_whitespace().nth(3)?.split_once('/')?.1.to_owned();
        all.parse().ok()
    });
    [
        ("open files", first("proc/sys/fs/file-nr")),
        ("inodes", first("proc/sys/fs/inode-nr")),
        ("tasks", tasks),
        ("sockets", Some(sockets.used.max(sockets.tcp_alloc))),
        ("dentries", first("proc/sys/fs/dentry-state")),
    ]
    .into_iter()
    .filter_map(|(name, count)| Some((name, count?)))
    .collect()
}

fn grown_caches(before: &Slabs, after: &Slabs) -> Vec<(String, Bytes)> {
    let unreclaimable = after.caches.iter().filter(|cache| !cache.is_reclaimable());
    let mut grown: Vec<(String, Bytes)> =
        unreclaimable.map(|cache| (cache.name.clone(), cache.bytes - before.bytes(&cache.name))).collect();
    grown.retain(|(_, by)| *by > Bytes::from_mib(1));
    grown.sort_by_key(|(_, by)| std::cmp::Reverse(*by));
    grown
}

type Sizes = HashMap<u32, Bytes>;

fn sizes(root: &Root) -> anyhow::Result<Sizes> {
    Ok(Processes::read(root)?.all.iter().map(|p| (p.pid, p.rss())).collect())
}

fn grown_processes(before: &Sizes, root: &Root) -> anyhow::Result<Vec<(String, u32, Bytes)>> {
    let after = Processes::read(root)?;
    let mut grown: Vec<(String, u32, Bytes)> = after
        .all
        .iter()
        .map(|p| (p.name().to_string(), p.pid, p.rss() - before.get(&p.pid).copied().unwrap_or_default()))
        .collect();
    grown.retain(|(_, _, by)| *by > Bytes::from_mib(1));
    grown.sort_by_key(|(_, _, by)| std::cmp::Reverse(*by));
    Ok(grown)
}

/// Watches a cgroup.
pub(crate) fn cgroup(group: &Chosen, time: Duration) -> anyhow::Result<(Growth, Vec<Finding>)> {
    let mut tracks = Tracks::default();
    every(time, |at| {
        let sample = group.sample()?;
        let stat = &sample.stat;
        let swap = sample.swap.unwrap_or_default();
        for (id, remark, bytes) in [
            ("anon", "memory of its processes, and swap", stat.anon.map(|anon| anon + swap)),
            ("page-cache", CACHE, stat.file.map(|file| file - stat.shmem.unwrap_or_default())),
            ("shmem", "tmpfs, System V, memfd", stat.shmem),
            ("slab-reclaimable", CACHE, stat.slab_reclaimable),
            ("kernel", "kernel memory, slab included", sample.kernel()),
            ("socket-buffers", "", sample.sockets()),
        ] {
            if let Some(bytes) = bytes {
                tracks.add(at, id, remark, bytes);
            }
        }
        Ok(true)
    })?;
    Ok(growth::cgroup(&tracks.finish(), &group.sample()?.path.to_string_lossy()))
}
