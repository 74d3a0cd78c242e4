//! Places where not everything is as usual: little rights, hidden processes, pipes, narrow and broken outputs.

use crate::programs::hex;
use crate::{Ran, assert_harmless, copy_to, ebb, in_order, run, skipped};
use ebbtide_testkit::Child;
use ebbtide_testkit::child::{installed, is_root};
use std::fs::{File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use tempfile::TempDir;
use unicode_width::UnicodeWidthStr;

const NOBODY: u32 = 65_534;

/// A copy of ebb where everybody can run it: where the build lies nobody else may be able to go.
struct Copied(TempDir);

impl Copied {
    fn new() -> Copied {
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), Permissions::from_mode(0o755)).unwrap();
        let copied = Copied(dir);
        copy_to(&copied.path());
        copied
    }

    fn path(&self) -> PathBuf {
        self.0.path().join("ebb")
    }

    fn as_nobody(&self, arguments: &[&str]) -> Ran {
        let mut command = in_order(Command::new(self.path()), arguments);
        run(command.current_dir("/").uid(NOBODY).gid(NOBODY))
    }
}

#[test]
fn an_ordinary_user_sees_less_and_is_told() {
    if !is_root() {
        return skipped("only root can become somebody else");
    }
    let copied = Copied::new();
    let roots = Child::start("named", &[&hex("ebb-roots")]);
    let pid = roots.pid().to_string();

    let report = copied.as_nobody(&["--json"]).report();
    let unread = report["unread"].as_array().unwrap();
    let pss = unread.iter().find(|u| u["what"].as_str().unwrap().starts_with("PSS of "));
    assert!(pss.unwrap()["why"].as_str().unwrap().contains("run as root"), "{report:#}");

    let list = copied.as_nobody(&["ps", "ebb-roots", "--json"]).json("ps");
    let own = list["processes"].as_array().unwrap().iter().find(|p| p["pid"] == roots.pid()).unwrap();
    assert_eq!(own["estimated"], true);
    assert!(own["rss_bytes"].as_u64() > Some(0) && own["pss_bytes"].as_u64() > Some(0), "{own:#}");
    assert!(copied.as_nobody(&["ps"]).out.contains("~ estimated"));

    for verb in [&["heap", &pid][..], &["heap", &pid, "--freeze"]] {
        let refused = copied.as_nobody(verb);
        let advice = format!("It is another user's. As root it goes: sudo ebb {}", verb.join(" "));
        assert!(refused.refused().contains(&advice), "{refused:?}");
    }
    let refused = copied.as_nobody(&["explain", &pid]);
    assert!(refused.refused().contains("its owner or as root"), "{refused:?}");
    assert_eq!(copied.as_nobody(&["causes"]).code, 0);
}

#[test]
fn an_ordinary_user_sees_all_of_what_is_theirs() {
    if !is_root() {
        return skipped("only root can become somebody else");
    }
    let copied = Copied::new();
    let mut cat = Command::new("sh");
    cat.args(["-c", "echo '@ready '; exec cat"]).current_dir("/").uid(NOBODY).gid(NOBODY);
    let mut own = Child::spawn(&mut cat);
    own.ask("@ready cat");
    let pid = own.pid().to_string();
    let report = copied.as_nobody(&["explain", &pid, "--for", "200ms", "--json"]).report();
    assert_eq!(report["target"]["name"], "cat");
    let fork = copied.as_nobody(&["fork", &pid, "--for", "100ms", "--json"]).json("fork");
    assert_eq!(fork["would_succeed"], true, "{fork:#}");
    let heap = copied.as_nobody(&["heap", &pid, "--json"]).json("heap");
    assert_eq!((heap["pid"].as_u64(), &heap["name"]), (Some(own.pid().into()), &"cat".into()));
    let frozen = copied.as_nobody(&["heap", &pid, "--freeze", "--json"]).json("heap");
    assert!(frozen["longest_stop_us"].as_u64() > Some(0), "{frozen:#}");
}

#[test]
fn hidden_processes_are_noticed() {
    if !is_root() || !installed("unshare") || !installed("setpriv") {
        return skipped("hidepid: needs root, unshare and setpriv");
    }
    let copied = Copied::new();
    let script = "mount -t proc -o hidepid=invisible proc /proc || exit 99
        exec setpriv --reuid 65534 --regid 65534 --clear-groups \"$@\"";
    let hidden = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", script, "sh"]).arg(copied.path()).current_dir("/");
        run(&mut in_order(command, arguments))
    };
    let ran = hidden(&["--json"]);
    if ran.code == 99 {
        return skipped(&format!("no /proc with hidepid=invisible to be had: {}", ran.err));
    }
    let report = ran.report();
    let unread = report["unread"].as_array().unwrap();
    let why = unread.iter().map(|u| u["why"].as_str().unwrap()).find(|why| why.contains("hidepid="));
    assert!(why.is_some(), "{report:#}");
    let list = hidden(&["ps", "--json"]).json("ps");
    assert!(!list["processes"].as_array().unwrap().is_empty(), "its own at least");
    assert!(hidden(&["explain", "1"]).refused().contains("hidepid="));
}

/// Every kind of text, of a child that the caller keeps.
fn texts(pid: &str) -> Vec<Vec<&str>> {
    vec![
        vec![],
        vec!["--all"],
        vec!["ps"],
        vec!["explain", pid],
        vec!["explain", pid, "--all", "--for", "300ms"],
        vec!["explain", "--host", "--for", "300ms"],
        vec!["fork", pid, "--for", "100ms"],
        vec!["heap", pid],
        vec!["heap", pid, "--all"],
        vec!["heap", pid, "--watch", "10ms", "--for", "50ms"],
        vec!["ps", "--sort", "returnable", "--heaps", "20ms"],
        vec!["causes"],
        vec!["causes", "kernel-pages"],
    ]
}

#[test]
fn no_line_is_wider_than_it_may_be() {
    let child = Child::start("named", &[&hex("日本語 ebb")]);
    let pid = child.pid().to_string();
    for width in [60, 80, 100] {
        for arguments in texts(&pid) {
            assert_fits(&arguments, &width.to_string(), width);
        }
    }
    for (columns, width) in [("20", 60), ("400", 100), ("0", 60), ("wide", 100), ("-1", 100), ("", 100)] {
        assert_fits(&["ps"], columns, width);
    }
}

fn assert_fits(arguments: &[&str], columns: &str, width: usize) {
    let ran = run(ebb(arguments).env("COLUMNS", columns));
    assert!(ran.code < 2 && ran.err.is_empty(), "{ran:?}");
    assert_harmless(&ran.out);
    for line in ran.out.lines() {
        assert!(line.width() <= width || is_command(line, arguments), "{columns} {arguments:?}: {line}");
    }
}

/// Commands stay whole, so that they can be copied: a lever's, on a line indented by six, and a page's, by four
/// and more.
fn is_command(line: &str, arguments: &[&str]) -> bool {
    let indent = line.len() - line.trim_start().len();
    if arguments.first() == Some(&"causes") { indent >= 4 } else { indent == 6 }
}

#[test]
fn colours_are_for_terminals() {
    let child = Child::start("named", &[&hex("ebb-plain")]);
    for arguments in texts(&child.pid().to_string()) {
        let piped = run(&mut ebb(&arguments));
        let refused = run(ebb(&arguments).env("NO_COLOR", "1").env("TERM", "xterm-256color"));
        assert!(!piped.out.contains('\x1b') && !refused.out.contains('\x1b'), "{arguments:?}");
    }
    // Even where they are asked for, JSON has none.
    let json = run(ebb(&["--json"]).env("CLICOLOR_FORCE", "1"));
    assert!(!json.out.contains('\x1b'));
}

#[test]
fn a_terminal_gets_colours_and_a_progress_bar() {
    if !installed("script") {
        return skipped("script(1) makes the terminal");
    }
    let child = Child::start("named", &[&hex("ebb-shown")]);
    let typed = format!("exec {} explain {} --for 1s", env!("CARGO_BIN_EXE_ebb"), child.pid());
    let on_terminal = |no_color: bool| {
        let mut command = in_order(Command::new("script"), &["-qec", &typed, "/dev/null"]);
        command.env("TERM", "xterm-256color");
        run(if no_color { command.env("NO_COLOR", "1") } else { &mut command })
    };
    let shown = on_terminal(false);
    assert!(shown.code < 2 && shown.out.contains("watching"), "{shown:?}");
    let report = &shown.out[shown.out.rfind("ebb-shown").unwrap() - 4..];
    assert!(report.starts_with("\x1b[1m"), "{report:?}");
    // Every colour ends.
    assert!(report[report.rfind("\x1b[").unwrap()..].starts_with("\x1b[0m"), "{report:?}");
    let plain = on_terminal(true);
    let report = &plain.out[plain.out.rfind("ebb-shown").unwrap()..];
    assert!(!report.contains("\x1b["), "{report:?}");
}

#[test]
fn a_reader_that_went_away_is_no_error() {
    let child = Child::start("named", &[&hex("ebb-unread")]);
    for mut arguments in texts(&child.pid().to_string()) {
        for json in [false, true] {
            if json {
                arguments.push("--json");
            }
            let (reader, writer) = std::io::pipe().unwrap();
            drop(reader);
            let output = ebb(&arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
            assert!(matches!(output.status.code(), Some(0 | 1)), "{arguments:?}: {output:?}");
            assert!(output.stderr.is_empty(), "{arguments:?}: {output:?}");
        }
    }
}

#[test]
fn a_full_disk_is_an_error() {
    let child = Child::start("named", &[&hex("ebb-full")]);
    let full = || File::options().write(true).open("/dev/full").unwrap();
    for arguments in texts(&child.pid().to_string()) {
        let output = ebb(&arguments).stdout(full()).stderr(Stdio::piped()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains("cannot write the result: No space left"), "{said}");
        // Nor is there room to say it: no panic.
        let status = ebb(&arguments).stdout(full()).stderr(full()).status().unwrap();
        assert_eq!(status.code(), Some(2), "{arguments:?}");
    }
}
