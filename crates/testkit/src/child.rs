//! Child programs of tests, with a ready handshake: a parent never sleeps, it reads a line.
//!
//! A test binary plays its own children. It has one ignored test that hands over to [`play`], and
//! [`Child::start`] runs the binary again for just that test:
//!
//! ```no_run
//! use ebbtide_testkit::child::{self, Child, Parent};
//!
//! #[test]
//! #[ignore = "plays the child programs of the other tests"]
//! fn child_program() {
//!     child::play(&[("sleeper", sleeper)]);
//! }
//!
//! fn sleeper(parent: &mut Parent) {
//!     parent.ready("");
//!     parent.listen();
//! }
//!
//! let child = Child::start("sleeper", &[]);
//! ```
//!
//! Invariants: a child that has not said it is ready has no [`Child`]; it ends when its `Child` is dropped,
//! and by itself when the parent is gone (its standard input closes). Failures panic, as tests do.
#![allow(clippy::expect_used)]

use rustix::process::{WaitId, WaitIdOptions};
use std::ffi::OsStr;
use std::fmt::Display;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio};

/// The test that plays child programs, in every test binary that has any.
const PLAYER: &str = "child_program";

/// Names the program a test binary shall play, and its arguments, separated by unit separators.
const PROGRAM: &str = "EBBTIDE_TEST_CHILD";

/// Begins every line a child says to its parent; the test harness prints lines of its own.
const MARK: &str = "@ready";

/// A child program that has said it is ready. Killed when dropped.
#[derive(Debug)]
pub struct Child {
    process: std::process::Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    said: String,
}

impl Child {
    /// Runs child program `program` of this test binary and waits until it is ready.
    pub fn start(program: &str, args: &[&str]) -> Child {
        Child::spawn(&mut Child::command(program, args))
    }

    /// The command of [`Child::start`], to be changed and then given to [`Child::spawn`].
    pub fn command(program: &str, args: &[&str]) -> Command {
        let mut command = Command::new(std::env::current_exe().expect("the test binary's path"));
        let program = [&[program], args].concat().join("\u{1f}");
        command.args(["--exact", PLAYER, "--ignored", "--nocapture", "--test-threads=1"]);
        command.env(PROGRAM, program);
        command
    }

    /// Runs `command`, which may be any program that prints "@ready ..." lines, and waits for the first one.
    pub fn spawn(command: &mut Command) -> Child {
        let mut process =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a child process");
        let stdin = process.stdin.take();
        let stdout = BufReader::new(process.stdout.take().expect("the child's standard output"));
        let mut child = Child { process, stdin, stdout, said: String::new() };
        child.listen();
        child
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Has its threads, and those that they make, give way to whoever looks at them: on a machine with few processors
    /// that would hardly get a turn.
    pub fn give_way(&self) {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("a child that runs");
        let threads = tasks.filter_map(|task| task.ok()?.file_name().to_str()?.parse().ok());
        for thread in threads.filter_map(rustix::process::Pid::from_raw) {
            // One that has just ended has none.
            let _priority = rustix::process::setpriority_process(Some(thread), 19);
        }
    }

    /// What it said when it was last ready.
    pub fn said(&self) -> &str {
        &self.said
    }

    /// Tells it `line`, waits until it is ready again and returns what it says.
    pub fn ask(&mut self, line: &str) -> &str {
        self.tell(line);
        self.listen();
        &self.said
    }

    /// Tells it `line` without waiting for an answer.
    pub fn tell(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("a child that is still listening");
        writeln!(stdin, "{line}").and_then(|()| stdin.flush()).expect("a child that listens");
    }

    /// Waits for its end.
    pub fn wait(mut self) -> ExitStatus {
        self.stdin = None;
        self.process.wait().expect("a child to wait for")
    }

    /// Kills it without asking for its exit code: it stays a zombie until this is dropped.
    pub fn make_zombie(&mut self) {
        self.process.kill().expect("a child to kill");
        let pid = rustix::process::Pid::from_child(&self.process);
        let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::Pid(pid), ended).expect("the child's end");
    }

    /// Asks it to end (TERM), and waits until it has.
    pub(crate) fn terminate(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.process);
        // An error says that it has ended already.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }

    /// Waits until it is ready again.
    pub(crate) fn listen(&mut self) {
        let mut line = String::new();
        loop {
            line.clear();
            let read = self.stdout.read_line(&mut line).expect("the child's standard output");
            assert!(read > 0, "the child ended before it was ready: {:?}", self.process.wait());
            if let Some(said) = line.strip_prefix(MARK) {
                self.said = said.trim().to_owned();
                return;
            }
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The parent, as a child program sees it.
#[derive(Debug)]
pub struct Parent {
    args: Vec<String>,
}

impl Parent {
    /// The arguments the program was started with.
    pub fn args(&self) -> &[String] {
        &self.args
    }

    /// Argument `index` as a number.
    pub fn number(&self, index: usize) -> u64 {
        self.args.get(index).and_then(|arg| arg.parse().ok()).expect("a number as argument")
    }

    /// Tells the parent that all is as it shall be; `said` may hold what the parent cannot know.
    pub fn ready(&mut self, said: impl Display) {
        let mut stdout = std::io::stdout().lock();
        // The harness may have begun a line; ours must begin one.
        write!(stdout, "\n{MARK} {said}\n").and_then(|()| stdout.flush()).expect("a parent that reads");
    }

    /// Waits for the parent's next line; `None` once it is gone, when the program should end. Reads no byte
    /// beyond the line: what the program executes may read on.
    pub fn listen(&mut self) -> Option<String> {
        let mut line = Vec::new();
        let mut byte = [0];
        while rustix::io::read(rustix::stdio::stdin(), &mut byte).expect("standard input") > 0 {
            match byte {
                [b'\n'] => return Some(String::from_utf8_lossy(&line).into_owned()),
                [other] => line.push(other),
            }
        }
        None
    }
}

/// A program that a test binary plays.
pub type Program = fn(&mut Parent);

/// Plays the program this process was started for, then ends the process. Returns where it was started for
/// none, as by `cargo test -- --ignored`.
pub fn play(programs: &[(&str, Program)]) {
    let Some(wanted) = std::env::var_os(PROGRAM) else { return };
    let wanted = wanted.to_string_lossy().into_owned();
    let mut words = wanted.split('\u{1f}').map(str::to_owned);
    let name = words.next().unwrap_or_default();
    let (_, program) = programs.iter().find(|(known, _)| *known == name).expect("a known child program");
    program(&mut Parent { args: words.collect() });
    std::process::exit(0);
}

/// Whether this process runs as root, for tests that must skip otherwise.
pub fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|meta| std::os::unix::fs::MetadataExt::uid(&meta) == 0)
}

/// Whether `program` is younger than `source` and all that lies beside it, which it may include.
pub fn is_built(program: &Path, source: &Path) -> bool {
    let age = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    let beside = source.parent().and_then(|dir| dir.read_dir().ok()).expect("the source's directory");
    let newest = beside.filter_map(|entry| age(&entry.ok()?.path())).max();
    newest.is_some() && age(program) > newest
}

/// Whether program `name` is in the search path.
pub fn installed(name: impl AsRef<OsStr>) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(name.as_ref()).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_say_when_they_are_ready() {
        let mut child = Command::new("sh");
        child.args([
            "-c",
            "echo noise; echo '@ready one'; read line; echo \"@ready $line\"; read line; exit 3",
        ]);
        let mut child = Child::spawn(&mut child);
        assert_eq!(child.said(), "one");
        assert_eq!(child.ask("two"), "two");
        child.tell("end");
        assert_eq!(child.wait().code(), Some(3));
    }

    #[test]
    fn a_zombie_is_one_until_it_is_dropped() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo '@ready '; read line"]);
        let mut child = Child::spawn(&mut command);
        child.make_zombie();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.pid())).unwrap();
        assert!(stat.contains(") Z "), "{stat}");
    }

    #[test]
    #[should_panic(expected = "before it was ready")]
    fn a_child_that_ends_early_fails_the_test() {
        Child::spawn(&mut Command::new("true"));
    }
}
