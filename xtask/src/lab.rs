//! `cargo xtask lab`: builds `ebb` and the lab in release mode and lets the lab check `ebb`.

use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
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
    let target = build(own_ebb)?;
    let mut check = Command::new(target.join("ebbtide-lab"));
    check.arg("check");
    if own_ebb {
        check.arg("--ebb").arg(target.join("ebb"));
    }
    let status = check.args(&args.check).status().context("running ebbtide-lab")?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(2)))
}

/// Builds, and says where the binaries are.
fn build(ebb: bool) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("xtask has no parent directory")?;
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.current_dir(root).args(["build", "--release", "--package", "ebbtide-lab"]);
    if ebb {
        build.args(["--package", "ebb"]);
    }
    ensure!(build.status().context("running cargo")?.success(), "the build failed");
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join("release"))
}
