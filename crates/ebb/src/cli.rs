//! The command line: one definition for parsing, `--help`, completions and man pages.

use crate::looks::Budget;
use clap::{Args, CommandFactory, Parser, Subcommand};
use ebbtide_observe::Bytes;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

/// Shows where memory went, says whether that is a leak, and gets it back.
#[derive(Debug, Parser)]
#[command(name = "ebb", version, args_conflicts_with_subcommands = true, max_term_width = 100)]
#[command(after_help = "Exit status: 0 nothing is wrong, 1 there are findings, 2 an error.\n\
    Without a verb ebb reports on this host. As root it sees more; what it cannot read it names.")]
pub(crate) struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
    /// Without a verb: the host report.
    #[command(flatten)]
    pub(crate) host: HostArgs,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Findings with evidence: a process, a cgroup or the host
    Explain(ExplainArgs),
    /// Processes by what they really hold
    Ps(PsArgs),
    /// Inside a process's heaps: what lives, what is free, what could be given back
    Heap(crate::heap::HeapArgs),
    /// Give back what a process, a cgroup or the host keeps, and prove it
    Reclaim(crate::reclaim::ReclaimArgs),
    /// Settings of the kernel and of allocators: advise, check, change for a time, undo
    Tune(crate::tune::TuneArgs),
    /// Who makes the dentries: traces path look-ups for some seconds
    Dentries(crate::dentries::DentriesArgs),
    /// Will fork() succeed, what will it cost, what will copy-on-write add
    Fork(crate::fork::ForkArgs),
    /// Run a program under the breathing malloc, which gives memory back by itself
    Run(crate::run::RunArgs),
    /// What each cause is, how to see it by hand, what helps
    Causes(CausesArgs),
    /// Write a shell's completion script to standard output
    Completions(CompletionsArgs),
    /// Write the man pages into a directory
    #[command(hide = true)]
    Man(ManArgs),
}

/// `ebb`: the host.
#[derive(Debug, Args)]
pub(crate) struct HostArgs {
    #[command(flatten)]
    pub(crate) output: Output,
    #[command(flatten)]
    pub(crate) budget: Budget,
    /// Every line of the ledger and all evidence
    #[arg(long, short)]
    pub(crate) all: bool,
}

/// How results are written.
#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct Output {
    /// Write JSON (schema_version 1; bytes are integers)
    #[arg(long)]
    pub(crate) json: bool,
}

/// `ebb explain`.
#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true))]
pub(crate) struct ExplainArgs {
    /// A process: its pid, or its name if only one has it
    #[arg(value_name = "PID|NAME", group = "what")]
    pub(crate) target: Option<String>,
    /// A cgroup: its directory, or its path as /proc/PID/cgroup has it
    #[arg(long, value_name = "PATH", group = "what")]
    pub(crate) cgroup: Option<PathBuf>,
    /// The whole host
    #[arg(long, group = "what")]
    pub(crate) host: bool,
    /// Watch for so long (30s, 10m) and judge what grows
    #[arg(long = "for", value_name = "TIME", value_parser = duration)]
    pub(crate) time: Option<Duration>,
    /// Watch also whether a process uses its huge blocks, by its pages' referenced bits
    ///
    /// Clearing the bits (/proc/PID/clear_refs) keeps it from faulting pages in for about 11 ms per GB, and its pages
    /// look less recently used to the kernel. It tells kept capacity from data.
    #[arg(long, requires = "time", requires = "target")]
    pub(crate) clear_refs: bool,
    #[command(flatten)]
    pub(crate) output: Output,
    /// Every line of the ledger and all evidence
    #[arg(long, short)]
    pub(crate) all: bool,
}

/// "30s", "1.5m", "2h", "500ms", or bare seconds; at most a week.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit = match unit.trim() {
        "ms" => 0.001,
        "" | "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        other => return Err(format!("'{other}' is no unit of time: use ms, s, m, h or d")),
    };
    let seconds = number.parse::<f64>().map_err(|_| format!("'{number}' is no number"))? * unit;
    if seconds > 0.0 && seconds <= 7.0 * 86_400.0 {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("it must be more than nothing and at most 7d".to_owned())
    }
}

/// "4096", "512M", "1.5G": bytes, in binary units; at most 64 TiB.
pub(crate) fn size(text: &str) -> Result<Bytes, String> {
    let at = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let unit = match unit.trim() {
        "" | "B" => Bytes(1),
        "K" | "KiB" => Bytes::from_kib(1),
        "M" | "MiB" => Bytes::from_mib(1),
        "G" | "GiB" => Bytes::from_gib(1),
        other => return Err(format!("'{other}' is no unit of memory: use K, M or G")),
    };
    let number = number.parse::<f64>().map_err(|_| format!("'{number}' is no number"))?;
    let bytes = unit.scaled(number);
    if bytes <= Bytes::from_gib(64 << 10) { Ok(bytes) } else { Err("it must be at most 65536G".to_owned()) }
}

/// `ebb ps`.
#[derive(Debug, Args)]
pub(crate) struct PsArgs {
    /// Only processes whose name contains this
    pub(crate) name: Option<String>,
    /// Sort by
    #[arg(long, value_enum, default_value_t = Sort::Pss)]
    pub(crate) sort: Sort,
    /// Only the first so many
    #[arg(long, value_name = "N")]
    pub(crate) top: Option<usize>,
    #[command(flatten)]
    pub(crate) budget: Budget,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// What processes are sorted by, the largest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sort {
    /// Proportional set size: shared pages divided by their users
    Pss,
    /// Unique set size: what ending the process would free
    Uss,
    /// Resident set size: shared pages in full
    Rss,
    /// Swapped out
    Swap,
    /// Whole free pages in its heaps
    Returnable,
}

/// `ebb causes`.
#[derive(Debug, Args)]
pub(crate) struct CausesArgs {
    /// The cause, as findings name it; all of them, a line each, if left out
    pub(crate) id: Option<String>,
    #[command(flatten)]
    pub(crate) output: Output,
}

/// `ebb completions`.
#[derive(Debug, Args)]
pub(crate) struct CompletionsArgs {
    /// The shell
    pub(crate) shell: clap_complete::Shell,
}

/// `ebb man`.
#[derive(Debug, Args)]
pub(crate) struct ManArgs {
    /// The directory to write ebb.1, ebb-causes.1 and so on into
    pub(crate) directory: PathBuf,
}

/// Writes the completion script of a shell.
pub(crate) fn completions(args: &CompletionsArgs) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "ebb", &mut script);
    crate::render::print(&String::from_utf8(script)?)?;
    Ok(ExitCode::SUCCESS)
}

/// Writes a man page for `ebb` and for each verb.
pub(crate) fn man_pages(args: &ManArgs) -> anyhow::Result<ExitCode> {
    std::fs::create_dir_all(&args.directory)?;
    clap_mangen::generate_to(Cli::command(), &args.directory)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    /// Every lever that a finding or a page about a cause tells people to pull is one.
    #[test]
    fn what_people_are_told_to_run_exists() {
        let explain = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../explain");
        let (mut seen, mut wrong) = (0, Vec::new());
        for dir in ["causes", "src/rules"] {
            for file in std::fs::read_dir(explain.join(dir)).unwrap() {
                let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
                let ends = ['`', '"', ';', '\n'];
                for (at, _) in text.match_indices("ebb reclaim") {
                    let command =
                        text[at..].split(ends).next().unwrap().replace("\\", "").replace("WHAT", "dentries");
                    // What a format string puts in.
                    let words = command
                        .split(['{', '}'])
                        .enumerate()
                        .map(|(n, part)| if n % 2 == 1 { "1" } else { part });
                    let words: String = words.collect();
                    seen += 1;
                    if let Err(error) = Cli::try_parse_from(words.split_whitespace()) {
                        wrong.push(format!("{words}: {error}"));
                    }
                }
            }
        }
        assert!(seen >= 10 && wrong.is_empty(), "{seen} seen: {wrong:#?}");
    }

    #[test]
    fn sizes() {
        assert_eq!(size("4096"), Ok(Bytes(4096)));
        assert_eq!(size("1.5G"), Ok(Bytes::from_mib(1536)));
        assert_eq!(size("32 MiB"), Ok(Bytes::from_mib(32)));
        for wrong in ["", "M", "-1M", "5T", "1e9", "nan", "65537G", "99999999999999999999999G"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times() {
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        for wrong in ["", "0", "s", "-1s", "5 weeks", "8d", "1e9", "nan", "9999999999999999999999h"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
