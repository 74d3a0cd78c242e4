//! Levers on the whole machine: dentries and inodes, the page cache, compaction, idle huge pages.
//!
//! Each is a plan, and where it is no dry run the deed and its proof: what /proc says before and after. A machine works
//! meanwhile, so what it took or gave in those moments is in the difference too.

mod compaction;
mod dentries;
mod files;
mod hugetlb;
mod page_cache;

use crate::refused::LeverError;
use crate::report::Report;
use crate::slow::Terms;
use ebbtide_observe::Root;
use std::path::PathBuf;

/// What to give back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// Dentries and inodes that nobody uses.
    Dentries,
    /// The page cache of one file, or of the files below a directory.
    Files(PathBuf),
    /// The whole page cache.
    PageCache,
    /// Free pages put together to blocks as large as huge pages.
    Compaction,
    /// Huge pages that are reserved for nobody.
    HugePages,
}

/// Gives `what` back, or says what would be.
pub fn reclaim(root: &Root, what: &What, terms: &mut Terms) -> Result<Report, LeverError> {
    match what {
        What::Dentries => dentries::reclaim(root, terms),
        What::Files(path) => files::reclaim(path, terms),
        What::PageCache => page_cache::reclaim(root, terms),
        What::Compaction => compaction::reclaim(root, terms),
        What::HugePages => hugetlb::reclaim(root, terms),
    }
}
