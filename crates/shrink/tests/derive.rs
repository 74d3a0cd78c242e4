//! The derives: what they accept and descend into, and how they refuse.

use ebbtide_shrink::{Bytes, Cascade, Policy, Shrink, ShrinkShared, shrink_now, shrink_shared_now};
use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, RwLock};

fn list() -> Vec<u64> {
    Vec::with_capacity(1000)
}

/// Not `Shrink`.
struct Foreign(Vec<u64>);

fn shrink_foreign(foreign: &mut Foreign, cascade: &mut Cascade<'_>) {
    foreign.0.shrink(cascade);
}

fn slack_of_foreign(foreign: &Foreign) -> Bytes {
    foreign.0.slack()
}

const KEPT: usize = 80;

#[derive(Shrink)]
struct Everything<'a, T, K: Eq + Hash + Debug, const N: usize>
where
    T: Clone,
{
    plain: Vec<T>,
    #[shrink(skip)]
    skipped: Vec<Foreign>,
    #[shrink(keep = KEPT)]
    kept: Option<Vec<u64>>,
    #[shrink(factor = 20)]
    lazy: Vec<u64>,
    #[shrink(keep = 8, factor = 1.5)]
    both: Vec<u64>,
    #[shrink(with = shrink_foreign)]
    by_hand: Foreign,
    #[shrink(with = shrink_foreign, slack = slack_of_foreign)]
    measured: Foreign,
    map: HashMap<K, Vec<T>>,
    array: [Vec<u64>; N],
    text: &'a str,
    r#type: Vec<u64>,
    children: Vec<Everything<'a, T, K, N>>,
}

fn everything() -> Everything<'static, u64, &'static str, 2> {
    Everything {
        plain: list(),
        skipped: Vec::with_capacity(1000),
        kept: Some(list()),
        lazy: {
            let mut list = list();
            list.extend(0..100);
            list
        },
        both: list(),
        by_hand: Foreign(list()),
        measured: Foreign(list()),
        map: HashMap::from([("key", list())]),
        array: [list(), list()],
        text: "text",
        r#type: list(),
        children: Vec::new(),
    }
}

#[test]
fn attributes_do_what_they_say() {
    let mut tree = everything();
    tree.children = vec![everything()];
    let (lists, kept) = (2 * 9 * 8000, 2 * 8 * (100 + 10));
    let slack = tree.slack();
    let report = shrink_now(&mut tree, &Policy::new());
    assert_eq!(tree.kept.as_ref().map(Vec::capacity), Some(100));
    assert_eq!((tree.lazy.capacity(), tree.both.capacity(), tree.skipped.capacity()), (1000, 10, 1000));
    assert_eq!((tree.by_hand.0.capacity(), tree.measured.0.capacity(), tree.text), (0, 0, "text"));
    assert_eq!(report.returned, Bytes(lists - kept));
    // What `with` shrinks without `slack` is not in it; what is kept, and what is left by its factor, is.
    assert_eq!(slack, Bytes(lists - 2 * 8000 + 2 * 8 * 900));
    let paths: Vec<&str> = report.places.iter().map(|place| place.path.as_str()).collect();
    for path in ["plain", "kept", "by_hand", "map[*]", "array[*]", "type", "children[*].measured"] {
        assert!(paths.contains(&path), "{path} in {paths:?}");
    }
    assert!(!Everything::<'_, u64, &str, 2>::is_flat());
}

#[derive(Shrink)]
struct Pair(Vec<u64>, String);

#[derive(Shrink)]
struct Nothing;

#[derive(Shrink)]
struct Flat {
    _number: u64,
    _nothing: Nothing,
}

#[derive(Shrink)]
enum State<T> {
    Idle,
    Busy { buffer: Vec<T> },
    Both(Vec<u64>, #[shrink(keep = 10)] Vec<T>),
}

#[derive(Shrink)]
enum Never {}

#[derive(Shrink)]
#[shrink(bound(V: Shrink, K: Eq + Hash + Debug))]
struct Bounded<K, V>(HashMap<K, V>);

#[test]
fn all_shapes_are_derived() {
    let report = shrink_now(&mut Pair(list(), String::with_capacity(5000)), &Policy::new());
    assert_eq!(report.returned, Bytes(13_000));
    assert!(Flat::is_flat() && Nothing::is_flat() && Never::is_flat() && !Pair::is_flat());
    assert_eq!(Nothing.slack(), Bytes::ZERO);
    let mut states = vec![State::Idle, State::Busy { buffer: list() }, State::Both(list(), list())];
    let report = shrink_now(&mut states, &Policy::new());
    assert_eq!(report.returned, Bytes(8000 * 3 - 13 * 8));
    let paths: Vec<&str> = report.spots.iter().map(|spot| spot.path.as_str()).collect();
    assert_eq!(paths, ["[1].Busy.buffer", "[2].Both.0", "[2].Both.1"]);
    assert_eq!(shrink_now(&mut Bounded(HashMap::from([(1, list())])), &Policy::new()).returned, Bytes(8000));
}

#[derive(ShrinkShared)]
struct Server<T: Shrink> {
    name: String,
    served: AtomicU64,
    #[shrink(skip)]
    _foreign: Foreign,
    #[shrink(keep = 10)]
    list: Mutex<Vec<T>>,
    map: RwLock<HashMap<u64, Vec<T>>>,
    sharded: Box<[Mutex<Vec<T>>]>,
    by_name: HashMap<&'static str, Mutex<Vec<T>>>,
    #[shrink(with = shrink_by_hand)]
    by_hand: Mutex<Foreign>,
}

fn shrink_by_hand(foreign: &Mutex<Foreign>, cascade: &mut Cascade<'_>) {
    match foreign.try_lock() {
        Ok(mut foreign) => foreign.0.shrink(cascade),
        Err(_) => cascade.busy(),
    }
}

#[test]
fn a_shared_struct_shrinks_through_its_locks() {
    let server = Arc::new(Server {
        name: String::with_capacity(5000),
        served: AtomicU64::new(0),
        _foreign: Foreign(list()),
        list: Mutex::new(list()),
        map: RwLock::new(HashMap::from([(1, list())])),
        by_name: HashMap::from([("a", Mutex::new(list()))]),
        sharded: (0..4).map(|_| Mutex::new(list())).collect(),
        by_hand: Mutex::new(Foreign(list())),
    });
    assert_eq!(server.slack_shared(), Bytes(7 * 8000));
    let report = shrink_shared_now(&server, &Policy::new());
    assert_eq!(report.returned, Bytes(8 * 8000 - 13 * 8));
    assert_eq!((server.name.capacity(), server.served.load(std::sync::atomic::Ordering::Relaxed)), (5000, 0));
}

/// The messages of what cannot be derived.
#[test]
fn what_cannot_be_derived_says_why() {
    trybuild::TestCases::new().compile_fail("tests/ui/*.rs");
}
