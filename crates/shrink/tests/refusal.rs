//! The allocator refuses memory in the middle of a cascade: at its first call, at its second, at each there is. Nothing
//! panics or aborts, every collection holds what it held, and what could not be given back then can be later.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Counting, calls, refusing};
use ebbtide_shrink::{Bytes, Policy, Registry, Report, Shrink, ShrinkShared, Turn, shrink_now};
use std::collections::*;
use std::rc::Rc;
use std::sync::{Arc, Mutex, RwLock};

#[global_allocator]
static HEAP: Counting = Counting;

/// One of everything, each drained after it was large.
#[derive(Shrink, Debug)]
struct Tree {
    list: Vec<String>,
    queue: VecDeque<u32>,
    heap: BinaryHeap<u32>,
    map: HashMap<String, Vec<u8>>,
    set: HashSet<u32>,
    sorted: BTreeMap<u32, String>,
    path: std::path::PathBuf,
    os: std::ffi::OsString,
    boxed: Box<dyn Any>,
    either: Result<Vec<u8>, String>,
    shared: Arc<Mutex<Vec<u32>>>,
    counted: Rc<RwLock<HashMap<u32, u32>>>,
    hashbrown: hashbrown::HashMap<u32, Vec<u32>>,
    index: indexmap::IndexMap<String, Vec<u32>>,
    index_set: indexmap::IndexSet<u32>,
    bytes: bytes::BytesMut,
    small: smallvec::SmallVec<[u32; 4]>,
    inside: smallvec::SmallVec<[u32; 16]>,
    slab: slab::Slab<Vec<u8>>,
    empty: slab::Slab<u32>,
    dash: Arc<dashmap::DashMap<u32, Vec<u32>>>,
    parking: Arc<parking_lot::Mutex<Vec<u32>>>,
    tokio: Arc<tokio::sync::RwLock<Vec<u32>>>,
}

trait Any: Shrink + std::fmt::Debug {}
impl Any for Vec<u32> {}

fn drained<T: FromIterator<u32>>(cut: impl FnOnce(&mut T)) -> T {
    let mut all: T = (0..2000).collect();
    cut(&mut all);
    all
}

fn list() -> Vec<u32> {
    drained(|list: &mut Vec<u32>| list.truncate(10))
}

fn bytes(n: u32) -> Vec<u8> {
    let mut bytes = vec![0; 5000];
    bytes.truncate(n as usize);
    bytes
}

fn text(n: u32) -> String {
    let mut text = "x".repeat(3000);
    text.truncate(n as usize);
    text
}

impl Tree {
    fn new() -> Tree {
        let mut slab = slab::Slab::new();
        (0..1000).for_each(|n| _ = slab.insert(bytes(n % 10)));
        slab.retain(|key, _| key < 10);
        let mut empty: slab::Slab<u32> = (0..1000).map(|n| (n, 0)).collect();
        empty.clear();
        let dash = dashmap::DashMap::with_shard_amount(2);
        (0..2000).for_each(|n| _ = dash.insert(n, if n < 10 { list() } else { Vec::new() }));
        dash.retain(|n, _| *n < 10);
        let mut zeroed = bytes::BytesMut::zeroed(9000);
        zeroed.truncate(7);
        Tree {
            list: (0..10).map(text).collect(),
            queue: drained(|queue: &mut VecDeque<u32>| drop(queue.drain(10..))),
            heap: drained(|heap: &mut BinaryHeap<u32>| heap.retain(|n| *n < 10)),
            map: (0..10).map(|n| (n.to_string(), bytes(n))).collect(),
            set: drained(|set: &mut HashSet<u32>| set.retain(|n| *n < 10)),
            sorted: (0..10).map(|n| (n, text(n))).collect(),
            path: text(9).into(),
            os: text(8).into(),
            boxed: Box::new(list()),
            either: Ok(bytes(3)),
            shared: Arc::new(Mutex::new(list())),
            counted: Rc::new(RwLock::new({
                let mut map: HashMap<u32, u32> = (0..2000).map(|n| (n, n)).collect();
                map.retain(|n, _| *n < 10);
                map
            })),
            hashbrown: (0..10).map(|n| (n, list())).collect(),
            index: (0..10).map(|n| (n.to_string(), list())).collect(),
            index_set: drained(|set: &mut indexmap::IndexSet<u32>| set.retain(|n| *n < 10)),
            bytes: zeroed,
            small: drained(|list: &mut smallvec::SmallVec<[u32; 4]>| list.truncate(10)),
            inside: drained(|list: &mut smallvec::SmallVec<[u32; 16]>| list.truncate(10)),
            slab,
            empty,
            dash: Arc::new(dash),
            parking: Arc::new(parking_lot::Mutex::new(list())),
            tokio: Arc::new(tokio::sync::RwLock::new(list())),
        }
    }

    /// All contents, in an order that does not depend on a table's.
    fn contents(&self) -> String {
        let mut lines: Vec<String> = Vec::new();
        lines.extend(self.map.iter().map(|e| format!("map {e:?}")));
        lines.extend(self.set.iter().map(|e| format!("set {e:?}")));
        lines.extend(self.counted.read().unwrap().iter().map(|e| format!("counted {e:?}")));
        lines.extend(self.hashbrown.iter().map(|e| format!("hashbrown {e:?}")));
        lines.extend(self.dash.iter().map(|e| format!("dash {} {:?}", e.key(), e.value())));
        lines.sort();
        lines.push(format!(
            "{:?} {:?} {:?} {:?}",
            self.list,
            self.queue,
            self.heap.clone().into_sorted_vec(),
            self.sorted
        ));
        lines.push(format!(
            "{:?} {:?} {:?} {:?} {:?}",
            self.path, self.os, self.boxed, self.either, self.shared
        ));
        lines.push(format!("{:?} {:?} {:?} {:?}", self.index, self.index_set, self.bytes, self.small));
        lines.push(format!("{:?} {:?} {:?} {:?}", self.inside, self.slab, self.parking, self.tokio));
        lines.join("\n")
    }
}

fn policy() -> Policy {
    // One step per slice, so that refusals also meet the state between slices.
    Policy::everything().slice(std::time::Duration::ZERO)
}

/// Does `work` with each of its calls for memory refused once; how many that were.
fn at_each_call(work: impl Fn(&mut Tree) -> Report) -> usize {
    let expected = Tree::new().contents();
    let whole = work(&mut Tree::new());
    assert_eq!(whole.refused, 0);
    for n in 0.. {
        let mut tree = Tree::new();
        let (report, refused) = refusing(n, || work(&mut tree));
        if !refused {
            return n;
        }
        assert_eq!(tree.contents(), expected, "call {n} refused");
        // What is lost is at most one buffer, or a line of the report.
        assert!(report.refused <= 1 && report.cut + report.refused >= whole.cut, "call {n}: {report:?}");
        let again = work(&mut tree);
        assert_eq!((again.refused, tree.contents()), (0, expected.clone()), "after call {n} refused");
        assert_eq!(work(&mut tree).returned, Bytes::ZERO, "after call {n} refused");
    }
    unreachable!("a cascade has an end");
}

#[test]
fn nothing_is_lost_at_any_call() {
    let before = calls();
    shrink_now(&mut Tree::new(), &policy());
    let all = calls() - before;
    let refused = at_each_call(|tree| shrink_now(tree, &policy()));
    println!("{refused} calls for memory in a cascade, each refused once ({all} with making the tree)");
    assert!(refused > 50, "the cascade asks for memory {refused} times only");
}

/// The same by way of a registry: its own allocations may be refused, too.
#[test]
fn nor_in_a_registry() {
    let registry = Registry::with_allocator(policy(), || {});
    let refused = at_each_call(|tree| {
        let mut member = registry.member("tree");
        registry.flag();
        loop {
            match member.poll(tree) {
                Turn::Quiet => unreachable!("it rang"),
                Turn::More => {}
                Turn::Done(report) => return report,
            }
        }
    });
    assert!(refused > 50);
    assert_eq!(registry.totals().cascades, 3 * refused as u64 + 2);
}

#[derive(ShrinkShared)]
struct Shared(Mutex<Vec<u32>>, Mutex<HashMap<u32, String>>);

/// And for shared values: where the list of a registry cannot grow, nothing else is lost.
#[test]
fn nor_in_what_is_shared() {
    let make = || Arc::new(Shared(Mutex::new(list()), Mutex::new((0..10).map(|n| (n, text(n))).collect())));
    for n in 0.. {
        let registry = Registry::with_allocator(policy(), || {});
        let value = make();
        registry.share("shared", &value);
        registry.flag();
        let turns = || while registry.poll().is_more() {};
        let ((), refused) = refusing(n, turns);
        assert_eq!(*value.0.lock().unwrap(), (0..10).collect::<Vec<_>>());
        assert_eq!(value.1.lock().unwrap().values().map(String::len).sum::<usize>(), 45);
        if !refused {
            assert!(n > 3);
            return;
        }
    }
}
