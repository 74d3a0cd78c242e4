//! /proc/PID/smaps: every mapping with its counters, streamed one mapping at a time.
//!
//! For looking closely at one process only: over 1,579 processes all smaps take 366 ms to read, all rollups
//! 82-100 ms (measured, 6.18).

use super::{Counters, Mapping, Process, VmFlags};
use crate::{Bytes, ReadError, scan};

/// One mapping with what smaps says about it.
#[derive(Debug, Clone, Copy)]
pub struct Area<'a> {
    /// Where it is and what is behind it.
    pub mapping: Mapping<'a>,
    /// How much of it is resident, and how; the pss_anon, pss_file and pss_shmem of a rollup stay zero.
    pub counters: Counters,
    /// The page size the mapping's pages come in: 2 MiB and more for hugetlb.
    pub kernel_page_size: Bytes,
    /// The page size the MMU maps it with; differs on some powerpc only.
    pub mmu_page_size: Bytes,
    /// Whether huge pages may back it now (5.0).
    pub thp_eligible: Option<bool>,
    /// Its flags (3.8).
    pub flags: Option<VmFlags>,
}

/// Puts areas together from the lines of a smaps file: feed it every line, then [`finish`](Self::finish).
#[derive(Debug, Default)]
pub struct Areas {
    header: Vec<u8>,
    counters: Counters,
    kernel_page_size: Bytes,
    mmu_page_size: Bytes,
    thp_eligible: Option<bool>,
    flags: Option<VmFlags>,
}

impl Areas {
    /// Takes one line; when it begins a mapping, calls `each` with the one before it and returns what that
    /// returns.
    pub fn line(&mut self, line: &[u8], each: &mut impl FnMut(&Area) -> bool) -> bool {
        // A header begins with a lower-case hexadecimal digit, every key with a capital.
        if line.first().is_some_and(|b| b.is_ascii_uppercase()) || Mapping::parse(line).is_none() {
            if let Some((key, value)) = scan::key_value(line, b':') {
                self.set(key, value);
            }
            return true;
        }
        let more = self.emit(each);
        let mut header = std::mem::take(&mut self.header);
        header.clear();
        header.extend_from_slice(line);
        *self = Areas { header, ..Areas::default() };
        more
    }

    /// Calls `each` with the last mapping.
    pub fn finish(self, each: &mut impl FnMut(&Area) -> bool) {
        self.emit(each);
    }

    fn emit(&self, each: &mut impl FnMut(&Area) -> bool) -> bool {
        Mapping::parse(&self.header).is_none_or(|mapping| {
            each(&Area {
                mapping,
                counters: self.counters,
                kernel_page_size: self.kernel_page_size,
                mmu_page_size: self.mmu_page_size,
                thp_eligible: self.thp_eligible,
                flags: self.flags,
            })
        })
    }

    fn set(&mut self, key: &[u8], value: &[u8]) {
        match key {
            b"VmFlags" => self.flags = Some(VmFlags::parse(value)),
            b"KernelPageSize" => self.kernel_page_size = scan::kib(value).unwrap_or_default(),
            b"MMUPageSize" => self.mmu_page_size = scan::kib(value).unwrap_or_default(),
            b"THPeligible" => self.thp_eligible = scan::number(value).map(|n| n != 0),
            _ => {
                self.counters.set(key, value);
            }
        }
    }
}

impl Process {
    /// Calls `each` with every mapping in `smaps`, in the order of addresses, until it returns false. A
    /// kernel thread and a zombie have none.
    pub fn each_area(&self, mut each: impl FnMut(&Area) -> bool) -> Result<(), ReadError> {
        let mut areas = Areas::default();
        let mut more = true;
        self.each_line("smaps", |line| {
            more = areas.line(line, &mut each);
            more
        })?;
        if more {
            areas.finish(&mut each);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn areas(text: &[u8], most: usize) -> Vec<(u64, Bytes, Option<VmFlags>, Vec<u8>)> {
        let mut seen = Vec::new();
        let mut areas = Areas::default();
        let mut each = |area: &Area| {
            let path = area.mapping.path.to_vec();
            seen.push((area.mapping.start, area.counters.rss, area.flags, path));
            seen.len() < most
        };
        if scan::lines(text).all(|line| areas.line(line, &mut each)) {
            areas.finish(&mut each);
        }
        seen
    }

    const TWO: &[u8] = b"558167cb0000-558167cb2000 r--p 00000000 fe:00 247282   /usr/bin/head\n\
        Size:   8 kB\nKernelPageSize:  4 kB\nMMUPageSize: 4 kB\nRss:   8 kB\nPss: 4 kB\nTHPeligible:  1\n\
        ProtectionKey:  0\nVmFlags: rd mr mw me \n\
        a000-b000 rw-p 00000000 00:00 0 \nRss: 4 kB\nVmFlags: rd wr ac\n";

    #[test]
    fn mappings_with_their_counters() {
        let seen = areas(TWO, usize::MAX);
        assert_eq!(seen.len(), 2);
        assert_eq!((seen[0].1, seen[0].3.as_slice()), (Bytes(8192), &b"/usr/bin/head"[..]));
        assert_eq!((seen[1].0, seen[1].1), (0xa000, Bytes(4096)));
        assert!(seen[1].2.unwrap().has(VmFlags::ACCOUNT));
        assert_eq!(areas(TWO, 1).len(), 1);
    }

    #[test]
    fn the_sum_over_mappings_is_the_rollup() {
        let root = crate::Root::live().unwrap();
        let process = Process::open(&root, std::process::id()).unwrap();
        let (mut sum, mut mappings) = (Counters::default(), 0);
        process
            .each_area(|area| {
                assert!(area.flags.is_some() && area.kernel_page_size >= crate::page_size(), "{area:?}");
                sum += &area.counters;
                mappings += 1;
                true
            })
            .unwrap();
        let rollup = process.rollup().unwrap();
        // Both are read while tests of other threads run: the same order of size is what must hold.
        assert!(sum.rss.0.abs_diff(rollup.rss.0) < rollup.rss.0 / 2, "{sum:?} {rollup:?}");
        assert!(mappings > 10 && process.mapping_count().unwrap() > 10);
    }

    proptest! {
        #[test]
        fn never_panics(text: Vec<u8>) {
            areas(&text, usize::MAX);
        }

        #[test]
        fn never_panics_on_torn_files(cut in 0..TWO.len(), noise: Vec<u8>) {
            let mut text = TWO[cut..].to_vec();
            text.extend_from_slice(&noise);
            text.extend_from_slice(&TWO[..cut]);
            areas(&text, usize::MAX);
        }
    }
}
