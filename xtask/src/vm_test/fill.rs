//! The guest's side of the ledger test: fills memory in one way after another, asks `ebb --json` each time,
//! and empties it again. Prints one line of JSON per state. Run it in a virtual machine only: it takes what
//! it is told to take, raises the kernel's limits for that, and drops caches.

use anyhow::{Context, Result, bail, ensure};
use ebbtide_observe::Bytes;
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, ExitCode};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// How much to fill, each time
    #[arg(value_parser = crate::vm_command::size)]
    fill: Bytes,
}

/// The most that one file or one system call is given.
const BLOCK: u64 = 256 << 20;

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    ensure!(
        std::process::id() != 1 && fs::exists("/vm/mark")?,
        "this fills memory: only in the virtual machine"
    );
    raise_limits()?;
    report("rest", Bytes(0))?;
    anon(args.fill)?;
    files("tmpfs", "/dev/shm", args.fill, write_zeros)?;
    files("page-cache", "/mnt", args.fill, read_holes)?;
    dentries(args.fill)?;
    sockets(args.fill)?;
    report("rest-again", Bytes(0))?;
    Ok(ExitCode::SUCCESS)
}

/// What would stop 8 GB of 11: tmpfs's half of memory, TCP's share of memory, the number of open files.
fn raise_limits() -> Result<()> {
    let most = rustix::process::Rlimit { current: Some(1 << 20), maximum: Some(1 << 20) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, most)
        .context("cannot raise RLIMIT_NOFILE")?;
    crate::workspace::run(Command::new("mount").args(["-o", "remount,size=95%", "/dev/shm"]))?;
    for (file, value) in [
        ("/proc/sys/net/ipv4/tcp_mem", "100000000 100000000 100000000"),
        ("/proc/sys/net/ipv4/tcp_wmem", "4096 8388608 8388608"),
        ("/proc/sys/net/ipv4/tcp_rmem", "4096 8388608 8388608"),
    ] {
        fs::write(file, value).with_context(|| format!("cannot write {file}"))?;
    }
    Ok(())
}

/// Prints what ebb says while `filled` bytes are in the state `state`.
fn report(state: &str, filled: Bytes) -> Result<()> {
    let ebb = Command::new("ebb").arg("--json").output().context("cannot start ebb")?;
    if !matches!(ebb.status.code(), Some(0 | 1)) {
        bail!("ebb --json: {}: {}", ebb.status, String::from_utf8_lossy(&ebb.stderr).trim_end());
    }
    let report: Value = serde_json::from_slice(&ebb.stdout).context("ebb printed no JSON")?;
    println!("{}", json!({ "state": state, "filled": filled.0, "report": report }));
    Ok(())
}

fn anon(fill: Bytes) -> Result<()> {
    let memory = vec![1_u8; usize::try_from(fill.0)?];
    report("anon", fill)?;
    drop(std::hint::black_box(memory));
    Ok(())
}

/// Files in `dir` that sum to `fill`; `make` makes one of a given length.
fn files(state: &str, dir: &str, fill: Bytes, make: fn(&mut File, u64) -> Result<()>) -> Result<()> {
    let path = |n: u64| format!("{dir}/fill.{n}");
    let count = fill.0.div_ceil(BLOCK);
    for n in 0..count {
        let mut file = File::options().read(true).write(true).create_new(true).open(path(n))?;
        make(&mut file, BLOCK.min(fill.0 - n * BLOCK)).with_context(|| format!("cannot fill {dir}"))?;
    }
    report(state, fill)?;
    for n in 0..count {
        fs::remove_file(path(n))?;
    }
    Ok(())
}

fn write_zeros(file: &mut File, length: u64) -> Result<()> {
    std::io::copy(&mut std::io::repeat(0).take(length), file)?;
    Ok(())
}

/// A hole that was read is page cache as any other, and costs no disk.
fn read_holes(file: &mut File, length: u64) -> Result<()> {
    file.set_len(length)?;
    std::io::copy(file, &mut std::io::sink())?;
    Ok(())
}

/// Looks names up that do not exist until the kernel's reclaimable slab has grown by `fill`. Long names, which
/// lie in a block of their own beside the dentry, make it a quarter of the look-ups.
fn dentries(fill: Bytes) -> Result<()> {
    let slab = || figure("/proc/meminfo", "SReclaimable:", 0).map(Bytes::from_kib);
    let before = slab()?;
    let filler = "x".repeat(230);
    for n in 0_u64.. {
        if fs::exists(format!("/mnt/{n}-{filler}"))? {
            bail!("a name that nobody made exists");
        }
        if n % 10_000 == 0 && slab()? - before >= fill {
            break;
        }
    }
    report("dentries", slab()? - before)?;
    fs::write("/proc/sys/vm/drop_caches", "2").context("cannot drop the dentries")
}

/// Opens connections that nobody reads from until TCP holds `fill` bytes.
fn sockets(fill: Bytes) -> Result<()> {
    let used = || figure("/proc/net/sockstat", "TCP:", 9).map(|pages| ebbtide_observe::Pages(pages).bytes());
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let mut open = Vec::new();
    while used()? < fill {
        let client = TcpStream::connect(listener.local_addr()?)?;
        client.set_nonblocking(true)?;
        let (server, _) = listener.accept()?;
        stuff(&client)?;
        open.push((client, server));
        ensure!(open.len() < 100_000, "100,000 connections hold only {}", used()?);
    }
    report("sockets", used()?)
}

fn stuff(mut client: &TcpStream) -> Result<()> {
    let block = [0; 64 << 10];
    loop {
        match client.write(&block) {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The number at word `index` after `key` in `file`.
fn figure(file: &str, key: &str, index: usize) -> Result<u64> {
    let text = fs::read_to_string(file)?;
    let words = text.lines().find_map(|line| line.strip_prefix(key)).context("no such line")?;
    let number = words.split_whitespace().nth(index).and_then(|word| word.parse().ok());
    number.with_context(|| format!("no number in {key} of {file}"))
}
