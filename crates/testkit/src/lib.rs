//! What tests share: fake machine roots, child programs with ready handshakes, nginx, Redis and Pythons.
#![forbid(unsafe_code)]

pub mod child;
mod fake_root;
mod nginx;
mod python;
mod redis;

pub use child::{Child, Parent};
pub use fake_root::FakeRoot;
pub use nginx::{Nginx, Plan};
pub use python::Python;
pub use redis::Redis;
