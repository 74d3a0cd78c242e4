//! Memory mappings that a case makes, touches and advises: the lab's only raw memory access.
//!
//! Invariants: a [`Region`] owns its address range from `mmap` to `munmap`; every access is checked against
//! its length; contents are written with volatile stores of non-zero bytes, so that no page a case calls used
//! can be mistaken for an untouched one, and no store is optimised away.
#![allow(unsafe_code)]

use anyhow::{Context, Result, ensure};
use ebbtide_observe::Bytes;
use std::ffi::c_void;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::ptr;

/// The base page size that cases count in. x86_64 only has this one; on aarch64 with larger pages a "page"
/// of a case is a part of a real one, and its figures, being measured, still hold.
pub const PAGE: usize = 4096;

/// The huge page size that cases count in.
pub const HUGE: usize = 2 << 20;

/// A mapping, unmapped when dropped.
#[derive(Debug)]
pub struct Region {
    start: *mut u8,
    len: usize,
    writable: bool,
}

/// How to map: a subset of mmap(2)'s protections and flags.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Private, writable and charged: ordinary memory.
    Private,
    /// Private and writable, MAP_NORESERVE: not charged in overcommit mode 0.
    NoReserve,
    /// Private and PROT_NONE: a reservation.
    Reserved,
    /// Private and PROT_NONE, without MAP_NORESERVE: charged once it is made writable.
    Unused,
    /// Shared anonymous: shared with children, a file in the kernel's own tmpfs.
    Shared,
    /// Private, from the hugetlb pool.
    HugeTlb,
}

// SAFETY: a Region owns its range as a Vec owns its buffer; the address is valid in every thread.
unsafe impl Send for Region {}

impl Region {
    /// `mmap(NULL, len, ...)` of anonymous memory.
    pub fn anon(len: Bytes, kind: Kind) -> Result<Region> {
        Region::anon_at(ptr::null_mut(), len, kind)
    }

    /// `mmap` of anonymous memory that starts on a multiple of `align` (a power of two).
    pub fn anon_aligned(len: Bytes, align: usize, kind: Kind) -> Result<Region> {
        let probe = Region::anon(len + Bytes(align as u64), Kind::Reserved)?;
        let start = (probe.start as usize).next_multiple_of(align);
        drop(probe);
        Region::anon_at(start as *mut u8, len, kind)
    }

    /// `mmap` of anonymous memory, at `hint` if that is free; the kernel joins it with an equal neighbour.
    pub fn anon_at(hint: *mut u8, len: Bytes, kind: Kind) -> Result<Region> {
        let writable = libc::PROT_READ | libc::PROT_WRITE;
        let (prot, flags) = match kind {
            Kind::Private => (writable, libc::MAP_PRIVATE),
            Kind::NoReserve => (writable, libc::MAP_PRIVATE | libc::MAP_NORESERVE),
            Kind::Reserved => (libc::PROT_NONE, libc::MAP_PRIVATE | libc::MAP_NORESERVE),
            Kind::Unused => (libc::PROT_NONE, libc::MAP_PRIVATE),
            Kind::Shared => (writable, libc::MAP_SHARED),
            Kind::HugeTlb => (writable, libc::MAP_PRIVATE | libc::MAP_HUGETLB),
        };
        Region::map(hint, len, prot, flags | libc::MAP_ANONYMOUS, -1)
            .with_context(|| format!("mapping {len} ({kind:?})"))
    }

    /// `mmap` of `file` from its start, shared; writable if `write`.
    pub fn of_file(file: &File, len: Bytes, write: bool) -> Result<Region> {
        let prot = libc::PROT_READ | if write { libc::PROT_WRITE } else { 0 };
        Region::map(ptr::null_mut(), len, prot, libc::MAP_SHARED, file.as_raw_fd())
            .with_context(|| format!("mapping {len} of a file"))
    }

    /// `shmat(id)`: attaches a System V segment of `len`.
    pub fn of_sysv(id: i32, len: Bytes) -> Result<Region> {
        // SAFETY: a null address lets the kernel choose a free range, so no existing mapping is replaced.
        let start = unsafe { libc::shmat(id, ptr::null(), 0) };
        ensure!(start as isize != -1, "shmat: {}", io::Error::last_os_error());
        Ok(Region { start: start.cast(), len: len.0 as usize, writable: true })
    }

    fn map(hint: *mut u8, len: Bytes, prot: i32, flags: i32, fd: i32) -> io::Result<Region> {
        let len = usize::try_from(len.0).map_err(io::Error::other)?;
        // SAFETY: without MAP_FIXED a hint never replaces an existing mapping.
        let start = unsafe { libc::mmap(hint.cast(), len, prot, flags, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Region { start: start.cast(), len, writable: prot & libc::PROT_WRITE != 0 })
    }

    /// Its length.
    pub fn len(&self) -> Bytes {
        Bytes(self.len as u64)
    }

    /// Whether it has no bytes; mmap makes none such.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Its whole range of offsets.
    pub fn all(&self) -> Range<usize> {
        0..self.len
    }

    /// The address just behind it: a hint for a neighbour.
    pub fn end(&self) -> *mut u8 {
        self.start.wrapping_add(self.len)
    }

    /// Its first address.
    pub fn start(&self) -> *mut u8 {
        self.start
    }

    /// Writes one byte at `offset`.
    pub fn write(&mut self, offset: usize, value: u8) {
        assert!(self.writable && offset < self.len);
        // SAFETY: inside the owned, writable range.
        unsafe { ptr::write_volatile(self.start.add(offset), value) }
    }

    /// Reads one byte at `offset`: maps the page.
    pub fn read(&self, offset: usize) -> u8 {
        assert!(offset < self.len);
        // SAFETY: inside the owned range. A PROT_NONE region faults, and no case reads one.
        unsafe { ptr::read_volatile(self.start.add(offset)) }
    }

    /// Writes one byte in every `step` bytes of `range`.
    pub fn write_every(&mut self, step: usize, range: Range<usize>) {
        range.step_by(step).for_each(|at| self.write(at, (at / step % 255 + 1) as u8));
    }

    /// Reads one byte in every `step` bytes of `range`.
    pub fn read_every(&self, step: usize, range: Range<usize>) -> u64 {
        range.step_by(step).map(|at| u64::from(self.read(at))).sum()
    }

    /// Writes every byte of `range` with incompressible contents (xorshift64*), in words.
    pub fn scramble(&mut self, range: Range<usize>, seed: u64) {
        assert!(self.writable && range.end <= self.len && range.start.is_multiple_of(8));
        let mut x = seed | 1;
        for at in range.step_by(8).filter(|at| at + 8 <= self.len) {
            x ^= x >> 12;
            x ^= x << 25;
            x ^= x >> 27;
            // SAFETY: at + 8 is inside the owned, writable range; mmap's start and the step keep it aligned.
            unsafe { ptr::write_volatile(self.start.add(at).cast(), x.wrapping_mul(0x2545_f491_4f6c_dd1d)) }
        }
    }

    /// A copy of its contents.
    pub fn copy(&self) -> Vec<u8> {
        self.all().map(|at| self.read(at)).collect()
    }

    /// `madvise(range, advice)`.
    pub fn advise(&mut self, range: Range<usize>, advice: i32) -> Result<()> {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: only the owned range; its contents are plain bytes, so losing them breaks no invariant.
        let done = unsafe { libc::madvise(self.start.add(range.start).cast(), range.len(), advice) };
        ensure!(done == 0, "madvise({advice}): {}", io::Error::last_os_error());
        Ok(())
    }

    /// `mprotect(range, PROT_NONE)`: splits the mapping. The range must not be touched again.
    pub fn forbid(&mut self, range: Range<usize>) -> Result<()> {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: only the owned range.
        let done =
            unsafe { libc::mprotect(self.start.add(range.start).cast(), range.len(), libc::PROT_NONE) };
        ensure!(done == 0, "mprotect: {}", io::Error::last_os_error());
        Ok(())
    }

    /// `mprotect(PROT_READ | PROT_WRITE)` of one half, then of the other: two requests for memory that end as
    /// one mapping.
    pub fn open_in_halves(&mut self) -> Result<()> {
        let half = self.len / 2 / HUGE * HUGE;
        for range in [0..half, half..self.len] {
            let writable = libc::PROT_READ | libc::PROT_WRITE;
            // SAFETY: only the owned range.
            let done = unsafe { libc::mprotect(self.start.add(range.start).cast(), range.len(), writable) };
            ensure!(done == 0, "mprotect: {}", io::Error::last_os_error());
        }
        self.writable = true;
        Ok(())
    }

    /// `mlock(range)`.
    pub fn lock(&mut self, range: Range<usize>) -> Result<()> {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: only the owned range.
        let done = unsafe { libc::mlock(self.start.add(range.start).cast(), range.len()) };
        ensure!(done == 0, "mlock: {}", io::Error::last_os_error());
        Ok(())
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range was mapped by this Region and nothing refers to it any more. For a System V
        // segment munmap detaches it as shmdt does (ipc/shm.c, shm_close).
        unsafe { libc::munmap(self.start.cast::<c_void>(), self.len) };
    }
}
