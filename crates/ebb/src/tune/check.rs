//! `ebb tune --check`: what the lines of sysctl files and the variables of processes really do here.

use super::TuneArgs;
use crate::escape::escape;
use crate::render::{self, BAD, CAUSE, FAINT, GOOD, Page};
use crate::{cgroup, explain};
use anyhow::Context;
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use ebbtide_reclaim::tune::check::{Checked, Program, environ, files, system};
use ebbtide_reclaim::tune::{Host, Proposal, Verdict, propose};
use serde::Serialize;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(Serialize)]
struct Json {
    schema_version: u32,
    kind: &'static str,
    files: Vec<String>,
    checked: Vec<Checked>,
    processes: Vec<OfProcess>,
}

#[derive(Serialize)]
struct OfProcess {
    pid: u32,
    name: String,
    /// Whether it has written over its first environment, and this is what it has now.
    present: bool,
    checked: Vec<Checked>,
    proposals: Vec<Proposal>,
}

pub(super) fn run(args: &TuneArgs, root: &Root, what: &[String]) -> anyhow::Result<ExitCode> {
    let is_pid =
        |word: &&String| word.parse::<u32>().is_ok() && !std::path::Path::new(word.as_str()).exists();
    let (pids, named): (Vec<&String>, Vec<&String>) = what.iter().partition(is_pid);
    let named: Vec<PathBuf> = named.into_iter().map(PathBuf::from).collect();
    let mut host = Host::read(root)?;
    let (read, checked) = if what.is_empty() {
        system(root, &mut host)
    } else {
        let checked = files(root, &mut host, &named)
            .context("no such file can be read; a process is checked by its pid")?;
        (named.iter().map(|path| path.display().to_string()).collect(), checked)
    };
    let pids = pids.into_iter().filter_map(|pid| pid.parse().ok());
    let processes: Vec<OfProcess> = pids.map(|pid| process(root, pid)).collect::<anyhow::Result<_>>()?;
    if args.output.json {
        render::print_json(&Json { schema_version: 1, kind: "check", files: read, checked, processes })?;
        return Ok(ExitCode::SUCCESS);
    }
    let page = Page::of_stdout();
    let mut out = String::new();
    if !read.is_empty() || what.is_empty() {
        of_files(&mut out, page, &read, &checked);
    }
    processes.iter().for_each(|process| of_process(&mut out, page, process));
    render::print(&out)?;
    Ok(ExitCode::SUCCESS)
}

fn process(root: &Root, pid: u32) -> anyhow::Result<OfProcess> {
    let process = Process::open(root, pid)
        .map_err(|_| anyhow::anyhow!("there is no process {pid}; 'ebb ps' lists them"))?;
    let (report, look) = explain::looked_into(root, &process, None)?;
    let limit = process.membership().ok().and_then(|membership| cgroup::limit_of(root, &membership));
    let total = ebbtide_observe::host::Meminfo::read(root)?.mem_total;
    let limit = limit.map_or(total, |limit: Bytes| limit.min(total));
    let program = Program::read(&process, &look.heaps, Some(limit)).with_context(|| {
        format!("the environment of process {pid} may not be read: run ebb as its owner or as root")
    })?;
    Ok(OfProcess {
        pid,
        name: program.name.to_string(),
        present: program.present,
        checked: environ::check(&program),
        proposals: propose(&program, &look.heaps, &report.findings),
    })
}

fn of_files(out: &mut String, page: Page, read: &[String], checked: &[Checked]) {
    if checked.is_empty() {
        let files = if read.is_empty() { "There is no sysctl file".to_owned() } else { read.join(", ") };
        render::wrap(out, page, 0, 2, &format!("{}: no line is about memory.", escape(&files)));
    }
    checked.iter().for_each(|one| line(out, page, one));
}

fn of_process(out: &mut String, page: Page, process: &OfProcess) {
    let name = escape(&process.name).into_owned();
    let when = match process.present {
        false => "as it was when it was executed",
        true => "as it is now, for its title is written over what it was executed with",
    };
    render::wrap(out, page, 0, 2, &format!("{name} (pid {}), {when}:", process.pid));
    if process.checked.is_empty() {
        out.push_str("  No variable bears on its memory.\n");
    }
    process.checked.iter().for_each(|one| line(out, page, one));
    for proposal in &process.proposals {
        out.push_str(&format!(
            "\n{CAUSE}{}{CAUSE:#}  {FAINT}({}){FAINT:#}\n",
            escape(&proposal.line),
            proposal.cause
        ));
        let mut labelled = |label: &str, text: &str| {
            render::labelled(out, page, 2, 7, format!("{FAINT}{label}{FAINT:#}"), &escape(text));
        };
        labelled("why", &proposal.why);
        labelled(
            "saves",
            &match proposal.saves_at_most {
                Some(bytes) => format!("at most {bytes} here: {}", proposal.reckoned),
                None => proposal.reckoned.to_owned(),
            },
        );
        labelled("danger", &format!("takes a restart; {}", proposal.danger));
        if let Some(file) = &proposal.file {
            labelled("file", file);
        }
        for text in proposal.drop_in.lines() {
            out.push_str(&format!("    {}\n", escape(text)));
        }
    }
}

fn line(out: &mut String, page: Page, one: &Checked) {
    let verdict = match one.remark.verdict {
        Verdict::Harmful => format!("{BAD}harmful{BAD:#}"),
        Verdict::Invalid => format!("{BAD}not valid{BAD:#}"),
        Verdict::Misspelt => format!("{BAD}misspelt{BAD:#}"),
        Verdict::NoEffect => format!("{CAUSE}no effect{CAUSE:#}"),
        Verdict::Overridden => format!("{CAUSE}overridden{CAUSE:#}"),
        Verdict::Obsolete => format!("{CAUSE}obsolete{CAUSE:#}"),
        Verdict::Unknown => format!("{CAUSE}unknown{CAUSE:#}"),
        Verdict::Doubtful => format!("{CAUSE}doubtful{CAUSE:#}"),
        Verdict::Effective => format!("{GOOD}effective{GOOD:#}"),
    };
    let place =
        if one.place.starts_with("/proc/") { String::new() } else { format!("{}: ", escape(&one.place)) };
    render::wrap(out, page, 0, 4, &format!("{FAINT}{place}{FAINT:#}{}", escape(&one.text)));
    render::labelled(out, page, 2, 10, verdict, &escape(&one.remark.says));
    if let Some(instead) = &one.remark.instead {
        render::labelled(out, page, 2, 10, format!("{FAINT}instead{FAINT:#}"), &escape(instead));
    }
}
