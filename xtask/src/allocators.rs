//! Other releases' allocators beside this machine's, for the tests of the heap walkers: unpacked under target/vm and
//! preloaded from there, never installed.

use crate::vm::{Apt, Release};

/// Each with what it needs: those of Debian 13 with the C library that they need.
const ALLOCATORS: [(Release, &[&str]); 7] = [
    // 5.2.1, and a later build of 5.3.0 than Debian 12's.
    (Release::Bullseye, &["libjemalloc2"]),
    (Release::Trixie, &["libjemalloc2", "libc6", "libstdc++6", "libgcc-s1"]),
    // 3.0.1; Debian 11 has none.
    (Release::Trixie, &["libmimalloc3", "libc6"]),
    // musl 1.2.2 and 1.2.5, with what it takes to link programs to them statically.
    (Release::Bullseye, &["musl", "musl-dev"]),
    (Release::Trixie, &["musl", "musl-dev"]),
    // 2.8.1 and 2.16.
    (Release::Bullseye, &["libgoogle-perftools4", "libtcmalloc-minimal4"]),
    (
        Release::Trixie,
        &[
            "libgoogle-perftools4t64",
            "libtcmalloc-minimal4t64",
            "libc6",
            "libstdc++6",
            "libgcc-s1",
            "libunwind8",
            "liblzma5",
        ],
    ),
];

/// Unpacks them. Returns what could not be had, and why.
pub(crate) fn provide() -> Vec<String> {
    let unpack = |(release, packages): (Release, &[&str])| {
        let error = Apt::new(release).and_then(|apt| apt.unpacked(packages)).err()?;
        Some(format!("{} of Debian's {}: {error:#}", packages[0], release.suite()))
    };
    ALLOCATORS.into_iter().filter_map(unpack).collect()
}
