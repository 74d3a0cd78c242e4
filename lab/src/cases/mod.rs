//! Every case, one file per cause; `innocent` has those in which nothing is wrong.

mod counted_twice;
mod cow_after_fork;
mod growth;
mod heaps;
mod innocent;
mod kernel_leak;
mod kernel_pages;
mod lazily_freed;
mod managed;
mod other_limit;
mod outliving_charge;
mod overcommit_refusal;
mod page_cache;
mod page_tables;
mod physical_fragmentation;
mod reserved_pool;
mod shared_memory;
mod slab_reclaimable;
mod stacks_and_locked;
mod thp_bloat;
mod virtual_only;

use crate::case::Case;

/// All cases, in the order of `list`.
pub fn all() -> impl Iterator<Item = &'static Case> {
    [
        slab_reclaimable::CASES,
        shared_memory::CASES,
        counted_twice::CASES,
        stacks_and_locked::CASES,
        lazily_freed::CASES,
        thp_bloat::CASES,
        page_tables::CASES,
        kernel_pages::CASES,
        reserved_pool::CASES,
        overcommit_refusal::CASES,
        virtual_only::CASES,
        cow_after_fork::CASES,
        outliving_charge::CASES,
        page_cache::CASES,
        other_limit::CASES,
        physical_fragmentation::CASES,
        managed::CASES,
        growth::CASES,
        heaps::CASES,
        innocent::CASES,
        kernel_leak::CASES,
    ]
    .into_iter()
    .flatten()
}

/// The case with this name.
pub fn by_name(name: &str) -> Option<&'static Case> {
    all().find(|case| case.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_begin_with_the_truth() {
        let mut seen = HashSet::new();
        for case in all() {
            assert!(seen.insert(case.name), "{} twice", case.name);
            let (truth, variant) = case.name.split_once('/').unwrap();
            assert_eq!(truth, case.truth.cause.unwrap_or("innocent"), "{}", case.name);
            assert!(!variant.is_empty() && !case.about.is_empty(), "{}", case.name);
        }
    }
}
