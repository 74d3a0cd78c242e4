//! Trends: is a counter climbing, and does another climb in step with it?
//!
//! [`stats`] holds the rank statistics, which know numbers only. Everything here is pure and bounded: no
//! sample is read, no clock is asked.

pub mod stats;
