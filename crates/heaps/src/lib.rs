//! Looks inside the heaps of a process from outside: which blocks live, which are free, and which whole pages
//! could be given back.
//!
//! Every walker is sans-IO: it sees the process through a [`MemorySource`], which is a live process ([`Live`])
//! or a saved picture ([`Image`]). Invariants: foreign memory is hostile, so every list is bounded, every size
//! checked and nothing panics; a running process changes under the reader, so what does not add up is read
//! again and, if it still does not, said ([`Certainty`]); a page that is not in memory is never faulted in.

mod account;
mod bounded;
pub mod cpython;
mod data;
pub mod ebbtide;
mod files;
mod free;
pub mod glibc;
mod image;
pub mod jemalloc;
mod live;
mod look;
pub mod luajit;
pub mod mimalloc;
mod model;
pub mod musl;
mod now;
mod ranges;
mod reader;
mod residency;
mod source;
pub mod tcmalloc;
mod unknown;

pub use account::{Account, RANGES_MOST};
pub use bounded::Bounded;
pub use files::Files;
pub use free::Free;
pub use image::Image;
pub use live::Live;
pub use look::{Look, LookError};
pub use model::{
    Arena, Certainty, Collector, Corruption, Extent, Figures, HUGE_BLOCK, Heap, Kind, SizeClass,
};
pub use reader::Reader;
pub use residency::Residency;
pub use source::{Area, Fault, MemorySource, PageState, ReadSeek, covered};
pub use unknown::Around;
