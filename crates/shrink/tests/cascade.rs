//! How a cascade goes through a tree: what comes first, where a slice goes on, what happens when the tree changes
//! meanwhile, and that it ends.

use ebbtide_shrink::{
    Bytes, Cascade, DEEPEST, Job, Policy, Refused, Shrink, ShrinkShared, Site, Way, shrink_now,
    shrink_shared_now,
};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A policy whose slices are one step each.
fn stepwise() -> Policy {
    Policy::new().slice(Duration::ZERO)
}

/// A buffer that notes its number when it is cut.
struct Fake {
    number: usize,
    bytes: usize,
    way: Way,
    log: Rc<RefCell<Vec<usize>>>,
}

impl Site for Fake {
    fn used(&self) -> usize {
        0
    }
    fn room(&self) -> usize {
        self.bytes
    }
    fn bytes(&self, room: usize) -> Bytes {
        Bytes(room)
    }
    fn way(&self) -> Way {
        self.way
    }
    fn fit(&mut self, room: usize) -> Result<(), Refused> {
        self.log.borrow_mut().push(self.number);
        self.bytes = room;
        Ok(())
    }
    fn kind(&self) -> &'static str {
        "Fake"
    }
}

impl Shrink for Fake {
    fn slack(&self) -> Bytes {
        self.unused()
    }
    fn shrink(&mut self, cascade: &mut Cascade<'_>) {
        cascade.site(self);
    }
}

fn fakes(sizes: &[(usize, Way)]) -> (Vec<Fake>, Rc<RefCell<Vec<usize>>>) {
    let log = Rc::default();
    let fake = |(number, &(bytes, way))| Fake { number, bytes, way, log: Rc::clone(&log) };
    (sizes.iter().enumerate().map(fake).collect(), log.clone())
}

#[test]
fn the_largest_first_and_what_copies_last() {
    use Way::{Copies, InPlace};
    let kib = 1 << 10;
    let (mut all, log) = fakes(&[
        (2 * kib, InPlace),
        (900 * kib, Copies),
        (100 * kib, InPlace),
        (3 * kib, Copies),
        (4000 * kib, InPlace),
        (1100 * kib, InPlace),
    ]);
    let report = shrink_now(&mut all, &Policy::new());
    assert_eq!(*log.borrow(), [4, 5, 2, 0, 1, 3]);
    assert_eq!((report.cut, report.returned), (6, Bytes(6105 * kib)));
    assert_eq!(report.spots[0].path, "[4]");
}

/// What takes as long as a copy is bounded as one: a heap's elements are compared, and what is aligned to more than 16
/// bytes is copied by the allocator.
#[test]
fn what_takes_as_long_as_a_copy_is_bounded_as_one() {
    #[repr(align(64))]
    struct Line([u8; 64]);
    let mut heap = BinaryHeap::with_capacity(1000);
    heap.extend(0..100_u64);
    let mut lines = Vec::with_capacity(1000);
    lines.extend((0..100).map(|n| Line([n; 64])));
    let mut queue = VecDeque::from(Vec::<u64>::with_capacity(1000));
    queue.extend(0..100);
    let tight = Policy::new().transient(Bytes(999));
    let report = shrink_now(&mut heap, &tight);
    assert_eq!((report.too_large_to_copy, report.cut), (1, 0));
    assert_eq!((lines.way(), queue.way()), (Way::Copies, Way::InPlace));
    assert!(lines.fit(100).is_ok() && lines.iter().enumerate().all(|(n, line)| line.0 == [n as u8; 64]));
    assert_eq!(shrink_now(&mut heap, &Policy::new()).returned, Bytes(875 * 8));
    assert_eq!(shrink_now(&mut queue, &tight).returned, Bytes(875 * 8));
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
    /// Whatever is cut gives back at least a sixteenth of what anything cut later of its way gives back.
    #[test]
    fn the_order_is_right_within_a_factor(sizes in prop::collection::vec(1024..100_000_000_usize, 1..100), step: bool) {
        let ways: Vec<_> = sizes.iter().map(|size| (*size, Way::InPlace)).collect();
        let (mut all, log) = fakes(&ways);
        let policy = if step { stepwise() } else { Policy::new() };
        let report = shrink_now(&mut all, &policy);
        prop_assert_eq!(report.cut, sizes.len());
        let cut: Vec<usize> = log.borrow().iter().map(|number| sizes[*number]).collect();
        for (at, size) in cut.iter().enumerate() {
            prop_assert!(cut[at..].iter().all(|later| later / 16 <= *size));
        }
    }
}

#[test]
fn bytes_end_a_slice() {
    let (mut all, log) = fakes(&[(1 << 20, Way::InPlace); 8]);
    let mut job = Job::new("all", Policy::new().slice_bytes(Bytes::from_mib(2)).slice(Duration::MAX));
    let mut cut = Vec::new();
    loop {
        let more = job.slice(&mut all);
        cut.push(log.borrow().len());
        if !more {
            break;
        }
    }
    // The last one only finds the end.
    assert_eq!(cut[..4], [2, 4, 6, 8]);
}

#[derive(Shrink, Default)]
struct Queue {
    ready: Vec<u64>,
    unacked: HashMap<u64, Vec<u8>>,
}

fn queue() -> Queue {
    let unacked = (0..3).map(|n| (n, Vec::with_capacity(5000))).collect();
    Queue { ready: Vec::with_capacity(1000), unacked }
}

#[test]
fn slices_add_up_to_the_whole() {
    let tree = || -> BTreeMap<String, Vec<Queue>> {
        (0..5).map(|n| (n.to_string(), (0..4).map(|_| queue()).collect())).collect()
    };
    let whole = shrink_now(&mut tree(), &Policy::new().slice(Duration::MAX));
    let stepped = shrink_now(&mut tree(), &stepwise());
    assert_eq!((whole.returned, whole.cut, whole.slack), (stepped.returned, stepped.cut, stepped.slack));
    assert_eq!((whole.slices, whole.cut), (1, 5 * 4 * 4));
    assert!(stepped.slices > 300, "{}", stepped.slices);
    // Slices that end in the middle of one branch and go on through others.
    for bytes in [6_000, 20_000, 50_000, 130_000] {
        let policy = Policy::new().slice(Duration::MAX).slice_bytes(Bytes(bytes)).tries(0);
        let sliced = shrink_now(&mut tree(), &policy);
        assert_eq!((whole.returned, whole.cut), (sliced.returned, sliced.cut), "{bytes}");
        assert!(sliced.slices > 2, "{bytes}: {}", sliced.slices);
    }
    let places: Vec<_> = whole.places.iter().map(|p| (p.path.as_str(), p.cut)).collect();
    assert!(
        places.contains(&("[*][*].ready", 20)) && places.contains(&("[*][*].unacked[*]", 60)),
        "{places:?}"
    );
}

/// The owner adds and removes at every turn. The cascade ends, and all that was there from the beginning has had its
/// turn.
#[test]
fn a_tree_that_changes_between_slices() {
    let mut most_left = 0;
    for seed in 0..8_u64 {
        let mut random = seed;
        let mut next = move |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        let mut tree: BTreeMap<u64, Queue> = (0..40).map(|n| (n * 10, queue())).collect();
        let mut job = Job::new("tree", stepwise());
        let mut slices = 0;
        while job.slice(&mut tree) {
            slices += 1;
            assert!(slices < 100_000, "it does not end");
            let key = next(400);
            match next(4) {
                // What was there at the beginning has keys that are multiples of ten: those stay.
                0 => _ = tree.insert(key, queue()).filter(|_| key % 10 == 0).map(|old| tree.insert(key, old)),
                1 if key % 10 != 0 => _ = tree.remove(&key),
                2 => {
                    tree.values_mut().take(3).for_each(|queue| _ = queue.unacked.insert(next(10), Vec::new()))
                }
                _ => {}
            }
        }
        let left = tree.iter().filter(|(key, queue)| *key % 10 == 0 && queue.ready.capacity() > 0).count();
        // A place may be passed over in each of a few walks, when others before it go: here with each step.
        most_left = left.max(most_left);
        assert!(left <= 10, "seed {seed}: {left} of 40 left");
        shrink_now(&mut tree, &stepwise());
        assert!(tree.values().all(|queue| queue.ready.capacity() == 0));
    }
    println!("at most {most_left} of 40 were passed over");
}

#[test]
fn a_tree_that_always_grows_ends() {
    let mut lists: Vec<Vec<u8>> = vec![Vec::with_capacity(2000)];
    let mut job = Job::new("lists", stepwise());
    let mut slices = 0_u32;
    while job.slice(&mut lists) {
        slices += 1;
        // As much as a slice does, for as long as a walk may go on at the beginning.
        if slices < 2_000 {
            lists.push(Vec::with_capacity(2000));
        }
        assert!(slices < 200_000);
    }
    assert!(job.report().cut > 1_800);
}

#[derive(Shrink)]
struct Node {
    buffer: Vec<u8>,
    next: Option<Box<Node>>,
}

#[test]
fn a_list_deeper_than_the_stack_is_no_danger() {
    let mut head = None;
    for n in 0..1_000_000 {
        let buffer = Vec::with_capacity(if n < 999_000 { 0 } else { 2000 });
        head = Some(Box::new(Node { buffer, next: head }));
    }
    let slack = head.slack();
    let report = shrink_now(&mut head, &Policy::new());
    // The default drop would recurse, also on the way out of a failed assertion.
    while let Some(mut node) = head {
        head = node.next.take();
    }
    assert_eq!(slack, Bytes(2000 * DEEPEST));
    assert_eq!((report.cut, report.too_deep), (DEEPEST - 1, 2));
}

#[derive(ShrinkShared)]
struct Shared {
    a: Mutex<Vec<u8>>,
    b: Mutex<Vec<u8>>,
}

#[test]
fn what_is_locked_is_tried_again_and_then_said() {
    let list = || Mutex::new(Vec::with_capacity(5000));
    let shared = Shared { a: list(), b: list() };
    let held = shared.a.lock().unwrap();
    let report = shrink_shared_now(&shared, &Policy::new());
    assert_eq!((report.busy, report.cut, report.places[0].path.as_str()), (1, 1, "b"));
    drop(held);

    // It is free again at the second try.
    let shared = Shared { a: list(), b: list() };
    let mut held = Some(shared.a.lock().unwrap());
    let mut job = Job::new("shared", Policy::new());
    let mut slices = 1;
    while job.slice_shared(&shared) {
        slices += 1;
        if slices == 3 {
            drop(held.take());
        }
    }
    assert_eq!((job.report().busy, job.report().cut), (0, 2));
}

#[test]
fn a_poisoned_lock_is_shrunk_and_stays_poisoned() {
    let list = Arc::new(Mutex::new(Vec::<u8>::with_capacity(5000)));
    let other = Arc::clone(&list);
    let panicked = std::thread::spawn(move || {
        let _held = other.lock().unwrap();
        panic!("poisons the lock, on purpose");
    });
    assert!(panicked.join().is_err());
    assert_eq!(shrink_shared_now(&list, &Policy::new()).returned, Bytes(5000));
    assert!(list.is_poisoned());
}

#[derive(ShrinkShared)]
struct Cycle {
    buffer: Mutex<Vec<u8>>,
    friends: Mutex<Vec<Arc<Cycle>>>,
}

#[test]
fn a_cycle_ends() {
    let new = || Arc::new(Cycle { buffer: Mutex::new(Vec::with_capacity(5000)), friends: Mutex::default() });
    let (a, b) = (new(), new());
    a.friends.lock().unwrap().push(Arc::clone(&b));
    b.friends.lock().unwrap().extend([Arc::clone(&a), Arc::clone(&b)]);
    let report = shrink_shared_now(&a, &Policy::new());
    assert_eq!(report.returned, Bytes(10_000));
    a.friends.lock().unwrap().clear();
    b.friends.lock().unwrap().clear();
}

#[test]
fn keys_can_be_kept_out_of_reports() {
    let tree = || HashMap::from([("secret", Vec::<u8>::with_capacity(5000))]);
    let report = shrink_now(&mut tree(), &Policy::new());
    assert_eq!(report.spots[0].path, "[\"secret\"]");
    let report = shrink_now(&mut tree(), &Policy::new().keys(false));
    assert!(!format!("{report:?}").contains("secret"), "{report:?}");
}

#[test]
fn slack_is_sampled_in_large_collections() {
    let lists: Vec<Vec<u8>> = (0..10_000).map(|_| Vec::with_capacity(100)).collect();
    let lists = lists.into_boxed_slice();
    assert_eq!(lists.slack(), Bytes(1_000_000));
    let flat = vec![0_u8; 100].into_boxed_slice();
    assert_eq!(flat.slack(), Bytes::ZERO);
}
