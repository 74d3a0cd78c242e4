//! `ebbtide-lab`: lists the cases, makes one and holds it, or checks `ebb` against all of them.

use anyhow::{Context, Result, bail};
use ebbtide_lab::{Machine, cases, hold};
use ebbtide_observe::Bytes;
use std::process::ExitCode;

const USAGE: &str = "\
ebbtide-lab list [--json]                    the cases
ebbtide-lab run NAME [--where host|vm] [--box BYTES]
                                             make one, say ready in a line of JSON, hold it until stdin closes
";

fn main() -> ExitCode {
    match go() {
        Ok(code) => code,
        Err(e) => {
            eprintln!("ebbtide-lab: {e:#}");
            ExitCode::from(2)
        }
    }
}

fn go() -> Result<ExitCode> {
    let mut args = std::env::args().skip(1);
    match args.next().as_deref() {
        Some("run") => {
            let name = args.next().context("which case?")?;
            let case = cases::by_name(&name).with_context(|| format!("no case {name}"))?;
            let (mut vm, mut total) = (false, None);
            while let Some(flag) = args.next() {
                let value = args.next().with_context(|| format!("{flag} needs a value"))?;
                match flag.as_str() {
                    "--where" => vm = value == "vm",
                    "--box" => total = Some(Bytes(value.parse()?)),
                    _ => bail!("unknown option {flag}"),
                }
            }
            hold::run(case, Machine::here(vm, total)?)?;
        }
        Some("list") => cases::all().for_each(|case| println!("{:45} {}", case.name, case.about)),
        _ => print!("{USAGE}"),
    }
    Ok(ExitCode::SUCCESS)
}
