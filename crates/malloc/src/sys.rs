//! The operating system as small functions: raw system calls, no libc, no `errno`.
//!
//! Everything on the malloc path that leaves the process goes through here. The functions never touch `errno`
//! (so `free` preserves it by construction) and never allocate. Numbers are those of the kernel's
//! `arch/x86/entry/syscalls/syscall_64.tbl` and `include/uapi/asm-generic/unistd.h`.

use core::sync::atomic::AtomicU32;

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
compile_error!("ebbtide-malloc knows Linux on x86_64 and aarch64 only");

/// An error number of the kernel, positive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

#[cfg(target_arch = "x86_64")]
mod number {
    pub(super) const READ: usize = 0;
    pub(super) const WRITE: usize = 1;
    pub(super) const CLOSE: usize = 3;
    pub(super) const MMAP: usize = 9;
    pub(super) const MUNMAP: usize = 11;
    pub(super) const SIGPROCMASK: usize = 14;
    pub(super) const MREMAP: usize = 25;
    pub(super) const MADVISE: usize = 28;
    pub(super) const GETPID: usize = 39;
    pub(super) const PRCTL: usize = 157;
    pub(super) const GETTID: usize = 186;
    pub(super) const TGKILL: usize = 234;
    pub(super) const FUTEX: usize = 202;
    pub(super) const CLOCK_GETTIME: usize = 228;
    pub(super) const OPENAT: usize = 257;
    pub(super) const NEWFSTATAT: usize = 262;
    pub(super) const GETRANDOM: usize = 318;
    pub(super) const MEMFD_CREATE: usize = 319;
    pub(super) const FSTAT: usize = 5;
    pub(super) const PWRITE: usize = 18;
    pub(super) const FCNTL: usize = 72;
    pub(super) const FTRUNCATE: usize = 77;
    pub(super) const PRLIMIT: usize = 302;
    pub(super) const MEMBARRIER: usize = 324;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub(super) const OPENAT: usize = 56;
    pub(super) const CLOSE: usize = 57;
    pub(super) const READ: usize = 63;
    pub(super) const NEWFSTATAT: usize = 79;
    pub(super) const WRITE: usize = 64;
    pub(super) const FUTEX: usize = 98;
    pub(super) const CLOCK_GETTIME: usize = 113;
    pub(super) const TGKILL: usize = 131;
    pub(super) const SIGPROCMASK: usize = 135;
    pub(super) const PRCTL: usize = 167;
    pub(super) const GETPID: usize = 172;
    pub(super) const GETTID: usize = 178;
    pub(super) const MUNMAP: usize = 215;
    pub(super) const MREMAP: usize = 216;
    pub(super) const MMAP: usize = 222;
    pub(super) const MADVISE: usize = 233;
    pub(super) const GETRANDOM: usize = 278;
    pub(super) const MEMFD_CREATE: usize = 279;
    pub(super) const FCNTL: usize = 25;
    pub(super) const FSTAT: usize = 80;
    pub(super) const PWRITE: usize = 68;
    pub(super) const FTRUNCATE: usize = 46;
    pub(super) const PRLIMIT: usize = 261;
    pub(super) const MEMBARRIER: usize = 283;
}

/// Makes system call `n` with six arguments; what the kernel returned, or its error.
///
/// # Safety
/// The call must be safe with these arguments: whatever the kernel is told to unmap or overwrite must belong to
/// the caller, and pointers must be valid for what the call does with them.
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn syscall(n: usize, a: [usize; 6]) -> Result<usize, Errno> {
    let ret: isize;
    // SAFETY: the caller vouches for the call; the kernel clobbers rcx and r11 only.
    unsafe {
        core::arch::asm!(
            "syscall",
            inlateout("rax") n as isize => ret,
            in("rdi") a[0], in("rsi") a[1], in("rdx") a[2], in("r10") a[3], in("r8") a[4], in("r9") a[5],
            lateout("rcx") _, lateout("r11") _,
            options(nostack)
        );
    }
    decode(ret)
}

/// As on x86_64.
///
/// # Safety
/// As on x86_64.
#[cfg(target_arch = "aarch64")]
#[inline]
unsafe fn syscall(n: usize, a: [usize; 6]) -> Result<usize, Errno> {
    let ret: isize;
    // SAFETY: the caller vouches for the call; the kernel keeps every register but x0.
    unsafe {
        core::arch::asm!(
            "svc 0",
            in("x8") n,
            inlateout("x0") a[0] as isize => ret,
            in("x1") a[1], in("x2") a[2], in("x3") a[3], in("x4") a[4], in("x5") a[5],
            options(nostack)
        );
    }
    decode(ret)
}

#[inline]
fn decode(ret: isize) -> Result<usize, Errno> {
    if (-4095..0).contains(&ret) { Err(Errno(-ret as i32)) } else { Ok(ret as usize) }
}

const PROT_NONE: usize = 0;
const PROT_READ_WRITE: usize = 3;
const MAP_SHARED: usize = 1;
const MAP_PRIVATE: usize = 2;
const MAP_FIXED: usize = 0x10;
const MAP_PRIVATE_ANONYMOUS: usize = 0x22;
const MAP_NORESERVE: usize = 0x4000;
const MAP_FIXED_NOREPLACE: usize = 0x10_0000;
const MREMAP_MAYMOVE_FIXED: usize = 3;
const MADV_DONTNEED: usize = 4;
const MADV_REMOVE: usize = 9;
const MADV_DONTFORK: usize = 10;
const MADV_NOHUGEPAGE: usize = 15;
const FUTEX_WAIT_PRIVATE: usize = 128;
const FUTEX_WAKE_PRIVATE: usize = 129;
const MEMBARRIER_PRIVATE_EXPEDITED: usize = 8;
const MEMBARRIER_REGISTER_PRIVATE_EXPEDITED: usize = 16;
const PR_SET_VMA: usize = 0x5356_4d41;
const AT_FDCWD: usize = -100_isize as usize;
const O_RDONLY_CLOEXEC: usize = 0o2_000_000;
const CLOCK_MONOTONIC: usize = 1;
const SIGABRT: usize = 6;

/// What a new mapping is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// Readable and writable, charged to the commit limit as the kernel's overcommit mode says.
    Data,
    /// Side tables: as data, but never charged in advance (`MAP_NORESERVE`; mode 2 charges all the same).
    Table,
    /// Address space only.
    Place,
}

/// `mmap(addr, len)`: maps exactly there, or not at all (`MAP_FIXED_NOREPLACE`; kernels before 4.17 take the
/// address as a hint, so the answer is compared). `EEXIST` if something is mapped there already.
pub(crate) fn map_at(addr: usize, len: usize, purpose: Use) -> Result<(), Errno> {
    let (prot, flags) = match purpose {
        Use::Data => (PROT_READ_WRITE, 0),
        Use::Table => (PROT_READ_WRITE, MAP_NORESERVE),
        Use::Place => (PROT_NONE, MAP_NORESERVE),
    };
    let flags = MAP_PRIVATE_ANONYMOUS | MAP_FIXED_NOREPLACE | flags;
    // SAFETY: without MAP_FIXED a mapping never replaces another.
    let got = unsafe { syscall(number::MMAP, [addr, len, prot, flags, usize::MAX, 0]) }?;
    if got == addr {
        return Ok(());
    }
    // SAFETY: the kernel has just made this mapping for us; nobody else knows it.
    let _ = unsafe { unmap(got, len) };
    Err(Errno(17))
}

/// `mmap(NULL, len)`: memory wherever the kernel likes; its address.
pub(crate) fn map_anywhere(len: usize) -> Result<usize, Errno> {
    let flags = MAP_PRIVATE_ANONYMOUS | MAP_NORESERVE;
    // SAFETY: a mapping at a place of the kernel's choosing touches no other.
    unsafe { syscall(number::MMAP, [0, len, PROT_READ_WRITE, flags, usize::MAX, 0]) }
}

/// `mmap(addr, len, MAP_FIXED)`: zeros in place of what was there, charged as [`Use::Data`].
///
/// # Safety
/// The range must be the allocator's own and hold nothing.
pub(crate) unsafe fn map_over(addr: usize, len: usize) -> Result<(), Errno> {
    let flags = MAP_PRIVATE_ANONYMOUS | MAP_FIXED;
    // SAFETY: the caller's.
    unsafe { syscall(number::MMAP, [addr, len, PROT_READ_WRITE, flags, usize::MAX, 0]) }.map(drop)
}

/// Whose what is written to a mapped file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sharing {
    /// Everybody's who maps it.
    Shared,
    /// The writer's: the page is copied.
    Private,
}

/// `mmap(addr, len, MAP_FIXED, fd, off)`: a file's contents in place of what was there.
///
/// # Safety
/// The range must be the allocator's own, and what is used of it must read the same in the file.
pub(crate) unsafe fn map_file_over(
    addr: usize,
    len: usize,
    fd: i32,
    off: usize,
    sharing: Sharing,
) -> Result<(), Errno> {
    let flags = MAP_FIXED | if sharing == Sharing::Shared { MAP_SHARED } else { MAP_PRIVATE };
    // SAFETY: the caller's.
    unsafe { syscall(number::MMAP, [addr, len, PROT_READ_WRITE, flags, fd as usize, off]) }.map(drop)
}

/// `madvise(addr, len, MADV_DONTFORK)`: forked children do not get the pages.
pub(crate) fn not_for_children(addr: usize, len: usize) {
    // SAFETY: the advice changes no contents here.
    let _ = unsafe { syscall(number::MADVISE, [addr, len, MADV_DONTFORK, 0, 0, 0]) };
}

/// `madvise(addr, len, MADV_REMOVE)`: punches what a shared mapping shows out of its file.
///
/// # Safety
/// Nobody may use that part of the file any more.
pub(crate) unsafe fn punch(addr: usize, len: usize) {
    // SAFETY: the caller's. An error leaves the file as it is, which is no harm.
    let _ = unsafe { syscall(number::MADVISE, [addr, len, MADV_REMOVE, 0, 0, 0]) };
}

/// `fstat(fd)`: device and inode, which tell whether a descriptor is still of the same file.
pub(crate) fn identity(fd: i32) -> Result<(u64, u64), Errno> {
    let mut stat = [0_u64; 18];
    // SAFETY: the kernel writes one struct stat, 144 or 128 bytes, which begins with these two on both architectures.
    unsafe { syscall(number::FSTAT, [fd as usize, stat.as_mut_ptr() as usize, 0, 0, 0, 0]) }?;
    Ok((stat[0], stat[1]))
}

/// `pwrite(fd, bytes, off)`: all of them, or an error.
pub(crate) fn write_at(fd: i32, bytes: &[u8], off: usize) -> Result<(), Errno> {
    // SAFETY: the kernel reads `bytes`, alive for the call.
    let wrote =
        unsafe { syscall(number::PWRITE, [fd as usize, bytes.as_ptr() as usize, bytes.len(), off, 0, 0]) }?;
    if wrote == bytes.len() { Ok(()) } else { Err(Errno(28)) }
}

/// `memfd_create(name)` (Linux 3.17): a file in memory, closed on exec. It never becomes executable, as
/// `vm.memfd_noexec` may demand (6.3); older kernels do not know that flag.
pub(crate) fn memory_file(name: &'static core::ffi::CStr) -> Result<i32, Errno> {
    const MFD_CLOEXEC: usize = 1;
    const MFD_NOEXEC_SEAL: usize = 8;
    const F_DUPFD_CLOEXEC: usize = 1030;
    const FIRST_FD: usize = 200;
    let make = |flags| {
        // SAFETY: the name is NUL-terminated and lives for ever.
        unsafe { syscall(number::MEMFD_CREATE, [name.as_ptr() as usize, flags, 0, 0, 0, 0]) }
    };
    let fd = make(MFD_CLOEXEC | MFD_NOEXEC_SEAL).or_else(|_| make(MFD_CLOEXEC))?;
    // A program may count on the lowest numbers.
    // SAFETY: takes no pointers.
    match unsafe { syscall(number::FCNTL, [fd, F_DUPFD_CLOEXEC, FIRST_FD, 0, 0, 0]) } {
        Ok(high) => {
            close(fd as i32);
            Ok(high as i32)
        }
        Err(_) => Ok(fd as i32),
    }
}

/// `ftruncate(fd, len)`.
pub(crate) fn set_length(fd: i32, len: usize) -> Result<(), Errno> {
    // SAFETY: takes no pointers.
    unsafe { syscall(number::FTRUNCATE, [fd as usize, len, 0, 0, 0, 0]) }.map(drop)
}

/// `close(fd)`.
pub(crate) fn close(fd: i32) {
    // SAFETY: takes no pointers; the caller's own descriptor.
    let _ = unsafe { syscall(number::CLOSE, [fd as usize, 0, 0, 0, 0, 0]) };
}

/// `prlimit(RLIMIT_FSIZE)`: bytes a file may have; 0 if that cannot be learnt.
pub(crate) fn file_size_limit() -> u64 {
    const RLIMIT_FSIZE: usize = 1;
    let mut limit = [0_u64; 2];
    let at = limit.as_mut_ptr() as usize;
    // SAFETY: the kernel writes one rlimit64, which is two words.
    let done = unsafe { syscall(number::PRLIMIT, [0, RLIMIT_FSIZE, 0, at, 0, 0]) };
    if done.is_ok() { limit[0] } else { 0 }
}

/// `/proc/sys/vm/max_map_count`: mappings that a process may have; the kernel's default if that cannot be learnt.
pub(crate) fn max_map_count() -> u32 {
    const DEFAULT: u32 = 65530;
    let mut text = [0; 16];
    let len = read_file(c"/proc/sys/vm/max_map_count", &mut text).unwrap_or(0);
    let digits = text.iter().take(len).take_while(|byte| byte.is_ascii_digit());
    let count = digits.fold(0_u32, |n, d| n.saturating_mul(10).saturating_add(u32::from(d - b'0')));
    if count == 0 { DEFAULT } else { count }
}

/// Whether `/proc/sys/vm/overcommit_memory` is 2. Then a page that is mapped privately in place of another may be
/// refused after that one was unmapped (mm/mmap.c, mmap_region, as of Linux 6.1): a hole is left.
pub(crate) fn overcommit_is_strict() -> bool {
    let mut mode = [0];
    read_file(c"/proc/sys/vm/overcommit_memory", &mut mode).is_some() && mode == *b"2"
}

/// `munmap(addr, len)`.
///
/// # Safety
/// The range must be the allocator's own, and nothing may refer to it any more.
pub(crate) unsafe fn unmap(addr: usize, len: usize) -> Result<(), Errno> {
    // SAFETY: the caller's.
    unsafe { syscall(number::MUNMAP, [addr, len, 0, 0, 0, 0]) }.map(drop)
}

/// `mremap(addr, old, new)`: grows or shrinks where it is.
///
/// # Safety
/// The range must be a mapping of the allocator's own; nothing may refer to a part that is cut off.
pub(crate) unsafe fn remap_in_place(addr: usize, old: usize, new: usize) -> Result<(), Errno> {
    // SAFETY: the caller's; without MREMAP_MAYMOVE the mapping stays.
    unsafe { syscall(number::MREMAP, [addr, old, new, 0, 0, 0]) }.map(drop)
}

/// `mremap(addr, old, new, MREMAP_FIXED, to)`: moves the pages, not the bytes.
///
/// # Safety
/// Both ranges must be the allocator's own; what is mapped at the destination is replaced.
pub(crate) unsafe fn remap_to(addr: usize, old: usize, new: usize, to: usize) -> Result<(), Errno> {
    // SAFETY: the caller's.
    unsafe { syscall(number::MREMAP, [addr, old, new, MREMAP_MAYMOVE_FIXED, to, 0]) }.map(drop)
}

/// `madvise(addr, len, MADV_DONTNEED)`: gives the pages back; they read as zeros from now on.
///
/// # Safety
/// The pages must be the allocator's own and hold nothing.
pub(crate) unsafe fn give_back(addr: usize, len: usize) -> Result<(), Errno> {
    // SAFETY: the caller's.
    unsafe { syscall(number::MADVISE, [addr, len, MADV_DONTNEED, 0, 0, 0]) }.map(drop)
}

/// `madvise(addr, len, MADV_NOHUGEPAGE)`: no huge pages, which would keep what single pages give back.
pub(crate) fn no_huge_pages(addr: usize, len: usize) {
    // SAFETY: the advice changes no contents. An error (a kernel without huge pages) changes nothing.
    let _ = unsafe { syscall(number::MADVISE, [addr, len, MADV_NOHUGEPAGE, 0, 0, 0]) };
}

/// `prctl(PR_SET_VMA_ANON_NAME)`: names a mapping in /proc/PID/maps (Linux 5.17, `CONFIG_ANON_VMA_NAME`); where
/// the kernel cannot, nothing happens.
pub(crate) fn name_mapping(addr: usize, len: usize, name: &'static core::ffi::CStr) {
    // SAFETY: only a label is set; the name is NUL-terminated and lives forever.
    let _ = unsafe { syscall(number::PRCTL, [PR_SET_VMA, 0, addr, len, name.as_ptr() as usize, 0]) };
}

/// `prctl(PR_SET_NAME)`: names the running thread, for ps and /proc.
pub(crate) fn name_thread(name: &'static core::ffi::CStr) {
    const PR_SET_NAME: usize = 15;
    // SAFETY: the kernel copies up to 16 bytes of a string that lives forever.
    let _ = unsafe { syscall(number::PRCTL, [PR_SET_NAME, name.as_ptr() as usize, 0, 0, 0, 0]) };
}

/// `futex(FUTEX_WAIT)`: sleeps while the word has this value, at most `millis` milliseconds if given. May
/// return early.
pub(crate) fn futex_wait(word: &AtomicU32, value: u32, millis: Option<u64>) {
    let timeout = millis.map(|ms| [(ms / 1000) as i64, (ms % 1000 * 1_000_000) as i64]);
    let timeout = timeout.as_ref().map_or(0, |t| t.as_ptr() as usize);
    let word = core::ptr::from_ref(word) as usize;
    // SAFETY: the kernel reads the word and the timeout, both alive for the call.
    let _ = unsafe { syscall(number::FUTEX, [word, FUTEX_WAIT_PRIVATE, value as usize, timeout, 0, 0]) };
}

/// `futex(FUTEX_WAKE)`: wakes up to `count` sleepers.
pub(crate) fn futex_wake(word: &AtomicU32, count: u32) {
    let word = core::ptr::from_ref(word) as usize;
    // SAFETY: the word is used as a key only.
    let _ = unsafe { syscall(number::FUTEX, [word, FUTEX_WAKE_PRIVATE, count as usize, 0, 0, 0]) };
}

/// `membarrier(REGISTER_PRIVATE_EXPEDITED)` (Linux 4.14): whether [`barrier_everywhere`] will work.
pub(crate) fn register_barrier() -> bool {
    // SAFETY: takes no pointers.
    unsafe { syscall(number::MEMBARRIER, [MEMBARRIER_REGISTER_PRIVATE_EXPEDITED, 0, 0, 0, 0, 0]) }.is_ok()
}

/// `membarrier(PRIVATE_EXPEDITED)`: every thread of the process has passed a full barrier when this returns true.
pub(crate) fn barrier_everywhere() -> bool {
    // SAFETY: takes no pointers.
    unsafe { syscall(number::MEMBARRIER, [MEMBARRIER_PRIVATE_EXPEDITED, 0, 0, 0, 0, 0]) }.is_ok()
}

/// `rt_sigprocmask(SIG_SETMASK, all)`: blocks every signal of the running thread; what was blocked before.
pub(crate) fn block_signals() -> u64 {
    set_signals(u64::MAX)
}

/// `rt_sigprocmask(SIG_SETMASK, mask)`: undoes [`block_signals`].
pub(crate) fn restore_signals(mask: u64) {
    set_signals(mask);
}

fn set_signals(mask: u64) -> u64 {
    const SIG_SETMASK: usize = 2;
    let mut old = 0_u64;
    let (new, out) = (core::ptr::from_ref(&mask) as usize, core::ptr::from_mut(&mut old) as usize);
    // SAFETY: the kernel reads and writes one 64-bit mask each.
    let _ = unsafe { syscall(number::SIGPROCMASK, [SIG_SETMASK, new, out, 8, 0, 0]) };
    old
}

/// `newfstatat("/proc/self/task")`: how many threads the process has, by the directory's links; `None` without /proc.
pub(crate) fn threads() -> Option<u64> {
    // struct stat: the links are the third word on x86_64, its upper half on aarch64.
    let mut stat = [0_u64; 18];
    let (path, at) = (c"/proc/self/task".as_ptr() as usize, stat.as_mut_ptr() as usize);
    // SAFETY: the path is NUL-terminated; the kernel writes one struct stat, 144 or 128 bytes.
    unsafe { syscall(number::NEWFSTATAT, [AT_FDCWD, path, at, 0, 0, 0]) }.ok()?;
    let links = if cfg!(target_arch = "x86_64") { stat[2] } else { stat[2] >> 32 };
    links.checked_sub(2)
}

/// `getpid()`.
pub(crate) fn process_id() -> u32 {
    // SAFETY: takes no pointers.
    unsafe { syscall(number::GETPID, [0; 6]) }.unwrap_or(0) as u32
}

/// `gettid()`.
pub(crate) fn thread_id() -> u32 {
    // SAFETY: takes no pointers.
    unsafe { syscall(number::GETTID, [0; 6]) }.unwrap_or(0) as u32
}

/// `clock_gettime(CLOCK_MONOTONIC)` in milliseconds. A real system call (0.1 us): the vDSO would need libc.
pub(crate) fn now_ms() -> u64 {
    now_us() / 1000
}

/// As [`now_ms`], in microseconds.
pub(crate) fn now_us() -> u64 {
    let mut at = [0_i64; 2];
    // SAFETY: the kernel writes one timespec, which is two 64-bit words on both architectures.
    let _ =
        unsafe { syscall(number::CLOCK_GETTIME, [CLOCK_MONOTONIC, at.as_mut_ptr() as usize, 0, 0, 0, 0]) };
    at[0] as u64 * 1_000_000 + at[1] as u64 / 1000
}

/// `getrandom`: 64 random bits; before the kernel's pool is ready, or where the call is forbidden, bits of the
/// stack's address.
pub(crate) fn random() -> u64 {
    const GRND_NONBLOCK: usize = 1;
    let mut bits = 0_u64;
    let at = core::ptr::from_mut(&mut bits) as usize;
    // SAFETY: the kernel writes eight bytes into a variable of eight bytes.
    match unsafe { syscall(number::GETRANDOM, [at, 8, GRND_NONBLOCK, 0, 0, 0]) } {
        Ok(8) => bits,
        _ => (at as u64 >> 4).wrapping_mul(0x9e37_79b9_7f4a_7c15),
    }
}

/// `write(fd, bytes)`: as far as it goes; errors are nobody's to hear.
pub(crate) fn write(fd: i32, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        // SAFETY: the kernel reads `bytes`, alive for the call.
        match unsafe { syscall(number::WRITE, [fd as usize, bytes.as_ptr() as usize, bytes.len(), 0, 0, 0]) }
        {
            Ok(n) if n > 0 => bytes = bytes.get(n..).unwrap_or_default(),
            _ => return,
        }
    }
}

/// Opens a file, reads its beginning into `into`, closes it: how much there was, or `None`. The descriptor lives
/// for this call only, so a program that closes what it does not know loses nothing.
pub(crate) fn read_file(path: &core::ffi::CStr, into: &mut [u8]) -> Option<usize> {
    let path = path.as_ptr() as usize;
    // SAFETY: the path is NUL-terminated and alive for the call.
    let fd = unsafe { syscall(number::OPENAT, [AT_FDCWD, path, O_RDONLY_CLOEXEC, 0, 0, 0]) }.ok()?;
    // SAFETY: the kernel writes at most `into.len()` bytes there.
    let got = unsafe { syscall(number::READ, [fd, into.as_mut_ptr() as usize, into.len(), 0, 0, 0]) };
    close(fd as i32);
    got.ok()
}

/// Ends the process with SIGABRT, without unwinding and without allocating.
pub(crate) fn abort() -> ! {
    let (pid, tid) = (process_id() as usize, thread_id() as usize);
    loop {
        // SAFETY: a signal to this very thread. Should a handler return, the next turn traps.
        let _ = unsafe { syscall(number::TGKILL, [pid, tid, SIGABRT, 0, 0, 0]) };
        trap();
    }
}

fn trap() {
    // SAFETY: raises SIGILL or SIGTRAP: the last resort where SIGABRT is blocked or handled.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        core::arch::asm!("ud2", options(nomem, nostack));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        core::arch::asm!("brk #1", options(nomem, nostack));
    }
}
