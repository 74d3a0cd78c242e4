//! `cargo xtask bench malloc`: the breathing allocator beside glibc, jemalloc, mimalloc and gperftools, all in
//! one run: how much memory each holds over time (`returns`), how fast each is (`speed`), and what giving back costs a
//! program that works on (`steady`). The programs are
//! `benches/malloc/*.c`, compiled here; the allocators are preloaded, as Debian ships them.
//!
//! Invariants: no figure without its peers' from the same run; an allocator that is not installed, or that dies,
//! is named and left out, never guessed.

mod returns;
mod speed;
mod steady;

use crate::deps::{self, Package};
use crate::workspace::{build_release, root, run as run_command, target_dir};
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which part: returns, speed, steady, programs, or all
    #[arg(default_value = "all", value_parser = ["returns", "speed", "steady", "programs", "all"])]
    part: String,
    /// Only benches whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Seconds that each return bench is watched, and each steady load, after as long a warm-up
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Rounds of each speed bench; the best counts
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Count instructions with callgrind instead of seconds: for a busy machine
    #[arg(long)]
    instructions: bool,
    /// Where the plots go [default: benches/malloc/plots]
    #[arg(long)]
    plots: Option<PathBuf>,
}

/// The peers, and what the real programs need.
const NEEDED: &[Package] = &[
    deps::package("libjemalloc2", "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2", "a peer"),
    deps::package("libmimalloc2.0", "/usr/lib/x86_64-linux-gnu/libmimalloc.so.2.0", "a peer"),
    deps::package("libtcmalloc-minimal4", "/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4", "a peer"),
    deps::package("gcc", "gcc", "compiles the benches"),
    deps::package("valgrind", "valgrind", "counts instructions"),
];

/// An allocator: its name, what to preload, and its settings.
#[derive(Debug, Clone)]
pub(crate) struct Allocator {
    name: &'static str,
    library: Option<PathBuf>,
    settings: Option<(&'static str, &'static str)>,
}

impl Allocator {
    /// Gives `command` this allocator.
    fn apply(&self, command: &mut Command) {
        if let Some(library) = &self.library {
            command.env("LD_PRELOAD", library);
        }
        if let Some((name, value)) = self.settings {
            command.env(name, value);
        }
    }
}

/// All that are installed; this project's comes last.
fn allocators(ours: PathBuf) -> Vec<Allocator> {
    let debian = |name, library: &str, settings| {
        let library = Path::new("/usr/lib/x86_64-linux-gnu").join(library);
        Allocator { name, library: Some(library), settings }
    };
    let decay = ("MALLOC_CONF", "background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0");
    let all = vec![
        Allocator { name: "glibc", library: None, settings: None },
        debian("jemalloc", "libjemalloc.so.2", None),
        debian("jemalloc-bg", "libjemalloc.so.2", Some(decay)),
        debian("mimalloc", "libmimalloc.so.2.0", None),
        debian("gperftools", "libtcmalloc_minimal.so.4", None),
        Allocator { name: "ebbtide", library: Some(ours), settings: None },
    ];
    let there = |a: &Allocator| {
        let there = a.library.as_ref().is_none_or(|l| l.exists());
        if !there {
            println!("skipped: {} is not installed", a.name);
        }
        there
    };
    all.into_iter().filter(there).collect()
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    deps::provide(&[NEEDED])?;
    let ours = build_release(&["ebbtide-malloc-preload"])?.join("libebbtide_malloc_preload.so");
    let allocators = allocators(ours);
    let part = |name| args.part == name || args.part == "all";
    if part("returns") {
        let plots = args.plots.clone().unwrap_or_else(|| root().join("benches/malloc/plots"));
        std::fs::create_dir_all(&plots).with_context(|| format!("cannot make {}", plots.display()))?;
        returns::run(&compile("return")?, &allocators, args, &plots)?;
    }
    if part("speed") {
        speed::run(&compile("speed")?, &allocators, args)?;
    }
    if part("steady") {
        steady::run(&compile("steady")?, &allocators, args)?;
    }
    if part("programs") {
        speed::programs(&allocators, args)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Compiles `benches/malloc/NAME.c`.
fn compile(name: &str) -> Result<PathBuf> {
    let program = target_dir("bench-malloc")?.join(name);
    let source = root().join("benches/malloc").join(name).with_extension("c");
    run_command(Command::new("gcc").args(["-O2", "-g", "-pthread", "-o"]).arg(&program).arg(source))?;
    Ok(program)
}

/// The benches a compiled program has, as it lists them, that match `--only`.
fn names(program: &Path, only: &str) -> Result<Vec<String>> {
    let listed = String::from_utf8(crate::workspace::output(&mut Command::new(program))?)?;
    Ok(listed.lines().filter(|name| name.contains(only)).map(str::to_owned).collect())
}
