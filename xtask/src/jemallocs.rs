//! Other releases' jemallocs beside this machine's, for the tests of the heap walker: unpacked under target/vm
//! and preloaded from there, never installed.

use crate::vm::{Apt, Release};

/// 5.2.1, and a later build of 5.3.0 than Debian 12's, with the C library that it needs.
const JEMALLOCS: [(Release, &[&str]); 2] = [
    (Release::Bullseye, &["libjemalloc2"]),
    (Release::Trixie, &["libjemalloc2", "libc6", "libstdc++6", "libgcc-s1"]),
];

/// Unpacks them. Returns what could not be had, and why.
pub(crate) fn provide() -> Vec<String> {
    let unpack = |(release, packages): (Release, &[&str])| {
        let error = Apt::new(release).and_then(|apt| apt.unpacked(packages)).err()?;
        Some(format!("{} of Debian's {}: {error:#}", packages[0], release.suite()))
    };
    JEMALLOCS.into_iter().filter_map(unpack).collect()
}
