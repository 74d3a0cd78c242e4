//! Pages of a running process that it has not to hand at once: pushed out to swap and to their files (MADV_PAGEOUT), or
//! marked as the first to go (MADV_COLD), by process_madvise (5.10).
//!
//! Invariants: the process is not stopped and nothing it holds changes, it only waits when it touches what is out;
//! without swap only mappings of files are advised; what is locked, huge (hugetlb) or a device's is left alone; a call
//! covers at most [`BATCH`], and swap and the clock are looked at between two.
//!
//! Source: mm/madvise.c (6.18): only pages that no other process maps are pushed out.

use crate::refused::{LeverError, Refusal, Right};
use crate::report::{Lever, Report};
use crate::slow::Terms;
use crate::swap::Swap;
use ebbtide_observe::process::{Area, Process, VmFlags};
use ebbtide_observe::{Bytes, ReadError, Root};
use ebbtide_sys::advise::{Advice, MAX_RANGES, advise};
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::ops::Range;
use std::time::Instant;

/// Address space advised at once.
const BATCH: Bytes = Bytes::from_mib(32);

/// A process's mappings that are advised: one that has more keeps the rest.
const MAPPINGS: usize = 1 << 16;

/// Pushes out what `process` alone has in memory; with `cold` only marks it.
pub fn reclaim(root: &Root, process: &Process, cold: bool, terms: &mut Terms) -> Result<Report, LeverError> {
    let began = Instant::now();
    let swap = Swap::read(root)?;
    let found = Found::read(process, swap.total > Bytes::ZERO && swap.room > Bytes::ZERO)?;
    let anon = found.anon.min(swap.room);
    let mut notes = Vec::new();
    if found.anon == Bytes::ZERO && found.left_anon > Bytes::ZERO {
        let why = if swap.total == Bytes::ZERO { "there is no swap" } else { "swap is nearly full" };
        notes.push(format!("{why}, so {} of anonymous memory stay", found.left_anon));
    } else if anon > Bytes::ZERO && Swap::is_in_ram(root) {
        notes.push("swap is in RAM here (zram): the host gets back less than leaves the process".to_owned());
    }
    let on =
        format!("{} of anonymous memory and {} of files that no other process maps", found.anon, found.file);
    let mut lever = match cold {
        false => Lever::planned("pageout", on, anon + found.file, "what it touches again it waits for"),
        true => {
            notes.push("nothing comes back now: it goes first when memory gets short".to_owned());
            Lever::planned("cold", on, Bytes::ZERO, "it goes first when memory gets short")
        }
    };
    if !terms.dry_run && !found.ranges.is_empty() {
        let before = process.rollup()?;
        let advice = if cold { Advice::Cold } else { Advice::PageOut };
        lever.short = push(root, process, &found, advice, began, terms)?;
        let after = process.rollup()?;
        lever.returned = Some(if cold { Bytes::ZERO } else { before.rss - after.rss });
        if !cold {
            notes.push(format!("{} more of it are in swap", after.swap - before.swap));
        }
    }
    Ok(Report::of(vec![lever], notes, began))
}

/// What of a process can be pushed out.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    ranges: Vec<Range<u64>>,
    /// Anonymous memory and shared memory of its own.
    anon: Bytes,
    /// The same, left alone for want of swap.
    left_anon: Bytes,
    /// Pages of files.
    file: Bytes,
}

impl Found {
    fn read(process: &Process, swap: bool) -> Result<Found, ReadError> {
        let mut found = Found::default();
        process.each_area(|area| {
            found.add(area, swap);
            found.ranges.len() < MAPPINGS
        })?;
        Ok(found)
    }

    fn add(&mut self, area: &Area, swap: bool) {
        let (mapping, counters) = (&area.mapping, &area.counters);
        let flags = area.flags.unwrap_or_default();
        let kept = [VmFlags::LOCKED, VmFlags::PFN_MAP, VmFlags::IO, VmFlags::HUGETLB]
            .into_iter()
            .any(|f| flags.has(f));
        let own = counters.private_clean + counters.private_dirty;
        if kept || own == Bytes::ZERO || mapping.path.starts_with(b"[v") {
            return;
        }
        // Shared memory goes to swap as anonymous memory does; it is a file by its inode only.
        let in_ram = [&b"/dev/shm/"[..], b"/memfd:", b"/SYSV", b"/dev/zero"]
            .iter()
            .any(|p| mapping.path.starts_with(p));
        let (anon, file) = match mapping.inode {
            0 => (own, Bytes::ZERO),
            _ if in_ram => (own, Bytes::ZERO),
            _ => (counters.anonymous.min(own), own - counters.anonymous),
        };
        if swap {
            self.anon += anon;
        } else {
            self.left_anon += anon;
        }
        self.file += file;
        if swap || file > Bytes::ZERO {
            self.ranges.push(mapping.start..mapping.end);
        }
    }
}

/// Advises all of it, batch by batch; says why it ended early.
fn push(
    root: &Root,
    process: &Process,
    found: &Found,
    advice: Advice,
    began: Instant,
    terms: &mut Terms,
) -> Result<Option<String>, LeverError> {
    let refused = |errno| Refusal::new("process_madvise", errno, &[Right::SysNice, Right::SysPtrace]);
    let pid = i32::try_from(process.pid()).ok().and_then(Pid::from_raw);
    let pidfd =
        pid.ok_or(Errno::SRCH).and_then(|pid| pidfd_open(pid, PidfdFlags::empty())).map_err(refused)?;
    // The pid may have been used again since its directory was opened; a process that ended has no status.
    process.status()?;
    let uses_swap = found.anon > Bytes::ZERO && advice == Advice::PageOut;
    let mut told = Instant::now();
    for batch in (Batches { ranges: &found.ranges, at: 0, from: 0 }) {
        if uses_swap && Swap::read(root)?.room < BATCH {
            return Ok(Some("swap is nearly full".to_owned()));
        }
        match all_of(&pidfd, &batch, advice) {
            Ok(()) => {}
            Err(Errno::SRCH) => return Ok(Some("the process ended".to_owned())),
            Err(errno) => return Err(refused(errno).into()),
        }
        if began.elapsed() > terms.patience {
            return Ok(Some("it took longer than the time given for it (--patience)".to_owned()));
        }
        if told.elapsed().as_secs() > 0 {
            told = Instant::now();
            (terms.watch)(began.elapsed(), Bytes::ZERO);
        }
    }
    Ok(None)
}

/// Advises all of `batch` but what was unmapped or locked since it was listed: the kernel stops there.
fn all_of(pidfd: impl AsFd, batch: &[Range<u64>], advice: Advice) -> Result<(), Errno> {
    let mut rest = batch;
    while !rest.is_empty() {
        let mut reached = match advise(&pidfd, rest, advice) {
            Ok(bytes) => bytes,
            Err(Errno::INVAL | Errno::NOMEM | Errno::FAULT) => 0,
            Err(errno) => return Err(errno),
        };
        let done = rest.iter().take_while(|range| {
            let whole = reached >= range.end - range.start;
            reached = reached.saturating_sub(range.end - range.start);
            whole
        });
        let done = done.count();
        rest = rest.get(done + 1..).unwrap_or_default();
    }
    Ok(())
}

/// Cuts ranges into batches.
struct Batches<'a> {
    ranges: &'a [Range<u64>],
    /// The range that is next, and how much of it is done.
    at: usize,
    from: u64,
}

impl Iterator for Batches<'_> {
    type Item = Vec<Range<u64>>;

    fn next(&mut self) -> Option<Vec<Range<u64>>> {
        let (mut batch, mut left) = (Vec::new(), BATCH.0);
        while left > 0 && batch.len() < MAX_RANGES {
            let Some(range) = self.ranges.get(self.at) else { break };
            let start = range.start + self.from;
            let end = range.end.min(start.saturating_add(left));
            left -= end - start;
            batch.push(start..end);
            if end == range.end {
                (self.at, self.from) = (self.at + 1, 0);
            } else {
                self.from = end - range.start;
            }
        }
        (!batch.is_empty()).then_some(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ebbtide_observe::process::smaps::Areas;

    fn found(text: &str, swap: bool) -> Found {
        let mut found = Found::default();
        let mut each = |area: &Area| {
            found.add(area, swap);
            true
        };
        let mut areas = Areas::default();
        text.lines().for_each(|line| {
            areas.line(line.as_bytes(), &mut each);
        });
        areas.finish(&mut each);
        found
    }

    const SMAPS: &str = "1000-3000 rw-p 00000000 00:00 0 \nPrivate_Dirty: 8 kB\nAnonymous: 8 kB\nVmFlags: rd wr\n\
        4000-6000 r-xp 00000000 fe:00 7 /lib/x\nPrivate_Clean: 8 kB\nShared_Clean: 4 kB\nAnonymous: 4 kB\nVmFlags: rd\n\
        7000-8000 rw-p 00000000 00:00 0 \nPrivate_Dirty: 4 kB\nAnonymous: 4 kB\nVmFlags: rd wr lo\n\
        9000-a000 rw-s 00000000 00:01 9 /memfd:a (deleted)\nPrivate_Dirty: 4 kB\nVmFlags: rd wr sh\n\
        b000-c000 r-xp 00000000 00:00 0 [vdso]\nPrivate_Clean: 4 kB\nVmFlags: rd\n\
        d000-e000 rw-p 00000000 00:00 0 \nShared_Dirty: 4 kB\nAnonymous: 4 kB\nVmFlags: rd wr\n";

    #[test]
    fn what_is_its_own_and_may_be_moved() {
        let kib = Bytes::from_kib;
        let with = found(SMAPS, true);
        assert_eq!(with.ranges, [0x1000..0x3000, 0x4000..0x6000, 0x9000..0xa000]);
        assert_eq!((with.anon, with.left_anon, with.file), (kib(16), Bytes::ZERO, kib(4)));
        let without = found(SMAPS, false);
        assert_eq!((without.ranges.len(), &without.ranges[0]), (1, &(0x4000..0x6000)));
        assert_eq!((without.anon, without.left_anon, without.file), (Bytes::ZERO, kib(16), kib(4)));
    }

    #[test]
    fn batches_are_bounded_and_cover_all() {
        let mib = |n: u64| n << 20;
        let ranges = [mib(1)..mib(2), mib(10)..mib(80), mib(90)..mib(91)];
        let batches: Vec<Vec<_>> = Batches { ranges: &ranges, at: 0, from: 0 }
            .map(|batch| batch.iter().map(|range| (range.start >> 20, range.end >> 20)).collect())
            .collect();
        assert_eq!(batches, [vec![(1, 2), (10, 41)], vec![(41, 73)], vec![(73, 80), (90, 91)]]);
        assert_eq!(Batches { ranges: &[], at: 0, from: 0 }.next(), None);
        let many: Vec<_> = (0..3000).map(|n| n * 8192..n * 8192 + 4096).collect();
        let lengths: Vec<_> = Batches { ranges: &many, at: 0, from: 0 }.map(|batch| batch.len()).collect();
        assert_eq!(lengths, [MAX_RANGES, MAX_RANGES, 3000 - 2 * MAX_RANGES]);
    }
}
