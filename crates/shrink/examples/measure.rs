//! The figures in the guide: what thresholds keep and cost, what a poll and a walk cost, how large buffers are cut.
//!
//! `cargo run --release -p ebbtide-shrink --example measure`; about ten seconds.

use ebbtide_shrink::{Bytes, Job, Member, Policy, Pool, Registry, Shrink, Turn, shrink_now};
use std::collections::HashMap;
use std::hint::black_box;
use std::time::{Duration, Instant};

fn main() {
    thresholds();
    poll();
    walk();
    owner();
    cut();
    tables();
}

/// How many elements a collection holds at each of 100,000 steps; pressure comes every 1,000.
type Load = fn(usize) -> usize;

const LOADS: [(&str, Load); 3] = [
    // Full once, nearly empty ever after.
    ("drained", |step| if step < 5_000 { 100_000 } else { 1_000 + step % 100 }),
    // Up and down by a factor of five, in 10,000 steps.
    ("breathing", |step| {
        let wave = (step as f64 / 10_000.0 * std::f64::consts::TAU).sin();
        (60_000.0 + 40_000.0 * wave) as usize
    }),
    // Full for 100 steps of every 2,000.
    ("bursts", |step| if step % 2_000 < 100 { 100_000 } else { 1_000 }),
];

/// What a list kept on average beyond what it held, as a multiple of that, and how many elements growing moved for each
/// 1,000 held: at worst, as an allocator may grow in place.
fn simulate(load: Load, policy: Option<Policy>) -> (f64, f64) {
    let mut list: Vec<u64> = Vec::new();
    let (mut held, mut kept, mut copied) = (0, 0, 0);
    for step in 0..100_000 {
        let len = load(step);
        while list.len() < len {
            let (before, used) = (list.capacity(), list.len());
            list.reserve(1);
            copied += if list.capacity() > before { used } else { 0 };
            list.resize(len.min(list.capacity()), 0);
        }
        list.truncate(len);
        if step % 1_000 == 999
            && let Some(policy) = policy
        {
            shrink_now(&mut list, &policy);
        }
        held += len;
        kept += list.capacity() - len;
    }
    (kept as f64 / held as f64, copied as f64 / held as f64 * 1000.0)
}

fn thresholds() {
    println!(
        "factor  to     kept beyond need (x of what is held) | moved by growing again (elements per 1000 held)"
    );
    let names = LOADS.map(|(name, _)| format!("{name:>10}")).join(" ");
    println!("              {names} | {names}");
    let mut policies = vec![("never".to_owned(), None)];
    for (factor, to) in
        [(1.0, 1.0), (1.25, 1.0), (1.5, 1.25), (2.0, 1.0), (2.0, 1.25), (2.0, 1.5), (3.0, 1.5), (4.0, 2.0)]
    {
        policies.push((format!("{factor:<7} {to:<5}"), Some(Policy::new().hysteresis(factor, to))));
    }
    for (name, policy) in policies {
        let rows = LOADS.map(|(_, load)| simulate(load, policy));
        let kept = rows.map(|(kept, _)| format!("{kept:>10.2}")).join(" ");
        let copied = rows.map(|(_, copied)| format!("{copied:>10.3}")).join(" ");
        println!("{name:<13} {kept} | {copied}");
    }
}

fn each(times: u32, mut work: impl FnMut()) -> f64 {
    let begin = Instant::now();
    (0..times).for_each(|_| work());
    begin.elapsed().as_nanos() as f64 / f64::from(times)
}

fn poll() {
    let registry = Registry::new();
    let mut member = registry.member("list");
    let mut list: Vec<u8> = Vec::new();
    let empty = each(50_000_000, || _ = black_box(&mut list));
    let quiet = each(50_000_000, || assert!(!member.poll(black_box(&mut list)).is_more()));
    println!("\npoll without pressure: {:.2} ns (an empty turn {empty:.2} ns)", quiet - empty);
    println!("a member takes {}, a cascade at work {}", Bytes(size_of::<Member>()), Bytes(size_of::<Job>()));
    let pool = Pool::builder(|| vec![0_u8; 4096]).reset(Vec::clear).build();
    println!("a warm pool's get and return: {:.0} ns", each(5_000_000, || drop(black_box(pool.get()))));
}

#[derive(Shrink)]
struct Queue {
    ready: Vec<u64>,
    unacked: HashMap<u64, u64>,
    name: String,
}

/// This thread's processor time: on a busy machine a slice lasts longer by what others take.
fn cpu() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

fn queue() -> Queue {
    let (ready, unacked) = (Vec::with_capacity(64), HashMap::with_capacity(28));
    Queue { ready, unacked, name: String::with_capacity(16) }
}

fn walk() {
    sliced("a list", &mut (0..300_000).map(|_| queue()).collect::<Vec<_>>());
    let mut queues: HashMap<u64, Queue> = (0..300_000).map(|n| (n, queue())).collect();
    let begin = Instant::now();
    let slack = queues.slack();
    println!("slack() of it as a map: {:?}, says {slack}", begin.elapsed());
    sliced("a map", &mut queues);
    let unlimited = Policy::new().floor(Bytes(256)).slice(Duration::MAX).slice_bytes(Bytes::MAX);
    let mut job = Job::new("queues", unlimited);
    job.slice(&mut queues);
    let (time, sites) = (job.report().time, job.report().sites);
    println!(
        "a walk that finds nothing: {time:?}, {:.1} ns for each collection",
        time.as_nanos() as f64 / sites as f64
    );
}

/// A cascade over 900,000 collections in 300,000 queues, slice by slice.
fn sliced(name: &str, queues: &mut impl Shrink) {
    let mut job = Job::new("queues", Policy::new().floor(Bytes(256)));
    let mut slices = Vec::new();
    loop {
        let begin = cpu();
        let more = job.slice(queues);
        slices.push(cpu() - begin);
        if !more {
            break;
        }
    }
    slices.sort_unstable();
    let at = |percent: usize| slices[(slices.len() - 1) * percent / 100];
    let report = job.report();
    println!(
        "a cascade over {name} of 300,000 queues: {} in {} cuts, {:?}",
        report.returned, report.cut, report.time
    );
    println!(
        "  {} slices: {:?} at the median, {:?} p99, {:?} at most (CPU)",
        report.slices,
        at(50),
        at(99),
        at(100)
    );
}

/// An owner that has a request of 5 us at every turn, and polls after each: what is left for requests in a cascade.
fn owner() {
    let registry = Registry::with_allocator(Policy::new().floor(Bytes(256)), || {});
    let mut member = registry.member("queues");
    let mut queues: Vec<Queue> = (0..100_000).map(|_| queue()).collect();
    registry.flag();
    let (begin, mut requests) = (Instant::now(), 0_u32);
    let report = loop {
        let request = Instant::now();
        while request.elapsed() < Duration::from_micros(5) {}
        requests += 1;
        if let Turn::Done(report) = member.poll(&mut queues) {
            break report;
        }
    };
    let all = begin.elapsed();
    println!(
        "an owner of 100,000 queues: {requests} requests during a cascade of {:?} in {all:?}, {:.1}% of its time; {} slices",
        report.time,
        100.0 - 100.0 * report.time.as_secs_f64() / all.as_secs_f64(),
        report.slices,
    );
}

/// One buffer of 64 MiB that is cut to 1 MiB, and to 48 MiB: in place, and by a second buffer.
fn cut() {
    for left in [1_usize << 20, 48 << 20] {
        let make = || {
            let mut list = vec![1_u8; 64 << 20];
            list.truncate(left);
            list
        };
        let mut list = make();
        let in_place = each(1, || _ = shrink_now(&mut list, &Policy::everything()));
        let list = make();
        let copied = each(1, || {
            let mut smaller = Vec::with_capacity(list.len());
            smaller.extend_from_slice(&list);
            black_box(smaller);
        });
        println!(
            "64 MiB cut to {}: in place {:.0} us, copied {:.0} us",
            Bytes(left),
            in_place / 1e3,
            copied / 1e3
        );
    }
}

/// What one table costs, by what is left in it: that long a slice may be, and so much the policy's `transient` allows.
fn tables() {
    for left in [10_u64, 1_000, 10_000, 100_000] {
        let mut map: HashMap<u64, u64> = (0..1_000_000).map(|n| (n, n)).collect();
        map.retain(|n, _| *n < left);
        let report = shrink_now(&mut map, &Policy::new());
        let (second, time) = (report.transient, report.longest_slice);
        println!("a table of {} with {left} left: {time:?}, a second table of {second}", report.slack);
    }
}
