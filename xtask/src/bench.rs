//! `cargo xtask bench NAME`: builds what is measured, provides the peers, and starts ebbtide-benches.

use crate::deps;
use crate::workspace::{build_queue_server, build_release, run as run_command, target_dir, which};
use anyhow::{Context, Result};
use std::path::PathBuf;
use std::process::{Command, ExitCode};

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(clap::Subcommand)]
enum Bench {
    /// The allocator beside its peers: what it gives back, and how fast it is
    Malloc(crate::bench_malloc::Args),
    /// LuaJIT and nginx on the allocator, on its own and on others: what is given back, and how fast it is
    Lua(crate::bench_lua::Args),
    /// The walk of a large glibc heap, beside a plain read of the same memory
    Heap {
        /// Options of `ebbtide-benches heap`, such as --mib or --assert
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// A busy Redis while ebb heap looks into it, beside the same alone
    HeapLoad {
        /// Options of `ebbtide-benches heap-load`, such as --rounds or --assert
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// A server's requests while its memory is taken back: by ebb, by gdb, by a thread of its own
    ReclaimLatency {
        /// Options of `ebbtide-benches reclaim-latency`, such as --mib or --rounds
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// The example queue server at memory pressure: with the library, without, and with shrink_to_fit of everything
    Queue {
        /// Options of `ebbtide-benches queue`, such as --messages, --rounds or --assert
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// ebb and ebb ps on a host with many processes, beside bare reads, smem and ps_mem
    Host {
        /// Options of `ebbtide-benches host`, such as --assert
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match &args.bench {
        Bench::Malloc(args) => crate::bench_malloc::run(args),
        Bench::Lua(args) => crate::bench_lua::run(args),
        Bench::Heap { options } => {
            let release = build_release(&["ebbtide-benches"])?;
            start(Command::new(release.join("ebbtide-benches")).arg("heap").args(options))
        }
        Bench::HeapLoad { options } => beside_ebb("heap-load", options),
        Bench::ReclaimLatency { options } => {
            deps::provide(&[deps::BENCH])?;
            beside_ebb("reclaim-latency", options)
        }
        Bench::Queue { options } => queue(options),
        Bench::Host { options } => host(options),
    }
}

/// A bench that runs ebb.
fn beside_ebb(name: &str, options: &[String]) -> Result<ExitCode> {
    let release = build_release(&["ebb", "ebbtide-benches"])?;
    let mut bench = Command::new(release.join("ebbtide-benches"));
    start(bench.arg(name).arg("--ebb").arg(release.join("ebb")).args(options))
}

fn queue(options: &[String]) -> Result<ExitCode> {
    deps::provide(&[deps::BENCH])?;
    let release = build_release(&["ebbtide-benches"])?;
    let mut bench = Command::new(release.join("ebbtide-benches"));
    start(bench.arg("queue").arg("--server").arg(build_queue_server()?).args(options))
}

fn host(options: &[String]) -> Result<ExitCode> {
    let missing = deps::provide(&[deps::BENCH])?;
    if !missing.is_empty() {
        println!("not measured beside ebb: {}", missing.join(" "));
    }
    let release = build_release(&["ebb", "ebbtide-benches"])?;
    let mut bench = Command::new(release.join("ebbtide-benches"));
    bench.arg("host").arg("--ebb").arg(release.join("ebb"));
    if let Some(smem) = which("smem") {
        bench.arg("--smem").arg(smem);
    }
    match ps_mem() {
        Ok(ps_mem) => {
            bench.arg("--ps-mem").arg(ps_mem);
        }
        Err(error) => println!("not measured beside ebb: ps_mem: {error:#}"),
    }
    start(bench.args(options))
}

/// Runs `bench` and exits as it does.
fn start(bench: &mut Command) -> Result<ExitCode> {
    let status = bench.status().context("cannot start ebbtide-benches")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
}

/// The Python file of ps_mem from PyPI, under target/bench.
fn ps_mem() -> Result<PathBuf> {
    let dir = target_dir("bench")?.join("ps_mem");
    let program = dir.join("ps_mem.py");
    if !program.exists() {
        let mut pip = Command::new("pip3");
        pip.env("PIP_ROOT_USER_ACTION", "ignore");
        run_command(pip.args(["install", "--quiet", "--target"]).arg(&dir).arg("ps_mem==3.14"))?;
    }
    Ok(program)
}
