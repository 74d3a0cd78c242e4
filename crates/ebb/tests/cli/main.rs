//! The command itself, as people and programs run it: what it promises ([`contracts`]), targets that are
//! awkward ([`targets`]), and places where not everything is as usual ([`environments`]).
//!
//! Real processes with ready handshakes, this binary's own children; what the machine does not allow is
//! skipped and said.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod contracts;
mod environments;
mod heap;
mod heaps;
mod programs;
mod reclaim;
mod targets;
mod tune;

use serde_json::Value;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

#[test]
#[ignore = "plays the child programs of the other tests"]
fn child_program() {
    ebbtide_testkit::child::play(programs::ALL);
}

/// `ebb` with these arguments, at 80 columns without colours unless a test says otherwise.
fn ebb(arguments: &[&str]) -> Command {
    in_order(Command::new(env!("CARGO_BIN_EXE_ebb")), arguments)
}

fn in_order(mut command: Command, arguments: &[&str]) -> Command {
    for variable in ["NO_COLOR", "CLICOLOR_FORCE", "CLICOLOR"] {
        command.env_remove(variable);
    }
    command.args(arguments).env("COLUMNS", "80").env("EBB_STATE", state()).stdin(Stdio::null());
    command
}

/// Where the journals of tests go, not to be mixed with what people did on this machine; in memory where that can be, for
/// they are synced, which takes long where a build has just written gigabytes.
fn state() -> &'static Path {
    static STATE: OnceLock<PathBuf> = OnceLock::new();
    STATE.get_or_init(|| {
        let memory = PathBuf::from(format!("/dev/shm/ebb-tests-{}", rustix::process::getuid().as_raw()));
        match std::fs::create_dir_all(&memory) {
            Ok(()) => memory,
            Err(_) => Path::new(env!("CARGO_TARGET_TMPDIR")).join("state"),
        }
    })
}

/// Copies ebb. Not by this process: while it has the copy open for writing, a child that another test forks has it open,
/// too, and to start the copy is ETXTBSY.
fn copy_to(path: &Path) {
    assert!(Command::new("cp").arg(env!("CARGO_BIN_EXE_ebb")).arg(path).status().unwrap().success());
}

/// What came of a run.
#[derive(Debug)]
struct Ran {
    code: i32,
    out: String,
    err: String,
}

impl Ran {
    /// Asserts that it is the report of a host, a process or a cgroup, and keeps every promise of one.
    fn report(&self) -> Value {
        let report = self.json("explain");
        let findings = report["findings"].as_array().unwrap().len();
        assert_eq!(self.code, i32::from(findings > 0), "{self:?}");
        sums(&report["ledger"]);
        report
    }

    /// Asserts that it is JSON of this schema.
    fn json(&self, schema: &str) -> Value {
        assert!(self.code < 2 && self.err.is_empty(), "{self:?}");
        let value = serde_json::from_str(&self.out).unwrap();
        let path = format!("{}/../../schema/{schema}.schema.json", env!("CARGO_MANIFEST_DIR"));
        let schema = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(jsonschema::meta::is_valid(&schema));
        let valid = jsonschema::validate(&schema, &value);
        valid.unwrap_or_else(|e| panic!("{e} at {} of {value:#}", e.instance_path()));
        value
    }

    /// Asserts that it failed and said why, in words that are safe to show.
    fn refused(&self) -> &str {
        assert_eq!(self.code, 2, "{self:?}");
        assert!(self.out.is_empty() && self.err.len() > 20, "{self:?}");
        assert_harmless(&self.err);
        &self.err
    }
}

fn run(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        code: output.status.code().unwrap_or_else(|| panic!("killed: {:?}", output.status)),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Nothing that drives a terminal.
fn assert_harmless(text: &str) {
    let bad = text.chars().find(|c| c.is_control() && *c != '\n');
    assert_eq!(bad, None, "{text:?}");
}

/// Lines and what is unaccounted for are the total to the byte, and no line's children exceed it.
fn sums(ledger: &Value) {
    fn bytes(line: &Value) -> u64 {
        line["bytes"].as_u64().unwrap()
    }
    fn children(line: &Value) {
        let below = line["children"].as_array().map_or(&[][..], |lines| lines);
        assert!(below.iter().map(bytes).sum::<u64>() <= bytes(line), "{line:#}");
        below.iter().for_each(children);
    }
    let lines = ledger["lines"].as_array().unwrap();
    lines.iter().for_each(children);
    let sum = lines.iter().map(bytes).sum::<u64>() + ledger["unaccounted_bytes"].as_u64().unwrap();
    assert_eq!(sum, ledger["total_bytes"].as_u64().unwrap());
}

/// Says why a test is not run; past the harness's capture, so that it is seen.
fn skipped(why: &str) {
    let _ = writeln!(std::io::stdout(), "skipped: {why}");
}
