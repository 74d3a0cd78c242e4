//! The reclaim-latency bench: how long the requests of a server take while its memory is taken back. By `ebb reclaim`, by
//! gdb calling malloc_trim, and by malloc_trim called in the server by a thread of its own, as a cron job inside would.
//!
//! One client asks one request after the other, and notes the time of each; the heap is filled anew before each round.
//! Rounds alternate, so that a slower minute of the machine meets all. A server that does not survive is said so, and
//! started again. Invariant: the server ends with this program, because it waits for its standard input to close.

use crate::measure::median;
use anyhow::{Context, Result, ensure};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The ebb to run
    #[arg(long)]
    ebb: PathBuf,
    /// Size of the heap in MiB
    #[arg(long, default_value_t = 300)]
    mib: u64,
    /// How often each way is measured
    #[arg(long, default_value_t = 7)]
    rounds: usize,
}

/// How memory is taken back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Not,
    Ebb(&'static str),
    Gdb,
    Cron,
}

const WAYS: [(&str, Way); 5] = [
    ("not at all", Way::Not),
    ("ebb reclaim", Way::Ebb("5ms")),
    ("ebb --max-stop 1ms", Way::Ebb("1ms")),
    ("gdb, malloc_trim", Way::Gdb),
    ("malloc_trim inside", Way::Cron),
];

/// Requests before and after.
const AROUND: Duration = Duration::from_millis(300);
/// Between an answer and the next request.
const THINK: Duration = Duration::from_micros(50);

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure!(args.rounds > 0, "no rounds");
    let dir = tempfile::tempdir()?;
    let program = build(dir.path())?;
    let mut server = Server::start(&program, args.mib)?;
    let mut taken: Vec<Vec<Round>> = vec![Vec::new(); WAYS.len()];
    let mut ended = [0; WAYS.len()];
    for _ in 0..args.rounds {
        for (n, (_, way)) in WAYS.iter().enumerate() {
            match server.round(&args.ebb, *way) {
                Ok(round) => taken[n].push(round),
                Err(_) if !server.lives() => {
                    ended[n] += 1;
                    server = Server::start(&program, args.mib)?;
                }
                Err(error) => return Err(error),
            }
        }
    }
    println!("{} MiB, {} rounds, medians of a round's requests in ms:", args.mib, args.rounds);
    println!("{:<20} {:>8} {:>8} {:>8} {:>8} {:>10}", "", "p50", "p99", "p99.9", "longest", "returned");
    for (((name, _), rounds), ended) in WAYS.iter().zip(&taken).zip(ended) {
        if ended > 0 {
            println!("{name:<20} the server did not survive {ended} of {} rounds", args.rounds);
        }
        if !rounds.is_empty() {
            let median = |of: fn(&Round) -> f64| median(rounds.iter().map(of).collect());
            let times = [|r: &Round| r.p50, |r: &Round| r.p99, |r: &Round| r.p999, |r: &Round| r.longest];
            let [p50, p99, p999, longest] = times.map(median);
            let returned = Bytes(median(|r| r.returned.0 as f64) as u64);
            println!("{name:<20} {p50:>8.3} {p99:>8.3} {p999:>8.3} {longest:>8.3} {returned:>10}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn build(dir: &Path) -> Result<PathBuf> {
    let program = dir.join("served");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("programs/served.c");
    let built = Command::new("gcc").args(["-O2", "-pthread", "-o"]).arg(&program).arg(source).status();
    ensure!(built.context("gcc")?.success(), "the server does not compile");
    Ok(program)
}

/// What one round took, in milliseconds.
#[derive(Debug, Clone)]
struct Round {
    p50: f64,
    p99: f64,
    p999: f64,
    longest: f64,
    returned: Bytes,
}

struct Server {
    child: Child,
    ask: ChildStdin,
    answers: ChildStdout,
}

impl Server {
    fn start(program: &Path, mib: u64) -> Result<Server> {
        let mut command = Command::new(program);
        command.arg(mib.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting the server")?;
        let ask = child.stdin.take().context("its standard input")?;
        let answers = child.stdout.take().context("its standard output")?;
        Ok(Server { child, ask, answers })
    }

    fn lives(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    fn ask(&mut self, what: u8) -> Result<Duration> {
        let began = Instant::now();
        self.ask.write_all(&[what])?;
        self.answers.read_exact(&mut [0])?;
        Ok(began.elapsed())
    }

    /// Fills the heap, asks requests, takes the memory back, and asks on.
    fn round(&mut self, ebb: &Path, way: Way) -> Result<Round> {
        self.ask(b'f')?;
        let before = self.resident()?;
        let mut times = Vec::new();
        self.requests(&mut times, |since| Ok(since > AROUND))?;
        let pid = self.child.id().to_string();
        let quiet = |command: &mut Command| {
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        };
        let mut at_work = match way {
            Way::Not => None,
            Way::Ebb(stop) => {
                Some(quiet(Command::new(ebb).args(["reclaim", &pid, "--max-stop", stop])).context("ebb")?)
            }
            Way::Gdb => {
                let call = "call (int)malloc_trim(0)";
                Some(quiet(Command::new("gdb").args(["-batch", "-p", &pid, "-ex", call])).context("gdb")?)
            }
            Way::Cron => {
                self.ask.write_all(b"t")?;
                None
            }
        };
        if let Some(worker) = &mut at_work {
            self.requests(&mut times, |_| Ok(worker.try_wait()?.is_some()))?;
        }
        self.requests(&mut times, |since| Ok(since > AROUND))?;
        times.sort_unstable();
        let at = |share: f64| {
            let index = (share * times.len() as f64) as usize;
            times.get(index.min(times.len().saturating_sub(1))).map_or(0.0, |time| time.as_secs_f64() * 1e3)
        };
        let returned = before - self.resident()?;
        Ok(Round { p50: at(0.5), p99: at(0.99), p999: at(0.999), longest: at(1.0), returned })
    }

    /// One request after the other until `enough`.
    fn requests(
        &mut self,
        times: &mut Vec<Duration>,
        mut enough: impl FnMut(Duration) -> Result<bool>,
    ) -> Result<()> {
        let began = Instant::now();
        while !enough(began.elapsed())? {
            times.push(self.ask(b'r')?);
            std::thread::sleep(THINK);
        }
        Ok(())
    }

    fn resident(&self) -> Result<Bytes> {
        Ok(Process::open(&Root::live()?, self.child.id())?.rollup()?.anonymous)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
