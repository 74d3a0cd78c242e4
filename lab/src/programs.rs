//! Foreign runtimes that cases start: JVMs, Node.js, LuaJIT, CPython, Redis, and a program on musl.

use crate::actor::Actor;
use crate::cgroup::{Group, Hierarchy};
use crate::stage::Stage;
use anyhow::{Context, Result, ensure};
use ebbtide_observe::Bytes;
use serde_json::Value;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

const SOURCE: &str = include_str!("../programs/Lab.java");
/// Says that it is ready and waits; V8 takes its heap's limit from the command line.
const SCRIPT: &str = "console.log('{}'); process.stdin.resume()";

/// What a Lua or Python program of the lab makes of its heap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    /// luajit.
    Lua,
    /// python3.
    Python,
}

/// What a JVM of the lab does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Jvm {
    /// Options of the JVM.
    pub options: &'static [&'static str],
    /// MB allocated and dropped.
    pub garbage: u32,
    /// MB that live.
    pub live: u32,
    /// Whether it collects before it waits.
    pub collect: bool,
}

/// What a JVM says of its heap (java.lang.Runtime).
#[derive(Debug, Clone, Copy)]
pub struct Heap {
    /// Its process.
    pub pid: i32,
    /// totalMemory().
    pub committed: Bytes,
    /// totalMemory() - freeMemory().
    pub used: Bytes,
}

/// Compiles the lab's class; the directory to put in the class path.
pub fn compile(stage: &Stage) -> Result<PathBuf> {
    let dir = stage.journal.dir().join("classes");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("Lab.java"), SOURCE)?;
    let javac = Command::new("javac").arg("Lab.java").current_dir(&dir).stdin(Stdio::null()).output()?;
    ensure!(javac.status.success(), "javac: {}", String::from_utf8_lossy(&javac.stderr));
    Ok(dir)
}

/// Starts a JVM, in `group` where there is one, with `extra` options, and waits until it is ready.
pub fn jvm(
    stage: &mut Stage,
    jvm: Jvm,
    extra: &[String],
    group: Option<(&Hierarchy, &Group)>,
) -> Result<Heap> {
    let classes = compile(stage)?;
    let mut command = Command::new("java");
    command.args(jvm.options).args(extra).arg("-cp").arg(classes).arg("Lab");
    command.args([jvm.garbage.to_string(), jvm.live.to_string()]);
    command.arg(if jvm.collect { "collect" } else { "rest" });
    let (pid, said) = start(stage, &mut command, group)?;
    let bytes = |key: &str| said[key].as_u64().map(Bytes).with_context(|| format!("the JVM said no {key}"));
    Ok(Heap { pid, committed: bytes("committed")?, used: bytes("used")? })
}

/// Starts Node.js with `options`, in `group` where there is one, and waits until it is ready.
pub fn node(stage: &mut Stage, options: &[String], group: Option<(&Hierarchy, &Group)>) -> Result<i32> {
    let mut command = Command::new("node");
    command.args(options).args(["-e", SCRIPT]);
    start(stage, &mut command, group).map(|(pid, _)| pid)
}

/// Starts the program in `language` that brings its heap into `state`, of about `size`; its pid and what it says.
pub fn heap(stage: &mut Stage, language: Language, state: &str, size: Bytes) -> Result<(i32, Value)> {
    let (interpreter, name, source) = match language {
        Language::Lua => ("luajit", "heap.lua", include_str!("../programs/heap.lua")),
        Language::Python => ("python3", "heap.py", include_str!("../programs/heap.py")),
    };
    let file = stage.journal.dir().join(name);
    fs::write(&file, source)?;
    let mut command = Command::new(interpreter);
    command.arg(file).arg(state).arg((size.0 >> 20).to_string());
    start(stage, &mut command, None)
}

/// Builds the lab's C program on musl and starts it with `size` of buffers, of which it frees nearly all; its pid and what
/// it says.
pub fn buffers_on_musl(stage: &mut Stage, size: Bytes) -> Result<(i32, Value)> {
    let (source, program) = (stage.journal.dir().join("buffers.c"), stage.journal.dir().join("buffers"));
    fs::write(&source, include_str!("../programs/buffers.c"))?;
    let built = Command::new("musl-gcc").arg("-O1").arg("-o").arg(&program).arg(source).output()?;
    ensure!(built.status.success(), "musl-gcc: {}", String::from_utf8_lossy(&built.stderr));
    start(stage, Command::new(program).arg((size.0 / 1_000_000).to_string()), None)
}

/// A redis-server on a socket of its own with `keys` keys of 200 bytes, after `script` (Lua) ran in it; its pid. `options`
/// are jemalloc's.
pub fn redis(stage: &mut Stage, keys: u32, options: &str, script: &str) -> Result<i32> {
    let socket = stage.journal.dir().join("redis");
    let mut server = Command::new("redis-server");
    server.args(["--port", "0", "--save", "", "--logfile", "/dev/null", "--enable-debug-command", "yes"]);
    server.arg("--unixsocket").arg(&socket).arg("--dir").arg(stage.journal.dir()).env("MALLOC_CONF", options);
    let pid = stage.cast(Actor::program(&mut server)?);
    let cli = |command: &[&str]| -> Result<bool> {
        let output = Command::new("redis-cli").arg("-s").arg(&socket).args(command).output()?;
        Ok(output.status.success() && !output.stdout.starts_with(b"ERR"))
    };
    // Of its being ready it tells nobody.
    let is_there = (0..400).any(|_| {
        std::thread::sleep(Duration::from_millis(25));
        cli(&["ping"]).unwrap_or(false)
    });
    ensure!(is_there, "redis-server does not answer");
    ensure!(cli(&["debug", "populate", &keys.to_string(), "key", "200"])?, "redis: debug populate");
    ensure!(cli(&["eval", script, "0"])?, "redis: {script}");
    Ok(pid)
}

/// Starts `command` from inside the group, which it inherits, so that all it ever uses is charged there.
fn start(
    stage: &mut Stage,
    command: &mut Command,
    group: Option<(&Hierarchy, &Group)>,
) -> Result<(i32, Value)> {
    command.stderr(Stdio::inherit());
    let home = group.map(|(hierarchy, group)| hierarchy.home().and_then(|home| group.enter().map(|()| home)));
    let home = home.transpose()?;
    let actor = Actor::program(command);
    home.map_or(Ok(()), |home| home.enter())?;
    let mut actor = actor?;
    let said = actor.hear()?;
    Ok((stage.cast(actor), said))
}
