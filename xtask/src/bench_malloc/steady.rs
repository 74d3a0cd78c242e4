//! What giving back costs a program that works on: processor time and page faults of loads at a fixed pace
//! (`benches/malloc/steady.c`), and the pages that had to be faulted in again, in percent of a processor.

use super::{Allocator, Args, names};
use crate::workspace::output;
use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

/// Giving a page back and faulting it in again (1.6 and 2.2 us, measured under KVM), as `pace` reckons.
const PAGE_COST_SECONDS: f64 = 4e-6;

/// What a load used in the seconds that were measured.
struct Used {
    processor: f64,
    faults: f64,
    refaulted: f64,
}

/// Runs each load under each allocator, all allocators at the same time, and prints what they used.
pub(crate) fn run(program: &Path, allocators: &[Allocator], args: &Args) -> Result<()> {
    for bench in names(program, &args.only)? {
        println!("\n{bench:<14} {:>12} {:>12} {:>18}", "processor %", "faults / s", "refault overhead %");
        let seconds = args.seconds as f64;
        for (allocator, used) in allocators.iter().zip(all_at_once(program, &bench, allocators, args.seconds))
        {
            let used = used.with_context(|| format!("{} under {bench}", allocator.name))?;
            println!(
                "  {:<12} {:>12.2} {:>12.0} {:>18.2}",
                allocator.name,
                used.processor / seconds * 100.0,
                used.faults / seconds,
                used.refaulted * PAGE_COST_SECONDS / seconds * 100.0
            );
        }
    }
    Ok(())
}

fn all_at_once(program: &Path, bench: &str, allocators: &[Allocator], seconds: u64) -> Vec<Result<Used>> {
    let used = |allocator: &Allocator| {
        let mut command = Command::new(program);
        allocator.apply(command.args([bench, &seconds.to_string()]));
        parse(&String::from_utf8(output(&mut command)?)?).context("the load told no figures")
    };
    std::thread::scope(|scope| {
        let started: Vec<_> = allocators.iter().map(|a| scope.spawn(move || used(a))).collect();
        let gone = |_| Err(anyhow::anyhow!("the thread that ran it panicked"));
        started.into_iter().map(|thread| thread.join().unwrap_or_else(gone)).collect()
    })
}

fn parse(line: &str) -> Option<Used> {
    let mut numbers = line.split_whitespace().map_while(|word| word.parse().ok());
    Some(Used { processor: numbers.next()?, faults: numbers.next()?, refaulted: numbers.next()? })
}
