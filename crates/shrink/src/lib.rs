#![doc = include_str!("../README.md")]

mod allocator;
mod cascade;
mod ffi;
mod history;
mod job;
#[cfg(feature = "memmap2")]
mod mapped;
mod park;
mod path;
mod policy;
mod prometheus;
mod refit;
mod registry;
mod report;
mod std_impls;
mod sync;
#[cfg(feature = "tracing")]
mod trace;
mod traits;
mod units;
mod walk;
mod with;

pub mod guide;
pub mod pool;

pub use allocator::{Allocator, give_back};
pub use cascade::{Cascade, DEEPEST};
pub use job::{Job, shrink_now, shrink_shared_now};
#[cfg(feature = "memmap2")]
pub use mapped::Mapped;
pub use policy::{Policy, Tuning};
pub use pool::Pool;
pub use registry::Registry;
pub use registry::member::{Member, Turn};
pub use report::{MOST_PLACES, MOST_SPOTS, Place, Report, Spot};
pub use std_impls::SAMPLE;
pub use traits::{Refused, Shrink, ShrinkShared, Site, Way};
pub use units::Bytes;

/// What [`Registry::watch`] and [`Registry::connect`] speak of.
#[cfg(feature = "pressure")]
#[doc(no_inline)]
pub use ebbtide_pressure;
#[cfg(feature = "derive")]
pub use ebbtide_shrink_derive::{Shrink, ShrinkShared};
