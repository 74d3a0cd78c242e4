//! jemalloc's MALLOC_CONF: keys by version, and the variable that this very build reads.
//!
//! Read in jemalloc's tags 5.0.1, 5.1.0, 5.2.1, 5.3.0 and 5.3.1 (malloc_conf_init_helper, src/jemalloc.c). What it
//! does not know it reports once, on stderr, and goes on ("<jemalloc>: Invalid conf pair", 5.3.0): a service's stderr
//! of months ago. A build with a prefix reads PREFIX_MALLOC_CONF and not MALLOC_CONF: Redis' own JE_MALLOC_CONF,
//! Rust's _RJEM_MALLOC_CONF.

use super::program::Program;
use crate::tune::distance::nearest;
use crate::tune::judge::{Remark, Verdict};
use ebbtide_heaps::Kind;

const V5_0: &str = "abort abort_conf background_thread dirty_decay_ms dss junk lg_prof_interval lg_prof_sample lg_tcache_max \
    muzzy_decay_ms narenas percpu_arena prof prof_accum prof_active prof_final prof_gdump prof_leak prof_prefix \
    prof_thread_active_init retain stats_print stats_print_opts tcache utrace xmalloc zero";
const V5_1: &str = "lg_extent_max_active_fit log max_background_threads metadata_thp thp";
const V5_2: &str = "bin_shards confirm_conf oversize_threshold prof_log slab_sizes";
const V5_3: &str = "experimental_infallible_new hpa hpa_dirty_mult hpa_hugification_threshold \
    hpa_hugification_threshold_ratio hpa_hugify_delay_ms hpa_min_purge_interval_ms hpa_sec_batch_fill_extra \
    hpa_sec_bytes_after_flush hpa_sec_max_alloc hpa_sec_max_bytes hpa_sec_nshards hpa_slab_max_alloc lg_san_uaf_align \
    lg_tcache_flush_large_div lg_tcache_flush_small_div lg_tcache_nslots_mul mutex_max_spin narenas_ratio prof_leak_error \
    prof_recent_alloc_max prof_stats prof_sys_thread_name prof_time_resolution prof_unbias san_guard_large san_guard_small \
    stats_interval stats_interval_opts tcache_gc_delay_bytes tcache_gc_incr_bytes tcache_max tcache_nslots_large \
    tcache_nslots_small_max tcache_nslots_small_min trust_madvise zero_realloc cache_oblivious calloc_madvise_threshold \
    debug_double_free_max_scan disable_large_size_classes experimental_hpa_enforce_hugify experimental_hpa_max_purge_nhp \
    experimental_hpa_start_huge_if_thp_always experimental_tcache_gc hpa_hugify_sync hpa_min_purge_delay_ms \
    hpa_purge_threshold hpa_purge_threshold_ratio huge_arena_pac_thp process_madvise_max_batch prof_bt_max \
    prof_pid_namespace tcache_ncached_max";

/// Keys of jemalloc 4, and what became of them in 5.0.
const GONE: [(&str, &str); 6] = [
    ("lg_dirty_mult", "dirty_decay_ms"),
    ("decay_time", "dirty_decay_ms"),
    ("purge", "dirty_decay_ms"),
    ("lg_chunk", "nothing: there are no chunks"),
    ("quarantine", "nothing"),
    ("redzone", "nothing"),
];

/// Keys that are true or false, and often given as something else.
const SWITCHES: [&str; 12] = [
    "abort",
    "abort_conf",
    "background_thread",
    "confirm_conf",
    "prof",
    "prof_active",
    "prof_final",
    "prof_leak",
    "retain",
    "tcache",
    "xmalloc",
    "zero",
];

fn keys() -> impl Iterator<Item = &'static str> {
    [V5_0, V5_1, V5_2, V5_3].into_iter().flat_map(str::split_whitespace)
}

/// What "dirty_decay_ms:1000,background_thread:true" in variable `name` does.
pub(super) fn conf(program: &Program, name: &str, value: &str) -> Vec<Remark> {
    if !program.kinds.contains(&Kind::Jemalloc) {
        if program.kinds.is_empty() {
            return vec![Remark::new(
                Verdict::Doubtful,
                "only jemalloc reads it, and no jemalloc was recognised here",
            )];
        }
        let says = format!("only jemalloc reads it; it runs {}", program.runs());
        return vec![Remark::new(Verdict::NoEffect, says)];
    }
    if !program.conf_names.is_empty() && !program.conf_names.contains(name) {
        let own: Vec<&str> = program.conf_names.iter().map(String::as_str).collect();
        let remark = Remark::new(
            Verdict::NoEffect,
            format!("this build of jemalloc reads {} and not {name}", own.join(" or ")),
        );
        return vec![remark.instead(format!("{}={value}", own[0]))];
    }
    let pairs: Vec<&str> = value.split(',').filter(|pair| !pair.is_empty()).collect();
    let bad: Vec<Remark> = pairs.iter().filter_map(|pair| wrong(pair)).collect();
    match bad.is_empty() {
        true => vec![Remark::new(Verdict::Effective, "every key is one of jemalloc 5's")],
        false => bad,
    }
}

/// What is wrong with one pair; `None` where nothing is.
fn wrong(pair: &str) -> Option<Remark> {
    let reported = "jemalloc says so once, on stderr, and goes on without it";
    let Some((key, value)) = pair.split_once(':') else {
        let says = format!("'{pair}' is no KEY:VALUE; {reported}, and without all that follows");
        let meant = pair.split_once('=').map(|(key, value)| format!("{key}:{value}"));
        let remark = Remark::new(Verdict::Invalid, says);
        return Some(match meant {
            Some(meant) => remark.instead(meant),
            None => remark,
        });
    };
    if let Some((_, now)) = GONE.iter().find(|(gone, _)| *gone == key) {
        return Some(Remark::new(
            Verdict::Obsolete,
            format!("{key} is jemalloc 4's; 5 has {now}; {reported}"),
        ));
    }
    if !keys().any(|known| known == key) {
        let says = format!("jemalloc 5 has no key {key}; {reported}");
        return Some(match nearest(key, keys()) {
            Some(meant) => Remark::new(Verdict::Misspelt, says).instead(format!("{meant}:{value}")),
            None => Remark::new(Verdict::Unknown, says),
        });
    }
    if SWITCHES.contains(&key) && !matches!(value, "true" | "false") {
        return Some(Remark::new(
            Verdict::Invalid,
            format!("{key} is true or false, not '{value}'; {reported}"),
        ));
    }
    let number = |text: &str| text.parse::<i64>().is_ok_and(|n| n >= -1);
    (key.ends_with("_decay_ms") && !number(value)).then(|| {
        Remark::new(
            Verdict::Invalid,
            format!("{key} is a number of milliseconds, or -1 for never, not '{value}'; {reported}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::super::environ::tests::{program, verdicts};
    use super::*;
    use Verdict::*;

    fn with(names: &[&str]) -> Program {
        let conf_names = names.iter().map(|&name| name.to_owned()).collect();
        Program { kinds: [Kind::Jemalloc].into(), conf_names, ..program() }
    }

    #[test]
    fn keys_and_values() {
        for (value, expected) in [
            ("dirty_decay_ms:1000,background_thread:true", vec![Effective]),
            ("dirty_decay:1000", vec![Unknown]),
            ("dirty_decayms:1000", vec![Misspelt]),
            ("background_thread:yes,narenas:2", vec![Invalid]),
            ("background_thread=true", vec![Invalid]),
            ("dirty_decay_ms:1s,muzzy_decay_ms:-1", vec![Invalid]),
            ("lg_dirty_mult:3,nonsense:1", vec![Obsolete, Unknown]),
            ("", vec![Effective]),
        ] {
            assert_eq!(
                verdicts(with(&["MALLOC_CONF"]), &format!("MALLOC_CONF={value}")),
                expected,
                "{value}"
            );
        }
    }

    #[test]
    fn the_name_that_this_build_reads() {
        assert_eq!(verdicts(with(&["_RJEM_MALLOC_CONF"]), "MALLOC_CONF=narenas:2"), [NoEffect]);
        assert_eq!(verdicts(with(&["_RJEM_MALLOC_CONF"]), "_RJEM_MALLOC_CONF=narenas:2"), [Effective]);
        assert_eq!(verdicts(with(&[]), "JE_MALLOC_CONF=narenas:2"), [Effective], "not known which");
        assert_eq!(verdicts(program(), "MALLOC_CONF=narenas:2"), [NoEffect]);
        let unknown = Program { kinds: Default::default(), ..program() };
        assert_eq!(verdicts(unknown, "MALLOC_CONF=narenas:2"), [Doubtful]);
    }
}
