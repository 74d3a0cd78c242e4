//! `#[derive(Shrink)]` and `#[derive(ShrinkShared)]`: each field is a step of the cascade, in the order of the source.
//!
//! Invariants: what cannot be derived is a compile error at the place that causes it, never a field left out in
//! silence; the expansion names everything by its full path and needs no import.

mod attrs;
mod expand;

use expand::Of;
use proc_macro::TokenStream;

/// Implements `Shrink` by descending into all fields: of structs, tuple structs and enums, with type parameters.
///
/// | on a field | does |
/// |---|---|
/// | `#[shrink(skip)]` | leaves it alone; its type need not be `Shrink` |
/// | `#[shrink(keep = n)]` | its own buffer keeps room for `n` elements at least |
/// | `#[shrink(factor = x)]` | its own buffer is cut only above `x` times what it holds |
/// | `#[shrink(with = path)]` | calls `fn(&mut Field, &mut Cascade<'_>)`; its type need not be `Shrink` |
/// | `#[shrink(slack = path)]` | beside `with`: `fn(&Field) -> Bytes` measures it; without, it counts as nothing |
///
/// `keep` and `factor` reach through `Option`, `Box` and locks to the collection inside, not to its elements.
///
/// | on the type | does |
/// |---|---|
/// | `#[shrink(bound(T: Debug, U: Shrink))]` | these bounds in place of `T: Shrink` for each type parameter |
/// | `#[shrink(crate = path)]` | where `ebbtide_shrink` is, if it is exported by another crate |
///
/// ```
/// use ebbtide_shrink::{shrink_now, Policy, Shrink};
/// use std::collections::HashMap;
///
/// #[derive(Shrink)]
/// struct Queue {
///     #[shrink(keep = 16)]
///     ready: Vec<String>,
///     unacked: HashMap<u64, String>,
///     #[shrink(skip)]
///     notify: std::sync::Condvar,
/// }
///
/// let mut queue = Queue { ready: Vec::with_capacity(10_000), unacked: HashMap::new(), notify: Default::default() };
/// let report = shrink_now(&mut queue, &Policy::default());
/// assert_eq!(queue.ready.capacity(), 20);
/// assert_eq!(report.places[0].path, "ready");
/// ```
#[proc_macro_derive(Shrink, attributes(shrink))]
pub fn shrink(input: TokenStream) -> TokenStream {
    expand::derive(input.into(), Of::Owned).into()
}

/// Implements `ShrinkShared` by descending into all fields by shared reference: for a struct that is kept in an `Arc`
/// and has its locks inside. The attributes are those of `Shrink`; the function of `with` takes `&Field`.
///
/// ```
/// use ebbtide_shrink::{shrink_shared_now, Policy, ShrinkShared};
/// use std::sync::{atomic::AtomicU64, Arc, Mutex};
///
/// #[derive(ShrinkShared)]
/// struct Server {
///     name: String,
///     served: AtomicU64,
///     backlog: Mutex<Vec<u64>>,
/// }
///
/// let server = Arc::new(Server {
///     name: "s".into(),
///     served: AtomicU64::new(0),
///     backlog: Mutex::new(Vec::with_capacity(1000)),
/// });
/// let report = shrink_shared_now(&server, &Policy::default());
/// assert_eq!(report.returned.0, 8000);
/// ```
#[proc_macro_derive(ShrinkShared, attributes(shrink))]
pub fn shrink_shared(input: TokenStream) -> TokenStream {
    expand::derive(input.into(), Of::Shared).into()
}
