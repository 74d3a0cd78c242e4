//! Other releases' glibc beside this machine's, for the tests of the heap walker: unpacked under target/vm with
//! what it takes to build programs against them, never installed.

use crate::vm::{Apt, Release};
use anyhow::Result;
use std::os::unix::fs::symlink;
use std::path::Path;

/// The releases whose glibc differs from Debian 12's (2.36): 2.31 and 2.41.
const RELEASES: [Release; 2] = [Release::Bullseye, Release::Trixie];

/// Unpacks them. Returns what could not be had, and why.
pub(crate) fn provide() -> Vec<String> {
    let unpack = |release| -> Result<()> {
        let tree = Apt::new(release)?.unpacked(&["libc6", "libc6-dev", "linux-libc-dev"])?;
        // Since Debian 13 packages put everything below usr/, and linker scripts still say /lib.
        for dir in ["lib", "lib64"] {
            if !tree.join(dir).exists() {
                symlink(format!("usr/{dir}"), tree.join(dir))?;
            }
        }
        ["lib64", "usr/lib/x86_64-linux-gnu"].iter().try_for_each(|dir| keep_links_inside(&tree, dir))
    };
    let failed = RELEASES.into_iter().filter_map(|release| {
        let error = unpack(release).err()?;
        Some(format!("glibc of Debian's {}: {error:#}", release.suite()))
    });
    failed.collect()
}

/// Makes the links in `dir` of `tree` that begin at the root lead to the same file of the tree.
fn keep_links_inside(tree: &Path, dir: &str) -> Result<()> {
    for entry in std::fs::read_dir(tree.join(dir))? {
        let link = entry?.path();
        let Ok(target) = link.read_link() else { continue };
        let Ok(below) = target.strip_prefix("/") else { continue };
        if !target.starts_with(tree) {
            std::fs::remove_file(&link)?;
            symlink(tree.join(below), &link)?;
        }
    }
    Ok(())
}
