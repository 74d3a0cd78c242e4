#![doc = include_str!("../README.md")]
//!
//! ## Inside
//!
//! `choose` tries the sources in order; each is a `feed`. One thread (`watch`) polls it, a pure `judge` with the time
//! passed in decides what holds and what is told, and the `hub` hands it to every reader's `queue`.

mod cgroup;
mod choose;
mod event;
mod feed;
mod hub;
mod judge;
mod level;
mod machine;
mod next;
mod options;
mod pressure;
mod psi;
mod queue;
mod source;
mod systemd;
mod watch;

pub use event::{Change, Event};
pub use level::Level;
pub use next::Next;
pub use options::Options;
pub use pressure::Pressure;
pub use source::{Kind, PassedOver, Source};
