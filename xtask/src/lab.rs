//! `cargo xtask lab`: builds `ebb` and the lab in release mode and lets the lab check `ebb`: on this machine,
//! or (`--where vm`) on Debian's kernel in the virtual machine, where cases may do harm and cgroups are v2.

use crate::vm::{Kernel, Release};
use crate::vm_command::{size, with_binaries};
use crate::workspace;
use anyhow::{Context, Result};
use ebbtide_observe::Bytes;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only the cases whose name contains one of these
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<String>,
    /// Check this ebb instead of the one built here
    #[arg(long, value_name = "PATH")]
    ebb: Option<PathBuf>,
    /// Write the results there as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Where the incidents are made
    #[arg(long = "where", value_enum, default_value_t = Place::Host)]
    place: Place,
    /// Only make the incidents; ask nobody
    #[arg(long)]
    rehearse: bool,
    /// The virtual machine's memory
    #[arg(long, default_value = "2G", value_parser = size)]
    memory: Bytes,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Place {
    /// This machine
    Host,
    /// Debian 12's kernel in a virtual machine
    Vm,
}

/// How long the virtual machine may take for all cases: by software emulation they need about ten times as
/// long as here.
const PATIENCE: Duration = Duration::from_secs(90 * 60);

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    match args.place {
        Place::Host => on_host(args),
        Place::Vm => in_vm(args),
    }
}

/// The words after `ebbtide-lab`, for the `ebb` at `path`.
fn words(args: &Args, ebb: &str) -> Vec<String> {
    let mut words: Vec<String> = match args.rehearse {
        true => vec!["rehearse".into()],
        false => vec!["check".into(), "--ebb".into(), ebb.into()],
    };
    if !args.only.is_empty() {
        words.extend(["--only".into(), args.only.join(",")]);
    }
    words
}

fn on_host(args: &Args) -> Result<ExitCode> {
    let packages: &[&str] = if args.ebb.is_none() { &["ebbtide-lab", "ebb"] } else { &["ebbtide-lab"] };
    let target = workspace::build_release(packages)?;
    let ebb = args.ebb.clone().unwrap_or_else(|| target.join("ebb"));
    let mut lab = Command::new(target.join("ebbtide-lab"));
    lab.args(words(args, &ebb.to_string_lossy()));
    if let Some(file) = &args.json {
        lab.arg("--json").arg(file);
    }
    let status = lab.status().context("running ebbtide-lab")?;
    Ok(exit(status.code().unwrap_or(2)))
}

fn in_vm(args: &Args) -> Result<ExitCode> {
    let kernel = Kernel::debian(Release::Bookworm, None)?;
    let module = kernel.leak_module();
    let mut vm = with_binaries(kernel, true)?
        .memory(args.memory)
        .swap(Bytes(256 << 20))
        .disk(Bytes(1 << 30))
        .module("zram num_devices=0")
        .stream()
        .timeout(PATIENCE);
    match module {
        Ok(_) => vm = vm.leak_module(),
        Err(why) => println!("skipped: the lab's kernel module: {why:#}"),
    }
    let mut ebb = "/bin/ebb".to_owned();
    if let Some(path) = &args.ebb {
        ebb = format!("/bin/{}", path.file_name().context("--ebb names no file")?.to_string_lossy());
        vm = vm.program(path.to_string_lossy());
    }
    let words = words(args, &ebb).join(" ");
    let script = format!(
        "export EBBTIDE_LAB_DISK=/mnt; ebbtide-lab {words} --where vm --json /tmp/lab.json; code=$?; \
         echo; cat /tmp/lab.json; exit $code"
    );
    let output = vm.run(&["sh", "-c", &script])?;
    if let Some(file) = &args.json {
        std::fs::write(file, results(&output.stdout))
            .with_context(|| format!("writing {}", file.display()))?;
    }
    Ok(exit(output.status))
}

/// The JSON at the end of the guest's output: it begins with the first line that is a brace.
fn results(stdout: &[u8]) -> &[u8] {
    let at = stdout.windows(3).position(|part| part == b"\n{\n").map_or(stdout.len(), |at| at + 1);
    &stdout[at..]
}

fn exit(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_results_begin_at_their_brace() {
        assert_eq!(results(b"ok {x}\n\n{\n  \"cases\": []\n}\n"), b"{\n  \"cases\": []\n}\n");
        assert_eq!(results(b"nothing"), b"");
    }
}
