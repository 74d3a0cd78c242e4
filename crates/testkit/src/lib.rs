//! What tests share: fake machine roots, and child programs with ready handshakes.
#![forbid(unsafe_code)]

pub mod child;
mod fake_root;

pub use child::{Child, Parent};
pub use fake_root::FakeRoot;
