//! `ebb reclaim` of what is not a process: targets told apart, plans, files that are really dropped, and the journal.

use crate::{copy_to, ebb, run, skipped};
use ebbtide_testkit::child::is_root;
use serde_json::Value;
use std::io::Write;
use std::path::Path;

#[test]
fn targets_exclude_each_other_and_say_what_they_lack() {
    for arguments in [
        &["reclaim"][..],
        &["reclaim", "1", "--host", "dentries"],
        &["reclaim", "--host", "dentries", "--history"],
        &["reclaim", "--history", "--dry-run"],
        &["reclaim", "--host", "everything"],
        &["reclaim", "--host", "page-cache"],
        &["reclaim", "--host", "dentries", "--all"],
        &["reclaim", "--host", "dentries", "--path", "/tmp"],
        &["reclaim", "--host", "page-cache", "--path", "/tmp", "--all"],
        &["reclaim", "--host", "page-cache", "--path", "/no/such/directory"],
        &["reclaim", "--host", "dentries", "--max-stop", "1ms"],
        &["reclaim", "--host", "dentries", "--gc"],
        &["reclaim", "1", "--path", "/tmp"],
        &["reclaim", "1", "--cold"],
        &["reclaim", "1", "--bytes", "1M"],
        &["reclaim", "1", "--pageout", "--gc"],
        &["reclaim", "1", "--cgroup", "/"],
        &["reclaim", "--cgroup", "/", "--bytes", "1M", "--floor", "1M"],
        &["reclaim", "--cgroup", "/", "--bytes", "much"],
        &["reclaim", "--cgroup", "/no/such/\x1b[2Jgroup"],
    ] {
        run(&mut ebb(arguments)).refused();
    }
}

#[test]
fn plans_change_nothing() {
    for what in [&["dentries"][..], &["page-cache", "--all"], &["compaction"], &["hugetlb"]] {
        let plan = run(ebb(&["reclaim", "--dry-run", "--json", "--host"]).args(what)).json("reclaim");
        assert_eq!((&plan["dry_run"], &plan["returned_bytes"]), (&Value::Bool(true), &Value::Null));
        assert_eq!((&plan["target"]["kind"], &plan["target"]["name"]), (&"host".into(), &what[0].into()));
        let text = run(ebb(&["reclaim", "--dry-run", "--host"]).args(what));
        assert!(text.code == 0 && text.out.starts_with(what[0]), "{text:?}");
    }
}

/// `pages` pages in a file on a disk, all of them written.
fn file(path: &Path, pages: usize) {
    let mut file = std::fs::File::create(path).unwrap();
    file.write_all(&vec![7; pages * rustix::param::page_size()]).unwrap();
    file.sync_all().unwrap();
}

#[test]
fn the_cache_of_files_is_dropped_and_recorded() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let files = dir.path().join("a\x1b[2Jb");
    std::fs::create_dir(&files).unwrap();
    file(&files.join("one"), 1000);
    let state = dir.path().join("state");
    let with_state = |arguments: &[&str]| {
        let mut command = ebb(arguments);
        command.env("EBB_STATE", &state);
        command
    };
    let none = run(&mut with_state(&["reclaim", "--history"]));
    assert!(none.code == 0 && none.out.contains("Nothing was given back yet"), "{none:?}");
    let arguments = ["reclaim", "--json", "--host", "page-cache", "--path", files.to_str().unwrap()];
    let done = run(&mut with_state(&arguments)).json("reclaim");
    assert_eq!(done["predicted_bytes"], 1000 * rustix::param::page_size());
    assert_eq!(done["returned_bytes"], done["predicted_bytes"]);
    let history = run(&mut with_state(&["reclaim", "--history", "--json"])).json("reclaim-history");
    let [entry] = &history["entries"].as_array().unwrap()[..] else { panic!("{history:#}") };
    assert_eq!((&entry["outcome"], &entry["returned_bytes"]), (&"done".into(), &done["returned_bytes"]));
    assert_eq!(entry["by"]["uid"], rustix::process::geteuid().as_raw());
    let shown = run(&mut with_state(&["reclaim", "--history"]));
    crate::assert_harmless(&shown.out);
    assert!(shown.out.contains("done") && shown.out.contains("page-cache"), "{shown:?}");
}

/// Version 1, where the memory controller is of that: what a group of its own read is dropped.
#[test]
fn a_cgroup_gives_its_caches_back() {
    let group = Path::new("/sys/fs/cgroup/memory").join(format!("ebb-reclaim-{}", std::process::id()));
    if !Path::new("/sys/fs/cgroup/memory/memory.force_empty").exists() || std::fs::create_dir(&group).is_err()
    {
        return skipped(
            "no cgroups of version 1, or not to be written; version 2 is tested in the virtual machine",
        );
    }
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let script = format!(
        "echo $$ >{0}/cgroup.procs; head -c 20M /dev/zero >{1}/f; sync {1}/f; cat {1}/f >/dev/null",
        group.display(),
        dir.path().display()
    );
    assert!(std::process::Command::new("sh").args(["-c", &script]).status().unwrap().success());
    let path = group.to_str().unwrap();
    let plan = run(&mut ebb(&["reclaim", "--cgroup", path, "--dry-run", "--json"])).json("reclaim");
    let done = run(&mut ebb(&["reclaim", "--cgroup", path, "--json"])).json("reclaim");
    let asked = run(&mut ebb(&["reclaim", "--cgroup", path, "--bytes", "1M"]));
    std::fs::remove_dir(&group).unwrap();
    let bytes = |report: &Value, key: &str| report[key].as_u64().unwrap();
    assert_eq!(done["target"]["kind"], "cgroup");
    assert!(bytes(&plan, "predicted_bytes") >= 19 << 20, "{plan:#}");
    assert!(bytes(&done, "returned_bytes") >= 19 << 20, "{done:#}");
    assert!(asked.refused().contains("version 1"), "{asked:?}");
}

/// Without swap only pages of files go; what the process holds stays as it is.
#[test]
fn a_process_is_pushed_out() {
    let child = ebbtide_testkit::Child::start("named", &[&crate::programs::hex("ebb-pushed")]);
    let pid = child.pid().to_string();
    for options in [&["--pageout", "--dry-run"][..], &["--pageout", "--cold"], &["--pageout"]] {
        let ran = run(ebb(&["reclaim", &pid, "--json"]).args(options));
        if !is_root() && ran.code == 2 {
            assert!(ran.refused().contains("CAP_SYS_NICE"), "{ran:?}");
            return skipped("pushing pages out takes CAP_SYS_NICE");
        }
        let report = ran.json("reclaim");
        assert_eq!(report["levers"][0]["id"], if options.contains(&"--cold") { "cold" } else { "pageout" });
    }
}

#[test]
fn a_redis_with_a_password() {
    let thresholds = ["--active-defrag-ignore-bytes", "1", "--active-defrag-threshold-lower", "0"];
    let options = [&["--requirepass", "sesame"][..], &thresholds].concat();
    let Some(redis) = ebbtide_testkit::Redis::start(&options, &[]) else { return };
    let pid = redis.pid().to_string();
    let ask = |password: &str| {
        let mut command = ebb(&["reclaim", &pid, "--activedefrag", "--lasting", "--dry-run", "--json"]);
        let report = run(command.env("REDISCLI_AUTH", password)).json("reclaim");
        let levers = report["levers"].as_array().unwrap();
        let lever = |id: &str| levers.iter().find(|lever| lever["id"] == id).unwrap().clone();
        let setting = &lever("jemalloc-lasting")["settings"][0];
        assert_eq!((&setting["set"], &setting["after"]), (&1000.into(), &Value::Null), "{report:#}");
        lever("redis-defrag")
    };
    let (open, shut) = (ask("sesame"), ask("x"));
    let command = open["undo"].as_str().unwrap();
    assert!(
        command.starts_with("redis-cli -s '/") && command.ends_with("' CONFIG SET activedefrag no"),
        "{open:#}"
    );
    assert!(open["predicted_bytes"].as_u64() > Some(0), "{open:#}");
    assert!(shut["short"].as_str().unwrap().contains("REDISCLI_AUTH"), "{shut:#}");
}

#[test]
fn a_journal_that_cannot_be_written_is_a_warning() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file(&dir.path().join("one"), 10);
    let blocked = dir.path().join("one/state");
    let mut command = ebb(&["reclaim", "--host", "page-cache", "--path", dir.path().to_str().unwrap()]);
    let done = run(command.env("EBB_STATE", &blocked));
    assert!(done.code == 0 && done.out.starts_with("page-cache of "), "{done:?}");
    assert_eq!(done.err.matches("not recorded").count(), 1, "{done:?}");
}

#[test]
fn who_is_not_root_is_told_what_is_missing() {
    if !is_root() {
        return skipped("another user is needed, which takes root");
    }
    use std::os::unix::process::CommandExt;
    // Not below the target directory, which another user may not enter.
    let program = tempfile::tempdir().unwrap();
    std::fs::set_permissions(program.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let copy = program.path().join("ebb");
    copy_to(&copy);
    let mut command = std::process::Command::new(&copy);
    command.args(["reclaim", "--host", "dentries"]).env_remove("HOME").env_remove("EBB_STATE");
    command.env_remove("XDG_STATE_HOME").uid(65534).gid(65534);
    let refused = run(&mut command);
    let said = refused.refused();
    assert!(said.contains("user 0") && said.contains("try 'sudo ebb reclaim --host dentries'"), "{said}");
    assert!(said.contains("not recorded: this user has no home"), "{said}");
}
