//! The registry's parts on shuttle's model of threads: thousands of interleavings of flagging, polling, sleeping and
//! tidying. `bell` and `tidy` are compiled here against this file's `sync`.
#![allow(dead_code, unreachable_pub, reason = "the modules under test are used in part")]

#[path = "../src/registry/bell.rs"]
mod bell;
#[path = "../src/registry/tidy.rs"]
mod tidy;

mod sync {
    pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    pub(crate) use shuttle::sync::{Arc, Condvar, Mutex, MutexGuard, Weak};
    pub(crate) use std::sync::PoisonError;

    /// The model has no time: a pause ends when others have had a turn.
    pub(crate) fn pause<'a, T>(
        _: &Condvar,
        mutex: &'a Mutex<T>,
        guard: MutexGuard<'a, T>,
        _: std::time::Duration,
    ) -> MutexGuard<'a, T> {
        drop(guard);
        shuttle::thread::yield_now();
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

use bell::{Bell, Sleeper};
use shuttle::sync::Arc;
use shuttle::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use shuttle::{future, thread};
use std::task::{Poll, Wake, Waker};
use std::time::Duration;
use tidy::Tidy;

const RUNS: usize = 2000;
/// For tests in which nobody waits in vain.
const PATIENT: Duration = Duration::MAX;

/// By both of shuttle's schedulers: at random, and by priorities that change at up to three places.
fn check(test: fn(), runs: usize) {
    shuttle::check_random(test, runs);
    shuttle::check_pct(test, runs, 3);
}

/// A waker that is no other's like.
struct Own(Waker);

impl Wake for Own {
    fn wake(self: std::sync::Arc<Self>) {
        self.0.wake_by_ref();
    }
}

/// What a member does until the bell rings: registers, looks again, sleeps. Each time as another task.
async fn flagged(bell: &Bell, sleeper: &mut Sleeper, seen: u64) {
    let mut waker = None;
    std::future::poll_fn(|context| {
        if bell.rung() == seen {
            let own = || std::sync::Arc::new(Own(context.waker().clone())).into();
            bell.sleep(sleeper, waker.get_or_insert_with(own));
            if bell.rung() == seen {
                return Poll::Pending;
            }
        }
        Poll::Ready(())
    })
    .await;
}

/// A thread that sleeps until it has seen two rings. Coalesced: it may wake once for both.
fn sleeper(bell: &Arc<Bell>) -> thread::JoinHandle<()> {
    let bell = Arc::clone(bell);
    thread::spawn(move || {
        let mut sleeper = Sleeper::default();
        let mut seen = 0;
        while seen < 2 {
            future::block_on(flagged(&bell, &mut sleeper, seen));
            seen = bell.rung();
        }
    })
}

fn ring(bell: &Bell, times: usize) {
    for _ in 0..times {
        bell.ring();
        bell.wake(|| {});
    }
}

fn ringer(bell: &Arc<Bell>, times: usize) -> thread::JoinHandle<()> {
    let bell = Arc::clone(bell);
    thread::spawn(move || ring(&bell, times))
}

/// A ring that came while a sleeper registered would be lost for ever: shuttle says "deadlock" then.
#[test]
fn no_ring_is_slept_through() {
    let test = || {
        let bell = Arc::new(Bell::default());
        let sleepers = [sleeper(&bell), sleeper(&bell)];
        ring(&bell, 2);
        sleepers.into_iter().for_each(|sleeper| sleeper.join().expect("woke up"));
    };
    check(test, RUNS);
}

/// Who waits again, as another task, before it was woken for the last ring, is woken for the next.
#[test]
fn a_late_wake_does_not_hide_a_sleeper_from_the_next_ring() {
    let test = || {
        let (bell, mut sleeper) = (Arc::new(Bell::default()), Sleeper::default());
        bell.sleep(&mut sleeper, Waker::noop());
        bell.ring();
        let late = {
            let bell = Arc::clone(&bell);
            thread::spawn(move || bell.wake(|| {}))
        };
        let next = ringer(&bell, 1);
        future::block_on(flagged(&bell, &mut sleeper, 1));
        [late, next].into_iter().for_each(|ringer| ringer.join().expect("rang"));
    };
    check(test, 5 * RUNS);
}

/// Sleepers that are gone, and new ones while it rings.
#[test]
fn sleepers_come_and_go_while_it_rings() {
    let test = || {
        let bell = Arc::new(Bell::default());
        let ringer = ringer(&bell, 3);
        for _ in 0..3 {
            let mut sleeper = Sleeper::default();
            let mut given_up = Box::pin(flagged(&bell, &mut sleeper, bell.rung()));
            future::block_on(std::future::poll_fn(|context| {
                _ = given_up.as_mut().poll(context);
                Poll::Ready(())
            }));
        }
        ringer.join().expect("rang");
        assert_eq!(bell.rung(), 3);
    };
    shuttle::check_random(test, RUNS);
}

/// Owners flag, poll and end in any order: each ring is answered by each owner, and after the last cascade the allocator
/// is asked, by one thread at a time.
#[test]
fn after_the_last_cascade_the_allocator_is_asked() {
    let test = || {
        let shared = Arc::new((
            Bell::default(),
            Tidy::new(Duration::ZERO, PATIENT),
            AtomicUsize::new(0),
            AtomicBool::new(false),
        ));
        let owners: Vec<_> = (0..3)
            .map(|n| {
                let shared = Arc::clone(&shared);
                thread::spawn(move || {
                    let (bell, tidy, asked, asking) = &*shared;
                    if n == 0 {
                        bell.ring();
                    }
                    let before = asked.load(Ordering::SeqCst);
                    tidy.begin();
                    thread::yield_now();
                    tidy.end(|| {
                        assert!(!asking.swap(true, Ordering::SeqCst), "two ask at a time");
                        thread::yield_now();
                        asked.fetch_add(1, Ordering::SeqCst);
                        asking.store(false, Ordering::SeqCst);
                    });
                    before
                })
            })
            .collect();
        let before: Vec<usize> = owners.into_iter().map(|owner| owner.join().expect("ended")).collect();
        // Every one has ended, so the last asking came after all of them had begun.
        assert!(shared.2.load(Ordering::SeqCst) > before.into_iter().max().expect("three"));
    };
    check(test, RUNS);
}

/// With a keeper, it is the one who wakes.
#[test]
fn the_keeper_wakes_every_sleeper() {
    let test = || {
        let (bell, tidy) = (Arc::new(Bell::default()), Arc::new(Tidy::new(Duration::ZERO, PATIENT)));
        assert!(tidy.employ());
        let keeper = {
            let (bell, tidy) = (Arc::clone(&bell), Arc::clone(&tidy));
            thread::spawn(move || tidy.keep(|| bell.wake(thread::yield_now), || {}))
        };
        let sleeper = sleeper(&bell);
        for _ in 0..2 {
            bell.ring();
            assert!(tidy.rang());
        }
        sleeper.join().expect("woke up");
        tidy.close();
        keeper.join().expect("went");
    };
    check(test, RUNS);
}

/// Nor does it wait first until an owner is through that may never be.
#[test]
fn the_keeper_wakes_while_it_waits_for_an_owner() {
    let test = || {
        let (bell, tidy) = (Arc::new(Bell::default()), Arc::new(Tidy::new(Duration::ZERO, PATIENT)));
        let asked = Arc::new(AtomicUsize::new(0));
        assert!(tidy.employ());
        tidy.begin();
        tidy.begin();
        tidy.end(|| unreachable!("there is a keeper"));
        let keeper = {
            let (bell, tidy, asked) = (Arc::clone(&bell), Arc::clone(&tidy), Arc::clone(&asked));
            let ask = move || _ = asked.fetch_add(1, Ordering::SeqCst);
            thread::spawn(move || tidy.keep(|| bell.wake(thread::yield_now), ask))
        };
        let sleeper = sleeper(&bell);
        for _ in 0..2 {
            bell.ring();
            assert!(tidy.rang());
        }
        sleeper.join().expect("woke up");
        assert_eq!(asked.load(Ordering::SeqCst), 0, "one is at work");
        tidy.end(|| unreachable!("there is a keeper"));
        while asked.load(Ordering::SeqCst) == 0 {
            thread::yield_now();
        }
        tidy.close();
        keeper.join().expect("went");
    };
    shuttle::check_random(test, RUNS);
}

/// Without a keeper: one that did a slice and is not heard of again.
#[test]
fn an_owner_that_stops_half_way_keeps_nobody_from_asking() {
    let test = || {
        let tidy = Tidy::new(Duration::ZERO, Duration::ZERO);
        let asked = AtomicUsize::new(0);
        let cascade = || {
            tidy.begin();
            tidy.end(|| _ = asked.fetch_add(1, Ordering::SeqCst));
            asked.load(Ordering::SeqCst)
        };
        tidy.begin();
        assert_eq!(cascade(), 0, "it may be through in a moment");
        assert_eq!([cascade(), cascade(), cascade()], [1, 1, 2]);
    };
    shuttle::check_random(test, 1);
}

/// With a keeper: it asks after the last end, and goes when the registry does.
#[test]
fn the_keeper_misses_no_end() {
    let test = || {
        let tidy = Arc::new(Tidy::new(Duration::ZERO, PATIENT));
        let (ended, seen) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        assert!(tidy.employ() && !tidy.employ());
        let keeper = {
            let (tidy, ended, seen) = (Arc::clone(&tidy), Arc::clone(&ended), Arc::clone(&seen));
            thread::spawn(move || {
                tidy.keep(|| {}, || seen.store(ended.load(Ordering::SeqCst), Ordering::SeqCst))
            })
        };
        let owners: Vec<_> = (0..2)
            .map(|_| {
                let (tidy, ended) = (Arc::clone(&tidy), Arc::clone(&ended));
                thread::spawn(move || {
                    tidy.begin();
                    ended.fetch_add(1, Ordering::SeqCst);
                    tidy.end(|| unreachable!("there is a keeper"));
                })
            })
            .collect();
        owners.into_iter().for_each(|owner| owner.join().expect("ended"));
        while seen.load(Ordering::SeqCst) < 2 {
            thread::yield_now();
        }
        tidy.close();
        keeper.join().expect("went");
    };
    shuttle::check_random(test, RUNS);
}
