//! The Pythons that tests run: this machine's, and those of other Debian releases where `cargo xtask test` has unpacked
//! them under target/vm, which are started by their own release's loader.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Releases and their Pythons that are unpacked.
const UNPACKED: [(&str, &str); 3] =
    [("bullseye", "python3.9"), ("trixie", "python3.13"), ("forky", "python3.14")];

/// A Python, and how to start it.
pub struct Python {
    program: PathBuf,
    /// Where it was unpacked, if it was not installed.
    tree: Option<PathBuf>,
}

impl Python {
    /// All there are: the system's, pyenv's, and those unpacked. Says aloud which are not.
    pub fn all() -> Vec<Python> {
        let mut programs: Vec<PathBuf> =
            ["/usr/bin/python3", "/usr/local/bin/python3"].map(PathBuf::from).into();
        let home = std::env::var_os("HOME").unwrap_or_default();
        let versions = std::fs::read_dir(PathBuf::from(home).join(".pyenv/versions"));
        programs
            .extend(versions.into_iter().flatten().flatten().map(|entry| entry.path().join("bin/python3")));
        let mut found: Vec<_> = programs.into_iter().map(|program| Python { program, tree: None }).collect();
        // target/PROFILE/deps/THIS
        let exe = std::env::current_exe().unwrap_or_default();
        let unpacked = exe.ancestors().nth(3).map(|target| target.join("vm")).unwrap_or_default();
        for (suite, name) in UNPACKED {
            let tree = unpacked.join(suite).join(format!("{name}-minimal"));
            let program = tree.join("usr/bin").join(name);
            if !program.exists() {
                println!("skipped: {name} of {suite} is not unpacked, which cargo xtask test does");
            }
            found.push(Python { program, tree: Some(tree) });
        }
        found.retain(|python| python.program.exists());
        found
    }

    /// One of `version` ("3.14"), with what it says it is.
    pub fn of(version: (u32, u32)) -> Option<(Python, String)> {
        let mut versions =
            Python::all().into_iter().filter_map(|python| python.version().map(|found| (python, found)));
        versions.find(|(_, (number, _))| *number == version).map(|(python, (_, text))| (python, text))
    }

    /// Where it is.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Starts it.
    ///
    /// # Panics
    ///
    /// If it was unpacked without its loader.
    #[allow(clippy::expect_used)]
    pub fn command(&self) -> Command {
        let Some(tree) = &self.tree else { return Command::new(&self.program) };
        let dirs = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu"].map(|dir| tree.join(dir));
        let files = dirs.iter().filter_map(|dir| std::fs::read_dir(dir).ok()).flatten().flatten();
        let is_loader = |entry: &std::fs::DirEntry| {
            entry.file_type().is_ok_and(|kind| kind.is_file())
                && entry.file_name().to_string_lossy().starts_with("ld-")
        };
        let loader = files.into_iter().find(is_loader).expect("a loader in the tree").path();
        let mut command = Command::new(loader);
        let libraries = std::env::join_paths(dirs).expect("a target directory without a colon");
        command.arg("--library-path").arg(libraries).arg(&self.program);
        command.env("PYTHONHOME", tree.join("usr"));
        command
    }

    /// Its version as numbers, and as it says it.
    pub fn version(&self) -> Option<((u32, u32), String)> {
        let say = "import sys; print(*sys.version_info[:2], sys.version.split()[0])";
        let output = self.command().args(["-c", say]).output().ok()?;
        let said = String::from_utf8(output.stdout).ok()?;
        let mut words = said.split_whitespace();
        let number = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
        Some((number, words.next()?.to_owned()))
    }
}
