//! Whatever a collection holds, and however it came to hold it: after a cascade under any policy, in one go or in
//! slices, it holds the same, has room for it, and does not ask to be shrunk by the same policy again.
#![allow(clippy::unwrap_used)]

use ebbtide_shrink::{Bytes, Job, Policy, Shrink};
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::*;
use std::rc::Rc;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

/// What happened to a collection of numbers.
#[derive(Clone, Debug)]
enum Op {
    Add(u16),
    Remove(u16),
    AddMany(u16),
    KeepBelow(u16),
    Reserve(u16),
    Clear,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => any::<u16>().prop_map(Op::Add),
        4 => any::<u16>().prop_map(Op::Remove),
        3 => (0..600_u16).prop_map(Op::AddMany),
        3 => any::<u16>().prop_map(Op::KeepBelow),
        1 => (0..5000_u16).prop_map(Op::Reserve),
        1 => Just(Op::Clear),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    (1.0..5.0_f64, 1.0..3.0_f64, 1..5000_usize, prop_oneof![Just(0), Just(1000)], any::<bool>()).prop_map(
        |(factor, to, floor, transient, sliced)| {
            Policy::new()
                .hysteresis(factor, to)
                .floor(Bytes(floor))
                .transient(if transient == 0 { Bytes::MAX } else { Bytes(transient) })
                .slice(if sliced { Duration::ZERO } else { Duration::MAX })
                .may_abort(true)
        },
    )
}

/// A collection that can be driven by [`Op`]s, and read back in an order of its own.
trait Driven: Shrink + Default {
    fn apply(&mut self, op: &Op);
    fn contents(&self) -> Vec<u16>;
}

macro_rules! driven {
    ($type:ty, $add:expr, $remove:expr, $reserve:expr, $all:expr) => {
        impl Driven for $type {
            fn apply(&mut self, op: &Op) {
                match *op {
                    Op::Add(n) => $add(self, n),
                    Op::Remove(n) => $remove(self, n),
                    Op::AddMany(n) => (0..n).for_each(|n| $add(self, n.wrapping_mul(7))),
                    Op::KeepBelow(most) => (most..=u16::MAX).step_by(3).for_each(|n| $remove(self, n)),
                    Op::Reserve(n) => $reserve(self, n as usize),
                    Op::Clear => self.clear(),
                }
            }
            fn contents(&self) -> Vec<u16> {
                $all(self)
            }
        }
    };
}

driven!(
    Vec<u16>,
    |s: &mut Vec<u16>, n| s.push(n),
    |s: &mut Vec<u16>, n: u16| _ = (s.len() > n as usize / 8).then(|| s.swap_remove(n as usize / 8)),
    |s: &mut Vec<u16>, n| s.reserve(n),
    |s: &Vec<u16>| s.clone()
);
driven!(
    VecDeque<u16>,
    |s: &mut VecDeque<u16>, n| if n % 2 == 0 { s.push_back(n) } else { s.push_front(n) },
    |s: &mut VecDeque<u16>, n: u16| _ = if n.is_multiple_of(3) { s.pop_back() } else { s.pop_front() },
    |s: &mut VecDeque<u16>, n| s.reserve(n),
    |s: &VecDeque<u16>| s.iter().copied().collect()
);
driven!(
    BinaryHeap<u16>,
    |s: &mut BinaryHeap<u16>, n| s.push(n),
    |s: &mut BinaryHeap<u16>, _| _ = s.pop(),
    |s: &mut BinaryHeap<u16>, n| s.reserve(n),
    |s: &BinaryHeap<u16>| s.clone().into_sorted_vec()
);
driven!(
    HashSet<u16>,
    |s: &mut HashSet<u16>, n| _ = s.insert(n),
    |s: &mut HashSet<u16>, n: u16| _ = s.remove(&n),
    |s: &mut HashSet<u16>, n| s.reserve(n),
    |s: &HashSet<u16>| BTreeSet::from_iter(s).into_iter().copied().collect()
);
driven!(
    hashbrown::HashSet<u16>,
    |s: &mut hashbrown::HashSet<u16>, n| _ = s.insert(n),
    |s: &mut hashbrown::HashSet<u16>, n: u16| _ = s.remove(&n),
    |s: &mut hashbrown::HashSet<u16>, n| s.reserve(n),
    |s: &hashbrown::HashSet<u16>| BTreeSet::from_iter(s).into_iter().copied().collect()
);
driven!(
    indexmap::IndexSet<u16>,
    |s: &mut indexmap::IndexSet<u16>, n| _ = s.insert(n),
    |s: &mut indexmap::IndexSet<u16>, n: u16| _ = s.swap_remove(&n),
    |s: &mut indexmap::IndexSet<u16>, n| s.reserve(n),
    |s: &indexmap::IndexSet<u16>| s.iter().copied().collect()
);
driven!(
    smallvec::SmallVec<[u16; 8]>,
    |s: &mut smallvec::SmallVec<[u16; 8]>, n| s.push(n),
    |s: &mut smallvec::SmallVec<[u16; 8]>, _| _ = s.pop(),
    |s: &mut smallvec::SmallVec<[u16; 8]>, n| s.reserve(n),
    |s: &smallvec::SmallVec<[u16; 8]>| s.to_vec()
);
driven!(
    slab::Slab<u16>,
    |s: &mut slab::Slab<u16>, n| _ = s.insert(n),
    |s: &mut slab::Slab<u16>, n: u16| _ = s.try_remove(n as usize / 8),
    |s: &mut slab::Slab<u16>, n| s.reserve(n),
    |s: &slab::Slab<u16>| s.iter().flat_map(|(key, n)| [key as u16, *n]).collect()
);
driven!(
    bytes::BytesMut,
    |s: &mut bytes::BytesMut, n: u16| s.extend_from_slice(&n.to_le_bytes()),
    |s: &mut bytes::BytesMut, n: u16| s.truncate(n as usize / 8),
    |s: &mut bytes::BytesMut, n| s.reserve(n),
    |s: &bytes::BytesMut| s.iter().map(|b| u16::from(*b)).collect()
);
driven!(
    String,
    |s: &mut String, n: u16| s.push(char::from_u32(n.into()).unwrap_or('ß')),
    |s: &mut String, _| _ = s.pop(),
    |s: &mut String, n| s.reserve(n),
    |s: &String| s.encode_utf16().collect()
);
driven!(
    BTreeSet<u16>,
    |s: &mut BTreeSet<u16>, n| _ = s.insert(n),
    |s: &mut BTreeSet<u16>, n: u16| _ = s.remove(&n),
    |_: &mut BTreeSet<u16>, _| (),
    |s: &BTreeSet<u16>| s.iter().copied().collect()
);

/// Maps: the values are collections themselves.
macro_rules! driven_map {
    ($type:ty, $all:expr) => {
        impl Driven for $type {
            fn apply(&mut self, op: &Op) {
                match *op {
                    Op::Add(n) => self.entry(n % 97).or_default().push(n),
                    Op::Remove(n) => _ = self.remove(&(n % 97)),
                    Op::AddMany(n) => {
                        (0..n).for_each(|n| _ = self.insert(n, Vec::with_capacity(n as usize % 50)))
                    }
                    Op::KeepBelow(most) => self.retain(|n, _| *n < most),
                    Op::Reserve(n) => self.entry(n % 97).or_default().reserve(n as usize),
                    Op::Clear => self.clear(),
                }
            }
            fn contents(&self) -> Vec<u16> {
                let mut all: Vec<(u16, Vec<u16>)> = $all(self);
                all.sort();
                all.into_iter().flat_map(|(key, values)| [vec![key], values].concat()).collect()
            }
        }
    };
}
fn pairs<'a>(all: impl Iterator<Item = (&'a u16, &'a Vec<u16>)>) -> Vec<(u16, Vec<u16>)> {
    all.map(|(key, values)| (*key, values.clone())).collect()
}
driven_map!(HashMap<u16, Vec<u16>>, |s: &Self| pairs(s.iter()));
driven_map!(BTreeMap<u16, Vec<u16>>, |s: &Self| pairs(s.iter()));
driven_map!(dashmap::DashMap<u16, Vec<u16>>, |s: &Self| s.iter().map(|e| (*e.key(), e.value().clone())).collect());

/// What holds a collection of another type.
macro_rules! driven_inside {
    ($($type:ty, $this:ident => $by_mut:expr, $by_ref:expr;)*) => {$(
        impl Driven for $type {
            fn apply(&mut self, op: &Op) {
                let $this = self;
                $by_mut.apply(op)
            }
            fn contents(&self) -> Vec<u16> {
                let $this = self;
                $by_ref.contents()
            }
        }
    )*};
}
driven_inside! {
    Box<Vec<u16>>, this => (**this), (**this);
    Option<Vec<u16>>, this => this.get_or_insert_default(), this.as_ref().unwrap_or(&Vec::new());
    Rc<RefCell<Vec<u16>>>, this => this.borrow_mut(), this.borrow();
    Arc<Mutex<VecDeque<u16>>>, this => this.lock().unwrap(), this.lock().unwrap();
    Arc<RwLock<HashSet<u16>>>, this => this.write().unwrap(), this.read().unwrap();
    Arc<parking_lot::Mutex<Vec<u16>>>, this => this.lock(), this.lock();
    Arc<parking_lot::RwLock<Vec<u16>>>, this => this.write(), this.read();
    Arc<tokio::sync::Mutex<Vec<u16>>>, this => this.try_lock().unwrap(), this.try_lock().unwrap();
    (Vec<u16>, String), this => this.0, this.0;
}

fn check<T: Driven>(ops: &[Op], policy: Policy) -> Result<(), TestCaseError> {
    let mut value = T::default();
    ops.iter().for_each(|op| value.apply(op));
    let before = value.contents();
    let mut job = Job::new("value", policy);
    let mut slices = 0;
    while job.slice(&mut value) {
        slices += 1;
        prop_assert!(slices < 100_000);
    }
    prop_assert_eq!(value.contents(), before);
    let report = job.into_report();
    prop_assert!(report.returned <= report.slack || report.too_large_to_copy > 0, "{:?}", report);
    let mut again = Job::new("value", policy);
    while again.slice(&mut value) {}
    let again = again.into_report();
    prop_assert_eq!(again.returned, Bytes::ZERO, "after {:?}: {:?}", report, again);
    Ok(())
}

macro_rules! contents_stay {
    ($($name:ident: $type:ty,)*) => {
        proptest! {
            #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
            $(
                #[test]
                fn $name(ops in prop::collection::vec(op(), 0..40), policy in policy()) {
                    check::<$type>(&ops, policy)?;
                }
            )*
        }
    };
}
contents_stay! {
    vec: Vec<u16>,
    vec_deque: VecDeque<u16>,
    binary_heap: BinaryHeap<u16>,
    hash_set: HashSet<u16>,
    hash_map: HashMap<u16, Vec<u16>>,
    btree_set: BTreeSet<u16>,
    btree_map: BTreeMap<u16, Vec<u16>>,
    string: String,
    boxed: Box<Vec<u16>>,
    option: Option<Vec<u16>>,
    tuple: (Vec<u16>, String),
    rc_ref_cell: Rc<RefCell<Vec<u16>>>,
    arc_mutex: Arc<Mutex<VecDeque<u16>>>,
    arc_rw_lock: Arc<RwLock<HashSet<u16>>>,
    parking_lot_mutex: Arc<parking_lot::Mutex<Vec<u16>>>,
    parking_lot_rw_lock: Arc<parking_lot::RwLock<Vec<u16>>>,
    tokio_mutex: Arc<tokio::sync::Mutex<Vec<u16>>>,
    hashbrown_set: hashbrown::HashSet<u16>,
    index_set: indexmap::IndexSet<u16>,
    small_vec: smallvec::SmallVec<[u16; 8]>,
    slab: slab::Slab<u16>,
    bytes_mut: bytes::BytesMut,
    dash_map: dashmap::DashMap<u16, Vec<u16>>,
}
