//! `ebb tune` as people use it, and as it is killed: on fake roots, with a disk that is full, and once on the kernel
//! itself with a value that means nothing and is set back.

use crate::{assert_harmless, ebb, run, skipped};
use ebbtide_testkit::child::{installed, is_root};
use ebbtide_testkit::{Child, FakeRoot, Redis};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};

const PRESSURE: &str = "proc/sys/vm/vfs_cache_pressure";
const STATE: &str = "var/lib/ebbtide/undo";

/// A machine of this boot, so that what is overdue here is overdue there.
fn machine() -> FakeRoot {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    FakeRoot::new()
        .file(
            "proc/meminfo",
            "MemTotal: 16777216 kB\nMemFree: 4194304 kB\nMemAvailable: 8388608 kB\nCommitLimit: 8388608 kB\n\
             Committed_AS: 8300000 kB\n",
        )
        .file("proc/sys/kernel/random/boot_id", boot)
        .file("proc/sys/kernel/osrelease", "6.1.0\n")
        .file(PRESSURE, "100\n")
        .file("proc/sys/vm/overcommit_memory", "2\n")
        .file("proc/sys/vm/overcommit_ratio", "50\n")
        .file("proc/sys/vm/swappiness", "60\n")
}

fn value(fake: &FakeRoot, path: &str) -> String {
    let text = std::fs::read_to_string(fake.path().join(path)).unwrap();
    text.lines().next().unwrap_or_default().to_owned()
}

fn records(fake: &FakeRoot) -> usize {
    std::fs::read_dir(fake.path().join(STATE)).map_or(0, |entries| entries.count())
}

/// `ebb tune` on that machine.
fn tune(fake: &FakeRoot, arguments: &[&str]) -> Command {
    let mut command = ebb(&["tune", "--root", fake.path().to_str().unwrap()]);
    command.args(arguments).env_remove("EBB_STATE");
    command
}

/// An ebb that waits in the foreground, and its guardian.
struct Waiting {
    ebb: std::process::Child,
    guardian: u32,
    guardian_ended: OwnedFd,
}

impl Waiting {
    fn start(fake: &FakeRoot, time: &str) -> Waiting {
        let mut command = tune(fake, &["vm.vfs_cache_pressure=150", "--apply", "--for", time]);
        let mut ebb = command.stdout(Stdio::piped()).spawn().unwrap();
        // Its last line says that the setting is changed and the guardian on its guard.
        let mut out = BufReader::new(ebb.stdout.as_mut().unwrap());
        let mut line = String::new();
        while !line.contains("ebb tune --undo") {
            line.clear();
            assert!(out.read_line(&mut line).unwrap() > 0, "ebb ended early: {:?}", ebb.wait());
        }
        let guardian = only_child(ebb.id());
        Waiting { ebb, guardian, guardian_ended: pidfd(guardian).unwrap() }
    }

    fn kill(&mut self) {
        self.ebb.kill().unwrap();
        self.ebb.wait().unwrap();
    }

    fn signal_guardian(&self, signal: Signal) {
        kill_process(Pid::from_raw(self.guardian as i32).unwrap(), signal).unwrap();
        self.guardian_ended();
    }

    fn guardian_ended(&self) {
        ended(&self.guardian_ended);
    }
}

fn processes() -> impl Iterator<Item = u32> {
    std::fs::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn only_child(parent: u32) -> u32 {
    let is_child = |pid: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let after_name = stat.rsplit(") ").next().unwrap_or_default();
        after_name.split(' ').nth(1) == Some(&parent.to_string())
    };
    processes().find(is_child).expect("a guardian")
}

fn runs_on(pid: u32, root: &str) -> bool {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    line.split(|&b| b == 0).any(|argument| argument == root.as_bytes())
}

fn pidfd(pid: u32) -> Option<OwnedFd> {
    pidfd_open(Pid::from_raw(pid as i32)?, PidfdFlags::empty()).ok()
}

/// Waits for a process's end: the kernel says it.
fn ended(process: &OwnedFd) {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    let minute = Timespec { tv_sec: 60, tv_nsec: 0 };
    assert_eq!(poll(&mut fds, Some(&minute)), Ok(1), "it goes on and on");
}

#[test]
fn the_guardian_sets_back_when_ebb_is_killed() {
    let fake = machine();
    let mut waiting = Waiting::start(&fake, "2s");
    waiting.kill();
    waiting.guardian_ended();
    assert_eq!((value(&fake, PRESSURE).as_str(), records(&fake)), ("100", 0));
}

/// Whenever it is killed: what it changed has a record, and undo leaves nothing, not even a guardian.
#[test]
fn undo_sets_back_whenever_ebb_is_killed() {
    let fake = machine();
    let root = fake.path().to_str().unwrap();
    let mut changed = 0;
    for step in 0..40 {
        let mut command = tune(&fake, &["vm.vfs_cache_pressure=150", "--apply", "--for", "1h"]);
        let mut ebb = command.stdout(Stdio::null()).spawn().unwrap();
        // Not to wait for anything: to be at another point each time.
        std::thread::sleep(std::time::Duration::from_millis(step));
        ebb.kill().unwrap();
        ebb.wait().unwrap();
        let guardians: Vec<OwnedFd> =
            processes().filter(|pid| runs_on(*pid, root)).filter_map(pidfd).collect();
        let is_changed = value(&fake, PRESSURE) == "150";
        assert!(!is_changed || records(&fake) > 0, "changed without a record");
        changed += u32::from(is_changed);
        assert_eq!(run(&mut tune(&fake, &["--undo"])).code, 0);
        assert_eq!(value(&fake, PRESSURE), "100");
        assert!(run(&mut tune(&fake, &["--undo"])).out.contains("nothing to undo"));
        guardians.iter().for_each(ended);
    }
    let _ = writeln!(std::io::stdout(), "killed 40 times, {changed} times after the change");
}

#[test]
fn undo_sets_back_when_both_are_killed() {
    let fake = machine();
    let mut waiting = Waiting::start(&fake, "1h");
    waiting.kill();
    waiting.signal_guardian(Signal::KILL);
    assert_eq!((value(&fake, PRESSURE).as_str(), records(&fake)), ("150", 1));
    let again = run(&mut tune(&fake, &["vm.vfs_cache_pressure=160", "--apply"]));
    assert!(again.refused().contains("ebb tune --undo"), "{again:?}");

    // Its time has come long ago: every ebb says so.
    let file = std::fs::read_dir(fake.path().join(STATE)).unwrap().next().unwrap().unwrap().path();
    let mut record: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    record["deadline_ms"] = 1.into();
    std::fs::write(&file, record.to_string()).unwrap();
    let late = run(ebb(&["causes", "leak"]).env("EBB_STATE", fake.path().join("var/lib/ebbtide")));
    assert!(late.code == 0 && late.err.lines().count() == 1, "{late:?}");
    assert!(
        late.err.starts_with("ebb: vm.vfs_cache_pressure") && late.err.contains("ebb tune --undo"),
        "{late:?}"
    );

    let undone = run(&mut tune(&fake, &["--undo", "--json"])).json("tune");
    assert_eq!(undone["undone"][0]["outcome"], "restored");
    assert_eq!((value(&fake, PRESSURE).as_str(), records(&fake)), ("100", 0));
    assert!(run(&mut tune(&fake, &["--undo"])).out.contains("nothing to undo"));
}

#[test]
fn ebb_sets_back_when_the_guardian_is_killed() {
    let fake = machine();
    let mut waiting = Waiting::start(&fake, "1h");
    waiting.signal_guardian(Signal::KILL);
    assert!(waiting.ebb.wait().unwrap().success());
    assert_eq!((value(&fake, PRESSURE).as_str(), records(&fake)), ("100", 0));
}

#[test]
fn a_signal_sets_back_at_once() {
    for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
        let fake = machine();
        let mut waiting = Waiting::start(&fake, "1h");
        kill_process(Pid::from_child(&waiting.ebb), signal).unwrap();
        assert!(waiting.ebb.wait().unwrap().success());
        waiting.guardian_ended();
        assert_eq!((value(&fake, PRESSURE).as_str(), records(&fake)), ("100", 0), "{signal:?}");
    }
}

#[test]
fn a_guardian_that_is_told_to_end_sets_back_first() {
    let fake = machine();
    let mut waiting = Waiting::start(&fake, "1h");
    waiting.kill();
    waiting.signal_guardian(Signal::TERM);
    assert_eq!((value(&fake, PRESSURE).as_str(), records(&fake)), ("100", 0));
}

#[test]
fn undo_from_elsewhere_ends_the_wait() {
    let fake = machine();
    let mut waiting = Waiting::start(&fake, "1h");
    assert_eq!(run(&mut tune(&fake, &["--undo"])).code, 0);
    waiting.guardian_ended();
    assert!(waiting.ebb.wait().unwrap().success());
    assert_eq!((value(&fake, PRESSURE).as_str(), records(&fake)), ("100", 0));
}

#[test]
fn somebody_elses_value_stays() {
    let fake = machine();
    assert_eq!(run(&mut tune(&fake, &["vm.vfs_cache_pressure=150", "--apply"])).code, 0);
    fake.set(PRESSURE, "70\n");
    let refused = run(&mut tune(&fake, &["--undo"]));
    assert!(refused.code == 2 && refused.out.contains("--force"), "{refused:?}");
    assert_eq!(value(&fake, PRESSURE), "70");
    assert_eq!(run(&mut tune(&fake, &["--undo", "--force"])).code, 0);
    assert_eq!((value(&fake, PRESSURE).as_str(), records(&fake)), ("100", 0));
}

/// Runs `script` with ROOT, STATE and EBB set, in a mount namespace of its own with a disk of 64 KiB at STATE.
fn on_a_small_disk(fake: &FakeRoot, script: &str) -> Option<String> {
    if !is_root() || !installed("unshare") || !installed("mount") {
        skipped("a full disk takes root, unshare and mount");
        return None;
    }
    let prepared = format!(
        "set -u; mkdir -p $STATE && mount -t tmpfs -o size=64k,mode=755 ebb $STATE || exit 77\n\
         fill() {{ head -c 1000000 /dev/zero > $1/fill 2>/dev/null; }}\n{script}"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", &prepared]).env_remove("EBB_STATE");
    command.env("ROOT", fake.path()).env("STATE", fake.path().join("var/lib/ebbtide"));
    command.env("EBB", env!("CARGO_BIN_EXE_ebb")).stdin(Stdio::null());
    let output = command.output().unwrap();
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if output.status.code() == Some(77) || text.contains("unshare failed") {
        skipped(&format!("no mount namespace here: {text}"));
        return None;
    }
    assert!(output.status.success(), "{text}");
    assert_harmless(&text);
    Some(text)
}

/// Changes a setting, makes the disk of undo records bad by `spoil`, and undoes: what was changed is as before, and what
/// cannot be recorded is not changed.
fn undone_on_a_bad_disk(spoil: &str, then: &str) -> Option<String> {
    let fake = machine();
    let text = on_a_small_disk(
        &fake,
        &format!(
            "$EBB tune --root $ROOT vm.vfs_cache_pressure=150 --apply || exit 1\n{spoil}\n\
             $EBB tune --root $ROOT vm.swappiness=10 --apply; echo \"code $?\"\n{then}"
        ),
    )?;
    assert!(text.contains("code 2") && text.contains("set back to 100"), "{text}");
    assert_eq!(
        (value(&fake, PRESSURE).as_str(), value(&fake, "proc/sys/vm/swappiness").as_str()),
        ("100", "60")
    );
    Some(text)
}

#[test]
fn a_full_disk_refuses_a_change_and_not_an_undo() {
    let count = "ls -A $STATE/undo | wc -l";
    let then = format!("{count}\n$EBB tune --root $ROOT --undo || exit 2\n{count}");
    let Some(text) = undone_on_a_bad_disk("fill $STATE", &then) else { return };
    assert!(text.contains("nothing was changed, as the undo record cannot be written"), "{text}");
    assert!(text.contains("code 2\n1\n") && text.contains("set back to 100\n0\n"), "{text}");
}

#[test]
fn a_disk_that_became_read_only_does_not_keep_a_setting() {
    let spoil = "mount -o remount,ro $STATE || exit 77";
    let undo = "$EBB tune --root $ROOT --undo";
    let Some(text) = undone_on_a_bad_disk(spoil, &format!("{undo} || exit 2\n{undo} || exit 3")) else {
        return;
    };
    assert!(text.contains("is 100 already") && text.contains("does no harm"), "{text}");
}

#[test]
fn a_persistent_line_goes_from_a_full_disk() {
    let fake = machine();
    let Some(text) = on_a_small_disk(
        &fake,
        "mkdir -p $ROOT/etc/sysctl.d && mount -t tmpfs -o size=64k,mode=755 ebb $ROOT/etc/sysctl.d || exit 77\n\
         for i in $(seq 900); do echo \"# a line of somebody's own\"; done > $ROOT/etc/sysctl.d/60-ebbtide.conf\n\
         $EBB tune --root $ROOT vm.vfs_cache_pressure=150 --apply --persist || exit 1\n\
         grep -c = $ROOT/etc/sysctl.d/60-ebbtide.conf\n\
         fill $ROOT/etc/sysctl.d\n\
         $EBB tune --root $ROOT --undo || exit 2\n\
         grep -c '^#' $ROOT/etc/sysctl.d/60-ebbtide.conf\n\
         grep -vc '^#' $ROOT/etc/sysctl.d/60-ebbtide.conf; exit 0",
    ) else {
        return;
    };
    assert!(text.contains("It lasts over restarts") && text.ends_with("set back to 100\n901\n0\n"), "{text}");
    assert_eq!((value(&fake, PRESSURE).as_str(), records(&fake)), ("100", 0));
}

/// A value of the kernel's own, of which one more or less means nothing. Its guardian sets it back whatever becomes of
/// this test.
#[test]
fn the_kernel_itself() {
    let live = || std::fs::read_to_string("/proc/sys/vm/vfs_cache_pressure").unwrap().trim().to_owned();
    let state = tempfile::tempdir().unwrap();
    let before = live();
    let other = before.parse::<u64>().unwrap() + 1;
    let change = format!("vm.vfs_cache_pressure={other}");
    let arguments = ["tune", &change, "--apply", "--force", "--for", "1m", "--detach", "--json"];
    let ran = run(ebb(&arguments).env("EBB_STATE", state.path()));
    if ran.code == 2 && (!is_root() || ran.err.contains("container")) {
        assert!(ran.refused().contains("vm.vfs_cache_pressure"), "{ran:?}");
        assert!(!state.path().join("undo").exists(), "nothing is recorded for what cannot be done");
        return skipped(&ran.err);
    }
    let applied = ran.json("tune");
    assert_eq!(
        (applied["record"]["changes"][0]["before"].as_str(), live()),
        (Some(before.as_str()), other.to_string())
    );
    assert!(applied["after"]["dentries"].as_u64() > Some(0), "{applied:#}");
    let undone = run(ebb(&["tune", "--undo", "--json"]).env("EBB_STATE", state.path())).json("tune");
    assert_eq!((undone["undone"][0]["outcome"].as_str(), live()), (Some("restored"), before));
}

#[test]
fn plans_lists_and_advice() {
    let fake = machine();
    let plan =
        run(&mut tune(&fake, &["vm.swappiness=10", "vm.vfs_cache_pressure=100000", "--json"])).json("tune");
    assert_eq!(
        (plan["kind"].as_str(), plan["changes"][0]["verdict"].as_str()),
        (Some("plan"), Some("no-effect"))
    );
    assert_eq!(plan["changes"][1]["verdict"], "harmful");
    assert_eq!((value(&fake, PRESSURE).as_str(), records(&fake)), ("100", 0), "a plan changes nothing");
    let list = run(&mut tune(&fake, &["--list", "--json"])).json("tune");
    let settings = list["settings"].as_array().unwrap();
    let dirty = settings.iter().find(|setting| setting["setting"] == "vm.dirty_ratio").unwrap();
    assert_eq!(dirty["present"], Value::Null, "not on this machine");
    for arguments in [&["--list"][..], &["vm.swappiness=10"]] {
        let text = run(&mut tune(&fake, arguments));
        assert!(text.code == 0 && text.out.lines().all(|line| line.chars().count() <= 80), "{text:?}");
        assert_harmless(&text.out);
    }
    // Books that are nearly full, with half of the memory there to be had.
    let advice = run(&mut tune(&fake, &["--json"])).json("tune");
    assert_eq!(advice["advice"][0]["setting"], "vm.overcommit_ratio", "{advice:#}");
    assert_eq!(advice["advice"][0]["cause"], "overcommit-refusal");
    let command: Vec<&str> =
        advice["advice"][0]["command"].as_str().unwrap().split(' ').skip(2).take(1).collect();
    assert_eq!(run(&mut tune(&fake, &command)).code, 0, "what it advises can be done");
    // This machine, whatever its state.
    run(&mut ebb(&["tune", "--json"])).json("tune");
}

#[test]
fn files_are_checked() {
    let fake = machine().file(
        "x.conf",
        "vm.swapiness = 1\nvm.overcommit_ratio = 20\nvm.vfs_cache_pressure = 0\n\x1b[31m = 1\nvm.\x1b[31m = 1\n",
    );
    let file = fake.path().join("x.conf");
    let file = file.to_str().unwrap();
    let checked = run(&mut tune(&fake, &["--check", file, "--json"])).json("tune");
    let verdicts: Vec<&str> =
        checked["checked"].as_array().unwrap().iter().map(|one| one["verdict"].as_str().unwrap()).collect();
    assert_eq!(verdicts, ["misspelt", "harmful", "harmful", "unknown"]);
    let text = run(&mut tune(&fake, &["--check", file]));
    assert!(text.code == 0 && text.out.contains("vm.swappiness"), "{text:?}");
    assert_harmless(&text.out);
    assert!(run(&mut tune(&fake, &["--check"])).out.contains("no sysctl file"));
    run(&mut tune(&fake, &["--check", "/no/such/file"])).refused();
    run(&mut ebb(&["tune", "--check", "4294967294"])).refused();
}

#[test]
fn variables_are_checked_and_proposed() {
    let mut command = Child::command("kept", &[]);
    command.env("MALLOC_TRIM_THRESHOLD", "131072").env("MALLOC_ARENA_MAX", "0").env("GLIBC_TUNABLES", "");
    command.env("LD_PRELOAD", "/no/such/library.so").env("MALLOC_CONF", "narenas:1").stderr(Stdio::null());
    let child = Child::spawn(&mut command);
    let pid = child.pid().to_string();
    let report = run(&mut ebb(&["tune", "--check", &pid, "--json"])).json("tune");
    let process = &report["processes"][0];
    let verdict = |name: &str| {
        let mut checked = process["checked"].as_array().unwrap().iter();
        let one = checked.find(|one| one["text"].as_str().unwrap().starts_with(&format!("{name}=")));
        one.unwrap_or_else(|| panic!("no {name} in {process:#}"))["verdict"].as_str().unwrap().to_owned()
    };
    for (name, expected) in [
        ("MALLOC_TRIM_THRESHOLD", "misspelt"),
        ("MALLOC_ARENA_MAX", "invalid"),
        ("LD_PRELOAD", "no-effect"),
        ("MALLOC_CONF", "no-effect"),
    ] {
        assert_eq!(verdict(name), expected, "{name}");
    }
    // It has freed 64 MiB below a block that lives.
    let proposal = &process["proposals"][0];
    assert!(proposal["line"].as_str().unwrap().starts_with("MALLOC_"), "{process:#}");
    assert!(proposal["saves_at_most_bytes"].as_u64() >= Some(60 << 20), "{process:#}");
    let text = run(&mut ebb(&["tune", "--check", &pid]));
    assert!(text.code == 0 && text.out.contains("MALLOC_TRIM_THRESHOLD_=131072"), "{text:?}");
    assert_harmless(&text.out);
}

/// Redis writes its title over its environment; what it has now is found in its memory.
#[test]
fn an_overwritten_environment_is_found() {
    let variables = [("MALLOC_CONF", "dirty_decayms:5"), ("MALLOC_ARENA_MAX", "2")];
    let Some(redis) = Redis::start(&[], &variables) else { return };
    let pid = redis.pid().to_string();
    let report = run(&mut ebb(&["tune", "--check", &pid, "--json"])).json("tune");
    let process = &report["processes"][0];
    assert_eq!(process["present"], true, "{process:#}");
    let mut checked: Vec<(&str, &str)> = process["checked"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| (one["text"].as_str().unwrap(), one["verdict"].as_str().unwrap()))
        .collect();
    checked.sort();
    assert_eq!(checked, [("MALLOC_ARENA_MAX=2", "no-effect"), ("MALLOC_CONF=dirty_decayms:5", "misspelt")]);
}

#[test]
fn nonsense_is_refused() {
    let fake = machine();
    for arguments in [
        &["vm.swapiness=1"][..],
        &["vm.swappiness"],
        &["vm.swappiness=\x1b[31m"],
        &["vm.vfs_cache_pressure=100000", "--apply"],
        &["--apply"],
        &["vm.swappiness=1", "--for", "1h"],
        &["vm.swappiness=1", "--apply", "--for", "1h", "--persist"],
        &["vm.swappiness=1", "--undo"],
        &["--list", "--check"],
        &["--guard", "../../etc/passwd"],
    ] {
        run(&mut tune(&fake, arguments)).refused();
    }
    assert_eq!(records(&fake), 0);
    let mut rest = String::new();
    std::fs::File::open(fake.path().join(PRESSURE)).unwrap().read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "100\n");
    assert!(!Path::new("/etc/passwd.json").exists());
}
