//! What the server says of itself: INFO, and Prometheus' text.

use crate::server::Server;
use std::fmt::{self, Write};
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

/// The sum of the queues' figures.
#[derive(Default)]
struct Queues {
    queues: usize,
    ready: usize,
    unacked: usize,
    files: usize,
    /// Clients in BRPOP and BLPOP, once for each queue they wait for.
    waiting: usize,
}

fn queues(server: &Server) -> Queues {
    let mut sum = Queues::default();
    for vhost in &server.vhosts {
        let vhost = vhost.lock().unwrap_or_else(PoisonError::into_inner);
        sum.waiting += vhost.waiting();
        for queue in vhost.queues.values() {
            sum.queues += 1;
            sum.ready += queue.ready.len();
            sum.unacked += queue.unacked.len();
            sum.files += queue.files();
        }
    }
    sum
}

/// Resident bytes of this process, 0 where /proc does not say.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or(0);
    rustix::param::page_size().saturating_mul(pages)
}

fn get(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed)
}

pub(crate) fn info(server: &Server) -> String {
    let mut out = String::new();
    // Writing to a String does not fail.
    let _ = write_info(server, &mut out);
    out
}

fn write_info(server: &Server, out: &mut String) -> fmt::Result {
    let (queues, buffers, counts) = (queues(server), server.buffers.stats(), &server.counts);
    write!(out, "# Server\r\nprocess_id:{}\r\nshrink:{:?}\r\n", std::process::id(), server.options.shrink)?;
    write!(out, "# Clients\r\nconnected_clients:{}\r\n", get(&counts.clients))?;
    write!(out, "total_connections_received:{}\r\n", get(&counts.connections))?;
    write!(out, "rejected_connections:{}\r\n", get(&counts.refused))?;
    write!(out, "# Stats\r\ntotal_commands_processed:{}\r\n", get(&counts.requests))?;
    write!(out, "# Memory\r\nused_memory_rss:{}\r\n", resident())?;
    write!(out, "used_memory:{}\r\n", server.store.budget.used())?;
    write!(out, "maxmemory:{}\r\n", server.options.memory_limit)?;
    write!(out, "# Queues\r\nqueues:{}\r\nready:{}\r\n", queues.queues, queues.ready)?;
    write!(out, "unacked:{}\r\nwaiting:{}\r\n", queues.unacked, queues.waiting)?;
    write!(out, "overflow_files:{}\r\n", queues.files)?;
    write!(out, "# Buffers\r\nused:{}\r\nidle:{}\r\n", buffers.out, buffers.idle)?;
    write!(out, "idle_bytes:{}\r\n", buffers.idle_bytes.0)?;
    let report = server.registry.totals();
    write!(out, "# Shrink\r\ncascades:{}\r\nreturned:{}\r\n", report.cascades, report.returned.0)?;
    write!(out, "slices:{}\r\nbusy:{}\r\nrefused:{}\r\n", report.slices, report.busy, report.refused)?;
    write!(
        out,
        "slice_us:{}\r\nlongest_slice_us:{}\r\n",
        report.time.as_micros(),
        report.longest_slice.as_micros()
    )?;
    for spot in &report.spots {
        write!(out, "spot:{} {} {}\r\n", spot.path, spot.kind, spot.returned.0)?;
    }
    Ok(())
}

pub(crate) fn metrics(server: &Server) -> String {
    let mut out = String::new();
    let _ = write_metrics(server, &mut out);
    out
}

fn write_metrics(server: &Server, out: &mut String) -> fmt::Result {
    let queues = queues(server);
    for (name, help, value) in [
        ("queue_server_resident_bytes", "Resident memory.", resident()),
        ("queue_server_held_bytes", "Memory charged for messages and requests.", server.store.budget.used()),
        ("queue_server_queues", "Queues.", queues.queues),
        ("queue_server_ready_messages", "Messages that wait to be delivered.", queues.ready),
        ("queue_server_unacked_messages", "Messages delivered and not acknowledged.", queues.unacked),
        ("queue_server_overflow_files", "Files that hold what overflowed.", queues.files),
    ] {
        writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {value}")?;
    }
    server.registry.totals().prometheus(out)
}
