//! Shows what this process would be told of memory pressure: the source, why no better one, and each event as it comes.
//!
//! `cargo run -p ebbtide-pressure --example watch [SECONDS]`: without end, or for so long.

use ebbtide_pressure::{Kind, Options, Pressure};
use std::process::ExitCode;
use std::time::{Duration, Instant};

fn main() -> ExitCode {
    let seconds = match std::env::args().nth(1).map(|word| word.parse::<u32>()) {
        Some(Err(error)) => {
            eprintln!("error: not a number of seconds: {error}\nusage: watch [SECONDS]");
            return ExitCode::from(2);
        }
        seconds => seconds.and_then(Result::ok),
    };
    match watch(seconds.map(|seconds| Duration::from_secs(seconds.into()))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: pressure cannot be watched: {error}");
            ExitCode::from(2)
        }
    }
}

fn watch(time: Option<Duration>) -> std::io::Result<()> {
    let start = Instant::now();
    let pressure = Pressure::open(Options::new())?;
    println!("watching: {}", pressure.source());
    for better in pressure.passed_over() {
        println!("  passed over: {better}");
    }
    let mut source = pressure.source();
    if matches!(source.kind(), Kind::Off | Kind::Nothing) {
        println!("nothing will come");
        return Ok(());
    }
    loop {
        let left = time.map(|time| time.saturating_sub(start.elapsed()));
        let Some(event) = pressure.wait(left) else { return Ok(()) };
        let at = event.at.duration_since(start).as_secs_f64();
        let merged = if event.merged > 1 { format!(", for {} events", event.merged) } else { String::new() };
        println!("{at:8.3} s  {:<8} {:<8} was {}{merged}", event.change(), event.level, event.before);
        if event.source != source {
            source = event.source;
            println!("watching now: {source}");
        }
    }
}
