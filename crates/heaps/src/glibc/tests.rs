//! Tests on pictures of memory.
