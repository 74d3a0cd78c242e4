//! What tests share: fake machine roots, child programs with ready handshakes, nginx and Redis.
#![forbid(unsafe_code)]

pub mod child;
mod fake_root;
mod nginx;
mod redis;

pub use child::{Child, Parent};
pub use fake_root::FakeRoot;
pub use nginx::Nginx;
pub use redis::Redis;
