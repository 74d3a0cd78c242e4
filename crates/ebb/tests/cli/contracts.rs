//! What programs rely on: JSON to its schemas, ledgers that sum up, exit codes, completions and man pages.

use crate::programs::hex;
use crate::{assert_harmless, ebb, run, skipped};
use ebbtide_testkit::Child;
use serde_json::Value;

fn idle() -> Child {
    Child::start("named", &[&hex("ebb-idle")])
}

#[test]
fn the_host_is_accounted_for() {
    for arguments in [&["--json"][..], &["explain", "--host", "--json"]] {
        let report = run(&mut ebb(arguments)).report();
        assert_eq!(report["target"]["kind"], "host");
        let (total, rest) = (&report["ledger"]["total_bytes"], &report["ledger"]["unaccounted_bytes"]);
        let (total, rest) = (total.as_u64().unwrap(), rest.as_u64().unwrap());
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap();
        let mem_total = meminfo.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10;
        assert_eq!(total, mem_total);
        assert!(rest * 50 <= total, "{rest} of {total} bytes are unaccounted for");
    }
}

#[test]
fn a_process_is_accounted_for() {
    let child = Child::start("named", &[&hex("ebb-only-one")]);
    let pid = child.pid().to_string();
    let report = run(&mut ebb(&["explain", &pid, "--json"])).report();
    assert_eq!(report["target"]["kind"], "process");
    assert_eq!(report["target"]["pid"], child.pid());
    assert_eq!(report["target"]["name"], "ebb-only-one");
    assert!(report["beside"]["pss_bytes"].as_u64() <= report["ledger"]["total_bytes"].as_u64());
    assert!(report["beside"]["uss_bytes"].as_u64() <= report["beside"]["pss_bytes"].as_u64());
    assert_eq!(report["growth"], Value::Null);
    // Its name means it too.
    let named = run(&mut ebb(&["explain", "ebb-only-one", "--json"])).report();
    assert_eq!(named["target"], report["target"]);
}

#[test]
fn what_is_watched_has_growth() {
    let child = idle();
    let pid = child.pid().to_string();
    for target in [&["--host"][..], &[&pid]] {
        let arguments = [&["explain", "--for", "500ms", "--json"], target].concat();
        let report = run(&mut ebb(&arguments)).report();
        assert!(report["growth"]["samples"].as_u64() >= Some(2), "{report:#}");
        assert!(report["growth"]["seconds"].as_f64() >= Some(0.5), "{report:#}");
        // Half a second decides nothing.
        let counters = report["growth"]["counters"].as_array().unwrap();
        assert!(!counters.is_empty() && counters.iter().all(|c| c["verdict"] == "undecided"), "{report:#}");
    }
}

#[test]
fn a_cgroup_is_accounted_for() {
    let first = run(&mut ebb(&["explain", "--cgroup", "/", "--json"]));
    if first.err.contains("no memory controller") {
        return skipped("no memory controller of cgroups here");
    }
    for watch in [&[][..], &["--for", "200ms"]] {
        let ran = run(ebb(&["explain", "--cgroup", "/", "--json"]).args(watch));
        if ran.code == 2 {
            // Version 2 has no memory.current in the root.
            assert!(ran.refused().contains("cgroup"), "{ran:?}");
            return skipped(&ran.err);
        }
        assert_eq!(ran.report()["target"]["path"], "/");
    }
}

#[test]
fn processes_are_listed_in_order() {
    let child = idle();
    let pid = child.pid();
    for sort in ["pss", "uss", "rss", "swap"] {
        let list = run(&mut ebb(&["ps", "--sort", sort, "--json"])).json("ps");
        let processes = list["processes"].as_array().unwrap();
        let keys: Vec<u64> = processes.iter().map(|p| p[format!("{sort}_bytes")].as_u64().unwrap()).collect();
        assert!(keys.is_sorted_by(|a, b| a >= b), "{sort}");
        let own = processes.iter().find(|p| p["pid"] == pid).unwrap();
        assert_eq!((&own["name"], &own["ppid"]), (&"ebb-idle".into(), &std::process::id().into()));
        assert!(
            own["uss_bytes"].as_u64() > Some(0) && own["uss_bytes"].as_u64() <= own["rss_bytes"].as_u64()
        );
    }
    let list = run(&mut ebb(&["ps", "ebb-idl", "--top", "1", "--json"])).json("ps");
    assert_eq!(list["processes"].as_array().unwrap().len(), 1);
    assert_eq!(list["processes"][0]["name"], "ebb-idle");
    let none = run(&mut ebb(&["ps", "no process is called this", "--json"])).json("ps");
    assert_eq!(none["processes"], Value::Array(Vec::new()));
}

#[test]
fn causes_are_listed_and_explained() {
    let list = run(&mut ebb(&["causes", "--json"])).json("causes");
    let schema = include_str!("../../../../schema/explain.schema.json");
    let schema: Value = serde_json::from_str(schema).unwrap();
    let ids: Vec<&Value> = list["causes"].as_array().unwrap().iter().map(|cause| &cause["id"]).collect();
    let known: Vec<&Value> = schema["$defs"]["cause"]["enum"].as_array().unwrap().iter().collect();
    assert_eq!(ids, known, "findings name the very causes that are explained");
    for id in ids {
        let one = run(&mut ebb(&["causes", id.as_str().unwrap(), "--json"])).json("causes");
        assert!(one["causes"][0]["page"].as_str().unwrap().contains("## What helps"), "{id}");
    }
    let unknown = run(&mut ebb(&["causes", "slab"]));
    run(&mut ebb(&["causes", "\x1b[31m"])).refused();
    assert!(unknown.refused().contains("slab-reclaimable"), "{unknown:?}");
}

#[test]
fn forks_are_predicted() {
    let child = idle();
    let report = run(&mut ebb(&["fork", &child.pid().to_string(), "--for", "100ms", "--json"])).json("fork");
    assert_eq!(report["pid"], child.pid());
    assert_eq!(report["would_succeed"], true, "{report:#}");
}

#[test]
fn exit_codes() {
    // A finding that is sure to be one: almost as many mappings as there may be.
    let (idle, full) = (idle(), Child::start("mappings", &[]));
    let clean = run(&mut ebb(&["explain", &idle.pid().to_string()]));
    assert_eq!(clean.code, 0, "{clean:?}");
    assert!(clean.out.ends_with("\nNothing is wrong.\n"), "{clean:?}");
    let maximum = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
    if maximum.trim() == "65530" {
        let found = run(&mut ebb(&["explain", &full.pid().to_string()]));
        assert_eq!(found.code, 1, "{found:?}");
        assert!(found.out.contains("other-limit"), "{found:?}");
    } else {
        skipped(&format!("vm.max_map_count is {}", maximum.trim()));
    }
    // Findings are for those two verbs only.
    assert_eq!(run(&mut ebb(&["ps"])).code, 0);
    assert_eq!(run(&mut ebb(&["causes"])).code, 0);
}

#[test]
fn nonsense_arguments_are_errors() {
    for arguments in [
        &["explain"][..],
        &["explain", "1", "--host"],
        &["explain", "1", "--for", "0"],
        &["explain", "1", "--for", "soon"],
        &["explain", "--host", "--cgroup", "/"],
        &["ps", "--sort", "size"],
        &["ps", "--top", "-1"],
        &["ps", "--top", "99999999999999999999"],
        &["dentries"],
        &["dentries", "--who", "8d"],
        &["fork"],
        &["--heaps", "0"],
        &["--heaps", "1s", "--no-heaps"],
        &["ps", "--heaps", "soon"],
        &["heap"],
        &["heap", "1", "--csv"],
        &["heap", "1", "--for", "1s"],
        &["heap", "1", "--watch", "0"],
        &["heap", "1", "--watch", "1s", "--csv", "--json"],
        &["completions", "tcsh\x1b"],
        &["--jason"],
        &["no-verb"],
        &["--json", "ps"],
    ] {
        run(&mut ebb(arguments)).refused();
    }
}

#[test]
fn help_completions_and_man_pages_know_every_verb() {
    let verbs = ["explain", "ps", "heap", "tune", "dentries", "fork", "causes", "completions"];
    let help = run(&mut ebb(&["--help"]));
    assert_eq!(help.code, 0);
    let dir = tempfile::tempdir().unwrap();
    let man = run(&mut ebb(&["man", dir.path().to_str().unwrap()]));
    assert!(man.code == 0 && man.out.is_empty(), "{man:?}");
    for verb in verbs {
        assert!(help.out.contains(&format!("\n  {verb} ")), "{}", help.out);
        let own = run(&mut ebb(&[verb, "--help"]));
        assert!(own.code == 0 && own.out.contains("Usage: ebb"), "{own:?}");
        assert_harmless(&own.out);
        assert!(dir.path().join(format!("ebb-{verb}.1")).exists());
    }
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = run(&mut ebb(&["completions", shell]));
        assert!(script.code == 0 && verbs.iter().all(|verb| script.out.contains(verb)), "{shell}");
    }
}
