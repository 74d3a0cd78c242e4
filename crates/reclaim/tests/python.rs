//! A collection that Python's own threads make when they are asked: on CPython 3.14, in whatever they are at.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use common::give_back_with;
use ebbtide_observe::Bytes;
use ebbtide_reclaim::Report;
use ebbtide_reclaim::process::Options;
use ebbtide_testkit::{Child, Python};
use std::io::{Read, Seek};
use std::process::Stdio;
use std::time::Duration;

/// Makes 100,000 rings of garbage, waits for a line on its input in the way that its argument names, and says how often
/// the collector ran, what it found, and whether what is kept is whole.
const TARGET: &str = r#"
import gc, hashlib, select, sys, threading
gc.disable()
found = []
gc.callbacks.append(lambda phase, info: found.append(info["collected"]) if phase == "stop" else None)
kept = [(i, str(i)) for i in range(50000)]
class Node:
    def __init__(self): self.fill = bytes(400)
for _ in range(100000):
    a, b = Node(), Node()
    a.other, b.other = b, a
a = b = None
going = True
def compute():
    while going: sum(range(50))
def talk(): print("@ready", len(found), sum(found) >= 200000, kept == [(i, str(i)) for i in range(50000)], flush=True)
how = sys.argv[1]
threads = [threading.Thread(target=compute) for _ in range(6 if how == "threads" else 0)]
for thread in threads: thread.start()
talk()
if how == "computes":
    while not select.select([0], [], [], 0)[0]: sum(range(50))
elif how == "epoll":
    poll = select.epoll()
    poll.register(0, select.EPOLLIN)
    poll.poll()
sys.stdin.readline()
talk()
going = False
for thread in threads: thread.join()
sys.stdin.readline()
"#;

/// A target at work, and what it says on its standard error.
fn start(python: &Python, how: &str, options: &[&str]) -> (Child, std::fs::File) {
    let errors = tempfile::tempfile().unwrap();
    let mut command = python.command();
    command.args(options).args(["-c", TARGET, how]).stderr(Stdio::from(errors.try_clone().unwrap()));
    (Child::spawn(&mut command), errors)
}

fn collect(child: &Child, patience: Duration) -> Report {
    give_back_with(child.pid(), &Options { collect: true, patience, ..Options::default() })
}

fn ends_well(child: Child, mut errors: std::fs::File) {
    assert!(child.wait().success());
    let mut text = String::new();
    errors.rewind().unwrap();
    errors.read_to_string(&mut text).unwrap();
    assert_eq!(text, "");
    let left = std::fs::read_dir("/tmp").unwrap().flatten();
    let ours = format!(".ebbtide-{}-", std::process::id());
    assert!(!left.map(|entry| entry.file_name()).any(|name| name.to_string_lossy().starts_with(&ours)));
}

/// One test, because what is left in /tmp is looked for.
#[test]
fn python_collects_when_it_is_asked() {
    let Some((python, version)) = Python::of((3, 14)) else {
        return println!("skipped: no Python 3.14 here, which takes requests");
    };
    for how in ["computes", "epoll", "threads"] {
        let (mut child, errors) = start(&python, how, &[]);
        assert_eq!(child.said(), "0 False True");
        let report = collect(&child, Duration::from_secs(5));
        let lever = report.levers.iter().find(|lever| lever.id == "python-gc").unwrap();
        assert_eq!(lever.short, None, "{how}: {report:#?}");
        assert!(lever.returned > Some(Bytes::from_mib(80)), "{how}: {report:#?}");
        println!("{version} {how}: {lever:#?}");
        // Once, whoever came first.
        assert_eq!(child.ask("how often?"), "1 True True", "{how}");
        ends_well(child, errors);
    }
    // A read is not interrupted: nobody comes to look, and the request is taken back.
    let (mut child, errors) = start(&python, "reads", &[]);
    let report = collect(&child, Duration::from_millis(200));
    let short = report.levers.iter().find(|lever| lever.id == "python-gc").unwrap().short.clone();
    assert!(short.is_some_and(|why| why.starts_with("none of its 1 Python threads")), "{report:#?}");
    assert_eq!(child.ask("how often?"), "0 False True");
    ends_well(child, errors);

    let (mut child, errors) = start(&python, "computes", &["-X", "disable-remote-debug"]);
    let report = collect(&child, Duration::from_secs(5));
    let short = report.levers.iter().find_map(|lever| lever.short.clone());
    assert!(short.is_some_and(|why| why.contains("disable-remote-debug")), "{report:#?}");
    assert_eq!(child.ask("how often?"), "0 False True");
    ends_well(child, errors);
}

#[test]
fn pythons_that_take_no_requests() {
    let others = Python::all().into_iter().filter(|python| {
        python.version().is_some_and(|((major, minor), _)| major == 3 && (8..14).contains(&minor))
    });
    for python in others {
        let (mut child, _errors) = start(&python, "epoll", &[]);
        let report = collect(&child, Duration::from_secs(5));
        let note = report.notes.iter().find(|note| note.contains("takes no requests from outside"));
        assert!(note.is_some(), "{report:#?}");
        assert_eq!(child.ask("how often?"), "0 False True");
    }
}
