//! `cargo xtask test`: every test there is, one after another, and one closing line that counts them all.
//! Invariants: what failed and what was skipped, with its reason, stands at the end; a step that fails, or that
//! ran nothing, is a failure; what a machine can do is not left out for what it lacks elsewhere.

use crate::deps;
use crate::tally::{Lines, Tally};
use crate::workspace::cargo;
use crate::{allocators, glibcs, pythons};
use anyhow::{Context, Result};
use std::process::{Command, ExitCode};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave out the lab and the virtual machine
    #[arg(long)]
    fast: bool,
}

/// The lab's cases that a virtual machine shows something new about: they need one, or they rest on cgroup v2,
/// swap, or another kernel's accounting. All of them would take a quarter of an hour there.
const VM_CASES: &str = "kernel-leak,physical-fragmentation,overcommit-refusal,outliving-charge,kernel-pages,\
                        swap,cgroup,charge-stays,host-at-rest";

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let tables: &[_] = if args.fast { &[deps::TEST] } else { &[deps::TEST, deps::VM] };
    let mut total = Tally::default();
    deps::provide(tables)?;
    for package in deps::missing(&[deps::TEST]) {
        total.skip(&format!("what needs {package}: not installed"));
    }
    let others = [glibcs::provide(), pythons::provide(), allocators::provide()];
    for missing in others.into_iter().flatten() {
        println!("{missing}");
    }
    // Output of tests that pass is shown, because the reasons for skipping are in it.
    let mut workspace = cargo();
    workspace.args(["test", "--workspace", "--no-fail-fast", "--", "--show-output"]);
    let mut steps = vec![("the workspace's tests", Lines::Cargo, workspace)];
    if args.fast {
        total.skip("the lab and the virtual machine: --fast");
    } else {
        steps.push(("the lab", Lines::Own, own(&["lab"])?));
        let missing = deps::missing(&[deps::VM]);
        if missing.is_empty() {
            steps.push((
                "the lab in a virtual machine",
                Lines::Own,
                own(&["lab", "--where", "vm", "--only", VM_CASES])?,
            ));
            steps.push(("the virtual machine's tests", Lines::Own, own(&["vm-test"])?));
        } else {
            total.skip(&format!("the virtual machine: not installed: {}", missing.join(" ")));
        }
    }
    for (name, lines, command) in steps {
        println!("== {name}");
        total.step(name, lines, command)?;
    }
    print!("{}", total.text());
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Another command of this program.
fn own(args: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(args);
    Ok(command)
}
