//! `cargo xtask vm-lab`: the lab in a virtual machine, where its cases may do harm: cgroup v2, swap, OOM kills,
//! overcommit modes, a leaking kernel module. Its lines and its exit code are `ebbtide-lab check`'s.

use crate::vm::{Kernel, Release};
use crate::vm_command::{size, with_binaries};
use anyhow::Result;
use ebbtide_observe::Bytes;
use std::process::ExitCode;
use std::time::Duration;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The Debian release whose kernel is booted
    #[arg(long, value_enum, default_value = "bookworm")]
    release: Release,
    /// The guest's memory
    #[arg(long, default_value = "2G", value_parser = size)]
    memory: Bytes,
    /// Give up after so many seconds
    #[arg(long, default_value_t = 1200, value_name = "SECONDS")]
    timeout: u64,
    /// Passed on to `ebbtide-lab check`: [--only NAME] [--box BYTES]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGS")]
    check: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let mut vm = with_binaries(Kernel::debian(args.release, None)?, true)?
        .memory(args.memory)
        .swap(Bytes(512 << 20))
        .disk(Bytes(2 << 30))
        .module("zram num_devices=0")
        .env("EBBTIDE_LAB_DISK", "/mnt")
        .timeout(Duration::from_secs(args.timeout))
        .stream();
    if args.release == Release::Bookworm {
        vm = vm.leak_module();
    }
    let mut command = vec!["ebbtide-lab", "check", "--ebb", "/bin/ebb", "--where", "vm"];
    command.extend(args.check.iter().map(String::as_str));
    Ok(vm.run(&command)?.exit_code())
}
