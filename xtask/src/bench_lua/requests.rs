//! How many requests one nginx worker answers (`benches/lua/handlers.lua`), and how long one in a hundred waits: wrk on
//! one processor, the worker on the other. Both allocators' workers are up all the time and are asked in turns; ratios
//! are medians of the rounds', so a slower minute of the machine meets both.

use super::contender::{self, Contender};
use super::programs::in_turns;
use super::{median, sources};
use crate::workspace::text;
use anyhow::{Context, Result, ensure};
use ebbtide_testkit::{Nginx, Plan};
use std::process::{Command, ExitCode};

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
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure!(args.rounds > 0, "no rounds");
    let servers: Vec<Nginx> = contender::pair()?.iter().map(start).collect::<Result<_>>()?;
    println!("JSON by {}; {} connections", servers[0].get("/codec"), args.connections);
    println!(
        "{:<10} {:>12} {:>12} {:>8} {:>14} {:>12} {:>8}",
        "requests/s",
        contender::BUILT_IN,
        contender::OURS,
        "ratio",
        "p99 ms",
        contender::OURS,
        "ratio"
    );
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
        let of = |all: &[Measured], field: fn(&Measured) -> f64| median(all.iter().map(field));
        let ratio = |field: fn(&Measured) -> f64| {
            median(ours.iter().zip(theirs).map(|(ours, theirs)| field(ours) / field(theirs)))
        };
        println!(
            "{handler:<10} {:>12.0} {:>12.0} {:>8.3} {:>14.2} {:>12.2} {:>8.3}",
            of(theirs, |m| m.per_second),
            of(ours, |m| m.per_second),
            ratio(|m| m.per_second),
            of(theirs, |m| m.p99_ms),
            of(ours, |m| m.p99_ms),
            ratio(|m| m.p99_ms)
        );
    }
    Ok(ExitCode::SUCCESS)
}

fn start(contender: &Contender) -> Result<Nginx> {
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
    for worker in nginx.workers() {
        text(Command::new("taskset").args(["-p", "-c", "0", &worker.to_string()]))?;
    }
    Ok(nginx)
}

/// Sends requests for so many seconds.
fn wrk(server: &Nginx, handler: &str, seconds: u64, connections: u32) -> Result<Measured> {
    let mut command = Command::new("taskset");
    command.args([
        "-c",
        "1",
        "wrk",
        "--latency",
        "-t1",
        &format!("-c{connections}"),
        &format!("-d{seconds}s"),
    ]);
    let port = server.port().context("nginx has no port")?;
    command.arg(format!("http://127.0.0.1:{port}/{handler}"));
    let said = text(&mut command)?;
    ensure!(!said.contains("Non-2xx") && !said.contains("Socket errors"), "{handler}: {said}");
    measured(&said).with_context(|| format!("wrk said {said}"))
}

fn measured(said: &str) -> Option<Measured> {
    let after = |label: &str| said.lines().find_map(|line| line.trim().strip_prefix(label).map(str::trim));
    Some(Measured { per_second: after("Requests/sec:")?.parse().ok()?, p99_ms: milliseconds(after("99%")?)? })
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
        let said =
            "  Latency Distribution\n     50%  456.00us\n     99%    1.53ms\nRequests/sec:  24512.34\n";
        assert_eq!(measured(said), Some(Measured { per_second: 24512.34, p99_ms: 1.53 }));
        assert_eq!(milliseconds("250.00us"), Some(0.25));
        assert_eq!(milliseconds("1.20s"), Some(1200.0));
        assert_eq!(milliseconds("much"), None);
    }
}
