//! Giving back what real programs' allocators keep: as much as was predicted, no byte of what they hold changed, and
//! they go on.
#![cfg(target_arch = "x86_64")]
#![allow(clippy::unwrap_used)]

use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use ebbtide_reclaim::Report;
use ebbtide_reclaim::process::{Options, reclaim};
use ebbtide_testkit::{Child, Nginx};
use std::path::{Path, PathBuf};
use std::process::Command;

/// What prediction and result may differ by: 2%, or this.
const SLACK: Bytes = Bytes(256 << 10);

fn give_back(pid: u32) -> Report {
    let process = Process::open(&Root::live().unwrap(), pid).unwrap();
    reclaim(&process, &Options::default()).unwrap()
}

/// The program of the heaps' tests that brings glibc's heap into shapes.
fn shapes() -> PathBuf {
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("reclaimed-shapes");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("../heaps/tests/programs/shapes.c");
    let mut gcc = Command::new("gcc");
    gcc.args(["-O1", "-Wno-deprecated-declarations", "-fno-builtin", "-pthread", "-o"])
        .arg(&program)
        .arg(source);
    assert!(gcc.status().unwrap().success());
    program
}

const SHAPES: [&str; 18] = [
    "below-a-pin",
    "trimmed-already",
    "alternate",
    "alternate-runs",
    "caches-full",
    "quick-lists",
    "quick-lists-at-random",
    "large-blocks",
    "large-bins",
    "reallocated",
    "aligned",
    "gap-in-brk",
    "bursts-at-once",
    "bursts-in-turn",
    "ended-threads",
    "several-heaps",
    "tops-of-arenas",
    "shared-arenas",
];

#[test]
fn every_shape_of_glibcs_heap() {
    let program = shapes();
    for shape in SHAPES {
        let info = program.with_extension(format!("{shape}.xml"));
        let mut child = Child::spawn(Command::new(&program).arg(shape).arg(&info));
        child.ask("shape");
        let content = child.ask("sum").to_owned();
        let report = give_back(child.pid());
        let (predicted, returned) = (report.predicted, report.returned.unwrap_or_default());
        println!("{shape}: {predicted} predicted, {returned} returned, {:?} stopped", report.longest_stop);
        let off = Bytes(predicted.0.abs_diff(returned.0));
        assert!(off <= SLACK || off <= returned.scaled(0.02), "{shape}: {report:#?}");
        assert!(report.levers.iter().all(|lever| lever.short.is_none()), "{shape}: {report:#?}");
        let left = give_back(child.pid()).predicted;
        assert!(left <= Bytes(64 << 10), "{shape}: {left} left");
        assert_eq!(child.ask("sum"), content, "{shape}");
        child.ask("end");
        let _ = std::fs::remove_file(info);
    }
}

#[test]
fn an_nginx_worker_with_lua() {
    let Some(nginx) = Nginx::start() else { return };
    (0..5).for_each(|_| nginx.burst());
    nginx.run("collectgarbage() collectgarbage()");
    let report = give_back(nginx.pid());
    println!("{report:#?}");
    let (predicted, returned) = (report.predicted, report.returned.unwrap_or_default());
    assert!(returned > predicted.scaled(0.9) && returned > Bytes::from_mib(100), "{report:#?}");
    (0..3).for_each(|_| nginx.burst());
    nginx.run("collectgarbage() collectgarbage()");
}
