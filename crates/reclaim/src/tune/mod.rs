//! Settings of the kernel, changed with a way back.
//!
//! A change goes one way: the values are validated ([`Plan`]), an undo record is on the disk before anything is
//! written ([`Store`]), the settings are written and read back ([`apply`]), and a guardian or `undo` sets them back
//! ([`undo`]). Invariants: what has no record is not changed; only settings of the table ([`SETTINGS`]) are ever
//! written, whatever a record says; a value that somebody else has changed since is left alone unless told otherwise;
//! undoing takes no disk space and can be done any number of times.

mod advise;
mod apply;
pub mod check;
mod clock;
mod distance;
mod error;
mod judge;
mod measure;
mod persist;
mod propose;
mod record;
mod setting;
mod store;
mod table;
mod undo;

pub use advise::{Advice, Advised, Facts, advise};
pub use apply::{Applied, Options, Plan, Planned, apply, prepare};
pub use clock::{Boot, boottime};
pub use error::TuneError;
pub use judge::{Host, Remark, Verdict};
pub use measure::Measures;
pub use propose::{Proposal, propose};
pub use record::{Back, Change, Record};
pub use setting::{Setting, Values};
pub use store::{Pending, Store};
pub use table::SETTINGS;
pub use undo::{Outcome, Undone, undo};
