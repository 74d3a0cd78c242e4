//! The project's own commands, run as `cargo xtask NAME`: what a contributor and CI need beyond cargo.

mod allocators;
mod bench;
mod bench_lua;
mod bench_malloc;
mod deps;
mod glibcs;
mod lab;
mod man;
mod plot;
mod pythons;
mod tally;
mod test;
mod vm;
mod vm_command;
mod vm_test;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own commands")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing, then run every test: the workspace's, the lab, the virtual machine's
    Test(test::Args),
    /// Make real incidents and check what ebb says of them
    Lab(lab::Args),
    /// Write the man pages
    Man(man::Args),
    /// Measure ebb beside its peers
    Bench(bench::Args),
    /// Run a command on Debian's kernel in a virtual machine
    Vm(Box<vm_command::Args>),
    /// Run the tests that need a virtual machine
    VmTest(vm_test::Args),
    #[command(hide = true)]
    Fill(vm_test::fill::Args),
    #[command(hide = true)]
    Fork,
    #[command(hide = true)]
    Levers(vm_test::levers::Args),
    #[command(hide = true)]
    Shrink(vm_test::shrink::Args),
}

fn main() -> ExitCode {
    let result = match Args::parse().task {
        Task::Test(args) => test::run(&args),
        Task::Lab(args) => lab::run(&args),
        Task::Man(args) => man::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Vm(args) => vm_command::run(&args),
        Task::VmTest(args) => vm_test::run(&args),
        Task::Fill(args) => vm_test::fill::run(&args),
        Task::Fork => vm_test::fork::run(),
        Task::Levers(args) => vm_test::levers::run(&args),
        Task::Shrink(args) => vm_test::shrink::run(&args),
    };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::from(2)
    })
}
