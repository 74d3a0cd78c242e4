//! What the programs of a test run said, line by line, and the sum of it.
//!
//! Each step's lines are tallied: cargo's "test result: ..." lines, and "N passed, N failed, N skipped" of this
//! project's own. Invariants: a test program that passes takes one line, one that fails shows its failures
//! whole; failures and reasons for skipping are repeated at the end, where whoever reads a log looks first.

use anyhow::{Context, Result};
use std::fmt::Write;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// Which closing lines a step's programs write.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lines {
    /// Cargo's, one for each test program; run with `--show-output`, for the reasons of tests that skip.
    Cargo,
    /// This project's own, one in all.
    Own,
}

/// What a run's lines said.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    pub(crate) skipped: u64,
    /// What failed, by name.
    failures: Vec<String>,
    reasons: Vec<String>,
    /// Lines of the test program that runs now.
    program: Vec<String>,
}

impl Tally {
    /// Runs one step and adds what its lines say.
    pub(crate) fn step(&mut self, name: &str, lines: Lines, mut command: Command) -> Result<()> {
        let before = (self.passed, self.failed);
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        if let Some(stdout) = child.stdout.take() {
            for line in BufReader::new(stdout).split(b'\n') {
                let line = line.with_context(|| format!("cannot read the output of {name}"))?;
                let line = String::from_utf8_lossy(&line).into_owned();
                for line in self.line(lines, line) {
                    println!("{line}");
                }
            }
        }
        let status = child.wait()?;
        for line in std::mem::take(&mut self.program) {
            println!("{line}");
        }
        if self.failed == before.1 && !status.success() {
            self.fail(format!("{name}: {status}"));
        } else if (self.passed, self.failed) == before {
            self.fail(format!("{name}: no test ran"));
        }
        Ok(())
    }

    /// Counts something that was not run, and why.
    pub(crate) fn skip(&mut self, why: &str) {
        self.skipped += 1;
        self.reasons.push(format!("skipped: {why}"));
    }

    /// The closing lines.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for line in self.reasons.iter().chain(&self.failures) {
            let _infallible = writeln!(text, "{line}");
        }
        let _infallible =
            writeln!(text, "{} passed, {} failed, {} skipped", self.passed, self.failed, self.skipped);
        text
    }

    fn fail(&mut self, what: String) {
        self.failed += 1;
        self.failures.push(format!("FAILED: {what}"));
    }

    /// Takes one line and returns those to show.
    fn line(&mut self, lines: Lines, line: String) -> Vec<String> {
        if let Some(at) = line.find("skipped: ") {
            self.reasons.push(line[at..].trim_end().to_owned());
        }
        match lines {
            Lines::Cargo => self.cargo_line(line),
            Lines::Own => {
                self.own_line(&line);
                vec![line]
            }
        }
    }

    /// Output of tests is among cargo's lines, so the own kind of closing line does not count here.
    fn cargo_line(&mut self, line: String) -> Vec<String> {
        if let Some(name) = line.strip_prefix("test ").and_then(|line| line.strip_suffix(" ... FAILED")) {
            self.failures.push(format!("FAILED: {name}"));
        }
        let Some(result) = line.strip_prefix("test result: ") else {
            self.program.push(line);
            return Vec::new();
        };
        let (verdict, counts) = result.split_once(". ").unwrap_or((result, result));
        let failed = self.failed;
        self.add(&counts.replace("; ", ", "));
        let mut said = std::mem::take(&mut self.program);
        let shown = if verdict == "ok" && self.failed == failed {
            said.len()
        } else {
            said.iter().position(|line| line == "failures:").unwrap_or(0)
        };
        said.drain(..shown);
        said.push(line);
        said
    }

    fn own_line(&mut self, line: &str) {
        if line.starts_with(|c: char| c.is_ascii_digit()) && line.contains(" passed, ") {
            self.add(line);
        } else if line.starts_with("MISS ") || line.starts_with("FAILED ") {
            self.failures.push(line.trim_end().to_owned());
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(lines: Lines, all: &[&str]) -> (Tally, Vec<String>) {
        let mut tally = Tally::default();
        let shown = all.iter().flat_map(|line| tally.line(lines, (*line).to_owned())).collect();
        (tally, shown)
    }

    #[test]
    fn each_kind_of_closing_line_counts_where_it_belongs() {
        let cargo =
            "test result: ok. 4 passed; 1 failed; 2 ignored; 0 measured; 3 filtered out; finished in 0.01s";
        let all = [cargo, "5 passed, 0 failed, 1 skipped", "3 of them passed, too", "vm skipped: no qemu"];
        for (lines, counts) in [(Lines::Cargo, (4, 1, 2)), (Lines::Own, (5, 0, 1))] {
            let (tally, _) = told(lines, &all);
            assert_eq!((tally.passed, tally.failed, tally.skipped), counts);
            assert_eq!(tally.reasons, ["skipped: no qemu"]);
        }
    }

    #[test]
    fn what_passes_takes_a_line_and_what_fails_shows_why() {
        let passes = ["running 1 test", "test a ... ok", "test result: ok. 1 passed; 0 failed"];
        let fails = [
            "test b ... FAILED",
            "successes:",
            "failures:",
            "why",
            "test result: FAILED. 0 passed; 1 failed",
        ];
        let (tally, shown) = told(Lines::Cargo, &[&passes[..], &fails].concat());
        assert_eq!(shown, [passes[2], fails[2], fails[3], fails[4]]);
        assert!(tally.text().ends_with("FAILED: b\n1 passed, 1 failed, 0 skipped\n"));
        let (tally, shown) = told(Lines::Own, &["MISS     case   leak", "0 passed, 1 failed, 0 skipped"]);
        assert_eq!((shown.len(), tally.failures.len()), (2, 1));
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
