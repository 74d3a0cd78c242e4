//! Owners and the bell, with real threads and tasks.
#![allow(clippy::unwrap_used)]

use ebbtide_shrink::{Bytes, Member, Policy, Registry, Report, Turn};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

fn quiet() -> Registry {
    Registry::with_allocator(Policy::new().rest(Duration::ZERO), || {})
}

/// A registry, and how often it has asked the allocator.
fn counted(policy: Policy) -> (Registry, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let asks = Arc::clone(&asked);
    (Registry::with_allocator(policy, move || _ = asks.fetch_add(1, Ordering::Relaxed)), asked)
}

/// The cascades that end before there is nothing left to do.
fn all_done(mut poll: impl FnMut() -> Turn) -> Vec<Report> {
    let mut done = Vec::new();
    loop {
        match poll() {
            Turn::Quiet => return done,
            Turn::More => {}
            Turn::Done(report) => done.push(report),
        }
    }
}

/// Polls until the cascade is done, and says what came back; `None` if there was nothing to do.
fn served(member: &mut Member, list: &mut Vec<u8>) -> Option<Bytes> {
    loop {
        match member.poll(list) {
            Turn::Quiet => return None,
            Turn::More => {}
            Turn::Done(report) => return Some(report.returned),
        }
    }
}

#[test]
fn each_onset_is_served_once_however_often_it_rang() {
    let registry = quiet();
    let mut member = registry.member("list");
    let mut list = Vec::with_capacity(5000);
    assert_eq!(served(&mut member, &mut list), None);
    (0..5).for_each(|_| registry.flag());
    assert_eq!(served(&mut member, &mut list), Some(Bytes(5000)));
    assert_eq!(served(&mut member, &mut list), None);
    list.reserve_exact(7000);
    assert_eq!(served(&mut member, &mut list), None);
    registry.flag();
    assert_eq!(served(&mut member, &mut list), Some(Bytes(7000)));
    // Who joins later has not missed anything.
    assert_eq!(served(&mut registry.member("late"), &mut list), None);
    let totals = registry.totals();
    assert_eq!((totals.cascades, totals.returned, totals.places.len()), (2, Bytes(12_000), 1));
}

#[test]
fn an_onset_in_the_middle_of_a_cascade_is_served_after_it() {
    let registry = Registry::with_allocator(Policy::new().slice(Duration::ZERO).rest(Duration::ZERO), || {});
    let mut member = registry.member("lists");
    let mut lists: Vec<Vec<u8>> = (0..10).map(|_| Vec::with_capacity(5000)).collect();
    registry.flag();
    assert!(member.poll(&mut lists).is_more());
    registry.flag();
    assert_eq!(all_done(|| member.poll(&mut lists)).len(), 2);
}

#[test]
fn what_grows_again_at_once_rests() {
    let registry = Registry::with_allocator(Policy::new().rest(Duration::from_secs(3600)), || {});
    let mut member = registry.member("list");
    let mut list = Vec::with_capacity(5000);
    registry.flag();
    assert_eq!(served(&mut member, &mut list), Some(Bytes(5000)));
    list.reserve_exact(5000);
    registry.flag();
    assert_eq!(served(&mut member, &mut list), Some(Bytes::ZERO));
    assert_eq!(registry.totals().resting, 1);
}

#[test]
fn an_owner_that_goes_is_no_loss() {
    let (registry, asked) = counted(Policy::new().slice(Duration::ZERO));
    let mut member = registry.member("lists");
    registry.flag();
    let mut lists: Vec<Vec<u8>> = (0..3).map(|_| Vec::with_capacity(5000)).collect();
    assert!(member.poll(&mut lists).is_more());
    // In the middle of its cascade: the allocator is asked all the same, by whoever is last.
    drop(member);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    // A member may outlive the registry's handles.
    let mut member = registry.member("lists");
    drop(registry);
    member.poll(&mut vec![0_u8]);
}

#[test]
fn shared_values_take_turns_and_are_forgotten_with_their_last_arc() {
    let registry = Registry::with_allocator(Policy::new().slice(Duration::ZERO), || {});
    let new = |bytes| Arc::new(Mutex::new(vec![Vec::<u8>::with_capacity(bytes)]));
    let sizes = [5_000, 50_000, 20_000];
    let values = sizes.map(|bytes| {
        let value = new(0);
        value.lock().unwrap().extend((0..20).map(|_| Vec::<u8>::with_capacity(bytes)));
        registry.share("value", &value);
        value
    });
    let gone = new(9000);
    registry.share("gone", &gone);
    drop(gone);
    assert!(matches!(registry.poll(), Turn::Quiet));
    registry.flag();
    let done: Vec<usize> = all_done(|| registry.poll()).iter().map(|report| report.returned.0).collect();
    // The same number of steps for each, so that they end in the order of their turns: the most slack first.
    let of = |at: usize| sizes[at] * 20;
    assert!(done.len() == 3 && done[0] >= of(1) && done[1] >= of(2) && done[2] >= of(0), "{done:?}");
    assert!(values.iter().all(|value| value.lock().unwrap().iter().all(|list| list.capacity() == 0)));
    assert!(matches!(registry.poll(), Turn::Quiet));
}

#[test]
fn many_threads_poll_what_is_shared_and_one_is_at_it() {
    let registry = quiet();
    let value = Arc::new(Mutex::new(vec![Vec::<u8>::new(); 100]));
    registry.share("value", &value);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    registry.poll();
                    thread::yield_now();
                }
            });
        }
        for round in 1..=20 {
            for list in value.lock().unwrap().iter_mut() {
                list.reserve_exact(5000);
            }
            registry.flag();
            while registry.totals().cascades < round {
                thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(registry.totals().cascades, 20);
}

#[test]
fn the_keeper_asks_the_allocator_and_goes_with_the_registry() {
    let (tell, told) = mpsc::channel();
    let tell = Mutex::new(tell);
    let registry = Registry::with_allocator(Policy::new(), move || {
        let name = thread::current().name().map(str::to_owned);
        _ = tell.lock().unwrap().send(name);
    });
    registry.keeper().unwrap();
    registry.keeper().unwrap();
    let mut member = registry.member("list");
    registry.flag();
    served(&mut member, &mut Vec::with_capacity(5000));
    assert_eq!(told.recv().unwrap().as_deref(), Some("shrink-keeper"));
    drop((registry, member));
    // The closure is dropped when the keeper has ended: nobody else has it.
    assert!(told.recv().is_err());
}

/// A thousand connections that end one after another must not each trim the heap.
#[test]
fn the_allocator_is_asked_once_for_many() {
    for keeper in [false, true] {
        let (registry, asked) = counted(Policy::new());
        if keeper {
            registry.keeper().unwrap();
        }
        let mut members: Vec<_> = (0..1000).map(|_| registry.member("connection")).collect();
        registry.flag();
        for member in &mut members {
            assert_eq!(served(member, &mut Vec::with_capacity(5000)), Some(Bytes(5000)));
        }
        while asked.load(Ordering::Relaxed) == 0 {
            thread::yield_now();
        }
        // How many it is depends on how busy the machine is; a thousand it is not.
        assert!(asked.load(Ordering::Relaxed) < 100, "{asked:?} times");
    }
}

/// A value whose own code panics in the middle of its cascade.
#[test]
fn a_panic_in_a_value_costs_a_turn() {
    struct Touchy(AtomicBool);
    impl ebbtide_shrink::ShrinkShared for Touchy {
        fn slack_shared(&self) -> Bytes {
            Bytes::ZERO
        }
        fn shrink_shared(&self, _: &mut ebbtide_shrink::Cascade<'_>) {
            assert!(!self.0.load(Ordering::Relaxed), "on purpose");
        }
    }
    let (registry, asked) = counted(Policy::new());
    let value = Arc::new(Touchy(AtomicBool::new(true)));
    registry.share("touchy", &value);
    registry.flag();
    assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| registry.poll())).is_err());
    value.0.store(false, Ordering::Relaxed);
    assert!(matches!(registry.poll(), Turn::Done(_)));
    assert_eq!((registry.totals().cascades, asked.load(Ordering::Relaxed)), (1, 1));
}

#[test]
fn without_a_keeper_the_last_owner_asks() {
    let (registry, asked) = counted(Policy::new().slice(Duration::ZERO));
    let (mut a, mut b) = (registry.member("a"), registry.member("b"));
    let (mut first, mut second) = (vec![0_u8; 10], vec![0_u8; 10]);
    first.reserve(5000);
    registry.flag();
    assert!(a.poll(&mut first).is_more());
    served(&mut b, &mut second);
    assert_eq!(asked.load(Ordering::Relaxed), 0, "one is still at work");
    served(&mut a, &mut first);
    assert_eq!(asked.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_task_that_sleeps_is_woken() {
    let registry = quiet();
    let (ready, mut waits) = tokio::sync::mpsc::unbounded_channel();
    let tasks: Vec<_> = (0..10)
        .map(|_| {
            let (mut member, ready) = (registry.member("task"), ready.clone());
            tokio::spawn(async move {
                let mut list = Vec::with_capacity(5000);
                for _ in 0..3 {
                    let mut flagged = Box::pin(member.flagged());
                    // It says that it waits only when it does.
                    std::future::poll_fn(|context| {
                        assert!(flagged.as_mut().poll(context).is_pending());
                        std::task::Poll::Ready(())
                    })
                    .await;
                    ready.send(()).unwrap();
                    flagged.await;
                    assert!(served(&mut member, &mut list).is_some());
                }
            })
        })
        .collect();
    for _ in 0..3 {
        for _ in 0..10 {
            waits.recv().await.unwrap();
        }
        registry.flag();
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(registry.totals().cascades, 30);
}

#[tokio::test]
async fn a_wait_that_is_given_up_leaves_nothing() {
    let registry = quiet();
    let mut member = registry.member("task");
    for _ in 0..100 {
        tokio::select! {
            biased;
            () = member.flagged() => unreachable!("nobody rang"),
            () = std::future::ready(()) => {}
        }
    }
    registry.flag();
    member.flagged().await;
    assert!(served(&mut member, &mut Vec::with_capacity(5000)).is_some());
}

/// Pressure by systemd's protocol, through a FIFO: from the byte in it to the pages given back.
#[test]
fn pressure_reaches_the_owner() {
    use ebbtide_shrink::ebbtide_pressure::{Options, Pressure};
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("watch");
    assert!(std::process::Command::new("mkfifo").arg(&fifo).status().unwrap().success());
    let child = std::env::var_os("SHRINK_TEST_CHILD").is_some();
    if !child {
        // The variable is read by name, and a test may not change its own environment: so a child does it.
        let answer = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "pressure_reaches_the_owner", "--nocapture"])
            .env("SHRINK_TEST_CHILD", "1")
            .env("MEMORY_PRESSURE_WATCH", &fifo)
            .env("FIFO", &fifo)
            .output()
            .unwrap();
        println!("{}", String::from_utf8_lossy(&answer.stdout));
        assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
        return;
    }
    let fifo = std::env::var_os("FIFO").unwrap();
    let registry = Registry::new();
    let pressure = Pressure::open(Options::new()).unwrap();
    println!("watching {}", pressure.source());
    registry.connect(pressure).unwrap();
    let mut member = registry.member("lists");
    let fresh = resident();
    let mut lists: Vec<Vec<u8>> = (0..20_000).map(|_| vec![1; 3000]).collect();
    lists.iter_mut().for_each(Vec::clear);
    let full = resident();
    std::fs::write(fifo, b"x").unwrap();
    let returned = loop {
        match member.poll(&mut lists) {
            Turn::Quiet | Turn::More => thread::yield_now(),
            Turn::Done(report) => break report.returned,
        }
    };
    assert_eq!(returned, Bytes(20_000 * 3000));
    // What is left is the list of the lists.
    let least = fresh + lists.capacity() * size_of::<Vec<u8>>();
    // The keeper asks the allocator in its own time, and tells nobody.
    for _ in 0..2000 {
        if resident() <= least + (4 << 20) {
            println!("RSS {} fresh, {} full, {} after", Bytes(fresh), Bytes(full), Bytes(resident()));
            return;
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("RSS {} fresh, {} full, {} after ten seconds", Bytes(fresh), Bytes(full), Bytes(resident()));
}

/// This process's resident bytes.
fn resident() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * rustix::param::page_size()
}

/// Owners may derive it.
#[test]
fn handles_can_be_printed() {
    #[derive(Debug)]
    struct Owner {
        registry: Registry,
        member: Member,
    }
    let registry = quiet();
    let owner = Owner { member: registry.member("list"), registry };
    owner.registry.flag();
    let text = format!("{owner:?}");
    assert!(text.contains("Registry { rung: 1, .. }"), "{text}");
    assert!(text.contains("Member { name: \"list\", pending: true, .. }"), "{text}");
    drop(owner.member);
}

/// What goes into tasks and threads can.
#[test]
fn handles_can_be_sent() {
    fn send<T: Send>() {}
    fn send_and_sync<T: Send + Sync>() {}
    send::<Member>();
    send::<ebbtide_shrink::Job>();
    send::<ebbtide_shrink::pool::Get<'_, Vec<u8>>>();
    send_and_sync::<Registry>();
    send_and_sync::<Report>();
    send_and_sync::<ebbtide_shrink::Pool<std::cell::Cell<u8>>>();
    send_and_sync::<ebbtide_shrink::Mapped<memmap2::Mmap>>();
}
