//! `ebb reclaim --host WHAT`: what the kernel keeps.

use super::{ReclaimArgs, recorded};
use anyhow::bail;
use ebbtide_observe::{Escaped, Root};
use ebbtide_reclaim::Report;
use ebbtide_reclaim::host::{What, reclaim};
use ebbtide_reclaim::journal::Target;
use std::os::unix::ffi::OsStrExt;

/// What of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kind {
    /// Dentries and inodes that nobody uses
    Dentries,
    /// Clean file pages: below --path, or --all
    PageCache,
    /// Nothing: puts free pages together, to blocks as large as huge pages
    Compaction,
    /// Huge pages that are free and promised to nobody
    Hugetlb,
}

pub(super) fn run(root: &Root, kind: Kind, args: &ReclaimArgs) -> anyhow::Result<(Target, Report)> {
    let what = match (kind, &args.path, args.all) {
        (Kind::PageCache, Some(path), _) => What::Files(path.clone()),
        (Kind::PageCache, None, true) => What::PageCache,
        (Kind::PageCache, None, false) => {
            bail!("which page cache? Give --path FILE|DIR; or --all, and every file is read from disk again")
        }
        (_, Some(_), _) | (_, _, true) => bail!("--path and --all are for --host page-cache"),
        (Kind::Dentries, ..) => What::Dentries,
        (Kind::Compaction, ..) => What::Compaction,
        (Kind::Hugetlb, ..) => What::HugePages,
    };
    let name = match kind {
        Kind::Dentries => "dentries",
        Kind::PageCache => "page-cache",
        Kind::Compaction => "compaction",
        Kind::Hugetlb => "hugetlb",
    };
    let path = args.path.as_ref().map(|path| Escaped(path.as_os_str().as_bytes()).to_string());
    let target = Target { kind: "host".to_owned(), name: Some(name.to_owned()), pid: None, path };
    let report = recorded::recorded(args.dry_run, &target, || {
        recorded::watched(args, |terms| reclaim(root, &what, terms))
    })?;
    Ok((target, report))
}
