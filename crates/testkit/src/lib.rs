//! What tests share: fake machine roots, and child programs with ready handshakes.
#![forbid(unsafe_code)]
