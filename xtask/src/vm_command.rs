//! `cargo xtask vm -- CMD...`: runs one command in the virtual machine, with ebb and the lab at hand there.
//! Its exit code is the command's.

use crate::vm::{Kernel, Release, Vm};
use crate::workspace::{build_release, which};
use anyhow::{Context, Result};
use ebbtide_observe::Bytes;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The guest's memory
    #[arg(long, default_value = "1G", value_parser = size)]
    memory: Bytes,
    /// The guest's processors
    #[arg(long, default_value_t = 2)]
    smp: u32,
    /// Swap on a virtual disk
    #[arg(long, value_parser = size, value_name = "SIZE")]
    swap: Option<Bytes>,
    /// Swap in compressed memory
    #[arg(long, value_parser = size, value_name = "SIZE")]
    zram: Option<Bytes>,
    /// An empty ext2 file system at /mnt
    #[arg(long, value_parser = size, value_name = "SIZE")]
    disk: Option<Bytes>,
    /// A balloon: the guest gives up N MiB after `echo N >/dev/host`
    #[arg(long)]
    balloon: bool,
    /// More words for the kernel's command line
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    cmdline: String,
    /// Load a module of the kernel's package: "NAME [PARAMETER=VALUE ...]"
    #[arg(long = "module", value_name = "MODULE")]
    modules: Vec<String>,
    /// Build the lab's leaking module; its path is in $EBBTIDE_LAB_MODULE
    #[arg(long)]
    leak_module: bool,
    /// Copy a program of this machine, with its libraries, to the guest's /bin
    #[arg(long = "program", value_name = "NAME")]
    programs: Vec<String>,
    /// Copy the files below a directory to /share
    #[arg(long, value_name = "DIR")]
    share: Vec<PathBuf>,
    /// The Debian release whose kernel is booted
    #[arg(long, value_enum, default_value = "bookworm")]
    release: Release,
    /// A kernel package of that release, instead of its usual one
    #[arg(long, value_name = "PACKAGE")]
    kernel_package: Option<String>,
    /// A kernel image to boot instead of Debian's; without modules, so without swap, disk and balloon
    #[arg(long, value_name = "PATH", conflicts_with_all = ["release", "kernel_package"])]
    kernel: Option<PathBuf>,
    /// Give up after so many seconds
    #[arg(long, default_value_t = 180, value_name = "SECONDS")]
    timeout: u64,
    /// Take the binaries that are there instead of building them
    #[arg(long)]
    no_build: bool,
    /// The command, and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// The binaries that every guest has.
const BINARIES: [&str; 2] = ["ebb", "ebbtide-lab"];

/// A machine with ebb and the lab in it.
pub(crate) fn with_binaries(kernel: Kernel, build: bool) -> Result<Vm> {
    let release = if build { build_release(&BINARIES)? } else { crate::workspace::target().join("release") };
    let path = |name: &str| release.join(name).to_string_lossy().into_owned();
    Ok(BINARIES.iter().fold(Vm::new(kernel), |vm, name| vm.program(path(name))))
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let kernel = match &args.kernel {
        Some(image) => Kernel::at(image)?,
        None => Kernel::debian(args.release, args.kernel_package.as_deref())?,
    };
    let mut vm = with_binaries(kernel, !args.no_build)?
        .memory(args.memory)
        .cpus(args.smp)
        .cmdline(&args.cmdline)
        .timeout(Duration::from_secs(args.timeout))
        .stream();
    if let Some(size) = args.swap {
        vm = vm.swap(size);
    }
    if let Some(size) = args.zram {
        vm = vm.zram(size);
    }
    if let Some(size) = args.disk {
        vm = vm.disk(size);
    }
    if args.balloon {
        vm = vm.balloon();
    }
    if args.leak_module {
        vm = vm.leak_module();
    }
    vm = args.modules.iter().fold(vm, |vm, module| vm.module(module));
    vm = args.share.iter().fold(vm, |vm, dir| vm.share(dir, "/share"));
    let command = args.command.first().filter(|name| !BINARIES.contains(&name.as_str()));
    // The command itself comes along if it is a program of this machine; busybox has the others.
    let programs = args.programs.iter().chain(command.filter(|name| busybox_lacks(name)));
    vm = programs.fold(vm, |vm, program| vm.program(program));
    let output = vm.run(&args.command)?;
    for line in String::from_utf8_lossy(&output.console).lines().filter(|line| !line.trim().is_empty()) {
        eprintln!("console: {}", line.trim_end());
    }
    Ok(output.exit_code())
}

fn busybox_lacks(name: &str) -> bool {
    let applets = crate::workspace::text(std::process::Command::new("busybox").arg("--list"));
    which(name).is_some() && !applets.is_ok_and(|list| list.lines().any(|applet| applet == name))
}

/// "512M", "11G": binary units.
pub(crate) fn size(text: &str) -> Result<Bytes> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K') => (&text[..text.len() - 1], 10),
        Some(b'M') => (&text[..text.len() - 1], 20),
        Some(b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let number: u64 = digits.parse().with_context(|| format!("{text} is no size like 512M or 11G"))?;
    number.checked_mul(1 << shift).map(Bytes).with_context(|| format!("{text} is too large"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        assert_eq!(size("11G").unwrap(), Bytes(11 << 30));
        assert_eq!(size("4096").unwrap(), Bytes(4096));
        for bad in ["", "G", "1T", "-1M", "99999999999G"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
