//! How fast Lua programs are (`benches/lua/programs`), each in a process with one state (the server of the preload
//! library's tests): processor time of all threads, so that what gives back counts, too.
//!
//! Rounds go back and forth between the two allocators, and a program's ratio is the median of its rounds', so a
//! slower minute of the machine meets both. Both must say the same.

use super::contender::{self, Contender};
use super::{geometric_mean, median, sources};
use crate::workspace::{root, run as run_command, target_dir};
use anyhow::{Context, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only programs whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Rounds of each
    #[arg(long, default_value_t = 7)]
    rounds: usize,
}

/// What one run took, and said.
struct Run {
    seconds: f64,
    pss_kib: f64,
    said: Vec<u8>,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure!(args.rounds > 0, "no rounds");
    let pair = contender::pair()?;
    let host = build()?;
    println!(
        "{:<18} {:>10} {:>10} {:>8} {:>16}",
        "CPU seconds",
        contender::BUILT_IN,
        contender::OURS,
        "ratio",
        "PSS at end, MiB"
    );
    let mut ratios = Vec::new();
    for program in programs(&args.only)? {
        let mut runs = [Vec::new(), Vec::new()];
        for round in 0..args.rounds {
            for n in in_turns(round) {
                runs[n].push(once(&host, &program, &pair[n])?);
            }
        }
        let [theirs, ours] = &runs;
        let name = program.file_stem().unwrap_or_default().to_string_lossy();
        ensure!(theirs[0].said == ours[0].said, "{name} says something else under {}", contender::OURS);
        let ratio = median(ours.iter().zip(theirs).map(|(o, t)| o.seconds / t.seconds));
        let of = |runs: &[Run], field: fn(&Run) -> f64| median(runs.iter().map(field));
        println!(
            "{name:<18} {:>10.3} {:>10.3} {ratio:>8.3} {:>8.1} {:>7.1}",
            of(theirs, |r| r.seconds),
            of(ours, |r| r.seconds),
            of(theirs, |r| r.pss_kib / 1024.0),
            of(ours, |r| r.pss_kib / 1024.0)
        );
        ratios.push(ratio);
    }
    println!("{:<18} {:>30.3}", "geometric mean", geometric_mean(&ratios));
    Ok(ExitCode::SUCCESS)
}

/// Who begins: the first, then the second.
pub(super) fn in_turns(round: usize) -> [usize; 2] {
    if round.is_multiple_of(2) { [0, 1] } else { [1, 0] }
}

fn programs(only: &str) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(sources().join("programs"))?;
    let mut files: Vec<_> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.retain(|file| file.file_stem().is_some_and(|name| name.to_string_lossy().contains(only)));
    files.sort();
    Ok(files)
}

fn build() -> Result<PathBuf> {
    let program = target_dir("bench-lua")?.join("host");
    let mut compiler = Command::new("gcc");
    compiler.args(["-O2", "-pthread", "-rdynamic", "-o"]).arg(&program);
    compiler.arg(root().join("crates/malloc-preload/tests/lua/host.c")).arg("-l:libluajit-5.1.so.2");
    run_command(&mut compiler)?;
    Ok(program)
}

fn once(host: &Path, program: &Path, contender: &Contender) -> Result<Run> {
    let mut command = Command::new(host);
    contender.apply(command.arg("-c").arg(program));
    let output = command.output().context("cannot start the host of Lua programs")?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} under {}: {told}", program.display(), contender.name);
    let mut words = told.split_whitespace();
    let mut number = |name| {
        words.find(|word| *word == name)?;
        words.next()?.parse().ok()
    };
    let (seconds, pss_kib) = number("cpu").zip(number("pss")).context("no cost told")?;
    Ok(Run { seconds, pss_kib, said: output.stdout })
}
