//! The lab: small programs that make real memory incidents, each with its truth beside it, and the runner
//! that asks `ebb` about every one of them.
//!
//! Invariants:
//! - The lab reads /proc with its own few lines ([`procfs`]), never with `ebb`'s readers: a parser that is
//!   wrong must not confirm itself.
//! - A case verifies its own truth from the kernel's files before it says ready, so a miss is `ebb`'s.
//! - Everything a case changes outside its own memory is written to a [`journal`] before it is changed; the
//!   same replay cleans up at the end, on SIGTERM, and at the next start after a kill.

pub mod actor;
pub mod case;
pub mod cases;
pub mod cgroup;
pub mod hold;
pub mod journal;
pub mod judge;
pub mod machine;
pub mod noise;
pub mod procfs;
pub mod programs;
pub mod region;
pub mod report;
pub mod runner;
pub mod stage;
pub mod sys;

pub use case::{Case, Named, Need, Noise, Target, Truth};
pub use machine::Machine;
pub use stage::Stage;
