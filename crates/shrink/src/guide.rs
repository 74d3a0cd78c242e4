//! Guide.
/// Thresholds.
pub mod thresholds {}
