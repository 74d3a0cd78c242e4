//! How fast each allocator is: seconds, or instructions where the machine is too busy for seconds to mean
//! anything. Rounds go around the allocators, so that a slow moment of the machine hits all, and the best counts.

use super::{Allocator, Args, names};
use crate::workspace::{output, target_dir};
use anyhow::{Context, Result};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

/// One bench's figure for each allocator; `None` where it died.
type Row = Vec<Option<f64>>;

/// Runs the speed benches and prints a table with the geometric means.
pub(crate) fn run(program: &Path, allocators: &[Allocator], args: &Args) -> Result<()> {
    let mut rows = Vec::new();
    head(allocators, if args.instructions { "instructions, millions" } else { "seconds" });
    for bench in names(program, &args.only)? {
        let measure = |allocator: &Allocator| {
            if args.instructions {
                instructions(program, &bench, allocator)
            } else {
                seconds(program, &bench, allocator)
            }
        };
        let row = rounds(allocators, if args.instructions { 1 } else { args.rounds }, measure);
        print(&bench, &row);
        rows.push(row);
    }
    print_means(allocators, &rows);
    Ok(())
}

fn rounds(allocators: &[Allocator], count: usize, measure: impl Fn(&Allocator) -> Result<f64>) -> Row {
    let mut best: Row = vec![None; allocators.len()];
    for _ in 0..count {
        for (best, allocator) in best.iter_mut().zip(allocators) {
            match measure(allocator) {
                Ok(now) => *best = Some(best.map_or(now, |b: f64| b.min(now))),
                Err(error) => println!("{}: {error:#}", allocator.name),
            }
        }
    }
    best
}

fn seconds(program: &Path, bench: &str, allocator: &Allocator) -> Result<f64> {
    let mut command = Command::new(program);
    allocator.apply(command.args([bench, "3"]));
    Ok(String::from_utf8(output(&mut command)?)?.trim().parse()?)
}

/// Instructions in user space of one repetition, in millions, by callgrind's total.
fn instructions(program: &Path, bench: &str, allocator: &Allocator) -> Result<f64> {
    let out = target_dir("bench-malloc")?.join("callgrind.out");
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--quiet"]).arg(format!("--callgrind-out-file={}", out.display()));
    allocator.apply(command.arg(program).args([bench, "1"]));
    output(&mut command)?;
    let text = std::fs::read_to_string(&out)?;
    let total = text.lines().find_map(|l| l.strip_prefix("totals: ").or_else(|| l.strip_prefix("summary: ")));
    Ok(total.context("callgrind wrote no total")?.trim().parse::<f64>()? / 1e6)
}

/// Real programs, timed from outside.
const PROGRAMS: &[(&str, &[&str])] = &[
    (
        "python3",
        &[
            "-c",
            "d = {}\nfor r in range(5):\n    for i in range(200000): d[i] = [str(i), (i, r)]\nprint(len(d))",
        ],
    ),
    ("ruby", &["-e", "5.times { a = (0..200000).map { |i| [i.to_s, { i => i }] }; a.size }"]),
    (
        "php",
        &[
            "-r",
            "for ($r = 0; $r < 5; $r++) { $a = []; for ($i = 0; $i < 300000; $i++) $a[] = [\"x$i\", $i]; }",
        ],
    ),
    (
        "sqlite3",
        &[
            ":memory:",
            "create table t(a, b); with recursive c(x) as (select 1 union all select x + 1 from c where \
        x < 400000) insert into t select x, hex(x) from c; create index i on t(b); select count(*) from t;",
        ],
    ),
    ("gcc", &["-O2", "-c", "-o", "/dev/null", "large.c"]),
    // Not rustc: its binary defines malloc itself (jemalloc), so it runs on that whatever is preloaded.
    ("rustfmt", &["--emit", "stdout", "large.rs"]),
    ("redis", &[]),
];

/// Runs real programs under each allocator.
pub(crate) fn programs(allocators: &[Allocator], args: &Args) -> Result<()> {
    let dir = target_dir("bench-malloc")?;
    let c: String = (0..600)
        .map(|i| format!("int f{i}(int *p, int n) {{ int s = {i}; while (n--) s += p[n] * s; return s; }}\n"))
        .collect();
    std::fs::write(dir.join("large.c"), c)?;
    let rust: String = (0..4000)
        .map(|i| {
            format!(
                "pub fn f{i}(v: &[u32]) -> String {{ v.iter().map(|n| format!(\"{{n}}{i}\")).collect() }}\n"
            )
        })
        .collect();
    std::fs::write(dir.join("large.rs"), rust)?;
    head(allocators, "seconds");
    let mut rows = Vec::new();
    for (program, arguments) in PROGRAMS.iter().filter(|p| p.0.contains(&args.only)) {
        let needed = if *program == "redis" { "redis-server" } else { program };
        if crate::workspace::which(needed).is_none() {
            println!("{program:<16} skipped: not installed");
            continue;
        }
        let row = rounds(allocators, args.rounds, |allocator| {
            if *program == "redis" {
                redis(&dir, allocator)
            } else {
                timed(program, arguments, &dir, allocator)
            }
        });
        print(program, &row);
        rows.push(row);
    }
    print_means(allocators, &rows);
    Ok(())
}

fn timed(program: &str, arguments: &[&str], dir: &Path, allocator: &Allocator) -> Result<f64> {
    let mut command = Command::new(program);
    allocator.apply(command.args(arguments).current_dir(dir));
    let start = Instant::now();
    output(&mut command)?;
    Ok(start.elapsed().as_secs_f64())
}

/// redis-server under the allocator, driven by redis-benchmark over a socket.
fn redis(dir: &Path, allocator: &Allocator) -> Result<f64> {
    let socket = dir.join("redis.socket");
    let _ = std::fs::remove_file(&socket);
    let mut command = Command::new("redis-server");
    command
        .args(["--port", "0", "--save", "", "--unixsocket"])
        .arg(&socket)
        .current_dir(dir)
        .stdout(Stdio::null());
    allocator.apply(&mut command);
    let mut server = command.spawn()?;
    while !socket.exists() && server.try_wait()?.is_none() {
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    let start = Instant::now();
    let mut bench = Command::new("redis-benchmark");
    bench.arg("-s").arg(&socket).args([
        "-q",
        "-n",
        "100000",
        "-P",
        "16",
        "-r",
        "100000",
        "-d",
        "200",
        "-t",
        "set,lpush,hset",
    ]);
    let result = output(&mut bench);
    let elapsed = start.elapsed().as_secs_f64();
    server.kill()?;
    server.wait()?;
    result.map(|_| elapsed)
}

fn head(allocators: &[Allocator], unit: &str) {
    println!("\n{unit}");
    print!("{:<16}", "");
    allocators.iter().for_each(|a| print!("{:>13}", a.name));
    println!("   ours / best");
}

fn print(name: &str, row: &[Option<f64>]) {
    print!("{name:<16}");
    row.iter().for_each(|t| print!("{:>13}", t.map_or("died".into(), |t| format!("{t:.4}"))));
    let best = row.iter().flatten().copied().fold(f64::INFINITY, f64::min);
    match row.last() {
        Some(Some(ours)) => println!("{:>14.2}", ours / best),
        _ => println!(),
    }
}

/// Geometric means of ours over each allocator, on the benches that both finished.
fn print_means(allocators: &[Allocator], rows: &[Row]) {
    print!("{:<16}", "ours / theirs");
    for i in 0..allocators.len() {
        let logs: Vec<f64> = rows
            .iter()
            .filter_map(|row| Some((row.last()?.as_ref()? / row.get(i)?.as_ref()?).ln()))
            .collect();
        print!("{:>13.3}", (logs.iter().sum::<f64>() / logs.len().max(1) as f64).exp());
    }
    println!();
}
