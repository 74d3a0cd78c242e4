//! Levers that give memory back. Each goes one way: a plan says what it would return and at what cost; it is applied;
//! what came back is measured; a report sets the two side by side.
//!
//! Never hurt the target: what cannot be known to be safe is not done, and the report says why. No unsafe code: the
//! steps that need it are in `ebbtide-sys`.
#![forbid(unsafe_code)]

pub mod cgroup;
mod durable;
pub mod host;
pub mod journal;
mod knob;
pub mod pageout;
pub mod process;
mod refused;
mod report;
mod slow;
pub mod state;
mod swap;
pub mod tune;

pub use refused::{LeverError, Refusal};
pub use report::{Blocks, Lever, Report, Setting};
pub use slow::Terms;
