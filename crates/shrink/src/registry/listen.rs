//! The thread that waits for pressure and rings: nothing else, so that no event waits for a cascade.
//!
//! Invariant: it keeps the registry alive only while it rings, and ends when the registry is gone.

use crate::park;
use crate::registry::Shared;
use ebbtide_pressure::Pressure;
use std::io;
use std::pin::pin;
use std::sync::Weak;
use std::task::{Context, Poll};
use std::thread::{self, Thread};

pub(crate) fn start(pressure: Pressure, registry: Weak<Shared>) -> io::Result<Thread> {
    let listen = move || listen(&pressure, &registry);
    let spawned = thread::Builder::new().name("shrink-listen".into()).spawn(listen);
    spawned.map(|handle| handle.thread().clone())
}

fn listen(pressure: &Pressure, registry: &Weak<Shared>) {
    let waker = park::waker();
    let mut context = Context::from_waker(&waker);
    // A pending future that is dropped loses no event; parking ends also when the registry is gone.
    while registry.strong_count() > 0 {
        match pin!(pressure.next()).poll(&mut context) {
            Poll::Ready(event) if event.is_call() => {
                if let Some(registry) = registry.upgrade() {
                    registry.flag();
                }
            }
            Poll::Ready(_) => {}
            Poll::Pending => thread::park(),
        }
    }
}
