//! System calls and ioctls that rustix lacks, as small safe functions: the only unsafe code on the observing
//! side. Each function is documented as "`call(args)`: what it does", with its preconditions and errors.

pub mod advise;
pub mod borrow;
pub mod bpf;
pub mod cached;
mod call;
pub mod fork;
pub mod freeze;
pub mod interrupt;
pub mod pagemap;
pub mod remote;
pub mod schedule;
