//! Pages beside the reference: [why this is sound under threads](threads), [how to choose thresholds](thresholds),
//! [what each type gives back](effect).

#[doc = include_str!("guide/threads.md")]
pub mod threads {}

#[doc = include_str!("guide/thresholds.md")]
pub mod thresholds {}

#[doc = include_str!("guide/effect.md")]
pub mod effect {}
