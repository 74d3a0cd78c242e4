//! `Shrink` for types of other crates, each under the feature of its crate's name.

#[cfg(feature = "bytes")]
mod bytes;
#[cfg(feature = "crossbeam-channel")]
mod crossbeam_channel;
#[cfg(feature = "dashmap")]
mod dashmap;
#[cfg(feature = "hashbrown")]
mod hashbrown;
#[cfg(feature = "indexmap")]
mod indexmap;
#[cfg(feature = "parking_lot")]
mod lock_api;
#[cfg(feature = "memmap2")]
mod memmap2;
#[cfg(feature = "slab")]
mod slab;
#[cfg(feature = "smallvec")]
mod smallvec;
#[cfg(feature = "tokio")]
mod tokio;
