//! The glibc walker on programs that never stand still: eight threads at full speed beside a thread that forks,
//! a program that executes itself again and again, programs that exit; a thousand walks in all. Each ends with
//! figures that add up or with a clear error, and the target checks that nothing happened to its blocks.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ebbtide_heaps::{Fault, Heap, Live, glibc};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, ReadError, Root};
use ebbtide_testkit::child::Child;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Builds the program.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("busy");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/busy.c");
        let mut gcc = Command::new("gcc");
        gcc.args(["-O1", "-Wall", "-pthread", "-o"]).arg(&program).arg(&source);
        assert!(gcc.status().expect("gcc").success());
        program
    })
}

/// Why a walk had no result.
#[derive(Debug)]
enum Failed {
    Open(ReadError),
    Walk(Fault),
}

/// One walk.
fn walk(pid: u32) -> Result<Vec<Heap>, Failed> {
    let root = Root::live().unwrap();
    let process = Process::open(&root, pid).map_err(Failed::Open)?;
    let live = Live::new(&process, false).map_err(Failed::Open)?;
    glibc::find(&live).map_err(Failed::Walk)
}

/// What must hold of a result whatever the target does: no byte named twice, and no damage where none is.
fn check(heap: &Heap) {
    let figures = heap.figures;
    let named = figures.live + figures.cached + figures.free + figures.metadata;
    assert!(named + figures.unused == figures.mapped, "{heap:?}");
    assert!(heap.corruptions.is_empty(), "{:?}", heap.corruptions);
    assert!(!heap.certainty.still);
}

#[test]
fn threads_at_full_speed() {
    const WALKS: u64 = 500;
    // On a machine with few processors the walk would hardly get a turn.
    let child = Child::spawn(Command::new("nice").args(["-n", "19"]).arg(program()).arg("threads"));
    let (mut unresolved, mut mapped, mut reread) = (Bytes::ZERO, Bytes::ZERO, 0);
    for _ in 0..WALKS {
        let heaps = walk(child.pid()).expect("a process that runs on");
        let [heap] = heaps.as_slice() else { panic!("{heaps:?}") };
        check(heap);
        let says_why = heap.notes.iter().any(|note| note.starts_with("arenas came"));
        assert!(heap.figures.live > Bytes::ZERO || says_why, "{heap:?}");
        unresolved += heap.certainty.unresolved;
        mapped += heap.figures.mapped;
        reread += heap.certainty.reread;
    }
    assert!(child.wait().success(), "a block was damaged");
    let share = unresolved.share_of(mapped);
    println!(
        "{WALKS} walks of {} each, {reread} places read again, {:.4}% unresolved",
        Bytes(mapped.0 / WALKS),
        share * 100.0
    );
    // What is in flux is far less than what is not, also where the walk had to wait for a processor.
    assert!(share < 0.25, "{unresolved} of {mapped}");
}

#[test]
fn a_program_that_executes_itself() {
    const WALKS: u64 = 300;
    let child = Child::spawn(Command::new(program()).arg("exec"));
    let (mut results, mut errors) = (0, 0);
    for _ in 0..WALKS {
        match walk(child.pid()) {
            Ok(heaps) => {
                results += 1;
                heaps.iter().for_each(check);
            }
            // The process was another one when the walk ended.
            Err(Failed::Walk(Fault::Ended) | Failed::Open(ReadError::Vanished { .. })) => errors += 1,
            Err(failed) => panic!("{failed:?}"),
        }
    }
    println!("{results} of {WALKS} walks with a result, {errors} of a process that became another");
    assert!(results > 0);
}

#[test]
fn programs_that_exit() {
    const WALKS: u64 = 200;
    let (mut results, mut errors) = (0, 0);
    while results + errors < WALKS {
        // So that it ends now before, now after and now within the walks.
        let steps = 1 << (10 + (results + errors) % 12);
        let child = Child::spawn(Command::new(program()).args(["exit", &steps.to_string()]));
        for _ in 0..5 {
            match walk(child.pid()) {
                Ok(heaps) => {
                    results += 1;
                    heaps.iter().for_each(check);
                }
                // Mappings of a process that ends go before its directory does.
                Err(Failed::Walk(Fault::Ended | Fault::Denied(_)) | Failed::Open(_)) => errors += 1,
                Err(failed) => panic!("{failed:?}"),
            }
        }
        assert!(child.wait().success(), "a block was damaged");
    }
    println!("{results} walks with a result, {errors} of a process that had ended");
    assert!(results > 0 && errors > 0);
}

/// Where another malloc stands in for glibc's, and in programs with another C library, there is nothing to tell.
#[test]
fn other_allocators_are_not_called_glibc() {
    let nothing = |command: &mut Command| {
        let child = Child::spawn(command.arg("threads"));
        assert_eq!(walk(child.pid()).expect("a process that runs on"), [], "{command:?}");
    };
    let jemalloc = Path::new("/usr/lib/x86_64-linux-gnu/libjemalloc.so.2");
    if jemalloc.exists() {
        nothing(Command::new(program()).env("LD_PRELOAD", jemalloc));
    } else {
        println!("skipped: jemalloc instead of glibc's malloc: libjemalloc2 is not installed");
    }
    if ebbtide_testkit::child::installed("musl-gcc") {
        for option in ["-O1", "-static"] {
            let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("busy-musl{option}"));
            let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/busy.c");
            let mut gcc = Command::new("musl-gcc");
            gcc.args([option, "-pthread", "-o"]).arg(&program).arg(source);
            assert!(gcc.status().expect("musl-gcc").success());
            nothing(&mut Command::new(&program));
        }
    } else {
        println!("skipped: a musl program: musl-tools is not installed");
    }
}
