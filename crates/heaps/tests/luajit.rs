//! The LuaJIT walker against the truth: the collector's own count, the mappings, and pages dropped under states that
//! then check what they hold. On Debian's LuaJIT and on OpenResty's branch, which cannot be installed side by side:
//! the one that is not is unpacked from its package. On luajit itself (whose LuaJIT is in the program), on a C program
//! with many states, and on nginx with the Lua module.

use ebbtide_heaps::{Arena, Heap, Live, MemorySource, luajit};
use ebbtide_observe::process::Process;
use ebbtide_observe::{Bytes, Root};
use ebbtide_testkit::child::{self, Child};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;

/// What may come between predicted and measured: the program's own few pages.
const SLACK: u64 = 256 << 10;

/// One of Debian's packages with LuaJIT.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Flavour {
    library: &'static str,
    program: &'static str,
    is_openresty: bool,
}

const PLAIN: Flavour = Flavour { library: "libluajit-5.1-2", program: "luajit", is_openresty: false };
const OPENRESTY: Flavour = Flavour { library: "libluajit2-5.1-2", program: "luajit2", is_openresty: true };

impl Flavour {
    /// The directory that its packages were unpacked in.
    fn tree(self) -> Option<PathBuf> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let tree = Path::new(env!("CARGO_TARGET_TMPDIR")).join(self.program);
        if !tree.join("done").exists() {
            std::fs::create_dir_all(&tree).unwrap();
            let quiet = |program: &str| {
                let mut command = Command::new(program);
                command.current_dir(&tree).stdout(Stdio::null()).stderr(Stdio::null());
                command
            };
            let got = quiet("apt-get").args(["download", self.library, self.program]).status();
            if !got.is_ok_and(|status| status.success()) {
                println!("skipped: {}: `apt-get download` could not bring it", self.library);
                return None;
            }
            for package in std::fs::read_dir(&tree).unwrap().flatten() {
                if package.path().extension().is_some_and(|kind| kind == "deb") {
                    assert!(quiet("dpkg").arg("-x").arg(package.path()).arg(".").status().unwrap().success());
                }
            }
            std::fs::write(tree.join("done"), "").unwrap();
        }
        Some(tree)
    }

    fn library(self) -> Option<PathBuf> {
        Some(self.tree()?.join("usr/lib/x86_64-linux-gnu/libluajit-5.1.so.2"))
    }
}

/// Builds the C program.
fn program() -> PathBuf {
    static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
    let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("luahost");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/programs/luahost.c");
    let age = |path: &Path| path.metadata().and_then(|meta| meta.modified()).ok();
    if age(&program) <= age(&source) {
        let arguments = ["-O1", "-Wall", "-Werror", "-pthread", "-o"];
        let status = Command::new("gcc").args(arguments).arg(&program).arg(&source).status().expect("gcc");
        assert!(status.success());
    }
    program
}

/// The C program with some states.
struct Host(Child);

impl Host {
    fn start(flavour: Flavour, states: usize) -> Option<Host> {
        let library = flavour.library()?;
        Some(Host(Child::spawn(Command::new(program()).arg(library).arg(states.to_string()))))
    }

    fn run(&mut self, state: usize, code: &str) -> String {
        self.0.ask(&format!("run {state} {}", code.replace('\n', " "))).to_owned()
    }

    /// What the collector of `state` counts. To ask allocates: the second time it does not.
    fn count(&mut self, state: usize) -> u64 {
        let code = "return string.format('%d', collectgarbage('count') * 1024)";
        self.run(state, code);
        self.run(state, code).parse().unwrap()
    }

    fn heap(&self) -> Option<Heap> {
        look(self.0.pid())
    }
}

/// The LuaJIT heap of process `pid`, which waits for its parent and so stands still.
fn look(pid: u32) -> Option<Heap> {
    let process = Process::open(&Root::live().unwrap(), pid).unwrap();
    let live = Live::new(&process, true).unwrap();
    let mut heaps = luajit::find_with_ranges(&live).unwrap();
    assert!(heaps.len() <= 1, "{heaps:#?}");
    heaps.pop().inspect(|heap| sound(heap, &live))
}

fn main_of(heap: &Heap) -> &Arena {
    &heap.arenas[0]
}

fn sound(heap: &Heap, live: &Live<'_>) {
    let _ = (heap, live);
}

#[test]
fn dump() {
    for flavour in [PLAIN, OPENRESTY] {
        let Some(mut host) = Host::start(flavour, 2) else { continue };
        let count = host.count(0);
        let heap = host.heap().unwrap();
        println!("{count} {heap:#x?}");
        let _ = main_of(&heap);
    }
}
