//! What an nginx worker holds over time: five bursts of requests (`benches/lua/shapes.lua`), each of 400,000 objects of
//! which every 400th is kept, then nothing, or light traffic. One nginx for each allocator, all at the same time.
//!
//! Figures are the worker's PSS less that of the fresh worker, which has answered light requests. PSS, not RSS, because
//! master and worker share pages, and because pages may be shared within the worker. Moments count from the end of
//! the contender's own last burst.

use super::contender::{self, Contender};
use super::sources;
use crate::plot::{self, Curve, Point};
use crate::workspace::root;
use anyhow::{Context, Result, bail, ensure};
use ebbtide_observe::Root;
use ebbtide_observe::process::Process;
use ebbtide_testkit::{Nginx, Plan};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const SHAPES: [&str; 6] = ["tables", "strings", "closures", "large", "cdata", "shdict"];
const BURSTS: u32 = 5;
/// Between two bursts: a worker is not asked again in the same instant.
const PAUSE: Duration = Duration::from_millis(500);
/// Between two samples; reading smaps_rollup of 400 MB takes about 2 ms.
const STEP: Duration = Duration::from_millis(200);
/// Between two light requests.
const LIGHT: Duration = Duration::from_millis(200);

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What the bursts build
    #[arg(long, default_value = "tables", value_parser = ["tables", "strings", "closures", "large", "cdata", "shdict", "all"])]
    shape: String,
    /// Seconds that each worker is watched after its last burst
    #[arg(long, default_value_t = 60)]
    after: u64,
    /// Five light requests a second after the bursts, instead of none
    #[arg(long)]
    traffic: bool,
    /// The last burst is followed by a request that calls collectgarbage()
    #[arg(long)]
    collect: bool,
    /// Only allocators whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Where the plots go [default: benches/lua/plots]
    #[arg(long)]
    plots: Option<PathBuf>,
}

/// A worker's course under one allocator.
struct Course {
    name: &'static str,
    /// PSS of the fresh worker.
    fresh: u64,
    /// Seconds since the start, and PSS above the fresh worker's.
    samples: Vec<Point>,
    /// When the last burst was answered.
    quiet: f64,
    /// What the collector knows of at the end, in KiB.
    count: f64,
}

impl Course {
    fn peak(&self) -> u64 {
        self.samples.iter().map(|s| s.1).max().unwrap_or(0)
    }

    /// So many seconds after the last burst; nothing if it was not watched for so long.
    fn after(&self, seconds: f64) -> Option<u64> {
        self.samples.iter().find(|s| s.0 >= self.quiet + seconds).map(|s| s.1)
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut contenders = contender::all()?;
    contenders.retain(|c| c.name.contains(&args.only));
    let plots = args.plots.clone().unwrap_or_else(|| root().join("benches/lua/plots"));
    std::fs::create_dir_all(&plots).with_context(|| format!("cannot make {}", plots.display()))?;
    for shape in SHAPES.into_iter().filter(|s| args.shape == *s || args.shape == "all") {
        let start = Instant::now();
        let courses: Vec<Result<Course>> = std::thread::scope(|scope| {
            let watch = |c| move || watch(c, shape, args, start);
            let started: Vec<_> = contenders.iter().map(|c| scope.spawn(watch(c))).collect();
            started.into_iter().map(|t| t.join().unwrap_or_else(|_| bail!("a watch panicked"))).collect()
        });
        let courses: Vec<Course> = courses.into_iter().collect::<Result<_>>()?;
        let kind = if args.traffic { "-traffic" } else { "" };
        print(shape, &courses);
        let path = plots.join(format!("{shape}{kind}.svg"));
        std::fs::write(&path, draw(shape, args, &courses)).with_context(|| path.display().to_string())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Runs one nginx through it all.
fn watch(contender: &Contender, shape: &str, args: &Args, start: Instant) -> Result<Course> {
    let nginx = Nginx::serve(&plan(), |command| contender.apply(command)).context("no nginx with Lua")?;
    let [worker] = nginx.workers()[..] else { bail!("{}: not one worker", contender.name) };
    for _ in 0..10 {
        nginx.get("/light");
    }
    let worker = Process::open(&Root::live()?, worker)?;
    let fresh = pss(&worker)?;
    let mut course = Course { name: contender.name, fresh, samples: Vec::new(), quiet: 0.0, count: 0.0 };
    let (quiet, over) = (AtomicBool::new(false), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let asker = scope.spawn(|| ask(&nginx, shape, args, &quiet, &over));
        // One who ended without a word has failed, and his panic is passed on.
        let failed = || asker.is_finished() && !quiet.load(Ordering::Relaxed);
        let sampled = sample(&worker, args, start, (&quiet, &failed), &mut course);
        // Whatever became of the samples, the one who asks must hear of it.
        over.store(true, Ordering::Relaxed);
        sampled
    })?;
    course.count = nginx.get("/count").parse().context("no count")?;
    Ok(course)
}

fn plan() -> Plan {
    let location = |name: &str, call: &str| {
        format!("location /{name} {{ content_by_lua_block {{ ngx.say(require('shapes').{call}) }} }}\n")
    };
    let server = [
        location("burst", "burst(ngx.var.arg_shape)"),
        location("light", "light()"),
        location("collect", "collect()"),
        location("count", "count()"),
    ];
    let http = format!(
        "lua_shared_dict bench 8m; lua_package_path '{}/?.lua;/usr/share/lua/5.1/?.lua;;';",
        sources().display()
    );
    let init_worker = "require('shapes')".into();
    Plan { workers: 1, http, server: server.concat(), init_worker, ..Plan::default() }
}

/// Sends the bursts, says when the last one is answered, and goes on with light traffic until it is over.
fn ask(nginx: &Nginx, shape: &str, args: &Args, quiet: &AtomicBool, over: &AtomicBool) {
    for _ in 0..BURSTS {
        std::thread::sleep(PAUSE);
        nginx.get(&format!("/burst?shape={shape}"));
    }
    if args.collect {
        nginx.get("/collect");
    }
    quiet.store(true, Ordering::Relaxed);
    while args.traffic && !over.load(Ordering::Relaxed) {
        nginx.get("/light");
        std::thread::sleep(LIGHT);
    }
}

fn sample(
    worker: &Process,
    args: &Args,
    start: Instant,
    (quiet, failed): (&AtomicBool, &dyn Fn() -> bool),
    course: &mut Course,
) -> Result<()> {
    let mut end = f64::INFINITY;
    loop {
        ensure!(!failed(), "{}: a request failed", course.name);
        let was_quiet = quiet.load(Ordering::Relaxed);
        let at = start.elapsed().as_secs_f64();
        course.samples.push((at, pss(worker)?.saturating_sub(course.fresh)));
        if was_quiet && course.quiet == 0.0 {
            course.quiet = at;
            end = at + args.after as f64;
        }
        if at >= end {
            return Ok(());
        }
        std::thread::sleep(STEP);
    }
}

fn pss(worker: &Process) -> Result<u64> {
    Ok(worker.rollup().context("the worker's PSS")?.pss.0)
}

fn print(shape: &str, courses: &[Course]) {
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / f64::from(1 << 20));
    let or_dash = |bytes: Option<u64>| bytes.map_or("-".into(), mib);
    println!(
        "\n{shape:<12} {:>8} {:>10} {:>10} {:>10} {:>10} {:>14}",
        "peak", "2 s", "10 s", "40 s", "end", "count() at end"
    );
    for c in courses {
        let end = c.samples.last().map(|s| s.1);
        println!(
            "  {:<10} {:>8} {:>10} {:>10} {:>10} {:>10} {:>14.1}   fresh worker {}",
            c.name,
            mib(c.peak()),
            or_dash(c.after(2.0)),
            or_dash(c.after(10.0)),
            or_dash(c.after(40.0)),
            or_dash(end),
            c.count / 1024.0,
            mib(c.fresh)
        );
    }
}

fn draw(shape: &str, args: &Args, courses: &[Course]) -> String {
    let curves: Vec<_> = courses.iter().map(|c| Curve { name: c.name, points: c.samples.clone() }).collect();
    let then = if args.traffic { "light traffic" } else { "nothing" };
    let title =
        format!("{shape}: five bursts, then {then}; a worker's PSS above the fresh one's, MiB, over seconds");
    plot::svg(&title, &curves, &[])
}
