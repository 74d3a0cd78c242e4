//! The counters that settings move, read before and after a change.

use ebbtide_observe::host::{DentryState, Meminfo, Zones};
use ebbtide_observe::{Bytes, Pages, ReadError, Root};
use serde::Serialize;

/// Blocks from this order on are high ones: 64 KiB with 4 KiB pages, what the kernel's larger requests take.
const HIGH_ORDER: usize = 4;

/// One reading. Only what /proc/meminfo lacks may be missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Measures {
    /// MemAvailable.
    pub available_bytes: Bytes,
    /// MemFree.
    pub free_bytes: Bytes,
    /// CommitLimit less Committed_AS; zero where more is committed.
    pub commit_left_bytes: Bytes,
    /// Dirty and Writeback.
    pub unwritten_bytes: Bytes,
    /// AnonHugePages.
    pub anon_huge_bytes: Bytes,
    /// Free memory in blocks of 2^4 pages and more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub high_order_bytes: Option<Bytes>,
    /// What is kept free: the high watermarks of all zones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub watermark_bytes: Option<Bytes>,
    /// Dentries.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dentries: Option<u64>,
    /// Of those, negative.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub negative_dentries: Option<u64>,
}

impl Measures {
    /// Reads them.
    pub fn read(root: &Root) -> Result<Measures, ReadError> {
        let mem = Meminfo::read(root)?;
        let zones = Zones::read(root).ok();
        let sum = |of: fn(&ebbtide_observe::host::Zone) -> Pages| {
            zones.as_ref().map(|zones| zones.zones.iter().map(of).sum::<Pages>().bytes())
        };
        let dentries = DentryState::read(root).ok();
        Ok(Measures {
            available_bytes: mem.mem_available,
            free_bytes: mem.mem_free,
            commit_left_bytes: mem.commit_limit - mem.committed_as,
            unwritten_bytes: mem.dirty + mem.writeback,
            anon_huge_bytes: mem.anon_huge_pages,
            high_order_bytes: sum(|zone| zone.free_at_or_above(HIGH_ORDER)),
            watermark_bytes: sum(|zone| zone.high),
            dentries: dentries.map(|dentries| dentries.dentries),
            negative_dentries: dentries.map(|dentries| dentries.negative),
        })
    }

    /// Those that `settings` bear on, with their names, beside those of `after`; MemAvailable always.
    pub fn beside<'n>(
        &self,
        after: &Measures,
        settings: impl IntoIterator<Item = &'n str>,
    ) -> Vec<(&'static str, String, String)> {
        let mut wanted = vec!["available"];
        for setting in settings {
            wanted.extend_from_slice(moved_by(setting));
        }
        let row = |key: &str, name, of: fn(&Measures) -> Option<String>| {
            wanted.contains(&key).then_some((name, of(self)?, of(after)?))
        };
        let text = [
            row("available", "MemAvailable", |m| Some(m.available_bytes.to_string())),
            row("free", "MemFree", |m| Some(m.free_bytes.to_string())),
            row("commit", "commit limit left", |m| Some(m.commit_left_bytes.to_string())),
            row("unwritten", "unwritten file pages", |m| Some(m.unwritten_bytes.to_string())),
            row("huge", "AnonHugePages", |m| Some(m.anon_huge_bytes.to_string())),
            row("blocks", "free in blocks of 64 KiB and more", |m| Some(m.high_order_bytes?.to_string())),
            row("watermark", "kept free (high watermarks)", |m| Some(m.watermark_bytes?.to_string())),
            row("dentries", "dentries", |m| Some(m.dentries?.to_string())),
            row("dentries", "negative dentries", |m| Some(m.negative_dentries?.to_string())),
        ];
        text.into_iter().flatten().collect()
    }
}

fn moved_by(setting: &str) -> &'static [&'static str] {
    match setting {
        "vm.vfs_cache_pressure" => &["dentries"],
        "vm.min_free_kbytes" | "vm.watermark_scale_factor" => &["free", "watermark"],
        "vm.compaction_proactiveness" => &["blocks"],
        // With huge pages on, khugepaged raises vm.min_free_kbytes: 66 MiB of high watermarks in a guest of 1 GiB (6.1).
        "thp.enabled" => &["huge", "blocks", "watermark"],
        "thp.defrag" | "khugepaged.max_ptes_none" => &["huge", "blocks"],
        name if name.starts_with("vm.overcommit") => &["commit"],
        name if name.starts_with("vm.dirty") => &["unwritten"],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine() {
        let now = Measures::read(&Root::live().unwrap()).unwrap();
        assert!(now.available_bytes > Bytes::ZERO && now.dentries > Some(0));
        assert!(now.watermark_bytes > Some(Bytes::ZERO));
        let names = |settings: &[&str]| -> Vec<&str> {
            now.beside(&now, settings.iter().copied()).iter().map(|row| row.0).collect()
        };
        assert_eq!(names(&["vm.swappiness"]), ["MemAvailable"]);
        assert_eq!(names(&["vm.vfs_cache_pressure"]), ["MemAvailable", "dentries", "negative dentries"]);
    }
}
