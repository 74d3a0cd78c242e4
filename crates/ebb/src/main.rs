//! `ebb`: where the memory went, whether that is a leak, and how to get it back.
//!
//! The command only presents: arguments in ([`cli`]), one verb called, text or JSON out ([`render`]). Exit
//! status: 0 clean, 1 findings (the host report and `explain` only), 2 error.
#![forbid(unsafe_code)]

mod causes;
mod cgroup;
mod cli;
mod dentries;
mod escape;
mod explain;
mod fork;
mod gather;
mod heap;
mod host;
mod looks;
mod ps;
mod reclaim;
mod render;
mod report;
mod run;
mod tune;
mod watch;

use clap::Parser;
use cli::{Cli, Verb};
use std::io::Write;
use std::process::ExitCode;

/// Exit status of an error; clap uses the same one for arguments that make no sense.
const ERROR: u8 = 2;

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(cli) {
        Ok(status) => status,
        Err(error) => {
            let bad = render::BAD;
            let text = format!("{error:#}");
            // Where even this cannot be written, the exit status still says it.
            let _ = writeln!(anstream::stderr(), "{bad}ebb:{bad:#} {}", escape::escape(&text));
            ExitCode::from(ERROR)
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    if !matches!(cli.verb, Some(Verb::Tune(_) | Verb::Completions(_) | Verb::Man(_))) {
        tune::remind();
    }
    match cli.verb {
        None => host::run(&cli.host),
        Some(Verb::Explain(args)) => explain::run(&args),
        Some(Verb::Ps(args)) => ps::run(&args),
        Some(Verb::Heap(args)) => heap::run(&args),
        Some(Verb::Reclaim(args)) => reclaim::run(&args),
        Some(Verb::Tune(args)) => tune::run(&args),
        Some(Verb::Dentries(args)) => dentries::run(&args),
        Some(Verb::Fork(args)) => fork::run(&args),
        Some(Verb::Run(args)) => run::run(&args),
        Some(Verb::Causes(args)) => causes::run(&args),
        Some(Verb::Completions(args)) => cli::completions(&args),
        Some(Verb::Man(args)) => cli::man_pages(&args),
    }
}
