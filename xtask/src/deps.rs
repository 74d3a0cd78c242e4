//! What the tests and benches need from the machine beyond a Rust toolchain. Invariant: nothing is installed
//! unless it is missing, and without root nothing is changed: the command to run is printed instead.

use crate::workspace::{run, which};
use anyhow::Result;
use std::process::Command;

/// A Debian package that a command here needs.
pub(crate) struct Package {
    name: &'static str,
    /// A program or file of it, by which its presence is judged.
    shown_by: &'static str,
    why: &'static str,
}

pub(crate) const fn package(name: &'static str, shown_by: &'static str, why: &'static str) -> Package {
    Package { name, shown_by, why }
}

/// For the tests of the workspace and the lab.
pub(crate) const TEST: &[Package] = &[
    package("redis-server", "redis-server", "ebb fork is tested against a real BGSAVE"),
    package("redis-tools", "redis-cli", "drives redis-server and the queue server"),
    package("gcc", "gcc", "test programs in C"),
    package("libc6-dev", "/usr/include/stdio.h", "test programs in C"),
    package("musl-tools", "musl-gcc", "programs on musl, whose heap is walked"),
    package("g++", "g++", "test programs in C++ under the preloaded malloc"),
    package("binutils", "nm", "looks into the preload library"),
    package("default-jdk-headless", "java", "a JVM for the lab, and under the preloaded malloc"),
    package("nodejs", "node", "Node.js for the lab, and under the preloaded malloc"),
    package("python3", "python3", "runs under the preloaded malloc"),
    package(
        "libpython3.11-testsuite",
        "/usr/lib/python3.11/test/test_gc.py",
        "CPython's own tests run under the preloaded malloc",
    ),
    package("ruby", "ruby", "runs under the preloaded malloc"),
    package("php-cli", "php", "runs under the preloaded malloc"),
    package("fzf", "fzf", "a program in Go, whose heap is recognised"),
    package("perl", "perl", "runs under the preloaded malloc"),
    package("git", "git", "runs under the preloaded malloc"),
    package("sqlite3", "sqlite3", "runs under the preloaded malloc"),
    package("nginx-light", "nginx", "runs under the preloaded malloc"),
    package("luajit2", "luajit", "a Lua program whose heap is walked; brings OpenResty's LuaJIT"),
    package(
        "libtcmalloc-minimal4",
        "/usr/share/doc/libtcmalloc-minimal4/copyright",
        "gperftools' tcmalloc, whose heap is walked",
    ),
    package(
        "libgoogle-perftools4",
        "/usr/share/doc/libgoogle-perftools4/copyright",
        "the same with its profilers",
    ),
    package(
        "libnginx-mod-http-lua",
        "/usr/share/nginx/modules-available/mod-http-lua.conf",
        "nginx with Lua states",
    ),
    package(
        "libmimalloc2.0",
        "/usr/lib/x86_64-linux-gnu/libmimalloc.so.2.0",
        "a program under mimalloc, whose heap is walked",
    ),
    package(
        "libjemalloc2",
        "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2",
        "programs under jemalloc, whose heap is walked",
    ),
    package(
        "libjemalloc-dev",
        "/usr/lib/x86_64-linux-gnu/libjemalloc_pic.a",
        "programs with jemalloc inside",
    ),
    package("postgresql", "/usr/lib/postgresql", "runs under the preloaded malloc"),
    package("stress-ng", "stress-ng", "its malloc stressors run under the preloaded malloc"),
];

/// For the virtual machine.
pub(crate) const VM: &[Package] = &[
    package("qemu-system-x86", "qemu-system-x86_64", "runs the virtual machine"),
    package("busybox-static", "busybox", "the virtual machine's init and shell"),
    package("kmod", "modprobe", "knows the order in which kernel modules load"),
    package("xz-utils", "xz", "Debian 13 packs its kernel modules"),
    package("make", "make", "builds the lab's kernel module"),
    package("gcc-12", "gcc-12", "builds the lab's kernel module, as it built Debian 12's kernel"),
    package("util-linux", "setpriv", "ends the virtual machine when its starter is killed"),
];

/// For the benches.
pub(crate) const BENCH: &[Package] = &[
    package("redis-tools", "redis-benchmark", "fills and drains the queue server"),
    package("smem", "smem", "a peer of ebb ps"),
    package("gdb", "gdb", "how memory is taken back from a process today"),
    package("python3-pip", "pip3", "brings ps_mem, another peer, from PyPI"),
    package("util-linux", "setpriv", "ends the sleeping processes when their starter is killed"),
];

/// The names of the packages of `tables` that are missing here.
pub(crate) fn missing(tables: &[&'static [Package]]) -> Vec<&'static str> {
    lacking(tables).map(|package| package.name).collect()
}

fn lacking(tables: &[&'static [Package]]) -> impl Iterator<Item = &'static Package> {
    tables.iter().flat_map(|table| table.iter()).filter(|package| which(package.shown_by).is_none())
}

/// Installs what is missing of `tables` when root on a machine with apt-get; else says what is missing and
/// which command installs it. Returns the names of the packages still missing.
pub(crate) fn provide(tables: &[&'static [Package]]) -> Result<Vec<&'static str>> {
    let wanted = missing(tables);
    if wanted.is_empty() {
        return Ok(wanted);
    }
    for package in lacking(tables) {
        println!("missing: {:<18} {}", package.name, package.why);
    }
    if !rustix::process::geteuid().is_root() || which("apt-get").is_none() {
        println!(
            "install with: apt-get update && apt-get install --no-install-recommends {}",
            wanted.join(" ")
        );
        return Ok(wanted);
    }
    install(&wanted)?;
    Ok(missing(tables))
}

fn install(packages: &[&str]) -> Result<()> {
    let apt_get = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive").args(["--quiet", "--quiet"]);
        command
    };
    // Package lists of other, unreachable sources may fail to update without harm to this one.
    if let Err(error) = run(apt_get().arg("update")) {
        println!("{error}; trying to install all the same");
    }
    run(apt_get().args(["install", "--yes", "--no-install-recommends"]).args(packages))
}
