//! Ledger, rules and trends: from samples to findings. Pure: no file, no clock, no process is touched here.
#![forbid(unsafe_code)]

mod cause;
mod finding;
pub mod fork;
pub mod growth;
pub mod ledger;
pub mod rules;
mod text;
pub mod trend;

pub use cause::Cause;
pub use finding::{Evidence, Finding, Lever, Not};
pub use ledger::{Ledger, Line};
pub use text::count;
pub use trend::{InStep, Series, Verdict, in_step, judge};
