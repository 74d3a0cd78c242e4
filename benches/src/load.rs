//! The heap-load bench: the throughput of a busy Redis while `ebb heap` looks into it again and again. On Redis's
//! jemalloc and, preloaded, on glibc's malloc.
//!
//! Whatever runs in a loop takes processor time, caches and, on siblings of one core, half of that. So the loop looks
//! into an idle twin of the server in other rounds, and the two are compared: what is left is what looking does to
//! whom it looks at. The server and its clients have one processor, the loop has another. Rounds alternate, so that a
//! slower minute of the machine meets all. Invariant: the servers end with this program.

use crate::measure::median;
use anyhow::{Context, Result, ensure};
use ebbtide_testkit::Redis;
use rustix::io::Errno;
use rustix::thread::{CpuSet, sched_setaffinity};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// The least share of its throughput that a server looked into must keep, against one beside which another is.
const LEAST: f64 = 0.95;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The ebb to run
    #[arg(long)]
    ebb: PathBuf,
    /// Keys of 200 bytes in the server
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Requests of each kind (SET, GET) in one measurement
    #[arg(long, default_value_t = 400_000)]
    requests: u64,
    /// How often each is measured
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Fail where a server keeps less than 95% of its throughput
    #[arg(long)]
    assert: bool,
}

/// Which malloc the server runs on.
const MALLOCS: [(&str, Option<&str>); 2] = [("jemalloc", None), ("glibc", Some("libc.so.6"))];

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure!(args.rounds > 0, "no rounds");
    println!("{} keys, {} rounds, medians of requests/s:", args.keys, args.rounds);
    let columns = ["alone", "beside", "looked at", "kept", "looks"];
    println!(
        "{:<10} {:>10} {:>10} {:>10} {:>8} {:>8}",
        "", columns[0], columns[1], columns[2], columns[3], columns[4]
    );
    pin(0)?;
    let mut kept = true;
    for (name, preload) in MALLOCS {
        let servers = [start(preload)?, start(preload)?];
        for server in &servers {
            benchmark(server, &["-t", "set", "-P", "16"], args.keys, args.keys)?;
        }
        let [server, twin] = &servers;
        let measure = || benchmark(server, &["-t", "set,get"], args.keys, args.requests);
        let (mut alone, mut beside, mut looked_at, mut looks) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for _ in 0..args.rounds {
            alone.push(measure()?);
            let looking = Looking::start(&args.ebb, twin.pid());
            beside.push(measure()?);
            looking.stop()?;
            let looking = Looking::start(&args.ebb, server.pid());
            looked_at.push(measure()?);
            looks += looking.stop()?;
        }
        let [alone, beside, looked_at] = [alone, beside, looked_at].map(median);
        let share = looked_at / beside;
        println!(
            "{name:<10} {alone:>10.0} {beside:>10.0} {looked_at:>10.0} {:>7.1}% {looks:>8}",
            share * 100.0
        );
        kept &= share >= LEAST;
    }
    Ok(if args.assert && !kept { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Keeps this thread and what it starts from now on to processor `n`, where there is one.
fn pin(n: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(n);
    match sched_setaffinity(None, &set) {
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A Redis on jemalloc, or with this library before it.
fn start(preload: Option<&str>) -> Result<Redis> {
    let environment: Vec<_> = preload.map(|library| ("LD_PRELOAD", library)).into_iter().collect();
    Redis::start(&[], &environment).context("no redis-server")
}

/// Requests per second: the harmonic mean of the kinds asked for.
fn benchmark(server: &Redis, options: &[&str], keys: u64, requests: u64) -> Result<f64> {
    let mut command = Command::new("redis-benchmark");
    command.arg("-s").arg(server.socket()).args(options);
    command.args(["-r", &keys.to_string(), "-n", &requests.to_string(), "-d", "200", "--csv"]);
    rate(&mut command)
}

/// What a redis-benchmark with --csv says: requests per second, the harmonic mean of the kinds asked for.
pub(crate) fn rate(command: &mut Command) -> Result<f64> {
    let output = command.stderr(Stdio::inherit()).output().context("starting redis-benchmark")?;
    ensure!(output.status.success(), "redis-benchmark: {}", output.status);
    let text = String::from_utf8(output.stdout)?;
    // "test","rps","avg_latency_ms",... and a line for each test.
    let rates =
        text.lines().skip(1).filter_map(|line| line.split(',').nth(1)?.trim_matches('"').parse().ok());
    let rates: Vec<f64> = rates.collect();
    ensure!(!rates.is_empty(), "redis-benchmark said {text:?}");
    Ok(rates.len() as f64 / rates.iter().map(|rate| 1.0 / rate).sum::<f64>())
}

/// `ebb heap`, again and again.
struct Looking {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u32>>,
}

impl Looking {
    fn start(ebb: &Path, pid: u32) -> Looking {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, ebb) = (Arc::clone(&stop), ebb.to_owned());
        let thread = thread::spawn(move || {
            pin(1)?;
            let mut looks = 0;
            while !stopped.load(Ordering::Relaxed) {
                let mut command = Command::new(&ebb);
                command.args(["heap", &pid.to_string(), "--json"]).stdout(Stdio::null());
                ensure!(command.status()?.success(), "ebb heap failed");
                looks += 1;
            }
            Ok(looks)
        });
        Looking { stop, thread }
    }

    /// Ends it; how many looks there were.
    fn stop(self) -> Result<u32> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the looking thread panicked"))?
    }
}
