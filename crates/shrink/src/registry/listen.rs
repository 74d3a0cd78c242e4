//! The thread that waits for pressure and rings: nothing else, so that no event waits for a cascade.
//!
//! Invariant: it keeps the registry alive only while it rings, and ends when the registry is gone.

use crate::park;
use crate::registry::Shared;
use ebbtide_pressure::{Change, Level, Pressure};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Weak;
use std::task::{Context, Poll};
use std::thread::{self, Thread};

pub(crate) fn start(pressure: Pressure, registry: Weak<Shared>) -> io::Result<Thread> {
    let listen = move || listen(&pressure, &registry);
    let spawned = thread::Builder::new().name("shrink-listen".into()).spawn(listen);
    spawned.map(|handle| handle.thread().clone())
}

/// Whether owners are to give back. That the level is still low is no reason to: a container whose page cache fills its
/// limit is told so for as long as it runs, and has nothing more to give than at the onset.
fn rings(change: Change, level: Level) -> bool {
    match change {
        Change::Onset | Change::Rise => true,
        Change::Still => level > Level::Low,
        Change::Fall | Change::Release => false,
    }
}

fn listen(pressure: &Pressure, registry: &Weak<Shared>) {
    let waker = park::waker();
    let mut context = Context::from_waker(&waker);
    let mut next = pressure.next();
    // Parking ends also when the registry is gone.
    while registry.strong_count() > 0 {
        // The same one until it is ready: one that is dropped wakes nobody.
        let Poll::Ready(event) = Pin::new(&mut next).poll(&mut context) else {
            thread::park();
            continue;
        };
        next = pressure.next();
        if rings(event.change(), event.level)
            && let Some(registry) = registry.upgrade()
        {
            registry.flag();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rings_at_each_call_but_the_reminders_of_a_low_level() {
        use Level::{Critical, Low, Medium};
        for level in [Low, Medium, Critical] {
            assert!(rings(Change::Onset, level), "{level}");
            assert!(!rings(Change::Fall, level), "{level}");
        }
        assert!(rings(Change::Rise, Medium) && rings(Change::Rise, Critical));
        assert_eq!([Low, Medium, Critical].map(|level| rings(Change::Still, level)), [false, true, true]);
        assert!(!rings(Change::Release, Level::None));
    }
}
