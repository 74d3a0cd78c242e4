//! The C interface: what it promises, and what it does with programs that break theirs.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;
use std::os::unix::process::ExitStatusExt;
use support::{compile, succeed, text, under};

#[test]
fn every_function_does_what_the_standards_say() {
    let Some((_dir, program)) = compile("interface.c", &[]) else { return };
    for level in ["0", "1", "2", "3"] {
        succeed(under(&program).env("EBBTIDE_MALLOC_CHECK", level));
    }
    succeed(under(&program).env("EBBTIDE_MALLOC_THREAD", "off"));
    succeed(under(&program).env("EBBTIDE_MALLOC_DELAY_MS", "1"));
}

/// Runs a wrong program at a check level: it must end by SIGABRT after a message with the pointer's name.
fn stopped(what: &str, level: &str, message: &str) {
    let Some((_dir, program)) = compile("wrong.c", &[]) else { return };
    // Without the purge thread, whose start would allocate between the two frees.
    let output = under(&program)
        .arg(what)
        .env("EBBTIDE_MALLOC_CHECK", level)
        .env("EBBTIDE_MALLOC_THREAD", "off")
        .output()
        .unwrap();
    let said = text(&output);
    assert_eq!(output.status.signal(), Some(6), "{what} at {level}: {said}");
    let pointer = said.lines().next().unwrap();
    assert!(said.contains(&format!("ebbtide: {pointer}: {message}")), "{what} at {level}: {said}");
}

#[test]
fn blocks_freed_twice_are_named() {
    for what in ["twice", "later", "other-thread"] {
        stopped(what, "0", "freed twice");
        stopped(what, "2", "freed twice");
    }
    for what in ["run", "large"] {
        stopped(what, "0", "freed, but no block begins there");
    }
}

#[test]
fn pointers_that_are_no_blocks_are_named() {
    for what in ["stack", "inside", "inside-run"] {
        stopped(what, "0", "freed, but no block begins there");
        stopped(what, "2", "freed, but no block begins there");
    }
}

#[test]
fn a_write_after_free_is_found_at_level_three() {
    let Some((_dir, program)) = compile("wrong.c", &[]) else { return };
    let output = under(&program).arg("write").env("EBBTIDE_MALLOC_CHECK", "3").output().unwrap();
    assert_eq!(output.status.signal(), Some(6));
    assert!(text(&output).contains("written after it was freed"));
}
