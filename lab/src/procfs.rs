//! The lab's own reading of the kernel's text files: slow, allocating, and independent of `ebb`'s parsers on
//! purpose, because a truth checked with the parser under test proves nothing.

use anyhow::{Context, Result, bail};
use ebbtide_observe::Bytes;
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// A file of "Key:  123 kB" or "key 123" lines: /proc/meminfo, status, smaps_rollup, memory.stat.
#[derive(Debug, Clone, Default)]
pub struct Fields(HashMap<String, u64>);

impl Fields {
    /// Reads `path`; values marked "kB" become bytes, all others stay as they are.
    pub fn read(path: impl AsRef<Path>) -> Result<Fields> {
        let path = path.as_ref();
        let text = fs::read(path).with_context(|| format!("reading {}", path.display()))?;
        Ok(Fields::parse(&String::from_utf8_lossy(&text)))
    }

    /// As [`Fields::read`], from text. Where a key repeats (smaps), its values are summed.
    pub fn parse(text: &str) -> Fields {
        let mut fields = HashMap::new();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            let (Some(key), Some(value)) = (words.next(), words.next()) else { continue };
            let Ok(value) = value.parse::<u64>() else { continue };
            let unit = if words.next() == Some("kB") { 1024 } else { 1 };
            let sum: &mut u64 = fields.entry(key.trim_end_matches(':').to_owned()).or_default();
            *sum = sum.saturating_add(value.saturating_mul(unit));
        }
        Fields(fields)
    }

    /// The plain number of `key`.
    pub fn number(&self, key: &str) -> Result<u64> {
        self.0.get(key).copied().with_context(|| format!("no line {key}"))
    }

    /// The bytes of `key`.
    pub fn bytes(&self, key: &str) -> Result<Bytes> {
        self.number(key).map(Bytes)
    }
}

/// /proc/meminfo.
pub fn meminfo() -> Result<Fields> {
    Fields::read("/proc/meminfo")
}

/// /proc/PID/smaps_rollup.
pub fn rollup(pid: i32) -> Result<Fields> {
    Fields::read(format!("/proc/{pid}/smaps_rollup"))
}

/// /proc/PID/status.
pub fn status(pid: i32) -> Result<Fields> {
    Fields::read(format!("/proc/{pid}/status"))
}

/// The one number in `path`.
pub fn number(path: impl AsRef<Path>) -> Result<u64> {
    let path = path.as_ref();
    let text = fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    text.trim().parse().with_context(|| format!("{} holds no number: {text:?}", path.display()))
}

/// Negative dentries on the host: the fifth field of /proc/sys/fs/dentry-state (Linux 5.0 and later).
pub fn negative_dentries() -> Result<u64> {
    let text = fs::read_to_string("/proc/sys/fs/dentry-state")?;
    let field = text.split_whitespace().nth(4).context("dentry-state has no fifth field")?;
    Ok(field.parse()?)
}

/// Bytes of the objects in use in the caches of dentries, inodes and names (/proc/slabinfo, root only).
/// SReclaimable counts whole slabs, and after a drop of caches many are half empty: 600,000 dentries of 192
/// bytes then raise it by 97 MB instead of 117.
pub fn reclaimable_objects() -> Result<Bytes> {
    let mut bytes = 0;
    for line in fs::read_to_string("/proc/slabinfo").context("reading /proc/slabinfo")?.lines().skip(2) {
        let words: Vec<&str> = line.split_whitespace().collect();
        let &[name, active, _, size, ..] = &words[..] else { bail!("slabinfo line {line:?}") };
        if name == "dentry" || name.contains("inode") || name.starts_with("kmalloc-rcl") {
            bytes += active.parse::<u64>()? * size.parse::<u64>()?;
        }
    }
    Ok(Bytes(bytes))
}

/// The value of `key` on the line of /proc/net/sockstat that begins with `proto` ("TCP", "UDP"); "mem" is in
/// pages.
pub fn sockstat(proto: &str, key: &str) -> Result<u64> {
    let text = fs::read_to_string("/proc/net/sockstat")?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(proto)?.strip_prefix(':'))
        .with_context(|| format!("no {proto} in sockstat"))?;
    let mut words = line.split_whitespace();
    while let (Some(name), Some(value)) = (words.next(), words.next()) {
        if name == key {
            return Ok(value.parse()?);
        }
    }
    bail!("no {key} in sockstat's {proto}")
}

/// Open descriptors of `pid`.
pub fn fds(pid: i32) -> Result<u64> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count() as u64)
}

/// Mappings of `pid`.
pub fn maps(pid: i32) -> Result<u64> {
    Ok(fs::read_to_string(format!("/proc/{pid}/maps"))?.lines().count() as u64)
}

/// Pids of every process that /proc shows.
pub fn pids() -> Result<Vec<i32>> {
    let names = fs::read_dir("/proc")?.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(names.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kilobytes_become_bytes_and_repeats_are_summed() {
        let fields =
            Fields::parse("Rss:   4 kB\nHugePages_Free:  7\nRss: 1 kB\nVmFlags: rd wr\nactive_file 3\n");
        assert_eq!(fields.bytes("Rss").unwrap(), Bytes(5 * 1024));
        assert_eq!(fields.number("HugePages_Free").unwrap(), 7);
        assert_eq!(fields.number("active_file").unwrap(), 3);
        assert!(fields.number("VmFlags").is_err());
    }
}
