//! What tests share: fake machine roots, child programs with ready handshakes, and nginx.
#![forbid(unsafe_code)]

pub mod child;
mod fake_root;
mod nginx;

pub use child::{Child, Parent};
pub use fake_root::FakeRoot;
pub use nginx::Nginx;
