//! Measures what reading all processes costs beside the bare reads of every smaps_rollup on as many threads:
//! `cargo run --release -p ebbtide-observe --example processes [ROUNDS]`.

use ebbtide_observe::process::Processes;
use ebbtide_observe::{Process, Root};
use rustix::fs::{Mode, OFlags, openat};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rounds = std::env::args().nth(1).map_or(Ok(15), |n| n.parse())?;
    let threads = std::thread::available_parallelism()?.get();
    let root = Root::live()?;
    let me = Process::open(&root, std::process::id())?;
    let (mut bare, mut ours) = (Cost::default(), Cost::default());
    let mut count = 0;
    for _ in 0..rounds {
        bare.of(&me, || bare_reads(threads))?;
        ours.of(&me, || {
            count = Processes::read(&root)?.all.len();
            Ok(())
        })?;
    }
    let peak = me.status()?.vm.unwrap_or_default().high_water;
    println!("{count} processes, {threads} threads, {rounds} rounds; peak memory {peak}");
    let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
    let (bare_wall, wall) = (median(bare.wall), median(ours.wall));
    println!(
        "bare open, read, close of smaps_rollup: median {bare_wall:?}, {:?} of processor in all",
        bare.cpu
    );
    println!("Processes::read: median {wall:?}, {:?} of processor in all", ours.cpu);
    println!(
        "{:.2} times the time, {:.2} times the processor",
        ratio(wall, bare_wall),
        ratio(ours.cpu, bare.cpu)
    );
    Ok(())
}

/// What the rounds of one way took. On a busy machine the processor's time (by ticks, so over many rounds) is
/// the steadier figure.
#[derive(Default)]
struct Cost {
    wall: Vec<Duration>,
    cpu: Duration,
}

impl Cost {
    fn of(
        &mut self,
        me: &Process,
        work: impl FnOnce() -> Result<(), Box<dyn std::error::Error>>,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let cpu = || me.stat().map(|stat| stat.user_time + stat.system_time);
        let (before, start) = (cpu()?, Instant::now());
        work()?;
        self.wall.push(start.elapsed());
        self.cpu += cpu()? - before;
        Ok(())
    }
}

fn bare_reads(threads: usize) -> Result<(), Box<dyn std::error::Error>> {
    let proc = rustix::fs::open("/proc", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
    let names: Vec<String> = std::fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.bytes().all(|b| b.is_ascii_digit()))
        .collect();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let mut buf = [0; 8192];
                while let Some(name) = names.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let path = format!("{name}/smaps_rollup");
                    if let Ok(fd) = openat(&proc, path, OFlags::RDONLY, Mode::empty()) {
                        let _ = rustix::io::read(&fd, &mut buf);
                    }
                }
            });
        }
    });
    Ok(())
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}
