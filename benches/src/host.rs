//! The host bench: with thousands of small sleeping processes beside whatever runs here, how long `ebb ps`
//! and `ebb` take against the bare reads of all smaps_rollup files and against smem and ps_mem.
//!
//! Every tool runs once a round, rounds follow each other, and medians are compared: what else the machine
//! does meanwhile hits all of them. Invariant: the sleeping processes end with this one, however it ends.

use crate::measure::{Taken, measure};
use anyhow::{Context, Result, ensure};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

/// The most that ebb's wall time may be, as a multiple of the bare reads'.
const MOST_TIMES: f64 = 1.3;

/// The most memory that ebb may have held, in KiB.
const MOST_KIB: u64 = 24 << 10;

/// Debian's, which smem uses too: a python3 in PATH may be a wrapper with costs of its own.
const PYTHON: &str = "/usr/bin/python3";

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The ebb to measure
    #[arg(long)]
    ebb: PathBuf,
    /// A ps_mem (its Python file) to measure beside it
    #[arg(long)]
    ps_mem: Option<PathBuf>,
    /// An smem to measure beside it
    #[arg(long)]
    smem: Option<PathBuf>,
    /// How many sleeping processes are made
    #[arg(long, default_value_t = 2000)]
    processes: usize,
    /// How often every tool is run
    #[arg(long, default_value_t = 15)]
    rounds: usize,
    /// Fail where ebb takes over 1.3 times the bare reads, or over 24 MiB
    #[arg(long)]
    assert: bool,
}

/// A command and what its runs took.
struct Tool {
    name: &'static str,
    command: Vec<OsString>,
    runs: Vec<Taken>,
    is_ebb: bool,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure!(args.rounds > 0, "no rounds");
    let _sleepers = Sleepers::start(args.processes)?;
    let mut tools = tools(args)?;
    for _ in 0..args.rounds {
        for tool in &mut tools {
            tool.runs.push(measure(&tool.command).with_context(|| tool.name)?);
        }
    }
    let held = print(&tools, args);
    Ok(if args.assert && !held { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// The tools, the floor first.
fn tools(args: &Args) -> Result<Vec<Tool>> {
    let mut tools = Vec::new();
    let mut add = |name, program: PathBuf, options: &[&str], is_ebb| {
        let mut command = vec![program.into_os_string()];
        command.extend(options.iter().map(OsString::from));
        tools.push(Tool { name, command, runs: Vec::new(), is_ebb });
    };
    add("bare reads", crate::this_program()?, &["rollups"], false);
    // The promise is about the readings: what is inside the larger processes takes what time --heaps gives it.
    add("ebb ps", args.ebb.clone(), &["ps", "--json", "--no-heaps"], true);
    add("ebb", args.ebb.clone(), &["--json", "--no-heaps"], true);
    add("ebb, heaps too", args.ebb.clone(), &["--json"], false);
    if let Some(smem) = &args.smem {
        add("smem", smem.clone(), &[], false);
    }
    if let Some(ps_mem) = &args.ps_mem {
        add("ps_mem", PathBuf::from(PYTHON), &[&ps_mem.to_string_lossy()], false);
    }
    Ok(tools)
}

/// Prints the table; true if ebb kept within its limits.
fn print(tools: &[Tool], args: &Args) -> bool {
    println!("{} processes more, {} rounds, medians (fastest):", args.processes, args.rounds);
    println!("{:<14} {:>21} {:>7} {:>10} {:>7} {:>10}", "", "wall ms", "", "cpu ms", "", "peak MiB");
    let mut floor = None;
    let mut held = true;
    for tool in tools {
        let (wall, cpu) = (median(&tool.runs, |taken| taken.wall), median(&tool.runs, |taken| taken.cpu));
        let fastest = tool.runs.iter().map(|taken| taken.wall).min().unwrap_or_default();
        let peak = tool.runs.iter().map(|taken| taken.peak_kib).max().unwrap_or(0);
        let (wall_floor, cpu_floor) = *floor.get_or_insert((wall, cpu));
        let (times, cpu_times) = (ratio(wall, wall_floor), ratio(cpu, cpu_floor));
        println!(
            "{:<14} {:>10.1} {:>10} {:>6.2}x {:>10.1} {:>6.2}x {:>10.1}",
            tool.name,
            millis(wall),
            format!("({:.1})", millis(fastest)),
            times,
            millis(cpu),
            cpu_times,
            peak as f64 / 1024.0,
        );
        held &= !tool.is_ebb || (times <= MOST_TIMES && peak < MOST_KIB);
    }
    let verdict = if held { "within" } else { "beyond" };
    println!("ebb is {verdict} its limits: {MOST_TIMES} times the bare reads, {} MiB", MOST_KIB >> 10);
    held
}

fn median(runs: &[Taken], of: fn(&Taken) -> Duration) -> Duration {
    let mut times: Vec<Duration> = runs.iter().map(of).collect();
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

fn ratio(time: Duration, floor: Duration) -> f64 {
    time.as_secs_f64() / floor.as_secs_f64().max(1e-9)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// Processes that sleep until they are dropped.
struct Sleepers(Vec<Child>);

impl Sleepers {
    fn start(count: usize) -> Result<Sleepers> {
        let mut sleepers = Sleepers(Vec::with_capacity(count));
        for _ in 0..count {
            // setpriv ends them with this process, even if that is killed.
            let child = Command::new("setpriv")
                .args(["--pdeathsig", "KILL", "sleep", "infinity"])
                .stdin(Stdio::null())
                .spawn()
                .context("cannot start setpriv (package util-linux)")?;
            sleepers.0.push(child);
        }
        sleepers.settle()?;
        Ok(sleepers)
    }

    /// Waits until every one of them is `sleep`: on the way there their memory is still changing.
    fn settle(&mut self) -> Result<()> {
        for child in &mut self.0 {
            let comm = format!("/proc/{}/comm", child.id());
            while std::fs::read(&comm).context("a sleeping process is gone")? != b"sleep\n" {
                ensure!(child.try_wait()?.is_none(), "a sleeping process ended");
                std::thread::yield_now();
            }
        }
        Ok(())
    }
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        for child in &mut self.0 {
            // One that is gone already needs neither.
            child.kill().and_then(|()| child.wait()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_limits() {
        let taken = |ms, peak_kib| Taken {
            wall: Duration::from_millis(ms),
            cpu: Duration::from_millis(ms),
            peak_kib,
        };
        let tool =
            |name, is_ebb, runs: [Taken; 3]| Tool { name, command: Vec::new(), runs: runs.into(), is_ebb };
        let floor = || tool("floor", false, [taken(10, 1), taken(90, 1), taken(11, 1)]);
        let args =
            Args { ebb: PathBuf::new(), ps_mem: None, smem: None, processes: 0, rounds: 3, assert: true };
        assert_eq!(median(&floor().runs, |taken| taken.wall), Duration::from_millis(11));
        let fine = || tool("ebb", true, [taken(14, 9), taken(14, 9), taken(80, 9)]);
        let slow = tool("ebb", true, [taken(15, 9), taken(15, 9), taken(1, 9)]);
        let large = tool("ebb", true, [taken(11, 9), taken(11, MOST_KIB), taken(11, 9)]);
        let slow_peer = tool("smem", false, [taken(500, 9), taken(500, 9), taken(500, 9)]);
        assert!(print(&[floor(), fine(), slow_peer], &args));
        assert!(!print(&[floor(), slow], &args));
        assert!(!print(&[floor(), fine(), large], &args));
    }

    #[test]
    fn sleepers_sleep_and_go() {
        let sleepers = Sleepers::start(3).unwrap();
        let pids: Vec<u32> = sleepers.0.iter().map(Child::id).collect();
        drop(sleepers);
        assert!(pids.iter().all(|pid| !std::fs::exists(format!("/proc/{pid}")).unwrap()));
    }
}
