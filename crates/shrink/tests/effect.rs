//! What each supported type gives back, by the allocator's count: a collection that once held 10,000 elements and
//! holds 10 is shrunk with the default policy. The report must say the same as the allocator.
//!
//! `cargo test -p ebbtide-shrink --test effect -- --nocapture` prints the table.

mod common;

use common::{Counting, live, rise};
use ebbtide_shrink::{Bytes, Policy, Pool, Shrink, shrink_now};
use std::cell::{Cell, OnceCell, RefCell};
use std::collections::*;
use std::rc::Rc;
use std::sync::{Arc, Mutex, OnceLock, RwLock};

#[global_allocator]
static HEAP: Counting = Counting;

const MANY: u64 = 10_000;
const FEW: u64 = 10;

/// A policy without limits on size, so that the table shows types and not limits.
fn policy() -> Policy {
    Policy::new().transient(Bytes::MAX).slice_bytes(Bytes::MAX)
}

struct Row {
    before: isize,
    after: isize,
    rise: isize,
    said: Bytes,
    slack: Bytes,
}

fn measure<T: Shrink>(make: impl FnOnce() -> T) -> Row {
    let empty = live();
    let mut value = make();
    let before = live() - empty;
    let slack = value.slack();
    let (report, rise) = rise(|| shrink_now(&mut value, &policy()));
    let said = report.returned;
    // The report is on this thread's account, too.
    drop(report);
    let after = live() - empty;
    drop(value);
    Row { before, after, rise, said, slack }
}

fn list<T: FromIterator<u64> + Extend<u64>>() -> T {
    (0..MANY).collect()
}

fn vec() -> Vec<u64> {
    let mut list: Vec<u64> = list();
    list.truncate(FEW as usize);
    list
}

/// Checks one type: at least `least` percent of what it held comes back, and it is what the report says.
fn check<T: Shrink>(name: &str, least: isize, make: impl FnOnce() -> T) {
    let Row { before, after, rise, said, slack } = measure(make);
    let returned = before - after;
    println!("{name:<28} {before:>9} {after:>9} {returned:>9} {:>9} {:>9} {rise:>9}", said.0, slack.0);
    assert!(returned * 100 >= before * least, "{name}: {returned} of {before}");
    let said = said.0 as isize;
    // Bookkeeping blocks (an Arc's counters) stay; the tables' formula may be off by their group of control bytes.
    assert!((said - returned).abs() <= 64, "{name}: says {said}, the allocator {returned}");
    let slack = slack.0 as isize;
    assert!(slack >= said && slack <= said + said / 8 + 1024, "{name}: slack {slack}, returned {said}");
}

#[test]
fn every_type_gives_back() {
    println!(
        "{:<28} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
        "type", "before", "after", "returned", "report", "slack", "rise"
    );
    check("Vec", 99, vec);
    check("String", 99, || {
        let mut text = "x".repeat(100_000);
        text.truncate(10);
        text
    });
    check("PathBuf", 99, || {
        let mut path = std::path::PathBuf::with_capacity(100_000);
        path.push("/a");
        path
    });
    check("OsString", 99, || {
        let mut text = std::ffi::OsString::with_capacity(100_000);
        text.push("a");
        text
    });
    check("VecDeque", 99, || {
        let mut queue: VecDeque<u64> = list();
        // What is left has wrapped around.
        queue.rotate_left(5);
        queue.drain(5..(MANY - 5) as usize);
        queue
    });
    check("BinaryHeap", 99, || {
        let mut heap: BinaryHeap<u64> = list();
        while heap.len() > FEW as usize {
            heap.pop();
        }
        heap
    });
    check("HashMap", 99, || {
        let mut map: HashMap<u64, u64> = (0..MANY).map(|n| (n, n)).collect();
        map.retain(|n, _| *n < FEW);
        map
    });
    check("HashSet", 99, || {
        let mut set: HashSet<u64> = list();
        set.retain(|n| *n < FEW);
        set
    });
    check("HashMap, emptied", 99, || {
        let mut map: HashMap<u64, u64> = (0..MANY).map(|n| (n, n)).collect();
        map.clear();
        map
    });
    check("BTreeMap of Vec", 75, || BTreeMap::from_iter((0..FEW).map(|n| (n, vec()))));
    check("LinkedList of Vec", 99, || LinkedList::from_iter((0..FEW).map(|_| vec())));
    check("Option", 99, || Some(vec()));
    check("Result", 99, || Ok::<_, ()>(vec()));
    check("Box", 99, || Box::new(vec()));
    check("Box of dyn", 99, || Box::new(vec()) as Box<dyn Shrink>);
    check("Box of slice", 99, || vec![vec(), vec()].into_boxed_slice());
    check("tuple, array", 99, || (vec(), [vec(), vec()]));
    check("Cow", 99, || std::borrow::Cow::<[u64]>::Owned(vec()));
    check("OnceCell, OnceLock", 99, || (OnceCell::from(vec()), OnceLock::from(vec())));
    check("Rc of RefCell", 99, || Rc::new(RefCell::new(vec())));
    check("Arc of Mutex", 99, || Arc::new(Mutex::new(vec())));
    check("Arc of RwLock", 99, || Arc::new(RwLock::new(vec())));
    check("Vec of Vec", 99, || Vec::from_iter((0..FEW).map(|_| vec())));
    check("HashMap of String to Vec", 75, || {
        HashMap::<String, _>::from_iter((0..FEW).map(|n| (n.to_string(), vec())))
    });
    check("Pool, idle", 95, || {
        let pool = Pool::builder(|| vec![0_u64; 1000]).size(|v| Bytes::of::<u64>(v.capacity())).build();
        let out: Vec<_> = (0..64).map(|_| pool.get()).collect();
        drop(out);
        pool
    });
}

/// Its content is not measured, as nobody may look into a `Cell`.
#[test]
fn a_cell_gives_back_too() {
    let mut cell = Cell::new(vec());
    assert_eq!(shrink_now(&mut cell, &policy()).returned.0, 79_896);
    assert_eq!(cell.into_inner(), (0..FEW).collect::<Vec<_>>());
}

#[test]
fn every_type_of_other_crates_gives_back() {
    check("hashbrown::HashMap", 99, || {
        let mut map: hashbrown::HashMap<u64, u64> = (0..MANY).map(|n| (n, n)).collect();
        map.retain(|n, _| *n < FEW);
        map
    });
    check("hashbrown::HashSet", 99, || {
        let mut set: hashbrown::HashSet<u64> = list();
        set.retain(|n| *n < FEW);
        set
    });
    check("IndexMap", 99, || {
        let mut map: indexmap::IndexMap<u64, u64> = (0..MANY).map(|n| (n, n)).collect();
        map.retain(|n, _| *n < FEW);
        map
    });
    check("IndexSet", 99, || {
        let mut set: indexmap::IndexSet<u64> = list();
        set.retain(|n| *n < FEW);
        set
    });
    check("BytesMut", 99, || {
        let mut bytes = bytes::BytesMut::zeroed(100_000);
        bytes.truncate(10);
        bytes
    });
    check("SmallVec, to the heap", 99, || {
        let mut list: smallvec::SmallVec<[u64; 4]> = (0..MANY).collect();
        list.truncate(10);
        list
    });
    check("SmallVec, back inside", 99, || {
        let mut list: smallvec::SmallVec<[u64; 16]> = (0..MANY).collect();
        list.truncate(3);
        list
    });
    check("Slab, emptied", 99, || {
        let mut slab: slab::Slab<u64> = slab::Slab::new();
        (0..MANY).for_each(|n| _ = slab.insert(n));
        slab.clear();
        slab
    });
    check("parking_lot", 99, || Arc::new((parking_lot::Mutex::new(vec()), parking_lot::RwLock::new(vec()))));
    check("tokio", 99, || Arc::new((tokio::sync::Mutex::new(vec()), tokio::sync::RwLock::new(vec()))));
    // 4 shards, so that few are left in each; its shards are allocated, too.
    let dash = || {
        let map = dashmap::DashMap::<u64, u64>::with_shard_amount(4);
        (0..MANY).for_each(|n| _ = map.insert(n, n));
        map.retain(|n, _| *n < FEW);
        map
    };
    check("DashMap", 95, dash);
    check("Arc of DashMap", 95, || Arc::new(dash()));
    check("DashMap of Vec", 80, || {
        let map = dashmap::DashMap::<u64, Vec<u64>>::with_shard_amount(4);
        (0..FEW).for_each(|n| drop(map.insert(n, vec())));
        map
    });
}

/// A table that was full to the brim is seen at a quarter of its size, because std counts what was removed from it as
/// taken; hashbrown tells its true size.
#[test]
fn a_table_that_was_full_is_seen() {
    let mut own: hashbrown::HashMap<u64, u64> = hashbrown::HashMap::with_capacity(7168);
    (0..7168).for_each(|n| _ = own.insert(n, n));
    own.retain(|n, _| *n < 2500);
    let (seen, before) = (own.capacity(), live());
    let report = shrink_now(&mut own, &policy());
    let returned = report.returned.0 as isize;
    drop(report);
    assert_eq!((returned, own.capacity()), (before - live(), 3584));
    println!("hashbrown's capacity() said {seen} of 7168");

    let mut map: HashMap<u64, u64> = HashMap::with_capacity(7168);
    (0..7168).for_each(|n| _ = map.insert(n, n));
    map.retain(|n, _| *n < 500);
    let (seen, before) = (map.capacity(), live());
    let report = shrink_now(&mut map, &policy());
    let returned = report.returned.0 as isize;
    drop(report);
    println!("std's capacity() said {seen} of 7168; said to have returned {returned} of {}", before - live());
    assert!(returned <= before - live() && map.capacity() < 1000, "{returned}");
}

#[test]
fn a_slab_that_is_not_empty_needs_leave_to_abort() {
    let mut slab: slab::Slab<u64> = slab::Slab::new();
    (0..MANY).for_each(|n| _ = slab.insert(n));
    slab.retain(|key, _| key < 10);
    assert_eq!(shrink_now(&mut slab, &policy()).returned, Bytes::ZERO);
    let report = shrink_now(&mut slab, &policy().may_abort(true));
    assert!(report.returned.0 > 100_000 && slab.capacity() == 10, "{report:?}");
    assert_eq!(slab.iter().map(|(key, _)| key).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
}

/// hashbrown's `shrink_to` makes the new table before the old one goes. The rise is what the policy allows, table by
/// table, where all together would be a hundred times that; and a table above it is left and said.
#[test]
fn the_transient_double_of_tables_is_bounded() {
    let half_full = || {
        let mut map: HashMap<u64, u64> = (0..5000).map(|n| (n, n)).collect();
        map.retain(|n, _| *n < 1700);
        map
    };
    let mut maps: Vec<_> = (0..100).map(|_| half_full()).collect();
    let one = 4096 * 17 + 16;
    let (report, rise) = rise(|| shrink_now(&mut maps, &Policy::new().transient(Bytes(one))));
    println!("100 tables: rise {rise}, one smaller table {one}, returned {}", report.returned);
    assert_eq!((report.cut, report.too_large_to_copy, report.transient), (100, 0, Bytes(one)));
    assert!(rise <= one as isize + 8192, "rose by {rise}");

    let mut map = half_full();
    let (report, rise) = common::rise(|| shrink_now(&mut map, &Policy::new().transient(Bytes(one - 1))));
    assert_eq!((report.cut, report.too_large_to_copy), (0, 1));
    assert!(rise < 8192, "rose by {rise}");
}
