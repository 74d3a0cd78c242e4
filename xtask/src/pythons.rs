//! Other releases' Pythons beside this machine's, for the tests of the CPython walker: unpacked under target/vm with
//! the libraries they need, never installed.

use crate::vm::{Apt, Release};

/// Each with what it needs. Debian's are stripped programs that have CPython built in.
const PYTHONS: [(Release, &[&str]); 3] = [
    (
        Release::Bullseye,
        &["python3.9-minimal", "libpython3.9-minimal", "libpython3.9-stdlib", "libc6", "libexpat1", "zlib1g"],
    ),
    (
        Release::Trixie,
        &[
            "python3.13-minimal",
            "libpython3.13-minimal",
            "libpython3.13-stdlib",
            "libc6",
            "libexpat1",
            "zlib1g",
        ],
    ),
    (
        Release::Forky,
        &[
            "python3.14-minimal",
            "libpython3.14-minimal",
            "libpython3.14-stdlib",
            "libc6",
            "libexpat1",
            "zlib1g",
            "libssl3t64",
        ],
    ),
];

/// Unpacks them. Returns what could not be had, and why.
pub(crate) fn provide() -> Vec<String> {
    let unpack = |(release, packages): (Release, &[&str])| {
        let error = Apt::new(release).and_then(|apt| apt.unpacked(packages)).err()?;
        Some(format!("{} of Debian's {}: {error:#}", packages[0], release.suite()))
    };
    PYTHONS.into_iter().filter_map(unpack).collect()
}
