//! Whose memory Lua states live in: LuaJIT's own allocator, a malloc behind a lua_Alloc of a few lines
//! (`benches/lua/state.c`), or this project's hook.

use super::sources;
use crate::workspace::{build_release, run as run_command, target_dir};
use anyhow::Result;
use std::path::{Path, PathBuf};
use std::process::Command;

/// An allocator under LuaJIT: its name, and what to preload.
#[derive(Debug, Clone)]
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    libraries: Vec<PathBuf>,
}

/// LuaJIT's own allocator.
pub(crate) const BUILT_IN: &str = "built-in";
/// This project's.
pub(crate) const OURS: &str = "ebbtide";

impl Contender {
    /// Gives `command` this allocator.
    pub(crate) fn apply(&self, command: &mut Command) {
        if !self.libraries.is_empty() {
            let list: Vec<_> = self.libraries.iter().map(|path| path.display().to_string()).collect();
            command.env("LD_PRELOAD", list.join(":"));
        }
    }
}

/// The built-in one first, this project's last.
pub(crate) fn all() -> Result<Vec<Contender>> {
    let shim = target_dir("bench-lua")?.join("state.so");
    let mut compiler = Command::new("gcc");
    compiler.args(["-O2", "-shared", "-fPIC", "-o"]).arg(&shim).arg(sources().join("state.c"));
    run_command(&mut compiler)?;
    let mut all = pair()?;
    let ours = all.pop();
    all.push(Contender { name: "glibc", libraries: vec![shim.clone()] });
    for (name, library) in [("jemalloc", "libjemalloc.so.2"), ("mimalloc", "libmimalloc.so.2.0")] {
        let library = Path::new("/usr/lib/x86_64-linux-gnu").join(library);
        if library.exists() {
            all.push(Contender { name, libraries: vec![shim.clone(), library] });
        } else {
            println!("skipped: {name} is not installed");
        }
    }
    all.extend(ours);
    Ok(all)
}

/// The built-in one and this project's.
pub(crate) fn pair() -> Result<Vec<Contender>> {
    let ours = build_release(&["ebbtide-malloc-preload"])?.join("libebbtide_malloc_preload.so");
    Ok(vec![
        Contender { name: BUILT_IN, libraries: Vec::new() },
        Contender { name: OURS, libraries: vec![ours] },
    ])
}
