//! What each allocator holds over time: PSS less the live bytes, sampled while a program bursts and then idles.
//!
//! All allocators run one bench at the same time, so that all see the same machine. The program publishes live
//! bytes, the page bound and its phase in a shared file (`benches/malloc/return.c`); PSS, not RSS, because pages
//! may be shared, comes from smaps_rollup. The figures: the integral of (PSS - live) over the watched time, and
//! the heap's PSS two seconds after the program went idle, beside the bytes of the pages that hold live bytes.

use super::{Allocator, Args, names};
use crate::plot::{self, Curve};
use crate::workspace::target_dir;
use anyhow::{Context, Result, bail};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

const READY: u64 = 1;
const GO: u64 = 2;
const IDLE: u64 = 3;
/// Between two samples; reading smaps_rollup of 400 MB takes about 2 ms.
const STEP: Duration = Duration::from_millis(50);

/// A moment: seconds since the start, the heap's PSS, live bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sample {
    pub(crate) at: f64,
    pub(crate) heap: u64,
    pub(crate) live: u64,
}

/// A bench under one allocator.
#[derive(Debug)]
pub(crate) struct Course {
    pub(crate) name: &'static str,
    pub(crate) samples: Vec<Sample>,
    idle: Option<f64>,
    bound: u64,
}

struct Running {
    child: Child,
    shared: File,
}

impl Running {
    fn start(program: &Path, bench: &str, allocator: &Allocator) -> Result<Self> {
        let path = target_dir("bench-malloc")?.join(format!("{bench}.{}", allocator.name));
        std::fs::write(&path, [0; 4096])?;
        let shared = File::options().read(true).write(true).open(&path)?;
        let mut command = Command::new(program);
        allocator.apply(command.arg(bench).arg(&path));
        let child = command.spawn().context("cannot start the bench")?;
        Ok(Self { child, shared })
    }

    fn field(&self, index: u64) -> Result<u64> {
        let mut bytes = [0; 8];
        self.shared.read_exact_at(&mut bytes, index * 8)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    fn pss(&self) -> Result<u64> {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let line = rollup.lines().find_map(|l| l.strip_prefix("Pss:")).context("smaps_rollup has no Pss")?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse()?;
        Ok(kib << 10)
    }

    fn watch(mut self, seconds: u64, name: &'static str) -> Result<Course> {
        while self.field(2)? != READY {
            if self.child.try_wait()?.is_some() {
                bail!("{name} ended early");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        let base = self.pss()?;
        self.shared.write_all_at(&GO.to_ne_bytes(), 16)?;
        let start = Instant::now();
        let mut course = Course { name, samples: Vec::new(), idle: None, bound: 0 };
        while start.elapsed() < Duration::from_secs(seconds) {
            std::thread::sleep(STEP);
            let heap = self.pss()?.saturating_sub(base);
            let at = start.elapsed().as_secs_f64();
            course.samples.push(Sample { at, heap, live: self.field(0)? });
            if course.idle.is_none() && self.field(2)? == IDLE {
                course.idle = Some(at);
                course.bound = self.field(1)?;
            }
        }
        Ok(course)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Course {
    /// Byte-seconds held beyond what lives.
    fn integral(&self) -> f64 {
        let mut last = 0.0;
        let mut sum = 0.0;
        for s in &self.samples {
            sum += s.heap.saturating_sub(s.live) as f64 * (s.at - last);
            last = s.at;
        }
        sum
    }

    /// The heap's PSS so many seconds after the program went idle.
    fn idle_after(&self, seconds: f64) -> Option<u64> {
        let idle = self.idle?;
        self.samples.iter().find(|s| s.at >= idle + seconds).map(|s| s.heap)
    }
}

/// Runs every return bench under every allocator, prints the figures and writes a plot of each.
pub(crate) fn run(program: &Path, allocators: &[Allocator], args: &Args, plots: &Path) -> Result<()> {
    for bench in names(program, &args.only)? {
        let courses: Vec<Result<Course>> = std::thread::scope(|scope| {
            let watch = |a: &'static str, r: Result<Running>| move || r?.watch(args.seconds, a);
            let started: Vec<_> = allocators
                .iter()
                .map(|a| scope.spawn(watch(a.name, Running::start(program, &bench, a))))
                .collect();
            started.into_iter().map(|t| t.join().unwrap_or_else(|_| bail!("the watch panicked"))).collect()
        });
        let courses: Vec<Course> = courses.into_iter().collect::<Result<_>>()?;
        print(&bench, &courses);
        let path = plots.join(format!("{bench}.svg"));
        std::fs::write(&path, draw(&bench, &courses)).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

fn draw(bench: &str, courses: &[Course]) -> String {
    let curve =
        |c: &Course| Curve { name: c.name, points: c.samples.iter().map(|s| (s.at, s.heap)).collect() };
    let curves: Vec<_> = courses.iter().map(curve).collect();
    let live: Vec<_> = courses.last().iter().flat_map(|c| c.samples.iter().map(|s| (s.at, s.live))).collect();
    plot::svg(&format!("{bench}: heap's PSS, MiB, over seconds"), &curves, &live)
}

fn print(bench: &str, courses: &[Course]) {
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    println!(
        "\n{bench:<14} {:>16} {:>14} {:>12} {:>12}",
        "integral MiB*s", "idle+2s MiB", "bound MiB", "live MiB"
    );
    for c in courses {
        let live = c.samples.last().map_or(0, |s| s.live);
        let after = c.idle_after(2.0).map_or("not idle yet".into(), |b| format!("{:.1}", mib(b as f64)));
        println!(
            "  {:<12} {:>16.0} {after:>14} {:>12.1} {:>12.1}",
            c.name,
            mib(c.integral()),
            mib(c.bound as f64),
            mib(live as f64)
        );
    }
}
