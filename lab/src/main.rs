//! `ebbtide-lab`: lists the cases, makes one and holds it, or checks `ebb` against all of them.

use anyhow::{Context, Result, bail};
use ebbtide_lab::report::{self, Matrix, Tally};
use ebbtide_lab::runner::Plan;
use ebbtide_lab::{Machine, cases, hold, journal};
use ebbtide_observe::Bytes;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "\
usage:
  ebbtide-lab list [--json]      the cases
  ebbtide-lab run NAME           make one, say ready in a line of JSON, hold it until standard input closes
  ebbtide-lab check --ebb PATH   make every one and ask ebb about it
  ebbtide-lab rehearse           make every one and ask nobody

options:
  --only PART[,PART...]   the cases whose name contains a part
  --where host|vm         in a VM (of nobody else's) cases may do harm; default host
  --box BYTES             scale the cases to a machine of this much memory; default MemTotal
  --json FILE             write the results there as JSON too; - is standard output
";

/// What the command line says.
#[derive(Debug, Default)]
struct Args {
    words: Vec<String>,
    ebb: Option<PathBuf>,
    json: Option<String>,
    only: Vec<String>,
    vm: bool,
    total: Option<Bytes>,
}

impl Args {
    fn parse(mut args: impl Iterator<Item = String>) -> Result<Args> {
        let mut parsed = Args::default();
        while let Some(arg) = args.next() {
            let mut value = || args.next().with_context(|| format!("{arg} needs a value"));
            match arg.as_str() {
                "--ebb" => parsed.ebb = Some(value()?.into()),
                "--json" if parsed.words == ["list"] => parsed.json = Some("-".into()),
                "--json" => parsed.json = Some(value()?),
                "--only" => parsed.only.extend(value()?.split(',').map(str::to_owned)),
                "--where" => parsed.vm = place(&value()?)?,
                "--box" => parsed.total = Some(Bytes(value()?.parse().context("--box wants bytes")?)),
                option if option.starts_with('-') => bail!("unknown option {option}\n{USAGE}"),
                _ => parsed.words.push(arg),
            }
        }
        Ok(parsed)
    }
}

fn place(word: &str) -> Result<bool> {
    match word {
        "vm" => Ok(true),
        "host" => Ok(false),
        _ => bail!("--where is host or vm"),
    }
}

fn main() -> ExitCode {
    Args::parse(std::env::args().skip(1)).and_then(go).unwrap_or_else(|e| {
        eprintln!("ebbtide-lab: {e:#}");
        ExitCode::from(2)
    })
}

fn go(args: Args) -> Result<ExitCode> {
    let machine = Machine::here(args.vm, args.total)?;
    match args.words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["list"] if args.json.is_some() => println!("{:#}", report::list_json(cases::all())),
        ["list"] => print!("{}", report::list(cases::all())),
        ["run", name] => {
            let case = cases::by_name(name).with_context(|| format!("no case {name}"))?;
            hold::run(case, machine)?;
        }
        ["check"] => {
            let ebb = args.ebb.context("check needs --ebb PATH")?;
            return play(Plan { ebb: Some(ebb), machine, only: args.only }, args.json);
        }
        ["rehearse"] => return play(Plan { ebb: None, machine, only: args.only }, args.json),
        _ => bail!("{USAGE}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Plays the planned cases; exit code 1 where one was missed.
fn play(plan: Plan, json: Option<String>) -> Result<ExitCode> {
    let _alone = journal::alone()?;
    let quiet = json.as_deref() == Some("-");
    let mut played = Vec::new();
    for case in cases::all().filter(|case| plan.wants(case)) {
        let one = plan.play(case);
        if quiet {
            eprintln!("{}", report::line(&one))
        } else {
            println!("{}", report::line(&one))
        }
        played.push(one);
    }
    if played.is_empty() {
        bail!("no case is called like that");
    }
    let tally = Tally::of(&played);
    if !quiet {
        let matrix = if plan.ebb.is_some() { Matrix::of(&played).text() } else { String::new() };
        print!("\n{matrix}\n{}", tally.text());
    }
    match json.as_deref() {
        Some("-") => println!("{:#}", report::json(&played)),
        Some(file) => std::fs::write(file, format!("{:#}\n", report::json(&played)))?,
        None => {}
    }
    Ok(ExitCode::from(u8::from(tally.wrong > 0)))
}
