//! What tests share: fake machine roots, and child programs with ready handshakes.
#![forbid(unsafe_code)]

mod fake_root;

pub use fake_root::FakeRoot;
