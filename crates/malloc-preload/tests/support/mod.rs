//! For the preload library's tests: finds the library, compiles C programs, runs commands with and without it.
#![allow(dead_code, reason = "each test program uses a part")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The library as it is released. Cargo builds no cdylib for its package's tests, so this does, once.
pub(crate) fn library() -> PathBuf {
    static BUILT: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let build = || {
        let exe = std::env::current_exe().unwrap();
        // target/PROFILE/deps/THIS
        let target = exe.ancestors().nth(3).unwrap();
        let status = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(["build", "--quiet", "--release", "--package", "ebbtide-malloc-preload", "--target-dir"])
            .arg(target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .unwrap();
        assert!(status.success(), "the library does not build");
        target.join("release/libebbtide_malloc_preload.so")
    };
    BUILT.get_or_init(build).clone()
}

/// Whether a program is on the path; says that the test is skipped if not.
pub(crate) fn have(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).any(|dir| dir.join(program).exists());
    if !found {
        println!("skipped: {program} is not installed");
    }
    found
}

/// Whether the library defines a function for programs to find instead of the one they mean; says that the test is
/// skipped if not.
pub(crate) fn defines(function: &str) -> bool {
    if !have("nm") {
        return false;
    }
    let symbols = succeed(Command::new("nm").args(["-D", "--defined-only"]).arg(library()));
    let found = symbols.lines().any(|line| line.ends_with(&format!(" {function}")));
    if !found {
        println!("skipped: the library does not define {function}");
    }
    found
}

/// Compiles `tests/c/NAME` and returns the program; `None`, said aloud, without a compiler.
pub(crate) fn compile(name: &str, flags: &[&str]) -> Option<(tempfile::TempDir, PathBuf)> {
    let compiler = if name.ends_with(".cc") { "g++" } else { "gcc" };
    if !have(compiler) {
        return None;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("program");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/c").join(name);
    let status = Command::new(compiler)
        .args(["-O1", "-g", "-pthread", "-w", "-fno-builtin", "-o"])
        .arg(&program)
        .arg(source)
        .args(flags)
        .status()
        .unwrap();
    assert!(status.success(), "{name} does not compile");
    Some((dir, program))
}

/// A command under the library, its invariants checked now and then.
pub(crate) fn under(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.env("LD_PRELOAD", library());
    if std::env::var_os("EBBTIDE_MALLOC_CHECK").is_none() {
        command.env("EBBTIDE_MALLOC_CHECK", "1");
    }
    command
}

/// Standard output of a command that must succeed.
pub(crate) fn succeed(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(output.status.success(), "{command:?}: {}\n{}", output.status, text(&output));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Both streams of an output.
pub(crate) fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Runs a program with arguments twice, without and with the library: the output must be the same.
pub(crate) fn same(program: &str, args: &[&str]) {
    if !have(program) {
        return;
    }
    let plain = succeed(Command::new(program).args(args));
    for level in ["0", "1", "2"] {
        let ours = succeed(under(program).args(args).env("EBBTIDE_MALLOC_CHECK", level));
        assert_eq!(plain, ours, "{program} {args:?} at check level {level}");
    }
}
