//! Measures what reading all processes costs beside the bare reads of every smaps_rollup on as many threads:
//! `cargo run --release -p ebbtide-observe --example processes [ROUNDS]`.

use ebbtide_observe::{Root, process::Processes};
use rustix::fs::{Mode, OFlags, openat};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rounds = std::env::args().nth(1).map_or(Ok(15), |n| n.parse())?;
    let threads = std::thread::available_parallelism()?.get();
    let root = Root::live()?;
    let (mut bare, mut ours, mut count) = (Vec::new(), Vec::new(), 0);
    for _ in 0..rounds {
        let start = Instant::now();
        bare_reads(threads)?;
        bare.push(start.elapsed());
        let start = Instant::now();
        count = Processes::read(&root)?.all.len();
        ours.push(start.elapsed());
    }
    let (bare, ours) = (median(bare), median(ours));
    println!("{count} processes, {threads} threads, median of {rounds} rounds");
    println!("bare open, read, close of smaps_rollup: {bare:?}");
    println!("Processes::read: {ours:?}, {:.2} times that", ours.as_secs_f64() / bare.as_secs_f64());
    Ok(())
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
