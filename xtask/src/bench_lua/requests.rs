//! How many requests one nginx worker answers (`benches/lua/handlers.lua`), how long one in a hundred waits, and how much
//! processor time each takes, which a busy machine changes least: wrk on one processor, the worker on the other. Both
//! allocators' workers are up all the time and are asked in turns; ratios are medians of the rounds', so a slower minute
//! of the machine meets both.

use super::contender::{self, Contender};
use super::programs::in_turns;
use super::{median, sources};
use crate::workspace::text;
use anyhow::{Context, Result, bail, ensure};
use ebbtide_observe::Root;
use ebbtide_observe::process::Process;
use ebbtide_testkit::{Nginx, Plan};
use std::process::{Command, ExitCode};
use std::time::Duration;

const HANDLERS: [&str; 4] = ["json", "template", "routing", "tables"];

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only handlers whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Rounds of each
    #[arg(long, default_value_t = 7)]
    rounds: usize,
    /// Seconds of each
    #[arg(long, default_value_t = 4)]
    seconds: u64,
    /// Connections of wrk
    #[arg(long, default_value_t = 16)]
    connections: u32,
}

/// What wrk measured.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Measured {
    per_second: f64,
    p99_ms: f64,
    /// Of all the worker's threads, for one request.
    cpu_us: f64,
}

/// A figure's name, its digits after the point, and how to have it.
type Figure = (&'static str, usize, fn(&Measured) -> f64);

impl Measured {
    const FIGURES: [Figure; 3] =
        [("requests/s", 0, |m| m.per_second), ("p99, ms", 2, |m| m.p99_ms), ("CPU, us", 1, |m| m.cpu_us)];
}

/// An nginx, and its worker.
struct Server {
    nginx: Nginx,
    worker: Process,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure!(args.rounds > 0, "no rounds");
    let servers: Vec<Server> = contender::pair()?.iter().map(start).collect::<Result<_>>()?;
    println!("JSON by {}; {} connections", servers[0].nginx.get("/codec"), args.connections);
    println!("{:<22} {:>12} {:>12} {:>8}", "", contender::BUILT_IN, contender::OURS, "ratio");
    for handler in HANDLERS.into_iter().filter(|name| name.contains(&args.only)) {
        let mut measured = [Vec::new(), Vec::new()];
        for server in &servers {
            wrk(server, handler, 1, args.connections)?;
        }
        for round in 0..args.rounds {
            for n in in_turns(round) {
                measured[n].push(wrk(&servers[n], handler, args.seconds, args.connections)?);
            }
        }
        let [theirs, ours] = &measured;
        for (name, digits, figure) in Measured::FIGURES {
            let of = |all: &[Measured]| median(all.iter().map(figure));
            let ratio = median(ours.iter().zip(theirs).map(|(ours, theirs)| figure(ours) / figure(theirs)));
            println!(
                "{handler:<10}{name:<12} {:>12.digits$} {:>12.digits$} {ratio:>8.3}",
                of(theirs),
                of(ours)
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn start(contender: &Contender) -> Result<Server> {
    let location = |name: &str| {
        format!("location /{name} {{ content_by_lua_block {{ ngx.say(require('handlers').{name}()) }} }}\n")
    };
    let plan = Plan {
        workers: 1,
        http: format!("lua_package_path '{}/?.lua;/usr/share/lua/5.1/?.lua;;';", sources().display()),
        tcp: true,
        server: HANDLERS.into_iter().chain(["codec"]).map(location).collect(),
        ..Plan::default()
    };
    let nginx = Nginx::serve(&plan, |command| contender.apply(command)).context("no nginx with Lua")?;
    let [worker] = nginx.workers()[..] else { bail!("{}: not one worker", contender.name) };
    text(Command::new("taskset").args(["-a", "-p", "-c", "0", &worker.to_string()]))?;
    let worker = Process::open(&Root::live()?, worker)?;
    Ok(Server { nginx, worker })
}

/// Sends requests for so many seconds.
fn wrk(server: &Server, handler: &str, seconds: u64, connections: u32) -> Result<Measured> {
    let port = server.nginx.port().context("nginx has no port")?;
    let mut command = Command::new("taskset");
    command.args(["-c", "1", "wrk", "--latency", "-t1"]);
    command.args([format!("-c{connections}"), format!("-d{seconds}s")]);
    command.arg(format!("http://127.0.0.1:{port}/{handler}"));
    let before = cpu(&server.worker)?;
    let said = text(&mut command)?;
    let took = cpu(&server.worker)?.saturating_sub(before);
    ensure!(!said.contains("Non-2xx") && !said.contains("Socket errors"), "{handler}: {said}");
    measured(&said, took).with_context(|| format!("wrk said {said}"))
}

fn cpu(process: &Process) -> Result<Duration> {
    let stat = process.stat().context("the worker's time")?;
    Ok(stat.user_time + stat.system_time)
}

fn measured(said: &str, cpu: Duration) -> Option<Measured> {
    let lines = || said.lines().map(str::trim);
    let after = |label: &str| lines().find_map(|line| line.strip_prefix(label).map(str::trim));
    let requests: f64 = lines().find_map(|line| line.split_once(" requests in ")?.0.parse().ok())?;
    Some(Measured {
        per_second: after("Requests/sec:")?.parse().ok()?,
        p99_ms: milliseconds(after("99%")?)?,
        cpu_us: cpu.as_secs_f64() * 1e6 / requests,
    })
}

/// wrk's way to write a time.
fn milliseconds(time: &str) -> Option<f64> {
    let scaled = |number: &str, scale: f64| Some(number.parse::<f64>().ok()? * scale);
    if let Some(number) = time.strip_suffix("us") {
        scaled(number, 1e-3)
    } else if let Some(number) = time.strip_suffix("ms") {
        scaled(number, 1.0)
    } else {
        scaled(time.strip_suffix('s')?, 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_wrk_says_is_read() {
        let said = "  Latency Distribution\n     50%  456.00us\n     99%    1.53ms\n  5000 requests in 3.00s, 1MB read\n\
            Requests/sec:  24512.34\n";
        let expected = Measured { per_second: 24512.34, p99_ms: 1.53, cpu_us: 200.0 };
        assert_eq!(measured(said, Duration::from_secs(1)), Some(expected));
        assert_eq!(measured("unable to connect", Duration::ZERO), None);
        assert_eq!(milliseconds("250.00us"), Some(0.25));
        assert_eq!(milliseconds("1.20s"), Some(1200.0));
        assert_eq!(milliseconds("much"), None);
    }
}
