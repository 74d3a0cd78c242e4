//! The queue bench: the example queue server of ebbtide-shrink at memory pressure, by the library, not at all, and by
//! `shrink_to_fit` of everything under its locks; and what the library costs without pressure.
//!
//! redis-benchmark fills a queue and drains it; the event comes by FIFO, as systemd sends it, while clients of this
//! program push and pop. They note when each request ended and how long it took, for "before" (a second) and "during":
//! from the event until the resident set is back at 1.5 times its fresh start, or, where it does not come back, for a
//! second. Rounds alternate, so that a slower minute of the machine meets all. Invariants: the servers end with this program; the
//! figures of one round come from one server, fresh.

mod cost;
mod link;

use crate::load::rate;
use crate::measure::median;
use anyhow::{Context, Result, ensure};
use cost::cost;
use ebbtide_testkit::child::Child;
use link::{Link, Turn};
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The queue server to run
    #[arg(long)]
    server: PathBuf,
    /// Messages of 512 bytes
    #[arg(long, default_value_t = 1_000_000)]
    messages: u64,
    /// How often each way is measured
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds for the cost without pressure, for each of the two ways that requests come
    #[arg(long, default_value_t = 20)]
    cost: u64,
    /// Microseconds between a reply and the next request; with 0 the clients take all the processor time there is, and
    /// whatever else takes some is a loss of throughput
    #[arg(long, default_value_t = 50)]
    think: u64,
    /// Fail where the library does not keep its word: 1.5 times within 1 s, 90% of throughput, 2 ms, 0.5%
    #[arg(long)]
    assert: bool,
}

/// What the server does at pressure: the row's name, and what `--shrink` says.
const WAYS: [(&str, &str); 3] = [("library", "on"), ("nothing", "off"), ("shrink_to_fit", "naive")];
/// Before the event, and after it where memory does not come back.
const WINDOW: Duration = Duration::from_secs(1);
/// "During" is so long at least: shorter, it has too few requests to speak of.
const LEAST: Duration = Duration::from_millis(10);
/// Clients of this program, each with one request at a time.
const CLIENTS: usize = 2;

/// One way at one event. Times in ms, memory in KiB.
#[derive(Clone, Copy, Default)]
struct Round {
    fresh: f64,
    drained: f64,
    after: f64,
    back: f64,
    kept: f64,
    p99_before: f64,
    p99_during: f64,
    longest: f64,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure!(args.rounds > 0, "no rounds");
    let mut rounds = WAYS.map(|_| Vec::new());
    for _ in 0..args.rounds {
        for ((_, mode), rounds) in WAYS.iter().zip(&mut rounds) {
            rounds.push(round(args, mode)?);
        }
    }
    println!("{} messages of 512 B, drained; medians of {} rounds; ms, MiB:", args.messages, args.rounds);
    println!(
        "{:<13} {:>7} {:>8} {:>7} {:>8} {:>7} {:>8} {:>8} {:>8}",
        "", "fresh", "drained", "after", "back in", "kept", "p99 bef.", "p99 dur.", "longest"
    );
    for ((name, _), rounds) in WAYS.iter().zip(&rounds) {
        print_row(name, rounds);
    }
    let mut free = true;
    for depth in [1, 50] {
        let server = Server::start(args, "on")?;
        let (time, processor) = cost(&server, depth, Duration::from_secs(args.cost))?;
        println!(
            "without pressure, {depth} requests at a time, more by the library: time {time}, processor time {processor}"
        );
        free &= time.percent < 0.5 && processor.percent < 0.5;
    }
    let of = |figure: fn(&Round) -> f64| median(rounds[0].iter().map(figure).collect());
    let kept = of(|r| r.back) < 1000.0
        && of(|r| r.kept) >= 0.9
        && of(|r| r.p99_during - r.p99_before) <= 2.0
        && free;
    Ok(if args.assert && !kept { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print_row(name: &str, rounds: &[Round]) {
    let of = |figure: fn(&Round) -> f64| median(rounds.iter().map(figure).collect());
    let back = of(|r| r.back);
    let back = if back.is_finite() { format!("{back:.1}") } else { "never".into() };
    println!(
        "{name:<13} {:>7.1} {:>8.1} {:>7.1} {back:>8} {:>6.0}% {:>8.3} {:>8.3} {:>8.3}",
        of(|r| r.fresh) / 1024.0,
        of(|r| r.drained) / 1024.0,
        of(|r| r.after) / 1024.0,
        of(|r| r.kept) * 100.0,
        of(|r| r.p99_before),
        of(|r| r.p99_during),
        of(|r| r.longest),
    );
}

struct Server {
    child: Child,
    port: String,
    dir: tempfile::TempDir,
}

impl Server {
    fn start(args: &Args, mode: &str) -> Result<Server> {
        let dir = tempfile::tempdir()?;
        let fifo = dir.path().join("pressure");
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, 0o600.into(), 0)?;
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]).arg(&args.server).args(["--port", "0", "--shrink", mode]);
        command.args(["--memory-limit", "8G"]);
        command.env("MEMORY_PRESSURE_WATCH", &fifo).env_remove("MEMORY_PRESSURE_WRITE");
        let child = Child::spawn(command.stderr(std::process::Stdio::null()));
        let port = child.said().split([':', ' ']).nth(1).context("no port")?.to_owned();
        Ok(Server { child, port, dir })
    }

    /// Requests per second of one kind of redis-benchmark's.
    fn benchmark(&self, test: &str, count: u64) -> Result<f64> {
        let mut command = Command::new("redis-benchmark");
        command.args(["-p", &self.port, "-t", test, "-n", &count.to_string()]);
        rate(command.args(["-d", "512", "-P", "50", "--csv"]))
    }

    /// Processor time of all its threads, in seconds.
    fn cpu(&self) -> Result<f64> {
        let mut sum = 0.0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.pid()))? {
            // A thread may end meanwhile.
            let schedstat = std::fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            sum += schedstat.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0);
        }
        Ok(sum / 1e9)
    }

    fn rss(&self) -> Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }
}

fn round(args: &Args, mode: &str) -> Result<Round> {
    let server = Server::start(args, mode)?;
    let fresh = server.rss()?;
    server.benchmark("lpush", args.messages)?;
    server.benchmark("rpop", args.messages)?;
    let drained = server.rss()?;
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|n| {
                scope.spawn({
                    let (port, stop) = (&server.port, &stop);
                    move || client(port, n, args.think, stop)
                })
            })
            .collect();
        let watched = watch(&server, fresh);
        stop.store(true, Ordering::Relaxed);
        let mut requests = Vec::new();
        for client in clients {
            requests.extend(client.join().map_err(|_| anyhow::anyhow!("a client panicked"))??);
        }
        let (event, end, after, came_back) = watched?;
        Ok(figures(&requests, event, end, Round { fresh, drained, after, ..Round::default() }, came_back))
    })
}

/// Lets a second pass, sends the event, and waits for memory: when both were, what was resident then, and whether it was
/// little enough.
fn watch(server: &Server, fresh: f64) -> Result<(Instant, Instant, f64, bool)> {
    thread::sleep(WINDOW + Duration::from_millis(100));
    // Open for reading, too, so that it does not wait for a reader where nothing reads it.
    let fifo = server.dir.path().join("pressure");
    let mut fifo = std::fs::OpenOptions::new().read(true).write(true).open(fifo)?;
    let event = Instant::now();
    fifo.write_all(b"x")?;
    loop {
        let (now, rss) = (Instant::now(), server.rss()?);
        let back = rss <= 1.5 * fresh;
        if back && now - event >= LEAST || now - event >= WINDOW {
            return Ok((event, now, rss, back));
        }
        thread::sleep(Duration::from_millis(1));
    }
}

/// When each request ended, and how long it took in ms.
type Requests = Vec<(Instant, f64)>;

/// Pushes and pops in turn, on a queue of its own.
fn client(port: &str, n: usize, think: u64, stop: &AtomicBool) -> Result<Requests> {
    let mut link = Link::new(port, &format!("q{n}"), 1)?;
    // Its growth is no part of a request's time.
    let mut requests = Vec::with_capacity(1 << 20);
    while !stop.load(Ordering::Relaxed) {
        for turn in Turn::BOTH {
            let began = Instant::now();
            link.take(turn)?;
            requests.push((Instant::now(), began.elapsed().as_secs_f64() * 1e3));
            if think > 0 {
                thread::sleep(Duration::from_micros(think));
            }
        }
    }
    Ok(requests)
}

fn figures(requests: &Requests, event: Instant, end: Instant, round: Round, came_back: bool) -> Round {
    let within = |from: Instant, to: Instant| {
        // By the time it began, too: a request that the event held up ends after it.
        let mut times: Vec<f64> = requests
            .iter()
            .filter(|(ended, took)| *ended > from && *ended - Duration::from_secs_f64(took / 1e3) < to)
            .map(|request| request.1)
            .collect();
        times.sort_by(f64::total_cmp);
        let at = |share: f64| times.get((times.len() as f64 * share) as usize).copied().unwrap_or(0.0);
        (times.len() as f64 / (to - from).as_secs_f64(), at(0.99), times.last().copied().unwrap_or(0.0))
    };
    let before = within(event - WINDOW, event);
    let during = within(event, end);
    let back = if came_back { (end - event).as_secs_f64() * 1e3 } else { f64::INFINITY };
    let kept = during.0 / before.0;
    Round { back, kept, p99_before: before.1, p99_during: during.1, longest: during.2, ..round }
}
