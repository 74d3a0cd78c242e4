//! What happens under memory pressure, in three ways: by the library, not at all, and as one would without a library.

use crate::options::Mode;
use crate::server::Server;
use ebbtide_pressure::{Options, Pressure};
use ebbtide_shrink::Turn;
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// Starts what `--shrink` says; the words are for the log.
pub(crate) fn start(server: &Arc<Server>) -> io::Result<String> {
    if server.options.shrink == Mode::Off {
        return Ok("nothing".into());
    }
    let pressure = Pressure::open(Options::new())?;
    let source = pressure.source().to_string();
    let server = Arc::clone(server);
    if server.options.shrink == Mode::On {
        server.registry.connect(pressure)?;
        tokio::spawn(cascade(server));
    } else {
        tokio::spawn(naive(server, pressure));
    }
    Ok(source)
}

/// Shrinks what is shared: at most a fifth of one thread's time, so that clients hardly notice.
async fn cascade(mut server: Arc<Server>) {
    let mut member = server.registry.member("server");
    loop {
        member.flagged().await;
        let began = Instant::now();
        if let Turn::Done(report) = member.poll(&mut server) {
            eprintln!(
                "gave back {} in {} slices, the longest {:?}",
                report.returned, report.slices, report.longest_slice
            );
        }
        tokio::time::sleep(4 * began.elapsed().min(Duration::from_millis(5))).await;
    }
}

/// Stops the world, as `shrink_to_fit` in a pressure handler does.
async fn naive(server: Arc<Server>, pressure: Pressure) {
    loop {
        if !pressure.next().await.is_call() {
            continue;
        }
        let locks = server.vhosts.iter().map(|vhost| vhost.lock().unwrap_or_else(PoisonError::into_inner));
        let mut vhosts: Vec<_> = locks.collect();
        for vhost in &mut vhosts {
            vhost.queues.values_mut().for_each(|queue| queue.shrink_to_fit());
            vhost.queues.shrink_to_fit();
        }
        server.buffers.sweep();
        ebbtide_malloc::trim();
    }
}
