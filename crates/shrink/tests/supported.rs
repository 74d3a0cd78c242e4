//! A field of each type that is supported and has no test of its own elsewhere: that it may be derived over, as owned and
//! as shared, and what lies behind it is reached.
#![allow(dead_code, reason = "most fields need only be there")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use ebbtide_shrink::{
    Bytes, Cascade, Job, Policy, Pool, Shrink, ShrinkShared, shrink_now, shrink_shared_now,
};
use std::borrow::Cow;
use std::cell::LazyCell;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet, LinkedList};
use std::fmt::Debug;
use std::mem::ManuallyDrop;
use std::num;
use std::pin::Pin;
use std::sync::{Barrier, Condvar, LazyLock, Mutex, Once, atomic::AtomicPtr};

/// What holds nothing to give back, by itself or behind a reference.
#[derive(Shrink, ShrinkShared)]
struct Flat {
    non_zero: (num::NonZeroU8, num::NonZeroU16, num::NonZeroU32, num::NonZeroU64, num::NonZeroU128),
    non_zero_signed: (num::NonZeroI8, num::NonZeroI16, num::NonZeroI32, num::NonZeroI64, num::NonZeroI128),
    non_zero_sizes: (num::NonZeroUsize, num::NonZeroIsize),
    pointer: AtomicPtr<Vec<u8>>,
    none: fn(),
    one: fn(u8) -> u8,
    two: fn(u8, u8),
    three: fn(u8, u8, u8) -> u8,
    four: fn(u8, u8, u8, u8),
    std: (Condvar, Barrier, Once),
    tokio: (tokio::sync::Notify, tokio::sync::Semaphore, tokio::sync::Barrier),
    watch: (tokio::sync::watch::Sender<Vec<u8>>, tokio::sync::watch::Receiver<Vec<u8>>),
    broadcast: (tokio::sync::broadcast::Sender<Vec<u8>>, tokio::sync::broadcast::Receiver<Vec<u8>>),
}

/// What may not be changed while it is shared.
#[derive(ShrinkShared)]
struct Fixed {
    sets: (HashSet<u8>, BTreeSet<u8>, hashbrown::HashSet<u8>, indexmap::IndexSet<u8>),
    heap: BinaryHeap<u8>,
    bytes: (bytes::BytesMut, bytes::Bytes),
}

type Twelve = (List, u8, u8, u8, u8, u8, u8, u8, u8, u8, u8, List);
type List = Mutex<Vec<u8>>;

fn list() -> List {
    Mutex::new(Vec::with_capacity(5000))
}

/// What others are in: by its owner or shared, each is a list behind a lock.
#[derive(Shrink, ShrinkShared)]
struct Holders {
    lazy: LazyLock<List>,
    lazy_cell: LazyCell<List>,
    pinned: Pin<Box<List>>,
    manual: ManuallyDrop<List>,
    result: Result<List, List>,
    twelve: Twelve,
    nodes: LinkedList<List>,
    sorted: BTreeMap<u8, List>,
    map: HashMap<u8, List>,
    hashbrown: hashbrown::HashMap<u8, List>,
    index: indexmap::IndexMap<u8, List>,
    small: smallvec::SmallVec<[List; 2]>,
    slab: slab::Slab<List>,
    once: tokio::sync::OnceCell<List>,
    text: Cow<'static, str>,
}

fn holders() -> Holders {
    let holders = Holders {
        lazy: LazyLock::new(list),
        lazy_cell: LazyCell::new(list),
        pinned: Box::pin(list()),
        manual: ManuallyDrop::new(list()),
        result: Ok(list()),
        twelve: (list(), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, list()),
        nodes: LinkedList::from([list()]),
        sorted: BTreeMap::from([(0, list())]),
        map: HashMap::from([(0, list())]),
        hashbrown: hashbrown::HashMap::from_iter([(0, list())]),
        index: indexmap::IndexMap::from_iter([(0, list())]),
        small: smallvec::SmallVec::from_iter([list()]),
        slab: slab::Slab::from_iter([(0, list())]),
        once: tokio::sync::OnceCell::new_with(Some(list())),
        text: Cow::Borrowed("text"),
    };
    LazyLock::force(&holders.lazy);
    LazyCell::force(&holders.lazy_cell);
    holders
}

const LISTS: usize = 15 * 5000;

#[test]
fn what_lies_behind_each_is_reached() {
    let cut = |report: ebbtide_shrink::Report| {
        let lists = report.by_type().into_iter().find(|(kind, ..)| *kind == "Vec");
        lists.map(|(_, _, returned)| returned)
    };
    let mut owned = holders();
    assert!(owned.slack() >= Bytes(LISTS));
    assert_eq!(cut(shrink_now(&mut owned, &Policy::new())), Some(Bytes(LISTS)));
    let shared = holders();
    assert_eq!(shared.slack_shared(), Bytes(LISTS));
    assert_eq!(cut(shrink_shared_now(&shared, &Policy::new())), Some(Bytes(LISTS)));
    // The second time there is nothing, and what was not made is not made for it.
    assert_eq!(shrink_shared_now(&shared, &Policy::new()).returned, Bytes::ZERO);
    let mut lazy: LazyLock<List> = LazyLock::new(|| unreachable!("nobody asked for it"));
    assert_eq!(shrink_now(&mut lazy, &Policy::new()).returned, Bytes::ZERO);
    assert!(Flat::is_flat() && Flat::is_flat_shared() && Fixed::is_flat_shared());
}

struct Told;

impl Shrink for Told {
    fn slack(&self) -> Bytes {
        Bytes::ZERO
    }
    fn shrink(&mut self, cascade: &mut Cascade<'_>) {
        assert!(format!("{cascade:?}").starts_with("Cascade"));
    }
}

#[test]
fn what_a_service_holds_can_be_shown() {
    let show = |value: &dyn Debug| format!("{value:?}");
    let builder = Pool::builder(|| 7);
    assert!(show(&builder).starts_with("Builder"));
    let pool = builder.build();
    assert!(show(&pool.get_async()).starts_with("Get"));
    let guard = pool.get();
    assert_eq!(show(&guard), "7");
    assert!(show(&pool).contains("out: 1"));
    let mut job = Job::new("told", Policy::new());
    while job.slice(&mut Told) {}
    assert!(show(&job).contains("\"told\""));
}
