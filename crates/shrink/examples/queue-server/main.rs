//! A queue server that speaks Redis' protocol and gives memory back under pressure: how a real service uses this library.
//!
//! The tree that cascades: `server.vhosts[*].queues[*]` with `ready`, `unacked` and `segments`, and `server.buffers`, are
//! shared, behind locks, and shrunk by one task ([`pressure`]); what a connection has for itself is shrunk by its own
//! task ([`connection`]).
//!
//!     cargo run --release -p ebbtide-shrink --example queue-server -- --port 6399
//!     redis-cli -p 6399 lpush jobs hello

mod budget;
mod commands;
mod connection;
mod info;
mod options;
mod pressure;
mod queue;
mod resp;
mod segment;
mod server;
mod session;
mod vhost;

use crate::options::Options;
use crate::server::Server;
use clap::Parser;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};

/// glibc's malloc_trim holds the locks of its arenas while it gives back: with 500 MiB to return, clients had 44 to 89% of
/// their throughput meanwhile; with this allocator more than 90%.
#[global_allocator]
static HEAP: ebbtide_malloc::Ebbtide = ebbtide_malloc::Ebbtide;

fn main() -> ExitCode {
    let options = Options::parse();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(options.threads.into()).enable_all().build();
    match runtime.and_then(|runtime| runtime.block_on(run(options))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("queue-server: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> io::Result<()> {
    if let Some(dir) = &options.overflow {
        // Whether files can be made there is better known now.
        tempfile::tempfile_in(dir)?;
    }
    let listener = TcpListener::bind(("127.0.0.1", options.port)).await?;
    let server = Arc::new(Server::new(options));
    let source = pressure::start(&server)?;
    // Tests and service managers wait for this line; that nobody reads it is no reason to end.
    let _ = writeln!(io::stdout(), "@ready {} memory pressure by {source}", listener.local_addr()?);
    tokio::spawn(sweep(Arc::clone(&server)));
    loop {
        match listener.accept().await {
            Ok((socket, _)) => admit(&server, socket),
            Err(error) => {
                // No descriptor left, most likely: others close theirs.
                eprintln!("queue-server: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Buffers that nobody used for a minute go, pressure or not.
async fn sweep(server: Arc<Server>) {
    let mut timer = tokio::time::interval(Duration::from_secs(30));
    loop {
        timer.tick().await;
        server.buffers.sweep();
    }
}

/// Serves a client on a task of its own, unless there are too many.
fn admit(server: &Arc<Server>, socket: TcpStream) {
    let counts = &server.counts;
    counts.connections.fetch_add(1, Ordering::Relaxed);
    if counts.clients.fetch_add(1, Ordering::Relaxed) >= u64::from(server.options.clients) {
        counts.clients.fetch_sub(1, Ordering::Relaxed);
        counts.refused.fetch_add(1, Ordering::Relaxed);
        let _ = socket.try_write(b"-ERR max number of clients reached\r\n");
        return;
    }
    // Small replies go at once. A refusal only costs latency.
    let _ = socket.set_nodelay(true);
    let server = Arc::clone(server);
    tokio::spawn(async move {
        connection::serve(Arc::clone(&server), socket).await;
        server.counts.clients.fetch_sub(1, Ordering::Relaxed);
    });
}
