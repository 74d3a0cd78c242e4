//! What the library costs without pressure: the same requests to one server on two connections in turn, one whose owner is
//! a member of the registry and polls, and one without. In blocks of a millisecond or so, so that whatever else slows
//! the machine down meets both; a server of each kind would not do, as two of one kind differ by several percent for as
//! long as they run: where their memory lies.
//!
//! Invariants: of two neighbouring pairs of blocks one begins with the member, the other without; connections are made
//! anew now and then, as they differ, too.

use super::Server;
use super::link::{Link, Turn};
use anyhow::Result;
use std::time::{Duration, Instant};

/// How often a block pushes and pops.
const BLOCK: usize = 25;
/// Blocks on a connection.
const BLOCKS: usize = 40;

const QUEUE: &str = "cost";

/// By how many percent something is more with the library: the median, and that median's standard error.
#[derive(Clone, Copy)]
pub(super) struct More {
    pub(super) percent: f64,
    pub(super) error: f64,
}

impl More {
    fn of(mut ratios: Vec<f64>) -> More {
        ratios.sort_by(f64::total_cmp);
        let at = |rank: f64| ratios.get(rank as usize).copied().unwrap_or(f64::NAN);
        let (count, percent) = (ratios.len() as f64, |ratio: f64| (ratio - 1.0) * 100.0);
        // The ranks between which the true median lies in two of three cases (binomial, as a normal).
        let spread = count.sqrt() / 2.0;
        let error = (at(count / 2.0 + spread) - at(count / 2.0 - spread)) * 50.0;
        More { percent: percent(at(count / 2.0)), error }
    }
}

impl std::fmt::Display for More {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:+.2}% (+-{:.2})", self.percent, self.error)
    }
}

/// Time from the first request of a block to its last reply, and the server's processor time for it: of that the
/// throughput of a busy server is made, and it has what comes after a reply, too.
pub(super) fn cost(server: &Server, depth: usize, long: Duration) -> Result<(More, More)> {
    let end = Instant::now() + long;
    let mut control = Link::new(&server.port, QUEUE, 1)?;
    let (mut times, mut processor) = (Vec::new(), Vec::new());
    while Instant::now() < end {
        control.set("on")?;
        let with = Link::new(&server.port, QUEUE, depth)?;
        control.set("off")?;
        let mut links = [with, Link::new(&server.port, QUEUE, depth)?];
        for link in &mut links {
            block(link, server)?;
        }
        for pair in 0..BLOCKS {
            let mut took = [(0.0, 0.0); 2];
            for n in [pair, pair + 1] {
                took[n % 2] = block(&mut links[n % 2], server)?;
            }
            times.push(took[0].0 / took[1].0);
            processor.push(took[0].1 / took[1].1);
        }
    }
    Ok((More::of(times), More::of(processor)))
}

fn block(link: &mut Link, server: &Server) -> Result<(f64, f64)> {
    let (busy, began) = (server.cpu()?, Instant::now());
    for turn in [Turn::BOTH; BLOCK].into_iter().flatten() {
        link.take(turn)?;
    }
    Ok((began.elapsed().as_secs_f64(), server.cpu()? - busy))
}
