//! Other releases' jemallocs beside this machine's, for the tests of the heap walker: unpacked under target/vm and
//! preloaded there, never installed.

use crate::vm::{Apt, Release};

/// 5.2.1, and a later build of 5.3.0 than Debian 12's.
const RELEASES: [Release; 2] = [Release::Bullseye, Release::Trixie];

/// Unpacks them. Returns what could not be had, and why.
pub(crate) fn provide() -> Vec<String> {
    let unpack = |release: Release| {
        let error = Apt::new(release).and_then(|apt| apt.unpacked(&["libjemalloc2"])).err()?;
        Some(format!("libjemalloc2 of Debian's {}: {error:#}", release.suite()))
    };
    RELEASES.into_iter().filter_map(unpack).collect()
}
