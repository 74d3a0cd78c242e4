//! Mapped files, on the real kernel: what was not used for a while leaves the process and the page cache, what is in
//! use stays, and contents stay whatever the mapping.
#![allow(unsafe_code, clippy::unwrap_used)]

use ebbtide_shrink::{
    Bytes, Job, Mapped, Policy, SAMPLE, Shrink, ShrinkShared, shrink_now, shrink_shared_now,
};
use memmap2::{Mmap, MmapMut, MmapOptions};
use std::fs::File;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

const CHUNK: usize = 256 << 10;
const CHUNKS: usize = 32;

/// A file of 8 MiB on the disk, each chunk filled with its number.
fn file() -> File {
    let mut file = tempfile::tempfile().unwrap();
    for chunk in 0..CHUNKS {
        file.write_all(&vec![chunk as u8; CHUNK]).unwrap();
    }
    file.sync_all().unwrap();
    file
}

fn map(file: &File) -> Mmap {
    // SAFETY: nobody else has the file.
    unsafe { Mmap::map(file).unwrap() }
}

/// Resident bytes of files in this process's own memory, by /proc/self/statm.
fn rss_file() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(2).unwrap().parse::<usize>().unwrap() * rustix::param::page_size()
}

/// Whether this kernel and file system give back at all: a file on tmpfs has nowhere to go without swap.
fn can_page_out() -> bool {
    let mut mapped = Mapped::new(map(&file())).idle(Duration::ZERO);
    assert!(mapped.read(0..CHUNKS * CHUNK).unwrap().iter().any(|byte| *byte > 0));
    let can = shrink_now(&mut mapped, &Policy::new()).returned > Bytes::ZERO;
    if !can {
        println!("skipped: MADV_PAGEOUT gives back nothing of a file in {:?} here", std::env::temp_dir());
    }
    can
}

fn touch(mapped: &Mapped<Mmap>, chunks: std::ops::Range<usize>) {
    let bytes = mapped.read(chunks.start * CHUNK..chunks.end * CHUNK).unwrap();
    for (at, page) in bytes.chunks(4096).enumerate() {
        assert_eq!(usize::from(page[0]), chunks.start + at * 4096 / CHUNK);
    }
}

// One test, because the resident set is the process's.
#[test]
fn cold_pages_go_and_warm_ones_stay() {
    if !can_page_out() {
        return;
    }
    stay_here();
    let file = file();
    // Nothing is cold yet.
    let mut mapped = Mapped::new(map(&file)).idle(Duration::from_secs(3600));
    touch(&mapped, 0..CHUNKS);
    assert_eq!(
        (mapped.slack(), shrink_now(&mut mapped, &Policy::new()).returned),
        (Bytes::ZERO, Bytes::ZERO)
    );

    // All is.
    let mut mapped = Mapped::new(mapped.into_inner()).idle(Duration::ZERO);
    touch(&mapped, 0..CHUNKS);
    let before = rss_file();
    assert_eq!(mapped.slack(), Bytes(CHUNKS * CHUNK));
    let report = shrink_now(&mut mapped, &Policy::new());
    let gone = before.saturating_sub(rss_file());
    println!(
        "returned {}, RSS of files fell by {}, longest slice {:?}",
        report.returned,
        Bytes(gone),
        report.longest_slice
    );
    assert_eq!((report.returned, report.cut), (Bytes(CHUNKS * CHUNK), CHUNKS));
    assert!(gone >= CHUNKS * CHUNK / 10 * 9, "RSS fell by {gone}");
    // Nothing to do a second time; and the contents are still there.
    assert_eq!(shrink_now(&mut mapped, &Policy::new()).returned, Bytes::ZERO);
    touch(&mapped, 0..CHUNKS);

    // A slice gives back so much and no more.
    let mut job = Job::new("map", Policy::new().slice_bytes(Bytes(4 * CHUNK)).slice(Duration::MAX));
    assert!(job.slice(&mut mapped));
    assert_eq!(job.report().returned, Bytes(4 * CHUNK));
    // What is shared can be asked, too.
    let shared = Arc::new(mapped);
    assert_eq!(shrink_shared_now(&shared, &Policy::new()).returned, Bytes((CHUNKS - 4) * CHUNK));
    touch(&shared, 0..CHUNKS);

    private_pages_are_kept();
    written_pages_are_kept();
}

/// Stays on this processor: what a thread has touched there is in lists of that processor's for a while, and madvise
/// empties only those of its own (mlock.c and madvise.c, lru_add_drain).
fn stay_here() {
    let mut here = rustix::thread::CpuSet::new();
    here.set(rustix::thread::sched_getcpu());
    rustix::thread::sched_setaffinity(None, &here).unwrap();
}

/// Of a private or anonymous mapping MADV_DONTNEED would lose what was written.
fn private_pages_are_kept() {
    let file = file();
    // SAFETY: nobody else has the file.
    let private = unsafe { MmapOptions::new().map_copy(&file).unwrap() };
    let anonymous = MmapMut::map_anon(CHUNKS * CHUNK).unwrap();
    for map in [private, anonymous] {
        let mut mapped = Mapped::new(map).idle(Duration::ZERO);
        mapped.write(0..CHUNKS * CHUNK).unwrap().fill(7);
        shrink_now(&mut mapped, &Policy::new());
        assert!(mapped.read(0..CHUNKS * CHUNK).unwrap().iter().all(|byte| *byte == 7));
    }
}

fn written_pages_are_kept() {
    let file = file();
    // SAFETY: nobody else has the file.
    let map = unsafe { MmapMut::map_mut(&file).unwrap() };
    let mut mapped = Mapped::new(map).idle(Duration::ZERO);
    mapped.write(0..CHUNKS * CHUNK).unwrap().fill(9);
    let before = rss_file();
    shrink_now(&mut mapped, &Policy::new());
    println!("RSS of modified pages fell by {}", Bytes(before.saturating_sub(rss_file())));
    assert!(before.saturating_sub(rss_file()) >= CHUNKS * CHUNK / 10 * 9);
    assert!(mapped.read(0..CHUNKS * CHUNK).unwrap().iter().all(|byte| *byte == 9));
}

/// Reads by this thread so far, by /proc/thread-self/io; none where the kernel does not count them.
fn reads() -> Option<usize> {
    let io = std::fs::read_to_string("/proc/thread-self/io").ok()?;
    io.lines().find_map(|line| line.strip_prefix("syscr: "))?.parse().ok()
}

#[test]
fn a_slice_looks_at_no_chunk_that_an_earlier_one_took() {
    const MANY: usize = 256;
    let mapped = Mapped::new(MmapMut::map_anon(MANY * CHUNK).unwrap());
    assert!(mapped.read(0..MANY * CHUNK).is_some());
    let (Some(start), slack, Some(measured)) = (reads(), mapped.slack_shared(), reads()) else {
        println!("skipped: no count of reads in /proc/thread-self/io");
        return;
    };
    let report = shrink_shared_now(&mapped, &Policy::new().slice(Duration::ZERO));
    let end = reads().unwrap();
    println!("{} reads for slack(), {} for {} slices", measured - start, end - measured, report.slices);
    assert_eq!((slack, report.returned, report.sites), (Bytes::ZERO, Bytes::ZERO, MANY));
    assert!(measured - start <= SAMPLE + 10 && end - measured <= MANY + 10);
}

#[test]
fn ranges_are_checked() {
    let mut mapped = Mapped::new(MmapMut::map_anon(5000).unwrap());
    assert_eq!(mapped.read(0..5000).map(<[u8]>::len), Some(5000));
    assert!(mapped.read(0..5001).is_none() && mapped.write(4999..5001).is_none());
    assert!(mapped.read(usize::MAX - 1..usize::MAX).is_none());
    #[allow(clippy::reversed_empty_ranges)]
    let reversed = 10..5;
    assert!(mapped.read(reversed.clone()).is_none() && mapped.write(reversed).is_none());
    // What is no whole page is nobody's to give back.
    let mut few = Mapped::new([1_u8; 100]).idle(Duration::ZERO);
    assert!(few.read(0..100).is_some());
    shrink_now(&mut few, &Policy::everything());
    assert_eq!(few.get(), &[1; 100]);
}
