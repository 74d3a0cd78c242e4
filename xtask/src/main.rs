//! The project's own commands: `cargo xtask lab`.

mod lab;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let done = match args.next().as_deref() {
        Some("lab") => lab::run(args.collect()),
        _ => Err(anyhow::anyhow!("cargo xtask lab [--only NAME] [--ebb PATH] [--json FILE] [--where host|vm]")),
    };
    done.unwrap_or_else(|e| {
        eprintln!("xtask: {e:#}");
        ExitCode::from(2)
    })
}
