//! `cargo xtask bench lua`: LuaJIT on this project's allocator, on its own, and on those that people put under it, all
//! in one run: what nginx's workers hold over time (`returns`), how fast they answer (`requests`), and how fast Lua
//! programs are (`programs`). What is run is in `benches/lua`; nginx and LuaJIT are Debian's.
//!
//! Invariants: no figure without its peers' from the same run; a peer that is not installed is named and left out,
//! never guessed; Lua states are on the allocator whose name they bear.

mod contender;
mod programs;
mod requests;
mod returns;

use crate::deps::{self, Package};
use crate::workspace::root;
use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;

#[derive(clap::Args)]
pub(crate) struct Args {
    #[command(subcommand)]
    part: Part,
}

#[derive(clap::Subcommand)]
enum Part {
    /// What an nginx worker holds after bursts of requests
    Returns(returns::Args),
    /// How many requests an nginx worker answers, and how fast
    Requests(requests::Args),
    /// How fast Lua programs are
    Programs(programs::Args),
}

/// The peers, and what is run.
const NEEDED: &[Package] = &[
    deps::package("libjemalloc2", "/usr/lib/x86_64-linux-gnu/libjemalloc.so.2", "a peer"),
    deps::package("libmimalloc2.0", "/usr/lib/x86_64-linux-gnu/libmimalloc.so.2.0", "a peer"),
    deps::package(
        "libnginx-mod-http-lua",
        "/usr/lib/nginx/modules/ngx_http_lua_module.so",
        "nginx with Lua states",
    ),
    deps::package("gcc", "gcc", "compiles what puts Lua states on a peer"),
    deps::package("util-linux", "setpriv", "ends nginx when its starter is killed"),
    deps::package("wrk", "wrk", "sends requests"),
    deps::package("lua-cjson", "/usr/lib/x86_64-linux-gnu/lua/5.1/cjson.so", "JSON as services read it"),
];

pub(crate) fn run(args: &Args) -> Result<ExitCode> {
    deps::provide(&[NEEDED])?;
    match &args.part {
        Part::Returns(args) => returns::run(args),
        Part::Requests(args) => requests::run(args),
        Part::Programs(args) => programs::run(args),
    }
}

/// Where the Lua files are.
fn sources() -> PathBuf {
    root().join("benches/lua")
}

/// The middle one; NaN of none.
fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}

fn geometric_mean(figures: &[f64]) -> f64 {
    (figures.iter().map(|figure| figure.ln()).sum::<f64>() / figures.len() as f64).exp()
}
