//! What these tests share: programs built from C, and a reclaim with its report.
#![allow(dead_code)]

use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use ebbtide_reclaim::Report;
use ebbtide_reclaim::process::{Options, reclaim};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// What prediction and result may differ by: 2%, or this.
pub(crate) const SLACK: Bytes = Bytes(256 << 10);

pub(crate) fn give_back(pid: u32) -> Report {
    give_back_with(pid, &Options::default())
}

pub(crate) fn give_back_with(pid: u32, options: &Options) -> Report {
    let process = Process::open(&Root::live().unwrap(), pid).unwrap();
    reclaim(&process, options).unwrap()
}

/// Builds a program on musl: what musl-gcc does.
pub(crate) const MUSL: &str = "-specs=/usr/lib/x86_64-linux-musl/musl-gcc.specs";

/// Builds the C program at `source`, from this crate's directory.
pub(crate) fn build(source: &str) -> PathBuf {
    let name = Path::new(source).file_stem().unwrap().to_string_lossy().into_owned();
    build_as(&name, source, &[])
}

/// The same under another name, with options.
pub(crate) fn build_as(name: &str, source: &str, options: &[&str]) -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(source);
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("reclaimed-{name}"));
    if !ebbtide_testkit::child::is_built(&program, &source) {
        let mut gcc = Command::new("gcc");
        gcc.args(["-O1", "-Wno-deprecated-declarations", "-fno-builtin", "-pthread"]).args(options);
        assert!(gcc.arg("-o").arg(&program).arg(source).status().unwrap().success());
    }
    program
}
