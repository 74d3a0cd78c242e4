//! `ebb run -- CMD`: runs a program under the breathing malloc. Replaces itself by the program, so signals, the
//! exit status and the process id are the program's own.

use anyhow::{Context, Result, bail};
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What the preload library is called, wherever it lies.
const LIBRARY: &str = "libebbtide_malloc_preload.so";

/// `ebb run`.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArgs {
    /// Check the heap while the program runs: 1 invariants, 2 every free, 3 also writes to freed memory
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(u8).range(0..=3))]
    check: Option<u8>,
    /// Milliseconds that a free page waits before it is given back, to begin with
    #[arg(long, value_name = "MS", value_parser = clap::value_parser!(u32).range(1..))]
    delay: Option<u32>,
    /// Start no thread in the program: its own threads give back as they go, and not while idle
    #[arg(long)]
    no_thread: bool,
    /// Leave LuaJIT its own allocator, which gives nothing back
    #[arg(long)]
    no_lua: bool,
    /// Do not run LuaJIT's collector while the program waits for events
    #[arg(long)]
    no_lua_collect: bool,
    /// Have each process say in one line, on standard error, what it gave back when it ends
    #[arg(long)]
    summary: bool,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<OsString>,
}

/// Runs the program; comes back only if it could not be started.
pub(crate) fn run(args: &RunArgs) -> Result<ExitCode> {
    let exe = std::env::current_exe().context("cannot find where ebb lies")?;
    let library = library(&exe)?;
    let Some((program, arguments)) = args.command.split_first() else { bail!("no program given") };
    if let Some(path) = find(program, std::env::var_os("PATH").as_deref()) {
        refuse_static(&path)?;
    }
    let mut command = Command::new(program);
    command.args(arguments).env("LD_PRELOAD", preload(&library, std::env::var_os("LD_PRELOAD")));
    if let Some(level) = args.check {
        command.env("EBBTIDE_MALLOC_CHECK", level.to_string());
    }
    if let Some(delay) = args.delay {
        command.env("EBBTIDE_MALLOC_DELAY_MS", delay.to_string());
    }
    let switches = [
        (args.no_thread, "EBBTIDE_MALLOC_THREAD", "off"),
        (args.no_lua, "EBBTIDE_LUA", "off"),
        (args.no_lua_collect, "EBBTIDE_LUA_COLLECT", "off"),
        (args.summary, "EBBTIDE_SUMMARY", "1"),
    ];
    command.envs(switches.iter().filter(|(asked, ..)| *asked).map(|(_, name, value)| (name, value)));
    let error = command.exec();
    Err(error).with_context(|| format!("cannot run {}", program.to_string_lossy()))
}

/// The library beside `ebb` (as cargo leaves it) or in ../lib/ebbtide (as it is installed).
fn library(exe: &Path) -> Result<PathBuf> {
    let dir = exe.parent().context("ebb lies nowhere")?;
    let places = [dir.join(LIBRARY), dir.join("../lib/ebbtide").join(LIBRARY)];
    match places.iter().find(|place| place.is_file()) {
        Some(found) => Ok(found.canonicalize()?),
        None => bail!(
            "{LIBRARY} is neither beside ebb nor in ../lib/ebbtide; \
             `cargo build --release --workspace` leaves it in target/release"
        ),
    }
}

/// The library before whatever is preloaded already. The loader splits at spaces and colons.
fn preload(library: &Path, before: Option<OsString>) -> OsString {
    let mut value = library.as_os_str().to_owned();
    if let Some(before) = before.filter(|b| !b.is_empty()) {
        value.push(":");
        value.push(before);
    }
    value
}

/// Where the shell would find a program.
fn find(program: &OsStr, path: Option<&OsStr>) -> Option<PathBuf> {
    if program.as_encoded_bytes().contains(&b'/') {
        return Some(PathBuf::from(program));
    }
    std::env::split_paths(path?).map(|dir| dir.join(program)).find(|file| file.is_file())
}

/// A program without a loader ignores LD_PRELOAD: better said than silently ignored.
fn refuse_static(path: &Path) -> Result<()> {
    let mut head = [0; 4096];
    let Ok(mut file) = std::fs::File::open(path) else { return Ok(()) };
    let Ok(len) = std::io::Read::read(&mut file, &mut head) else { return Ok(()) };
    if head.get(..len).is_some_and(is_static) {
        bail!(
            "{} is statically linked, so another malloc cannot be put under it; \
             `ebb explain` still sees where its memory goes",
            path.display()
        );
    }
    Ok(())
}

/// Whether this is the beginning of a 64-bit little-endian ELF program without PT_INTERP (ELF-64, version 1.2).
fn is_static(head: &[u8]) -> bool {
    const PT_INTERP: [u8; 4] = [3, 0, 0, 0];
    let number = |at: usize, len: usize| {
        head.get(at..at + len).map(|b| b.iter().rev().fold(0_usize, |n, b| n << 8 | usize::from(*b)))
    };
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return false;
    }
    let (Some(table), Some(size), Some(count)) = (number(32, 8), number(54, 2), number(56, 2)) else {
        return false;
    };
    (0..count).all(|i| {
        let entry = i.checked_mul(size).and_then(|off| table.checked_add(off));
        let kind = entry.and_then(|at| head.get(at..at.checked_add(4)?));
        kind.is_some_and(|kind| kind != PT_INTERP)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_or_installed() {
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        std::fs::create_dir_all(&bin).unwrap();
        assert!(library(&bin.join("ebb")).is_err());
        let lib = dir.path().join("lib/ebbtide");
        std::fs::create_dir_all(&lib).unwrap();
        std::fs::write(lib.join(LIBRARY), "").unwrap();
        assert_eq!(library(&bin.join("ebb")).unwrap(), lib.join(LIBRARY).canonicalize().unwrap());
        std::fs::write(bin.join(LIBRARY), "").unwrap();
        assert_eq!(library(&bin.join("ebb")).unwrap(), bin.join(LIBRARY).canonicalize().unwrap());
    }

    #[test]
    fn keeps_what_is_preloaded() {
        assert_eq!(preload(Path::new("/l.so"), None), "/l.so");
        assert_eq!(preload(Path::new("/l.so"), Some("".into())), "/l.so");
        assert_eq!(preload(Path::new("/l.so"), Some("/a.so:/b.so".into())), "/l.so:/a.so:/b.so");
    }

    #[test]
    fn knows_static_programs() {
        let mut elf = vec![0; 64 + 2 * 56];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        (elf[32], elf[54], elf[56], elf[64]) = (64, 56, 2, 6);
        elf[64 + 56] = 1;
        assert!(is_static(&elf));
        elf[64 + 56] = 3;
        assert!(!is_static(&elf));
        assert!(!is_static(b"#!/bin/sh"));
        assert!(!is_static(&elf[..70]), "cut short: not known to be static");
        assert!(!is_static(&std::fs::read(std::env::current_exe().unwrap()).unwrap()[..4096]));
    }
}
