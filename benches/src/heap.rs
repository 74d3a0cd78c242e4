//! The heap bench: how long the walk of a large glibc heap takes against a plain read of the same memory by
//! process_vm_readv, and what memory the walk needs. Each run is a process of its own, so that its peak is known.
//!
//! Invariant: the process with the heap ends with this one, because it waits for its standard input to close.

use crate::measure::{Taken, measure};
use anyhow::{Context, Result, ensure};
use ebbtide_heaps::{Live, MemorySource, PageState, glibc};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

/// The least that the walk of a heap of small live blocks must reach.
const LEAST_PER_SECOND: f64 = 2e9;
/// The most memory it may have held, in KiB.
const MOST_KIB: u64 = 64 << 10;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Size of the heap in MiB
    #[arg(long, default_value_t = 4096)]
    mib: u64,
    /// How often each is run
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Fail where the walk of live blocks is slower than 2 GB/s, or any takes over 64 MiB
    #[arg(long)]
    assert: bool,
}

/// What is in the heap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Shape {
    /// Blocks of 16 to 127 bytes, all live
    Live,
    /// Blocks of 72 bytes, every other one in quick lists
    Quick,
    /// Blocks of 200 bytes, every other one free
    Free,
}

/// What is measured on another process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Way {
    /// Read every page of private memory that is resident
    Read,
    /// Walk its glibc heap
    Walk,
}

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure!(args.rounds > 0, "no rounds");
    println!("{} MiB, {} rounds, medians:", args.mib, args.rounds);
    println!("{:<22} {:>9} {:>9} {:>9} {:>9}", "", "wall ms", "cpu ms", "GB/s", "peak MiB");
    let mut kept = true;
    for shape in [Shape::Live, Shape::Quick, Shape::Free] {
        let (holder, bytes) = Holder::start(shape, args.mib << 20)?;
        let mut taken = [Way::Read, Way::Walk].map(|way| (way, Vec::new()));
        for _ in 0..args.rounds {
            for (way, runs) in &mut taken {
                runs.push(measure(&holder.command(*way)?)?);
            }
        }
        let per_second = taken.map(|(way, runs)| print(shape, way, &runs, bytes));
        let [(read, _), (walk, peak)] = per_second;
        println!("{:<22} {:>29.2} of the plain read", "", walk / read);
        kept &= peak < MOST_KIB && (shape != Shape::Live || walk >= LEAST_PER_SECOND);
    }
    let verdict = if kept { "within" } else { "beyond" };
    println!("the walk is {verdict} its limits: 2 GB/s where all is live, {} MiB", MOST_KIB >> 10);
    Ok(if args.assert && !kept { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// Prints one row; bytes per second of processor time, and the peak in KiB.
fn print(shape: Shape, way: Way, runs: &[Taken], bytes: Bytes) -> (f64, u64) {
    let median = |of: fn(&Taken) -> Duration| {
        let mut times: Vec<Duration> = runs.iter().map(of).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or_default()
    };
    let (wall, cpu) = (median(|taken| taken.wall), median(|taken| taken.cpu));
    let peak = runs.iter().map(|taken| taken.peak_kib).max().unwrap_or(0);
    let per_second = bytes.0 as f64 / cpu.as_secs_f64().max(1e-9);
    println!(
        "{:<22} {:>9.0} {:>9.0} {:>9.2} {:>9.1}",
        format!("{shape:?} blocks: {way:?}"),
        wall.as_secs_f64() * 1e3,
        cpu.as_secs_f64() * 1e3,
        per_second / 1e9,
        peak as f64 / 1024.0
    );
    (per_second, peak)
}

/// The process with the heap.
struct Holder(Child);

impl Holder {
    /// Starts it and waits for its heap; its resident size, too.
    fn start(shape: Shape, bytes: u64) -> Result<(Holder, Bytes)> {
        let mut command = Command::new(crate::this_program()?);
        command.args(["heap-hold", &format!("{shape:?}").to_lowercase(), &bytes.to_string()]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdout = child.stdout.take().context("its standard output")?;
        let holder = Holder(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        ensure!(line == "ready\n", "the process with the heap ended early");
        let process = Process::open(&Root::live()?, holder.0.id())?;
        let heaps = glibc::find(&Live::new(&process, true)?)?;
        let resident = heaps.iter().map(|heap| heap.figures.resident).sum();
        Ok((holder, resident))
    }

    fn command(&self, way: Way) -> Result<Vec<OsString>> {
        let way = format!("{way:?}").to_lowercase();
        let pid = self.0.id().to_string();
        Ok(vec![crate::this_program()?.into(), "heap-look".into(), way.into(), pid.into()])
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        // An error says that it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The process with the heap: makes it, says so, and waits for the end of its standard input.
pub(crate) fn hold(shape: Shape, bytes: u64) -> Result<ExitCode> {
    // Buffers are large enough blocks for malloc to merge its quick lists: they come first.
    let (mut stdin, mut stdout) = (std::io::stdin().lock(), std::io::stdout().lock());
    stdout.flush()?;
    match shape {
        Shape::Live => {
            let (mut left, mut seed) = (bytes, 1u64);
            while left > 0 {
                seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                let size = 16 + (seed >> 57);
                std::mem::forget(std::hint::black_box(vec![1u8; size as usize].into_boxed_slice()));
                left = left.saturating_sub((size + 8).next_multiple_of(16));
            }
        }
        Shape::Quick => every_other::<72>(bytes),
        Shape::Free => every_other::<200>(bytes),
    }
    writeln!(stdout, "ready")?;
    stdin.read_to_end(&mut Vec::new())?;
    Ok(ExitCode::SUCCESS)
}

/// Makes blocks of `SIZE` bytes and frees every other one.
fn every_other<const SIZE: usize>(bytes: u64) {
    let count = bytes / (SIZE as u64 + 8);
    let mut blocks: Vec<Option<Box<[u8; SIZE]>>> = (0..count).map(|_| Some(Box::new([1; SIZE]))).collect();
    blocks.iter_mut().step_by(2).for_each(|block| *block = None);
    std::mem::forget(blocks);
}

/// Looks at process `pid` once, in one way.
pub(crate) fn look(way: Way, pid: u32) -> Result<ExitCode> {
    let process = Process::open(&Root::live()?, pid)?;
    let live = Live::new(&process, true)?;
    match way {
        Way::Walk => {
            let heaps = glibc::find(&live)?;
            ensure!(heaps.len() == 1 && heaps[0].corruptions.is_empty(), "no heap, or a broken one");
        }
        Way::Read => {
            let mut buf = vec![0; 256 << 10];
            for area in live.areas().iter().filter(|area| area.is_private_anon()) {
                let mut runs = Vec::new();
                live.pages(area.range.clone(), &mut |run, state| {
                    if state == PageState::Present {
                        runs.push(run);
                    }
                })?;
                for run in runs {
                    for at in run.clone().step_by(buf.len()) {
                        let part = at..run.end.min(at + buf.len() as u64);
                        live.read_ranges(
                            std::slice::from_ref(&part),
                            &mut buf[..(part.end - part.start) as usize],
                        )?;
                    }
                }
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
