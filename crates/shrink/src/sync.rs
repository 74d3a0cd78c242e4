//! Where the registry gets locks and counters from. `tests/model.rs` compiles its parts against another module of this
//! name, on shuttle's model of threads.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
pub(crate) use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
