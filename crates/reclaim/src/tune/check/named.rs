//! Variables of mimalloc and gperftools' tcmalloc: an option each, known by name.
//!
//! Read in mimalloc's tags v2.0.9, v2.1.7, v2.2.4 and v3.1.5 (src/options.c) and gperftools' tag gperftools-2.10
//! (getenv calls of src/). Both ignore silently what they do not know.

use super::program::Program;
use crate::tune::distance::nearest;
use crate::tune::judge::{Remark, Verdict};
use ebbtide_heaps::Kind;

const MIMALLOC: &str = "show_errors show_stats verbose eager_commit large_os_pages allow_large_os_pages \
    reserve_huge_os_pages reserve_huge_os_pages_at reserve_os_memory page_reset abandoned_page_decommit \
    abandoned_page_purge abandoned_page_reset eager_commit_delay decommit_delay purge_delay reset_delay use_numa_nodes \
    limit_os_alloc disallow_os_alloc os_tag max_errors max_warnings max_segment_reclaim allow_decommit \
    segment_decommit_delay decommit_extend_delay purge_extend_delay destroy_on_exit arena_eager_commit \
    eager_region_commit purge_decommits reset_decommits arena_reserve arena_purge_mult abandoned_reclaim_on_free \
    page_reclaim_on_free disallow_arena_alloc retry_on_oom visit_abandoned guarded_min guarded_max guarded_precise \
    guarded_sample_rate guarded_sample_seed target_segments_per_thread generic_collect page_full_retain \
    page_max_candidates max_vabits pagemap_commit page_commit_on_demand page_max_reclaim page_cross_thread_max_reclaim";

const TCMALLOC: &str = "aggressive_decommit devmem_device devmem_limit devmem_start disable_memory_release \
    enable_sized_delete heap_limit_mb large_alloc_report_threshold max_free_queue_size max_total_thread_cache_bytes \
    memfs_abort_on_fail memfs_disable_fallback memfs_ignore_mmap_fail memfs_limit_mb memfs_malloc_path memfs_map_private \
    page_fence page_fence_never_reclaim page_fence_readable reclaim_memory release_rate sample_parameter skip_mmap skip_sbrk \
    stacktrace_method stacktrace_method_verbose symbolize_stacktrace trace trace_file transfer_num_obj";

/// What `name` does; `None` where it is neither's.
pub(super) fn option(program: &Program, name: &str, value: &str) -> Option<Remark> {
    // mimalloc compares names without case (_mi_prim_getenv, src/prim/unix/prim.c).
    let lower = name.to_ascii_lowercase();
    let (kind, known, option) = match (lower.strip_prefix("mimalloc_"), name.strip_prefix("TCMALLOC_")) {
        (Some(option), _) => (Kind::Mimalloc, MIMALLOC, option.to_owned()),
        (_, Some(option)) => (Kind::Tcmalloc, TCMALLOC, option.to_ascii_lowercase()),
        _ => return None,
    };
    if !program.kinds.contains(&kind) {
        let says = format!("only {kind} reads it; it runs {}", program.runs());
        return Some(Remark::new(Verdict::NoEffect, says));
    }
    if known.split_whitespace().any(|one| one == option) {
        return Some(effect(kind, &option, value));
    }
    let says = format!("{kind} has no such option, and ignores it silently");
    Some(match nearest(&option, known.split_whitespace()) {
        Some(meant) => {
            let meant = format!(
                "{}_{}",
                if kind == Kind::Mimalloc { "MIMALLOC" } else { "TCMALLOC" },
                meant.to_ascii_uppercase()
            );
            Remark::new(Verdict::Misspelt, says).instead(format!("{meant}={value}"))
        }
        None => Remark::new(Verdict::Unknown, says),
    })
}

fn effect(kind: Kind, option: &str, value: &str) -> Remark {
    match (kind, option, value) {
        (Kind::Tcmalloc, "release_rate", "0") | (Kind::Tcmalloc, "disable_memory_release", "1" | "true") => {
            Remark::new(Verdict::Doubtful, "freed pages are never given back by themselves")
        }
        (Kind::Mimalloc, "purge_delay" | "decommit_delay" | "reset_delay", "-1") => {
            Remark::new(Verdict::Doubtful, "freed pages are never given back by themselves")
        }
        _ => Remark::new(Verdict::Effective, format!("an option of {kind}'s")),
    }
}

#[cfg(test)]
mod tests {
    use super::super::environ::tests::{program, verdicts};
    use super::*;
    use Verdict::*;

    #[test]
    fn options() {
        let with = |kind, environ: &str| verdicts(Program { kinds: [kind].into(), ..program() }, environ);
        assert_eq!(
            with(Kind::Mimalloc, "MIMALLOC_PURGE_DELAY=100 mimalloc_verbose=1"),
            [Effective, Effective]
        );
        assert_eq!(with(Kind::Mimalloc, "MIMALLOC_PURGEDELAY=100 MIMALLOC_NONSENSE=1"), [Misspelt, Unknown]);
        assert_eq!(
            with(Kind::Tcmalloc, "TCMALLOC_RELEASE_RATE=10 TCMALLOC_RELEASE_RATES=1"),
            [Effective, Misspelt]
        );
        assert_eq!(with(Kind::Tcmalloc, "TCMALLOC_RELEASE_RATE=0"), [Doubtful]);
        assert_eq!(with(Kind::Glibc, "TCMALLOC_RELEASE_RATE=10 MIMALLOC_VERBOSE=1"), [NoEffect, NoEffect]);
    }
}
