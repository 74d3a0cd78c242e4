//! `ebbtide-benches`: measures ebb beside its peers, all in the same run on the same machine. Started by
//! `cargo xtask bench`, which builds what is measured and installs the peers.

mod heap;
mod host;
mod latency;
mod load;
mod measure;
mod queue;
mod rollups;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::process::ExitCode;

#[derive(Parser)]
#[command(about = "What is measured against peers, side by side in the same run")]
struct Args {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// ebb and ebb ps on a host with many processes
    Host(host::Args),
    /// The walk of a large glibc heap, beside a plain read of the same memory
    Heap(heap::Args),
    /// A busy Redis while ebb heap looks into it
    HeapLoad(load::Args),
    /// A server's requests while its memory is taken back, by ebb and by others
    ReclaimLatency(latency::Args),
    /// The queue server that gives back under pressure, beside ways without the library
    Queue(queue::Args),
    /// Hold a heap
    #[command(hide = true)]
    HeapHold { shape: heap::Shape, bytes: u64 },
    /// Look at another process's heap once
    #[command(hide = true)]
    HeapLook { way: heap::Way, pid: u32 },
    /// Read every process's smaps_rollup and nothing else: what ebb ps cannot do without
    Rollups,
    /// Run one command and print what it took, as JSON
    Measure {
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
}

fn main() -> ExitCode {
    let result = match Args::parse().bench {
        Bench::Host(args) => host::run(&args),
        Bench::Heap(args) => heap::run(&args),
        Bench::HeapLoad(args) => load::run(&args),
        Bench::ReclaimLatency(args) => latency::run(&args),
        Bench::Queue(args) => queue::run(&args),
        Bench::HeapHold { shape, bytes } => heap::hold(shape, bytes),
        Bench::HeapLook { way, pid } => heap::look(way, pid),
        Bench::Rollups => rollups::run(),
        Bench::Measure { command } => measure::run(&command),
    };
    result.unwrap_or_else(|error: anyhow::Error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}

/// What every bench needs: itself, as the program that measures others.
fn this_program() -> Result<std::path::PathBuf> {
    Ok(std::env::current_exe()?)
}
