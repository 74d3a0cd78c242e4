//! CPython's own tests under the library, as Debian ships them: each test must end as it does without it. All of
//! Python's objects come from malloc (`PYTHONMALLOC=malloc`), which by itself takes larger ones only.
//!
//! Both runs go at the same time. Some of these tests depend on time, so those that end differently are run again,
//! alone; what differs then as well is a failure.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;
use std::collections::BTreeMap;
use std::process::Command;
use support::{text, under};

/// Debian's, to which the package of tests belongs, and not another one on the path.
const PYTHON: &str = "/usr/bin/python3";

/// A test's name and how it ended.
type Outcomes = BTreeMap<String, &'static str>;

fn has_its_tests() -> bool {
    let there = Command::new(PYTHON).args(["-c", "import test.test_gc"]).output();
    let there = there.is_ok_and(|output| output.status.success());
    if !there {
        println!("skipped: {PYTHON}'s tests (libpython3-testsuite) are not installed");
    }
    there
}

/// Runs modules, or those of their tests that match one of the patterns.
fn run(mut python: Command, modules: &[&str], patterns: &[&str]) -> Outcomes {
    let dir = tempfile::tempdir().unwrap();
    let report = dir.path().join("report.xml");
    python.args(["-m", "test", "--timeout", "300", "--junit-xml"]).arg(&report).args(modules);
    python.args(patterns.iter().flat_map(|pattern| ["--match", *pattern]));
    python.env("PYTHONMALLOC", "malloc").env("TMPDIR", dir.path()).current_dir(dir.path());
    let output = python.output().unwrap();
    let report = std::fs::read_to_string(&report);
    let report = report.unwrap_or_else(|error| panic!("{python:?}: {error}: {}", text(&output)));
    outcomes(&report)
}

/// Reads a report in JUnit's format, which regrtest writes without line breaks.
fn outcomes(report: &str) -> Outcomes {
    let outcome = |case: &str| match case {
        _ if case.contains("<failure") || case.contains("<error") => "failed",
        _ if case.contains("<skipped") => "skipped",
        _ => "passed",
    };
    let case =
        |case: &str| Some((case.split("name=\"").nth(1)?.split('"').next()?.to_owned(), outcome(case)));
    report.split("<testcase ").skip(1).filter_map(case).collect()
}

/// Runs the tests without and with the library side by side; what differs.
fn differing(modules: &[&str], patterns: &[&str], least: usize) -> Vec<String> {
    let (plain, ours) = std::thread::scope(|scope| {
        let plain = scope.spawn(|| run(Command::new(PYTHON), modules, patterns));
        let ours = run(under(PYTHON), modules, patterns);
        (plain.join().unwrap(), ours)
    });
    compare(&plain, &ours, least)
}

/// What differs, with how it ended in each.
fn compare(plain: &Outcomes, ours: &Outcomes, least: usize) -> Vec<String> {
    assert!(plain.len() >= least, "only {} tests ran", plain.len());
    println!(
        "{} tests: {} passed",
        ours.len(),
        ours.values().filter(|outcome| **outcome == "passed").count()
    );
    let names = plain.keys().chain(ours.keys().filter(|name| !plain.contains_key(*name)));
    let differing = names.filter(|name| plain.get(*name) != ours.get(*name));
    differing
        .inspect(|name| println!("{name}: {:?} without, {:?} with", plain.get(*name), ours.get(*name)))
        .cloned()
        .collect()
}

/// Some of them measure time: what differs is run again with the machine to itself, and must differ each time.
fn same(modules: &[&str], patterns: &[&str], least: usize) {
    if !has_its_tests() {
        return;
    }
    let mut names = differing(modules, patterns, least);
    for _ in 0..2 {
        if names.is_empty() {
            return;
        }
        // What a whole class failed by has no name that could be asked for.
        let is_class = |name: &String| name.contains("setUpClass") || name.contains("tearDown");
        let patterns: Vec<&str> = match names.iter().any(is_class) {
            true => patterns.to_vec(),
            false => names.iter().map(String::as_str).collect(),
        };
        let plain = run(Command::new(PYTHON), modules, &patterns);
        names = compare(&plain, &run(under(PYTHON), modules, &patterns), 1);
    }
    assert!(names.is_empty(), "three times not as without: {names:?}");
}

#[test]
fn the_interpreter_and_its_extensions() {
    let modules = [
        "test_threading",
        "test_thread",
        "test_gc",
        "test_ctypes",
        "test_subprocess",
        "test_fork1",
        "test_posix",
        "test_os",
        "test_json",
        "test_re",
        "test_dict",
        "test_set",
        "test_unicode",
        "test_bytes",
        "test_array",
        "test_memoryview",
        "test_mmap",
        "test_struct",
        "test_generators",
        "test_decimal",
        "test_zlib",
        "test_bz2",
        "test_xml_etree_c",
    ];
    same(&modules, &[], 3000);
}

#[test]
fn multiprocessing() {
    let classes = ["Pool", "Queue", "SharedMemory", "Heap", "Value", "Process"]
        .map(|c| format!("WithProcessesTest{c}"));
    same(&["test_multiprocessing_fork"], &classes.each_ref().map(String::as_str), 50);
}

#[test]
fn a_report_is_read() {
    let report = "<testsuites><testsuite><testcase name=\"a.b\" status=\"run\" /><testcase name=\"c\"><failure>x\
        </failure></testcase><testcase name=\"d\"><skipped>y</skipped></testcase></testsuite></testsuites>";
    let read: Vec<_> = outcomes(report).into_iter().collect();
    let expected = [("a.b", "passed"), ("c", "failed"), ("d", "skipped")];
    assert_eq!(read, expected.map(|(name, outcome)| (name.to_owned(), outcome)));
}
