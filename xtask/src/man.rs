//! `cargo xtask man`: the man pages, written by `ebb` itself from the definition of its command line.

use crate::workspace;
use anyhow::Result;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where to write them
    #[arg(default_value = "target/man")]
    directory: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let bin = workspace::build_release(&["ebb"])?;
    workspace::run(Command::new(bin.join("ebb")).arg("man").arg(&args.directory))?;
    println!("man pages in {}", args.directory.display());
    Ok(ExitCode::SUCCESS)
}
