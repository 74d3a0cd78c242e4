//! `cargo xtask lab`: builds `ebb` and the lab in release mode and lets the lab check `ebb`.

use crate::workspace;
use anyhow::{Context, Result};
use std::process::{Command, ExitCode};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Passed on to `ebbtide-lab check`: [--only NAME] [--ebb PATH] [--json FILE] [--where host|vm]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    check: Vec<String>,
}

/// Passes `args` on to `ebbtide-lab check`, with the `ebb` just built unless they name another.
pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let own_ebb = !args.check.iter().any(|arg| arg == "--ebb");
    let packages: &[&str] = if own_ebb { &["ebbtide-lab", "ebb"] } else { &["ebbtide-lab"] };
    let target = workspace::build_release(packages)?;
    let mut check = Command::new(target.join("ebbtide-lab"));
    check.arg("check");
    if own_ebb {
        check.arg("--ebb").arg(target.join("ebb"));
    }
    let status = check.args(&args.check).status().context("running ebbtide-lab")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
}
