//! `cargo xtask vm-test`: the tests that need a virtual machine. Each case boots a machine of its own, so no
//! case can spoil another. Invariant: a case that cannot run here is reported as skipped, with its reason.

mod client;
pub(crate) mod fill;
pub(crate) mod fork;
mod ledger;
pub(crate) mod levers;
mod malloc;
mod pressure;
pub(crate) mod shrink;

use crate::vm::{Kernel, Output, Release, Vm};
use crate::vm_command::size;
use anyhow::{Context, Result, bail, ensure};
use ebbtide_observe::Bytes;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only the cases whose name contains this
    filter: Option<String>,
    /// The guest's memory in the ledger's cases
    #[arg(long, default_value = "1G", value_parser = size)]
    memory: Bytes,
    /// How much of it those cases fill
    #[arg(long, default_value = "128M", value_parser = size)]
    fill: Bytes,
    /// How many messages go through the queue server in the case "shrink"; its guest has no room for more than a million
    #[arg(long, default_value_t = shrink::MESSAGES, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    messages: u32,
}

/// How a case that did not fail ended.
enum Outcome {
    Passed,
    Skipped(String),
}

struct Case {
    name: String,
    run: Box<dyn Fn() -> Result<Outcome>>,
}

impl Case {
    fn new(name: impl Into<String>, run: impl Fn() -> Result<Outcome> + 'static) -> Case {
        Case { name: name.into(), run: Box::new(run) }
    }
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let (mut passed, mut failed, mut skipped) = (0, 0, 0);
    let wanted = |case: &Case| args.filter.as_ref().is_none_or(|word| case.name.contains(word.as_str()));
    let (chosen, rest): (Vec<_>, Vec<_>) = cases(args).into_iter().partition(wanted);
    if chosen.is_empty() {
        let names: Vec<_> = rest.into_iter().map(|case| case.name).collect();
        bail!("no such case; there are: {}", names.join(", "));
    }
    for case in chosen {
        match (case.run)() {
            Ok(Outcome::Passed) => {
                passed += 1;
                println!("ok       {}", case.name);
            }
            Ok(Outcome::Skipped(why)) => {
                skipped += 1;
                println!("skipped: {}: {why}", case.name);
            }
            Err(error) => {
                failed += 1;
                println!("FAILED   {}: {error:#}", case.name);
            }
        }
    }
    println!("{passed} passed, {failed} failed, {skipped} skipped");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn cases(args: &Args) -> Vec<Case> {
    let (memory, fill, messages) = (args.memory, args.fill, args.messages);
    let mut cases = vec![with_kernel("panic", Release::Bookworm, panic)];
    cases.push(with_kernel("fork", Release::Bookworm, fork::check));
    cases.push(with_kernel("malloc", Release::Bookworm, malloc::check));
    // Before and after processes without privilege may have triggers, but not finer ones.
    for release in [Release::Bullseye, Release::Bookworm] {
        cases.push(with_kernel("pressure", release, pressure::check));
        cases.push(with_kernel("shrink", release, move |kernel| shrink::check(kernel, messages)));
    }
    for release in Release::ALL {
        cases.push(with_kernel("guest", release, guest));
        cases.push(with_kernel("levers", release, levers::check));
        cases.push(with_kernel("ledger", release, move |kernel| ledger::check(kernel, memory, fill)));
    }
    cases
}

/// A case on a release's kernel. Bookworm's must be there; Debian moves older releases to archives that not
/// every mirror has, so without theirs the case is skipped.
fn with_kernel(name: &str, release: Release, run: impl Fn(Kernel) -> Result<Outcome> + 'static) -> Case {
    Case::new(format!("{name} on {}", release.suite()), move || match Kernel::debian(release, None) {
        Ok(kernel) => run(kernel),
        Err(error) if release == Release::Bookworm => Err(error),
        Err(error) => Ok(Outcome::Skipped(format!("{error:#}"))),
    })
}

/// The machine itself: the right kernel, its devices, byte-exact output, exit codes.
fn guest(kernel: Kernel) -> Result<Outcome> {
    const SCRIPT: &str = r#"
        uname -r
        cat /sys/fs/cgroup/cgroup.subtree_control
        cat /proc/swaps
        grep ' /mnt ' /proc/mounts
        head -c 1 /proc/pressure/memory; echo
        echo 200 >/dev/host; read answer </dev/host; echo "balloon: $answer"
        total() { awk '/^MemTotal/ { print $2 }' /proc/meminfo; }
        tries=0
        while [ "$(total)" -gt 350000 ] && [ $tries -lt 1200 ]; do tries=$((tries + 1)); sleep 0.1; done
        echo "MemTotal: $(total)"
        printf 'raw \r\n\t\0\036 bytes'
        echo oops >&2
        exit 7"#;
    let version = kernel.version().unwrap_or_default().to_owned();
    let vm = Vm::new(kernel).memory(Bytes(512 << 20)).swap(Bytes(64 << 20)).zram(Bytes(32 << 20));
    let output = vm.disk(Bytes(64 << 20)).balloon().run(&["sh", "-c", SCRIPT])?;
    let said = text(&output);
    for part in [&version, "memory", "/dev/vda ", "/dev/zram0 ", "/dev/vdb /mnt ext2", "\ns\n", "balloon: ok"]
    {
        ensure!(said.contains(part), "no {part:?} in {said}");
    }
    let total: u64 =
        said.split("MemTotal: ").nth(1).and_then(|s| s.lines().next()?.parse().ok()).unwrap_or(0);
    ensure!((200_000..350_000).contains(&total), "the balloon left {total} KiB of 512 MiB less 200 MiB");
    ensure!(output.stdout.ends_with(b"raw \r\n\t\0\x1e bytes"), "output was changed on its way: {said}");
    ensure!(output.stderr == b"oops\n", "standard error was {:?}", String::from_utf8_lossy(&output.stderr));
    ensure!(output.status == 7, "exit code {} instead of 7", output.status);
    Ok(Outcome::Passed)
}

/// A kernel panic is an error that names itself, at once and not at the time limit.
fn panic(kernel: Kernel) -> Result<Outcome> {
    let result = Vm::new(kernel).run(&["sh", "-c", "echo c >/proc/sysrq-trigger"]);
    let error = result.err().map(|error| error.to_string()).unwrap_or_default();
    let at_once = error.contains("stopped before its command ended");
    ensure!(
        at_once && error.contains("its kernel says:") && error.contains("Kernel panic"),
        "said {error:?}"
    );
    Ok(Outcome::Passed)
}

/// Runs a case's other side, which is this program with these arguments, in the guest.
fn guests_side(vm: Vm, args: &[&str]) -> Result<Output> {
    let xtask = std::env::current_exe().context("cannot find this program")?;
    let output = vm.program(xtask.to_string_lossy()).run(&[&["xtask"], args].concat())?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status == 0, "the guest's side failed with {}: {stderr}", output.status);
    Ok(output)
}

/// The same; what it says is for the reader.
fn guests_word(vm: Vm, args: &[&str]) -> Result<Outcome> {
    text(&guests_side(vm, args)?).lines().for_each(|line| println!("         {line}"));
    Ok(Outcome::Passed)
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}
