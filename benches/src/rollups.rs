//! The floor that `ebb ps` is measured against: every process's smaps_rollup is opened, read to its end and
//! closed, on all cores, and nothing is done with it.

use anyhow::Result;
use rustix::fs::{Mode, OFlags, RawDir, openat};
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many processes a thread takes at a time.
const BATCH: usize = 16;

pub(crate) fn run() -> Result<ExitCode> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty())?;
    let mut paths = Vec::new();
    let mut block = Vec::with_capacity(32 << 10);
    let mut entries = RawDir::new(&proc, block.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.bytes().all(|byte| byte.is_ascii_digit()) {
            paths.push(format!("{name}/smaps_rollup"));
        }
    }
    let next = AtomicUsize::new(0);
    let read = || {
        let mut buffer = [0; 4096];
        loop {
            let start = next.fetch_add(BATCH, Ordering::Relaxed);
            let Some(batch) = paths.get(start..paths.len().min(start + BATCH)) else { return };
            for path in batch {
                // Kernel threads have no memory to roll up, and a process may end: both are no failure.
                let Ok(file) = openat(&proc, path.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
                else {
                    continue;
                };
                while matches!(rustix::io::read(&file, &mut buffer), Ok(1..)) {}
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(read);
        }
    });
    Ok(ExitCode::SUCCESS)
}
