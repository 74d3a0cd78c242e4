//! Runs cases one after another: makes each in a process of its own, asks `ebb`, compares, lets it go.
//!
//! Cases are independent: before each one, where allowed, the page cache and the reclaimable slab that
//! earlier cases (and everybody else) left behind are dropped, and the case's process has ended, with all it
//! had, before the next begins.

use crate::case::{Case, Target};
use crate::judge::{self, Answer, Figures};
use crate::machine::Machine;
use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

/// How long a case may take to say ready, and to clean up: on this machine, and in the virtual one, which is emulated.
const SET_UP: Duration = Duration::from_secs(180);
const SET_UP_IN_VM: Duration = Duration::from_secs(900);
/// How long `ebb` may take, besides its `--for`.
const ANSWER: Duration = Duration::from_secs(120);

/// How often a case is made anew that the machine would not keep.
const TRIES: u32 = 3;

/// A case that ended before it was ready, with its complaint.
#[derive(Debug)]
struct NotMade(String);

impl std::fmt::Display for NotMade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "not made: {}", self.0)
    }
}

impl std::error::Error for NotMade {}

/// How to run.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The `ebb` to ask; without one, cases are only made (a rehearsal).
    pub ebb: Option<PathBuf>,
    /// The machine.
    pub machine: Machine,
    /// Run the cases whose name contains one of these; all where there are none.
    pub only: Vec<String>,
}

/// How a case went.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It cannot run here.
    Skipped(String),
    /// The machine would not keep it: what was to be resident was reclaimed meanwhile, by DAMON or by somebody who
    /// dropped caches. Says nothing of `ebb`; see [`crate::report::Tally`] for how many of these are too many.
    Unmade(String),
    /// `ebb` gave no answer, or the case itself broke: a miss.
    Failed(String),
    /// It was made; nobody was asked.
    Made,
    /// `ebb` answered; what is wrong with that.
    Answered(Answer, Vec<String>),
}

/// A case that was run.
#[derive(Debug, Clone)]
pub struct Played {
    /// The case.
    pub case: &'static Case,
    /// What it measured.
    pub figures: Figures,
    /// How it went.
    pub outcome: Outcome,
    /// Time until it was ready.
    pub set_up: Duration,
    /// Time until `ebb` had answered.
    pub asked: Duration,
    /// What was wrong at a first attempt that did not count.
    pub first: Option<String>,
}

impl Plan {
    /// Whether `case` is to be run.
    pub fn wants(&self, case: &Case) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| case.name.contains(part.as_str()))
    }

    /// Runs one case.
    pub fn play(&self, case: &'static Case) -> Played {
        let mut played = Played {
            case,
            figures: Figures::new(),
            outcome: Outcome::Made,
            set_up: Duration::ZERO,
            asked: Duration::ZERO,
            first: None,
        };
        if let Some(why) = case.missing(&self.machine) {
            played.outcome = Outcome::Skipped(why);
            return played;
        }
        for _ in 0..TRIES {
            drop_caches();
            match self.perform(&mut played) {
                Ok(()) => match played.moved().or_else(|| played.doubted()) {
                    Some(wrong) if played.first.is_none() => played.first = Some(wrong),
                    _ => break,
                },
                Err(e) if e.is::<NotMade>() => played.outcome = Outcome::Unmade(format!("{e:#}")),
                Err(e) => {
                    played.outcome = Outcome::Failed(format!("{e:#}"));
                    break;
                }
            }
        }
        played
    }

    fn perform(&self, played: &mut Played) -> Result<()> {
        played.outcome = Outcome::Made;
        let start = Instant::now();
        let mut incident = Incident::start(played.case, &self.machine)?;
        let ready = incident.ready()?;
        played.set_up = start.elapsed();
        played.figures = ready["figures"].as_object().cloned().unwrap_or_default();
        if let Some(why) = ready["skipped"].as_str() {
            played.outcome = Outcome::Skipped(why.to_owned());
        } else if let Some(ebb) = &self.ebb {
            let start = Instant::now();
            let answer = ask(ebb, played.case, &ready)?;
            played.asked = start.elapsed();
            let wrongs = judge::wrongs(&played.case.truth, &answer, &played.figures);
            played.outcome = Outcome::Answered(answer, wrongs);
        }
        incident.end()
    }
}

impl Played {
    /// What is off, if it is nothing but a figure of the whole host: those move also with whoever else starts or ends
    /// on it meanwhile, so they are measured once more.
    fn moved(&self) -> Option<String> {
        let Outcome::Answered(_, wrongs) = &self.outcome else { return None };
        let is_figure =
            |wrong: &String| wrong.starts_with("bytes ") || wrong.starts_with("returnable_bytes ");
        let moved = self.case.target == Target::Host && !wrongs.is_empty() && wrongs.iter().all(is_figure);
        moved.then(|| wrongs.join("; "))
    }

    /// What is off, if it is nothing but that `ebb` says it cannot tell what it was to watch: so it must where a busy
    /// machine let it look too seldom. It is asked once more.
    fn doubted(&self) -> Option<String> {
        let Outcome::Answered(answer, wrongs) = &self.outcome else { return None };
        let doubted = self.case.watch > 0 && answer.named.as_deref() == Some("undetermined");
        (doubted && *wrongs == ["named undetermined"]).then(|| wrongs.join("; "))
    }
}

impl Outcome {
    /// Whether this counts against `ebb` (or the lab).
    pub fn is_miss(&self) -> bool {
        match self {
            Outcome::Skipped(_) | Outcome::Made | Outcome::Unmade(_) => false,
            Outcome::Failed(_) => true,
            Outcome::Answered(_, wrongs) => !wrongs.is_empty(),
        }
    }
}

/// A case's process.
struct Incident {
    child: Child,
    lines: mpsc::Receiver<String>,
    patience: Duration,
}

impl Incident {
    fn start(case: &Case, machine: &Machine) -> Result<Incident> {
        let place = if machine.vm { "vm" } else { "host" };
        let mut child = Command::new(std::env::current_exe()?)
            .args(["run", case.name, "--where", place, "--box", &machine.total.0.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting the case")?;
        let lines = child.stdout.take().map(lines_of).context("no stdout")?;
        let patience = if machine.vm { SET_UP_IN_VM } else { SET_UP };
        Ok(Incident { child, lines, patience })
    }

    /// Waits for the line that says ready.
    fn ready(&mut self) -> Result<Value> {
        match self.lines.recv_timeout(self.patience) {
            Ok(line) => serde_json::from_str(&line).with_context(|| format!("the case said {line:?}")),
            Err(mpsc::RecvTimeoutError::Timeout) => bail!("not ready after {} s", self.patience.as_secs()),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(NotMade(self.complaint()?).into()),
        }
    }

    /// Lets it go and waits until it has cleaned up: its standard output closes when its last process ends.
    fn end(mut self) -> Result<()> {
        drop(self.child.stdin.take());
        match self.lines.recv_timeout(self.patience) {
            Err(mpsc::RecvTimeoutError::Disconnected) => {}
            Err(mpsc::RecvTimeoutError::Timeout) => {
                bail!("still there {} s after its end", self.patience.as_secs())
            }
            Ok(line) => bail!("the case went on talking: {line:?}"),
        }
        let status = self.child.wait()?;
        ensure!(status.success(), "the case ended badly: {}", self.complaint()?);
        Ok(())
    }

    fn complaint(&mut self) -> Result<String> {
        let mut text = String::new();
        if let Some(mut stderr) = self.child.stderr.take() {
            stderr.read_to_string(&mut text)?;
        }
        let status = self.child.wait()?;
        Ok(if text.trim().is_empty() { status.to_string() } else { text.trim().to_owned() })
    }
}

impl Drop for Incident {
    /// Closes its input first and gives it time: only the case itself can clean up after itself.
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        if !matches!(self.lines.recv_timeout(self.patience), Err(mpsc::RecvTimeoutError::Disconnected)) {
            let _already_dead = self.child.kill();
        }
        let _reaped_before = self.child.wait();
    }
}

fn lines_of(out: ChildStdout) -> mpsc::Receiver<String> {
    let (say, hear) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(out).lines().map_while(Result::ok) {
            if say.send(line).is_err() {
                break;
            }
        }
    });
    hear
}

/// What to ask `ebb`.
fn question(case: &Case, ready: &Value) -> Result<Vec<String>> {
    let pid = ready["pid"].as_u64().context("the case said no pid")?.to_string();
    let group = || ready["cgroup"].as_str().map(str::to_owned).context("the case said no cgroup");
    let words: Vec<String> = match case.target {
        Target::Host if case.watch == 0 => vec![],
        Target::Host => vec!["explain".into(), "--host".into()],
        Target::Process => vec!["explain".into(), pid],
        Target::Cgroup => vec!["explain".into(), "--cgroup".into(), group()?],
        Target::Fork => vec!["fork".into(), pid],
    };
    let watch = (case.watch > 0).then(|| ["--for".to_owned(), format!("{}s", case.watch)]);
    let clear_refs = case.clear_refs.then(|| "--clear-refs".to_owned());
    let watch = watch.into_iter().flatten().chain(clear_refs);
    Ok(words.into_iter().chain(watch).chain(["--json".to_owned()]).collect())
}

fn ask(ebb: &Path, case: &Case, ready: &Value) -> Result<Answer> {
    let mut child = Command::new(ebb)
        .args(question(case, ready)?)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {}", ebb.display()))?;
    let (mut out, mut err) =
        (child.stdout.take().context("no stdout")?, child.stderr.take().context("no stderr")?);
    let complaint = thread::spawn(move || {
        let mut text = String::new();
        err.read_to_string(&mut text).map(|_| text)
    });
    let (say, hear) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let read = out.read_to_end(&mut bytes).map(|_| bytes);
        say.send(read)
    });
    let patience = ANSWER + Duration::from_secs(case.watch.into());
    let Ok(output) = hear.recv_timeout(patience) else {
        child.kill()?;
        child.wait()?;
        bail!("ebb gave no answer in {} s", patience.as_secs());
    };
    let code = child.wait()?.code().unwrap_or(-1);
    Answer::of(case, &output?, code).with_context(|| {
        let text = complaint.join().ok().and_then(Result::ok).unwrap_or_default();
        format!("ebb {} (exit {code}): {}", question(case, ready).unwrap_or_default().join(" "), text.trim())
    })
}

/// Drops clean page cache and reclaimable slab, where this user may; else cases see what earlier ones left.
fn drop_caches() {
    rustix::fs::sync();
    let _not_allowed = std::fs::write("/proc/sys/vm/drop_caches", "3");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::case::is;
    use ebbtide_observe::Bytes;

    static LEAK: Case = Case::process("leak/x", "x", is("leak"), |_| Ok(())).watch(12);
    static SLAB: Case = Case::process("slab-reclaimable/x", "x", is("slab-reclaimable"), |_| Ok(()));

    fn doubted(case: &'static Case, named: Option<&str>, wrongs: &[&str]) -> bool {
        let answer = Answer {
            named: named.map(str::to_owned),
            bytes: Bytes::ZERO,
            returnable: Bytes::ZERO,
            text: String::new(),
            all: Vec::new(),
        };
        let outcome = Outcome::Answered(answer, wrongs.iter().map(|&wrong| wrong.to_owned()).collect());
        let (figures, time) = (Figures::new(), Duration::ZERO);
        Played { case, figures, outcome, set_up: time, asked: time, first: None }.doubted().is_some()
    }

    #[test]
    fn only_doubt_about_what_was_watched_is_asked_again() {
        let doubt = "named undetermined";
        assert!(doubted(&LEAK, Some("undetermined"), &[doubt]));
        assert!(!doubted(&LEAK, Some("undetermined"), &[]));
        assert!(!doubted(&LEAK, Some("undetermined"), &[doubt, "cried leak"]));
        assert!(!doubted(&LEAK, Some("page-cache"), &["named page-cache"]));
        assert!(!doubted(&LEAK, None, &["named nothing"]));
        assert!(!doubted(&SLAB, Some("undetermined"), &[doubt]));
    }
}
