//! The virtual machine: Debian's kernel in qemu by software emulation, with an initramfs that is made for one
//! command, runs it and ends. For what this machine's own kernel lacks or must not be made to suffer: cgroup
//! v2, swap, OOM kills, overcommit modes, leaking kernel modules, older and newer kernels.
//!
//! Invariants: never KVM (nested, it hung for minutes); no run outlives its time limit or its starter; the
//! command's standard output arrives byte for byte, because it has a serial port of its own that the kernel's
//! console does not write to; nothing is left behind but the kernels unpacked under target/vm.

mod apt;
mod initramfs;
mod kernel;
mod qemu;

pub(crate) use apt::{Apt, Release};
pub(crate) use kernel::Kernel;

use anyhow::{Result, ensure};
use ebbtide_observe::Bytes;
use initramfs::Initramfs;
use qemu::Breakpoint;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Below this qemu takes its default instead (0), or the kernel paniced for want of room for its initramfs.
const LEAST_MEMORY: Bytes = Bytes(128 << 20);

/// How long a run may take unless it is said: only one that hangs takes as long, on however busy a machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(900);

/// How often a machine is booted that only emulation ends.
const TRIES: u32 = 5;

/// Where the guest has the lab's leaking module.
const LEAK_MODULE: &str = "/modules/ebbtide_leak.ko";

/// How a command in the guest ended.
#[derive(Debug)]
pub(crate) struct Output {
    /// Its exit code; 128 + the signal's number if a signal ended it; 125 if the guest could not be set up.
    pub(crate) status: i32,
    /// Its standard output.
    pub(crate) stdout: Vec<u8>,
    /// Its standard error.
    pub(crate) stderr: Vec<u8>,
    /// What the kernel wrote to its console.
    pub(crate) console: Vec<u8>,
}

impl Output {
    /// The command's exit code as one's own.
    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(u8::try_from(self.status).unwrap_or(u8::MAX))
    }
}

/// A virtual machine to be run.
#[derive(Debug, Clone)]
pub(crate) struct Vm {
    kernel: Kernel,
    memory: Bytes,
    cpus: u32,
    swap: Option<Bytes>,
    zram: Option<Bytes>,
    disk: Option<Bytes>,
    balloon: bool,
    cmdline: String,
    modules: Vec<String>,
    leak_module: bool,
    programs: Vec<String>,
    shares: Vec<(PathBuf, PathBuf)>,
    stream: bool,
    timeout: Duration,
}

impl Vm {
    /// A machine with 1 GiB and 2 processors, no swap, and busybox; runs are limited to [`PATIENCE`].
    pub(crate) fn new(kernel: Kernel) -> Vm {
        Vm {
            kernel,
            memory: Bytes(1 << 30),
            cpus: 2,
            swap: None,
            zram: None,
            disk: None,
            balloon: false,
            cmdline: String::new(),
            modules: Vec::new(),
            leak_module: false,
            programs: Vec::new(),
            shares: Vec::new(),
            stream: false,
            timeout: PATIENCE,
        }
    }

    /// How much memory the guest has.
    #[must_use]
    pub(crate) fn memory(mut self, memory: Bytes) -> Vm {
        self.memory = memory;
        self
    }

    /// How many processors the guest has.
    #[must_use]
    pub(crate) fn cpus(mut self, cpus: u32) -> Vm {
        self.cpus = cpus;
        self
    }

    /// A swap partition on a virtual disk.
    #[must_use]
    pub(crate) fn swap(mut self, size: Bytes) -> Vm {
        self.swap = Some(size);
        self
    }

    /// Swap in compressed memory.
    #[must_use]
    pub(crate) fn zram(mut self, size: Bytes) -> Vm {
        self.zram = Some(size);
        self
    }

    /// An empty ext2 file system at /mnt, for page cache and for dentries: tmpfs keeps no negative ones.
    #[must_use]
    pub(crate) fn disk(mut self, size: Bytes) -> Vm {
        self.disk = Some(size);
        self
    }

    /// A balloon device: the guest gives up N MiB after `echo N >/dev/host`, where it then reads "ok".
    #[must_use]
    pub(crate) fn balloon(mut self) -> Vm {
        self.balloon = true;
        self
    }

    /// More words for the kernel's command line.
    #[must_use]
    pub(crate) fn cmdline(mut self, words: &str) -> Vm {
        self.cmdline.push(' ');
        self.cmdline.push_str(words);
        self
    }

    /// Loads one of the kernel package's modules ("NAME" or "NAME PARAMETER=VALUE ...") at boot.
    #[must_use]
    pub(crate) fn module(mut self, name: &str) -> Vm {
        self.modules.push(name.to_owned());
        self
    }

    /// Builds the lab's leaking module and puts it at $EBBTIDE_LAB_MODULE; loading it is up to the command.
    #[must_use]
    pub(crate) fn leak_module(mut self) -> Vm {
        self.leak_module = true;
        self
    }

    /// Copies a program of this machine (a name in PATH or a path) to the guest's /bin, with its libraries.
    #[must_use]
    pub(crate) fn program(mut self, program: impl Into<String>) -> Vm {
        self.programs.push(program.into());
        self
    }

    /// Copies the files below `from` to directory `to` of the guest.
    #[must_use]
    pub(crate) fn share(mut self, from: impl Into<PathBuf>, to: impl Into<PathBuf>) -> Vm {
        self.shares.push((from.into(), to.into()));
        self
    }

    /// Also passes the command's output on as it comes, to standard output and standard error.
    #[must_use]
    pub(crate) fn stream(mut self) -> Vm {
        self.stream = true;
        self
    }

    /// How long a run may take, from the start of qemu to its end.
    #[must_use]
    pub(crate) fn timeout(mut self, timeout: Duration) -> Vm {
        self.timeout = timeout;
        self
    }

    /// Boots, runs `command` and returns how it ended. An error if the guest could not be made, paniced or
    /// took too long; its last console lines are in the message. Where only emulation ended the guest it is booted
    /// again, which is said on standard error: standard output is the command's.
    pub(crate) fn run<S: AsRef<str>>(&self, command: &[S]) -> Result<Output> {
        ensure!(!command.is_empty(), "no command to run in the virtual machine");
        ensure!(self.memory >= LEAST_MEMORY, "Debian's kernels need {LEAST_MEMORY} of memory to boot");
        ensure!(self.cpus > 0, "a virtual machine needs a processor");
        let mark = mark()?;
        let initramfs = self.initramfs(command, &mark)?;
        for next in 2..=TRIES {
            match qemu::run(self, &initramfs, &mark) {
                Err(error) if error.is::<Breakpoint>() => {
                    eprintln!("again: the emulated kernel met its own breakpoint; try {next} of {TRIES}");
                }
                ended => return ended,
            }
        }
        qemu::run(self, &initramfs, &mark)
    }

    /// The root file system: busybox, the programs, the modules, and in /vm what init reads.
    fn initramfs<S: AsRef<str>>(&self, command: &[S], mark: &str) -> Result<Vec<u8>> {
        let mut root = Initramfs::default();
        for dir in ["/proc", "/sys", "/dev", "/tmp", "/root", "/mnt", "/sbin", "/run", "/var/tmp"] {
            root.dir(dir);
        }
        root.symlink("/usr/bin", "/bin");
        root.symlink("/usr/sbin", "/sbin");
        root.file("/init", 0o755, include_bytes!("vm/init.sh"));
        root.file("/etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:::/bin/sh\n");
        root.program("busybox")?;
        for program in &self.programs {
            root.program(program)?;
        }
        for (from, to) in &self.shares {
            root.tree(from, to)?;
        }
        self.settings(&mut root)?;
        let mut script = String::from("#!/bin/sh\n");
        if self.leak_module {
            root.copy(&self.kernel.leak_module()?, LEAK_MODULE)?;
            script += &format!("export EBBTIDE_LAB_MODULE={LEAK_MODULE}\n");
        }
        let words = command.iter().map(|word| quoted(word.as_ref())).collect::<Vec<_>>().join(" ");
        script += &format!("exec {words}\n");
        root.file("/vm/command", 0o755, script.as_bytes());
        root.file("/vm/mark", 0o644, mark.as_bytes());
        Ok(root.finish())
    }

    /// What init loads and mounts. Disks are named in the order in which qemu is given them.
    fn settings(&self, root: &mut Initramfs) -> Result<()> {
        let mut modules: Vec<&str> = self.modules.iter().map(String::as_str).collect();
        let (mut swaps, mut disks) = (String::new(), String::new());
        if self.balloon || self.swap.is_some() || self.disk.is_some() {
            modules.push("virtio_pci");
        }
        if self.balloon {
            modules.push("virtio_balloon");
        }
        if self.swap.is_some() || self.disk.is_some() {
            modules.push("virtio_blk");
        }
        if let Some(size) = self.zram {
            modules.push("zram");
            root.file("/vm/zram", 0o644, size.0.to_string().as_bytes());
            swaps.push_str("/dev/zram0\n");
        }
        if self.swap.is_some() {
            swaps.push_str("/dev/vda\n");
        }
        if self.disk.is_some() {
            modules.push("ext4");
            disks.push_str(if self.swap.is_some() { "/dev/vdb\n" } else { "/dev/vda\n" });
        }
        root.file("/vm/swaps", 0o644, swaps.as_bytes());
        root.file("/vm/disks", 0o644, disks.as_bytes());
        let modules = self.modules(root, &modules)?;
        root.file("/vm/modules", 0o644, modules.as_bytes());
        Ok(())
    }

    /// Copies modules with what they depend on; returns the lines for init, in loading order.
    fn modules(&self, root: &mut Initramfs, modules: &[&str]) -> Result<String> {
        let mut lines: Vec<String> = Vec::new();
        for module in modules {
            let (name, parameters) = module.split_once(' ').unwrap_or((module, ""));
            let files = self.kernel.module_files(name)?;
            for (index, file) in files.iter().enumerate() {
                let base = file.file_name().unwrap_or_default().to_string_lossy();
                let guest = format!("/modules/{}", base.trim_end_matches(".xz"));
                let is_last = index + 1 == files.len();
                let known = lines.iter().any(|line| line.split(' ').next() == Some(&guest));
                if !known {
                    root.file(&guest, 0o644, &initramfs::module(file)?);
                    lines.push(format!("{guest} {}", if is_last { parameters } else { "" }));
                }
            }
        }
        Ok(lines.into_iter().map(|line| line + "\n").collect())
    }
}

/// A word that the guest's own output will not hold by chance.
fn mark() -> Result<String> {
    let mut random = [0; 16];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut random)?;
    Ok(random.iter().map(|byte| format!("{byte:02x}")).collect())
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
