//! Reads /proc, /sys and cgroups under a given root into plain samples; no judgement.
//!
//! Parsers take bytes, readers take a [`Root`]; both live side by side in the module of their file. A field
//! that this kernel does not write is `None` or zero, never an error; a file that cannot be read is listed
//! as [`Unread`].
#![forbid(unsafe_code)]

pub mod cgroup;
mod error;
mod escape;
pub mod fork;
pub mod host;
pub mod hsperf;
pub mod process;
pub mod referenced;
pub mod root;
pub mod scan;
pub mod shared;
pub mod trace;
mod units;
pub mod writes;

pub use error::{ReadError, Unread, unless_root};
pub use escape::Escaped;
pub use process::Process;
pub use root::Root;
pub use units::{Bytes, Pages, page_size};
