//! The locks on shuttle's model of threads: thousands of interleavings of what the real ones do.
//!
//! `lock` and `asym` are compiled here against this file's `sync`. Shuttle's atomics are sequentially consistent,
//! so what is checked is the protocol; that the processor keeps to the order the protocol needs is membarrier's
//! part (see `asym`).
#![allow(unsafe_code, dead_code, reason = "the modules under test are used in part")]
#![allow(unreachable_pub)]

#[path = "../src/asym.rs"]
mod asym;
#[path = "../src/lock.rs"]
mod lock;

mod sync {
    pub(crate) use shuttle::sync::atomic::{AtomicU32, Ordering};

    pub(crate) fn spin() {
        shuttle::thread::yield_now();
    }

    /// A futex may always return early; the model's always does.
    pub(crate) fn wait(_: &AtomicU32, _: u32) {
        shuttle::thread::yield_now();
    }

    pub(crate) fn wake_one(_: &AtomicU32) {}

    pub(crate) fn wake_all(_: &AtomicU32) {}

    pub(crate) fn barrier_everywhere() -> bool {
        shuttle::thread::yield_now();
        true
    }

    pub(crate) fn light_barrier() {}
}

use shuttle::sync::Arc;
use shuttle::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use shuttle::thread;

#[test]
fn one_holder_at_a_time() {
    shuttle::check_random(
        || {
            let shared = Arc::new((lock::Mutex::new(0_u32), AtomicU32::new(0)));
            let threads: Vec<_> = (0..3)
                .map(|_| {
                    let shared = Arc::clone(&shared);
                    thread::spawn(move || {
                        for _ in 0..3 {
                            let mut n = shared.0.lock();
                            assert_eq!(shared.1.fetch_add(1, Ordering::SeqCst), 0, "two inside");
                            *n += 1;
                            thread::yield_now();
                            shared.1.fetch_sub(1, Ordering::SeqCst);
                        }
                    })
                })
                .collect();
            threads.into_iter().for_each(|t| t.join().expect("holds"));
            assert_eq!(*shared.0.lock(), 9);
        },
        3000,
    );
}

/// An owner that works on its magazine, and a drainer that empties it now and then: every item is taken once.
#[test]
fn a_drainer_never_meets_the_owner() {
    shuttle::check_random(
        || {
            let shared = Arc::new((asym::Asym::new(), AtomicBool::new(false), AtomicU32::new(0)));
            let inside = |s: &(asym::Asym, AtomicBool, AtomicU32), add: u32| {
                assert!(!s.1.swap(true, Ordering::SeqCst), "two inside");
                // Not atomic as a whole: it is only right if nobody else is inside.
                let n = s.2.load(Ordering::SeqCst);
                thread::yield_now();
                s.2.store(n + add, Ordering::SeqCst);
                s.1.store(false, Ordering::SeqCst);
            };
            let owner = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    for _ in 0..5 {
                        if !shared.0.enter() {
                            shared.0.enter_slowly();
                        }
                        inside(&shared, 1);
                        shared.0.leave();
                    }
                })
            };
            let mut drained = 0;
            for _ in 0..3 {
                shared.0.shut();
                if sync::barrier_everywhere() && shared.0.is_closed() {
                    inside(&shared, 100);
                    drained += 1;
                }
                shared.0.open();
                thread::yield_now();
            }
            owner.join().expect("ends");
            assert_eq!(shared.2.load(Ordering::SeqCst), 5 + 100 * drained);
        },
        5000,
    );
}

/// Without the check for the owner the model must find the collision: the test above can fail.
#[test]
#[should_panic(expected = "two inside")]
fn the_model_sees_a_drainer_that_does_not_look() {
    shuttle::check_random(
        || {
            let shared = Arc::new((asym::Asym::new(), AtomicBool::new(false)));
            let inside = |s: &(asym::Asym, AtomicBool)| {
                assert!(!s.1.swap(true, Ordering::SeqCst), "two inside");
                thread::yield_now();
                s.1.store(false, Ordering::SeqCst);
            };
            let owner = {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    shared.0.enter_slowly();
                    inside(&shared);
                    shared.0.leave();
                })
            };
            shared.0.shut();
            inside(&shared);
            shared.0.open();
            owner.join().expect("ends");
        },
        5000,
    );
}
