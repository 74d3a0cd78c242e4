//! The pool: bounds, order, cancellation, panics of its users, and what it gives back.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ebbtide_shrink::{Bytes, Job, Policy, Pool, shrink_now};
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::task::{Context, Poll, Waker};
use std::thread;
use std::time::Duration;

/// A pool of numbered objects.
fn numbered(most: usize) -> Pool<usize> {
    let next = AtomicUsize::new(0);
    Pool::builder(move || next.fetch_add(1, Ordering::Relaxed)).most(most).build()
}

fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn there_are_never_more_than_the_bound() {
    let pool = numbered(2);
    let (a, b) = (pool.get(), pool.get());
    assert!(pool.try_get().is_none());
    assert!(pool.get_timeout(Duration::from_millis(1)).is_none());
    assert_eq!((*a, *b), (0, 1));
    drop(b);
    // The one that was used last is the warmest.
    assert_eq!(*pool.get(), 1);
    drop(a);
    let stats = pool.stats();
    assert_eq!((stats.out, stats.idle, stats.made, stats.reused, stats.most_out), (0, 2, 2, 1, 2));
    assert_eq!((stats.waiting, stats.waited), (0, 1));
}

#[test]
fn a_detached_object_is_replaced() {
    let pool = numbered(1);
    assert_eq!(pool.get().detach(), 0);
    assert_eq!(*pool.get(), 1);
    assert_eq!(pool.stats().idle, 1);
}

#[test]
fn who_came_first_is_served_first_and_nobody_overtakes() {
    let pool = numbered(1);
    let held = pool.get();
    let (mut first, mut second) = (pin!(pool.get_async()), pin!(pool.get_async()));
    assert!(poll(first.as_mut()).is_pending() && poll(second.as_mut()).is_pending());
    drop(held);
    assert!(pool.try_get().is_none(), "the place is the first one's");
    assert!(poll(second.as_mut()).is_pending());
    let Poll::Ready(held) = poll(first.as_mut()) else { panic!("its turn") };
    assert!(poll(second.as_mut()).is_pending());
    drop(held);
    assert!(poll(second.as_mut()).is_ready());
}

#[test]
fn a_wait_that_is_given_up_hands_its_place_on() {
    let pool = numbered(1);
    let held = pool.get();
    let mut first = Box::pin(pool.get_async());
    let mut second = Box::pin(pool.get_async());
    let mut third = Box::pin(pool.get_async());
    for wait in [&mut first, &mut second, &mut third] {
        assert!(poll(wait.as_mut()).is_pending());
    }
    // One that has nothing yet, and one that has been granted a place and not come for it.
    drop(second);
    drop(held);
    drop(first);
    assert!(pool.try_get().is_none());
    assert!(poll(third.as_mut()).is_ready());
    assert_eq!(pool.stats().waiting, 0);
    assert!(pool.try_get().is_some());
}

#[test]
fn what_panics_costs_one_object_and_no_place() {
    let (break_make, break_check, break_reset) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicBool::new(false)),
    );
    let broken = |flag: &Arc<AtomicBool>| {
        let flag = Arc::clone(flag);
        move || assert!(!flag.load(Ordering::Relaxed), "broken, on purpose")
    };
    let (make, check, reset) = (broken(&break_make), broken(&break_check), broken(&break_reset));
    let pool = Pool::builder(make)
        .most(1)
        .check(move |()| {
            check();
            true
        })
        .reset(move |()| reset())
        .build();
    let get = || catch_unwind(AssertUnwindSafe(|| drop(pool.get())));

    break_make.store(true, Ordering::Relaxed);
    assert!(get().is_err());
    break_make.store(false, Ordering::Relaxed);
    assert!(get().is_ok());
    break_check.store(true, Ordering::Relaxed);
    assert!(get().is_err());
    break_check.store(false, Ordering::Relaxed);
    // A panic in reset ends in the guard's drop.
    break_reset.store(true, Ordering::Relaxed);
    assert!(get().is_ok());
    let stats = pool.stats();
    assert_eq!((stats.out, stats.idle, stats.broken), (0, 0, 1));
    break_reset.store(false, Ordering::Relaxed);
    // A user that panics with the object in its hands.
    let user = catch_unwind(AssertUnwindSafe(|| {
        let _object = pool.get();
        panic!("on purpose");
    }));
    assert!(user.is_err());
    assert_eq!((pool.stats().out, pool.stats().idle, pool.stats().broken), (0, 0, 2));
    assert!(get().is_ok());
}

/// An object whose `Drop` says that it has begun, and waits until it may end.
struct Slow {
    begun: mpsc::Sender<()>,
    end: Arc<Mutex<mpsc::Receiver<()>>>,
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.begun.send(()).unwrap();
        self.end.lock().unwrap().recv().unwrap();
    }
}

/// Has another thread drop the only object of a pool in some way, and looks whether there is room for another.
fn an_object_counts_until_it_is_gone(idle: Duration, work: fn(&Pool<Slow>)) {
    let ((begun, begins), (end, ends)) = (mpsc::channel(), mpsc::channel());
    let ends = Arc::new(Mutex::new(ends));
    let make = move || Slow { begun: begun.clone(), end: Arc::clone(&ends) };
    let pool = Pool::builder(make).most(1).idle(idle).build();
    thread::scope(|scope| {
        let other = scope.spawn(|| work(&pool));
        begins.recv().unwrap();
        let mut wait = pin!(pool.get_async());
        let early = (pool.try_get(), poll(wait.as_mut()));
        // Every `Drop` may end now, also after a failed assertion.
        (0..9).for_each(|_| end.send(()).unwrap());
        _ = other.join();
        assert!(early.0.is_none() && early.1.is_pending());
        assert!(poll(wait.as_mut()).is_ready());
    });
    // The waiter's was made anew, and not before.
    assert_eq!((pool.stats().made, pool.stats().out, pool.stats().most_out), (2, 0, 1));
}

#[test]
fn a_broken_object_counts_until_it_is_gone() {
    an_object_counts_until_it_is_gone(Duration::MAX, |pool| {
        let _object = pool.get();
        panic!("on purpose");
    });
}

#[test]
fn an_expired_object_counts_until_it_is_gone() {
    an_object_counts_until_it_is_gone(Duration::ZERO, |pool| drop(pool.get()));
}

#[test]
fn an_object_dropped_at_pressure_counts_until_it_is_gone() {
    an_object_counts_until_it_is_gone(Duration::MAX, |pool| {
        drop(pool.get());
        shrink_now(&mut pool.clone(), &Policy::everything());
    });
}

#[test]
fn a_drop_that_panics_frees_its_place() {
    struct Bad;
    impl Drop for Bad {
        fn drop(&mut self) {
            panic!("on purpose");
        }
    }
    let pool = Pool::builder(|| Bad).most(1).idle(Duration::ZERO).build();
    for _ in 0..3 {
        let object = pool.try_get().expect("its place is free");
        assert!(catch_unwind(AssertUnwindSafe(|| drop(object))).is_err());
    }
}

#[test]
fn what_is_no_longer_good_is_made_anew() {
    let pool = Pool::builder(|| 0_u32).check(|uses| *uses < 3).reset(|uses| *uses += 1).build();
    for _ in 0..8 {
        drop(pool.get());
    }
    let stats = pool.stats();
    assert_eq!((stats.made, stats.unhealthy, stats.reused), (3, 2, 5));
}

#[test]
fn idle_objects_go_after_their_time() {
    let pool = Pool::builder(Vec::<u8>::new).idle(Duration::ZERO).keep(1).build();
    let out: Vec<_> = (0..5).map(|_| pool.get()).collect();
    // Each return takes one along.
    drop(out);
    assert_eq!(pool.stats().idle, 1);
    let pool = Pool::builder(Vec::<u8>::new).idle(Duration::from_secs(3600)).build();
    drop(pool.get());
    assert_eq!((pool.sweep(), pool.stats().idle), (0, 1));
}

#[test]
fn pressure_takes_what_exceeds_the_use() {
    let pool = Pool::builder(|| vec![0_u8; 10_000]).size(|buffer| Bytes(buffer.capacity())).keep(2).build();
    let mut out: Vec<_> = (0..20).map(|_| pool.get()).collect();
    out.truncate(8);
    let report = shrink_now(&mut pool.clone(), &Policy::new());
    // 20 for 8 in use: down to 10.
    assert_eq!((report.returned, pool.stats().idle), (Bytes(100_000), 2));
    assert_eq!(shrink_now(&mut pool.clone(), &Policy::new()).returned, Bytes::ZERO);
    out.clear();
    let report = shrink_now(&mut pool.clone(), &Policy::everything());
    assert_eq!((report.returned, pool.stats().idle, pool.stats().dropped), (Bytes(80_000), 2, 18));
    assert_eq!(report.places[0].kind, "Pool");
}

#[test]
fn pressure_takes_a_slice_at_a_time() {
    let pool = |most: usize| {
        let pool = Pool::builder(|| ()).most(most).size(|()| Bytes::from_mib(1)).build();
        let mut out: Vec<_> = (0..most).map(|_| pool.get()).collect();
        out.truncate(10);
        (pool, out)
    };
    let slices = |pool: &mut Pool<()>, policy| {
        let mut job = Job::new("pool", policy);
        let (mut longest, mut more) = (Bytes::ZERO, true);
        while more {
            let before = job.report().returned;
            more = job.slice(pool);
            longest = longest.max(job.report().returned - before);
        }
        (longest, job.into_report().slack)
    };
    let (mut many, out) = pool(64);
    let policy = Policy::new().slice(Duration::MAX).slice_bytes(Bytes::from_mib(4));
    assert_eq!(slices(&mut many, policy), (Bytes::from_mib(4), Bytes::from_mib(54)));
    // 13 for 10 in use, as in one go: that it came below the factor in between does not end it.
    assert_eq!(many.stats().idle, 3);
    drop(out);

    // One for each slice, however many that are, and however little that is of what else there is.
    let (mut many, _out) = pool(3000);
    assert_eq!(slices(&mut many, Policy::new().slice(Duration::ZERO)).0, Bytes::from_mib(1));
    assert_eq!(many.stats().idle, 3);
}

#[test]
fn threads_that_contend_all_get_their_turn() {
    let pool = numbered(2);
    let inside = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for _ in 0..300 {
                    let _object = pool.get();
                    assert!(inside.fetch_add(1, Ordering::SeqCst) < 2);
                    thread::yield_now();
                    inside.fetch_sub(1, Ordering::SeqCst);
                }
            });
        }
    });
    let stats = pool.stats();
    assert_eq!((stats.out, stats.idle, stats.waiting, stats.made), (0, 2, 0, 2));
    assert_eq!(stats.made + stats.reused, 1800);
}

/// Tasks and threads wait in one line; some give up.
#[tokio::test]
async fn tasks_that_give_up_lose_nothing() {
    let pool = numbered(2);
    let mut tasks = Vec::new();
    for task in 0..20 {
        let pool = pool.clone();
        tasks.push(tokio::spawn(async move {
            for turn in 0..50 {
                if (task + turn) % 3 == 0 {
                    tokio::select! {
                        biased;
                        object = pool.get_async() => drop(object),
                        () = tokio::task::yield_now() => {}
                    }
                } else {
                    let _object = pool.get_async().await;
                    tokio::task::yield_now().await;
                }
            }
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let stats = pool.stats();
    assert_eq!((stats.out, stats.idle, stats.waiting), (0, 2, 0));
    assert!(stats.waited > 0);
}
