//! What the heaps of all processes could give back: `ebb ps` and the host report.

use crate::{ebb, run};
use ebbtide_testkit::Child;
use serde_json::Value;

/// What [`crate::programs`]'s "kept" has freed, nearly.
const FREED: u64 = 60 << 20;

fn process(list: &Value, pid: u32) -> &Value {
    let mut processes = list.as_array().unwrap().iter();
    processes.find(|process| process["pid"] == pid).unwrap_or_else(|| panic!("no {pid} in {list:#}"))
}

#[test]
fn each_process_says_what_it_could_give_back() {
    let child = Child::start("kept", &[]);
    // The time is for a busy machine: it is not waited for.
    for sort in ["pss", "returnable"] {
        let report = run(&mut ebb(&["ps", "--json", "--heaps", "5m", "--sort", sort])).json("ps");
        let kept = process(&report["processes"], child.pid());
        assert_eq!(kept["looked"], true, "{kept:#}");
        assert!(kept["returnable_bytes"].as_u64() >= Some(FREED), "{kept:#}");
        assert!(kept["returnable_bytes"].as_u64() <= kept["rss_bytes"].as_u64(), "{kept:#}");
    }
    let text = run(&mut ebb(&["ps", "--heaps", "5m"]));
    let heads: Vec<&str> = text.out.lines().next().unwrap().split_whitespace().collect();
    let column = heads.iter().position(|head| *head == "RETURNABLE").unwrap();
    let row = text.out.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let row = row.into_iter().find(|words| words.first() == Some(&child.pid().to_string().as_str())).unwrap();
    // A figure and its unit are two words, those that are not known are one.
    let figure = row[1..].windows(2).filter(|words| words[1].ends_with('B')).nth(column - 1).unwrap();
    assert!(figure[1] == "MiB" && figure[0].parse::<f64>().unwrap() >= 60.0, "{row:?}");
}

#[test]
fn the_host_names_who_keeps_memory() {
    let child = Child::start("kept", &[]);
    let report = run(&mut ebb(&["--json", "--heaps", "5m"])).report();
    let kept = process(&report["heaps"]["processes"], child.pid());
    let returnable = kept["returnable_bytes"].as_u64().unwrap();
    assert!(returnable >= FREED && kept["allocators"][0]["kind"] == "glibc", "{kept:#}");
    let total = report["ledger"]["total_bytes"].as_u64().unwrap();
    let said = format!("(pid {}): ", child.pid());
    let mut findings = report["findings"].as_array().unwrap().iter();
    let named = findings.any(|finding| finding["summary"].as_str().unwrap().contains(&said));
    // It is worth a finding, unless the machine is so large, or others keep more.
    let others = report["findings"].as_array().unwrap().iter();
    let larger = others.filter(|finding| finding["cause"] == "allocator-retention").count() >= 3;
    assert!(named || larger || total / 512 > returnable, "{report:#}");
    let text = run(&mut ebb(&["--heaps", "5m", "--all"]));
    assert!(text.code < 2 && text.out.contains("Free pages in heaps\n"), "{text:?}");
    assert!(text.out.contains(&format!("({})", child.pid())), "{text:?}");
}

#[test]
fn nobody_looks_who_was_told_not_to() {
    let child = Child::start("kept", &[]);
    let report = run(&mut ebb(&["ps", "--json", "--no-heaps"])).json("ps");
    let kept = process(&report["processes"], child.pid());
    assert_eq!((&kept["looked"], &kept["returnable_bytes"]), (&Value::Bool(false), &Value::Null));
    let host = run(&mut ebb(&["--json", "--no-heaps"])).report();
    assert_eq!(host["heaps"], Value::Null);
    assert!(!run(&mut ebb(&["ps", "--no-heaps"])).out.contains("RETURNABLE"));
}

#[test]
fn what_there_is_no_time_for_is_said() {
    let child = Child::start("kept", &[]);
    let report = run(&mut ebb(&["ps", "--json", "--heaps", "1ms"])).json("ps");
    assert_eq!(process(&report["processes"], child.pid())["looked"], false);
    let unread = report["unread"].as_array().unwrap();
    let said = |lack: &Value| {
        let (what, why) = (lack["what"].as_str().unwrap(), lack["why"].as_str().unwrap());
        what.starts_with("the heaps of ") && why.contains("--heaps 1s")
    };
    assert!(unread.iter().any(said), "{unread:#?}");
    let text = run(&mut ebb(&["ps", "--heaps", "1ms"]));
    assert!(text.out.contains("? not looked into"), "{text:?}");
}
