//! `cargo xtask test`: every test there is, one after another, and one closing line that counts them all.
//! Each step is a program of its own whose lines pass through and are tallied: cargo's "test result: ..."
//! lines, and "N passed, N failed, N skipped" of this project's own. Invariants: what was skipped is shown
//! with its reason at the end; a step that fails, or that ran nothing, is a failure.

use crate::deps;
use crate::workspace::cargo;
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::process::{Command, ExitCode, Stdio};

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

/// Which closing lines a step's programs write.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Lines {
    /// Cargo's, one for each test program.
    Cargo,
    /// This project's own, one in all.
    Own,
}

/// What a step's lines said.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: u64,
    failed: u64,
    skipped: u64,
    reasons: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    let tables: &[_] = if args.fast { &[deps::TEST] } else { &[deps::TEST, deps::VM] };
    let mut total = Tally::default();
    let missing = deps::provide(tables)?;
    // Output of tests that pass is shown, because the reasons for skipping are in it.
    let mut workspace = cargo();
    workspace.args(["test", "--workspace", "--no-fail-fast", "--", "--show-output"]);
    let mut steps = vec![("the workspace's tests", Lines::Cargo, workspace)];
    if args.fast {
        total.skip("the lab and the virtual machine: --fast");
    } else {
        steps.push(("the lab", Lines::Own, own(&["lab"])?));
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
    for reason in &total.reasons {
        println!("{reason}");
    }
    println!("{} passed, {} failed, {} skipped", total.passed, total.failed, total.skipped);
    Ok(if total.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Another command of this program.
fn own(args: &[&str]) -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    command.args(args);
    Ok(command)
}

impl Tally {
    /// Runs one step and adds what its lines say.
    fn step(&mut self, name: &str, lines: Lines, mut command: Command) -> Result<()> {
        let before = (self.passed, self.failed);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).split(b'\n') {
                let line = line.with_context(|| format!("cannot read the output of {name}"))?;
                let line = String::from_utf8_lossy(&line);
                println!("{line}");
                self.line(lines, &line);
            }
        }
        let status = child.wait()?;
        if self.failed == before.1 && !status.success() {
            println!("{name}: {status}");
            self.failed += 1;
        } else if (self.passed, self.failed) == before {
            println!("{name}: no test ran");
            self.failed += 1;
        }
        Ok(())
    }

    /// Output of tests is among cargo's lines, so the own kind of line does not count there.
    fn line(&mut self, lines: Lines, line: &str) {
        if let (Lines::Cargo, Some(result)) = (lines, line.strip_prefix("test result: ")) {
            let counts = result.split_once(". ").map_or(result, |(_, counts)| counts);
            self.add(&counts.replace("; ", ", "));
        } else if lines == Lines::Own
            && line.starts_with(|c: char| c.is_ascii_digit())
            && line.contains(" passed, ")
        {
            self.add(line);
        } else if line.starts_with("skipped  ") {
            self.reasons.push(line.trim_end().to_owned());
        } else if let Some(at) = line.find("skipped: ") {
            self.reasons.push(line[at..].trim_end().to_owned());
        }
    }

    /// Adds counts as in "3 passed, 0 failed, 1 ignored".
    fn add(&mut self, counts: &str) {
        for count in counts.split(", ") {
            let (number, what) = count.split_once(' ').unwrap_or_default();
            let Ok(number) = number.parse::<u64>() else { continue };
            match what {
                "passed" => self.passed += number,
                "failed" => self.failed += number,
                "skipped" | "ignored" => self.skipped += number,
                _ => {}
            }
        }
    }

    fn skip(&mut self, why: &str) {
        self.skipped += 1;
        self.reasons.push(format!("skipped: {why}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_closing_line_counts_where_it_belongs() {
        let cargo =
            "test result: ok. 4 passed; 1 failed; 2 ignored; 0 measured; 3 filtered out; finished in 0.01s";
        let all = [cargo, "5 passed, 0 failed, 1 skipped", "3 of them passed, too", "vm skipped: no qemu"];
        for (lines, passed, failed, skipped) in [(Lines::Cargo, 4, 1, 2), (Lines::Own, 5, 0, 1)] {
            let mut tally = Tally::default();
            all.iter().for_each(|line| tally.line(lines, line));
            let reasons = vec!["skipped: no qemu".to_owned()];
            assert_eq!(tally, Tally { passed, failed, skipped, reasons });
        }
    }

    #[test]
    fn a_step_that_runs_nothing_or_dies_fails() {
        for (script, failed) in
            [("true", 1), ("echo 1 passed, 0 failed", 0), ("echo 1 passed, 0 failed; exit 3", 1)]
        {
            let mut tally = Tally::default();
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            tally.step("step", Lines::Own, command).unwrap();
            assert_eq!(tally.failed, failed, "{script}");
        }
    }
}
